"""The objective of translation models: write the second text of a pair, given the first (Vaswani et al. 2017)."""

import dataclasses
from typing import Any

from absl import logging

from tfzoo import lazy
from tfzoo.data.parallel import ParallelRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.objective import LabelSmoothingOption, PackOption, TargetLengthOption
from tfzoo.text import framing

tf = lazy.module("tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PackOption, LabelSmoothingOption, TargetLengthOption):
    """The flags of sequence-to-sequence training."""


class Seq2Seq(shared.TokenTargets):
    """Predicts each token of a translation from the text and the previous tokens of the translation (teacher forcing).

    The corpus is parallel text: a text and its translation, a text and its summary, or any other pair. With `pack`,
    several pairs share a row as long as both sides fit; the tokens of a pair attend only to each other.

    Label smoothing (section 5.4; Szegedy et al. 2016, section 7): with smoothing 0.1 and a vocabulary of V tokens, the
    target distribution is 0.9 on the target plus 0.1 / V on every token, and the loss is the cross-entropy between
    this distribution and the model's. It applies to the training loss only. All metrics are measured without it.

    A tokenizer with cls and sep tokens frames the texts as BART does, <s> ... </s>, and the decoder starts with </s>;
    otherwise, texts end with the end-of-text token and the decoder starts with padding, as in T5 and Marian.

    Worked example, with padding 0 and </s> 1: the pairs [10, 11, 12] -> [20, 21] and [13] -> [22, 23], packed in a row,
    become

        token_ids             [10, 11, 12,  1, 13,  1]
        document_ids          [ 1,  1,  1,  1,  2,  2]
        position_ids          [ 0,  1,  2,  3,  0,  1]
        decoder_token_ids     [ 0, 20, 21,  0, 22, 23]
        targets               [20, 21,  1, 22, 23,  1]
        decoder_document_ids  [ 1,  1,  1,  2,  2,  2]
        decoder_position_ids  [ 0,  1,  2,  0,  1,  2]

    padded to sequence_length and target_length. Texts that are longer are cut at the end; their number is logged.
    """

    name = PREFIX = "seq2seq"
    Options = Options
    best_metric = ("seq2seq_loss", "min")
    MODEL_KIND = ("encoder_decoder", "transformer_base or t5_small")
    FIGURES = (("target-token accuracy", "seq2seq_accuracy", "{:.2%}"), ("perplexity", "seq2seq_perplexity", "{:.2f}"))

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the tokenizer lacks a required special token, or target_length exceeds sequence_length.
        """
        super().__init__(tokenizer, sequence_length, **options)
        self._start, self._begin, self._end = framing.encoder_decoder_ends(tokenizer)
        self._pad: Any = getattr(tokenizer, "pad_id", None)
        if missing := [role for role, i in {"pad": self._pad, "eos or sep": self._end}.items() if i is None]:
            raise UserError(
                f"{type(tokenizer).__name__}: seq2seq requires a tokenizer with pad and eos or sep tokens, but this "
                f"one has no token for {', '.join(missing)}; use a SentencePiece tokenizer"
            )
        self._target_length = self.options.target_length or sequence_length
        if self._target_length > sequence_length:
            raise UserError(f"--target_length={self._target_length}: exceeds --sequence_length={sequence_length}")
        smoothing = self.options.label_smoothing
        self.smoothing = 0.1 if smoothing is None else smoothing

    def check_model(self, name, page):
        super().check_model(name, page)
        if self._begin is not None and "cls" not in page.Model.LAYOUT[0]:
            raise UserError(
                f"--model={name}: its texts begin without a cls token, which {type(self._tokenizer).__name__} would "
                "add; use a SentencePiece tokenizer, or --model=bart_base"
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides."""
        packed = ("document_ids", "position_ids", "decoder_document_ids", "decoder_position_ids")
        return ("token_ids", "padding_mask", "decoder_token_ids", *(packed if self.options.pack else ()))

    @property
    def target_length(self) -> int:
        """The number of tokens per decoder row."""
        return self._target_length

    def rows(self, corpus: TokenizedCorpus) -> ParallelRows:
        """Returns the rows from which `prepare` takes its examples.

        Raises:
          UserError: the corpus is not parallel text.
        """
        extra = 1 + (self._begin is not None)
        rows = ParallelRows(
            corpus,
            self._length,
            self._target_length,
            first_extra=extra,
            second_extra=extra,
            pack=self.options.pack,
        )
        if rows.num_cut:
            logging.warning(
                "%d of %d texts are longer than a row and were cut at the end; increase --sequence_length to keep them",
                rows.num_cut,
                rows.num_texts,
            )
        return rows

    def measured(self, batch):
        """Returns the weights of the targets in metrics and baselines: all but <s>, with which every text begins."""
        weights = batch["target_weights"]
        return weights if self._begin is None else weights * tf.cast(batch["targets"] != self._begin, tf.float32)

    def prepare(self, example):
        """Converts one example of ParallelRows to features with static shapes (L is sequence_length, T target_length).

        Returns:
          token_ids int32 [L], padding_mask bool [L], decoder_token_ids, targets int32 [T], target_weights float32 [T];
          with `pack` also document_ids, position_ids int32 [L], decoder_document_ids, decoder_position_ids int32 [T].
        """
        inputs, documents = shared.frame(example["first"], example["first_documents"], self._begin, self._end)
        targets, target_documents = shared.frame(example["second"], example["second_documents"], self._begin, self._end)
        lengths = self._length, self._target_length
        return shared.encoder_decoder_features(
            inputs, documents, targets, target_documents, lengths, self._pad, self.options.pack, self._start
        )
