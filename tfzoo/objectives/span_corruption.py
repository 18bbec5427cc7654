"""The objective of T5: spans of text are removed and must be predicted (Raffel et al. 2020, section 3.1.4)."""

import dataclasses
import types
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.objective import MaskRateOption, MeanSpanOption, PackOption
from tfzoo.options import Checked

tf = lazy.module("tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(MaskRateOption, MeanSpanOption, PackOption):
    """The flags of span corruption."""


class SpanCorruption(shared.TokenTargets):
    """Replaces spans, 15% of the tokens with a mean length of 3, with sentinels; the targets are sentinels and spans.

    In a document of n tokens, round(0.15 n) tokens are noise, at least 1 and at most n - 1, in round(noise / 3) spans,
    at least 1. The noise tokens and the other tokens are each divided into that many segments, uniformly at random; the
    segments alternate, and the last one is noise. (A single token is never noise.) Counts and random selection are
    those of `random_spans_noise_mask` in the t5 library. Inputs and targets end with </s>. In a packed row, each
    document is corrupted separately, and its sentinels are numbered from the first one. The decoder inputs are the
    targets shifted by one position, starting with the padding id.

    Worked example, figure 2 of the paper, with the words numbered from 10 on, sentinels 99, 98, 97 and </s> 1.
    "Thank you for inviting me to your party last week", with "for inviting" and "last" removed,

        token_ids  [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
        noise      [ 0,  0,  1,  1,  0,  0,  0,  0,  1,  0]

    becomes "Thank you <X> me to your party <Y> week" and "<X> for inviting <Y> last <Z>":

        token_ids          [10, 11, 99, 14, 15, 16, 17, 98, 19, 1]
        targets            [99, 12, 13, 98, 18, 97, 1]
        decoder_token_ids  [0, 99, 12, 13, 98, 18, 97]

    padded to sequence_length and target_length.
    """

    name, PREFIX = "span_corruption", "span"
    Options: ClassVar[type[Checked]] = Options
    best_metric = ("span_loss", "min")
    PACKED = types.MappingProxyType({"pack": True})
    MODEL_KIND = ("encoder_decoder", "t5_small or bart_base")
    # Only the tokens of the spans count. The other targets, sentinels and </s>, a third of all, are easy to predict.
    FIGURES = (("span-token accuracy", "span_accuracy", "{:.2%}"), ("perplexity", "span_perplexity", "{:.2f}"))

    def __init__(self, tokenizer, sequence_length: int, *, target_length: int | None = None, **options):
        """Creates the objective.

        Args:
          tokenizer: the tokenizer of the run.
          sequence_length: tokens per row.
          target_length: tokens per decoder row; None means the length that a document that fills a row requires. Many
            short documents in one row require more.
          **options: fields of `Options`.

        Raises:
          UserError: the tokenizer has no sentinels, too few for such rows, or no </s> or padding token.
        """
        super().__init__(tokenizer, sequence_length, **options)
        sentinels = list(getattr(tokenizer, "sentinel_ids", []))
        eos, pad_id = (getattr(tokenizer, name, None) for name in ("eos_id", "pad_id"))
        if not sentinels or eos is None or pad_id is None:
            raise UserError(
                f"{type(tokenizer).__name__}: {self.name} requires a tokenizer with sentinel, padding and "
                "end-of-text tokens; use a SentencePiece tokenizer of kind t5"
            )
        self._eos, self._pad = eos, pad_id
        modes, sentinels = self.reserve_modes(sentinels)
        denoisers = self.denoisers
        rates, means = (np.array(values)[:, None] for values in zip(*denoisers, strict=True))
        # The number of noise tokens and spans of a document of n tokens, for every n up to one that does not fit.
        # Two tokens are the minimum with noise; a single token is treated as two, and the second is removed later.
        sizes = np.maximum(np.arange(int(sequence_length / (1 - rates.max())) + 2 * sequence_length + 2), 2)
        noise = np.clip(np.round(sizes * rates).astype(np.int64), 1, sizes - 1)
        spans = np.clip(np.round(noise / means).astype(np.int64), 1, np.minimum(noise, sizes - noise))
        lengths = np.stack([sizes - noise + spans + 1, noise + spans + 1])
        lengths[..., :2] = [1, 2]  # A single token: the token itself, and one sentinel.
        lengths[0] += bool(modes)
        input_lengths, target_lengths = lengths.max(1)  # They suffice for any of the denoisers.
        fits = input_lengths <= sequence_length
        if target_length is not None:
            fits &= target_lengths <= target_length
        self._row_tokens = int(np.argmin(fits)) - 1
        if self._row_tokens < 1:
            raise UserError(
                f"sequence_length {sequence_length}, target_length {target_length}: too short for a single token; "
                "increase them"
            )
        self._target_length = int(target_lengths[self._row_tokens]) if target_length is None else target_length
        self._noise, self._spans = (tf.constant(x[:, : self._row_tokens + 1], tf.int32) for x in (noise, spans))
        self._input_lengths, self._target_lengths = input_lengths, target_lengths
        self._mean_input_lengths = lengths[0].mean(0)
        most = spans[:, self._row_tokens].max()
        if most > len(sentinels):
            longer = " or longer spans" if len(denoisers) == 1 else ""
            raise UserError(
                f"sequence_length {sequence_length}: rows contain up to {most} spans, more than the tokenizer's "
                f"{len(sentinels)} sentinels; use shorter rows{longer}"
            )
        self._sentinels, self._modes = tf.constant(sentinels, tf.int32), tf.constant(modes, tf.int32)
        self._is_text = tf.constant(
            np.isin(np.arange(tokenizer.vocab_size), [*sentinels, eos], invert=True), tf.float32
        )

    @property
    def denoisers(self) -> Sequence[tuple[float, float]]:
        """(fraction of the tokens, mean length of a span) of each way to corrupt a document."""
        return [(self.options.mask_rate, self.options.mean_span)]

    def reserve_modes(self, sentinels: list[int]) -> tuple[list[int], list[int]]:
        """Returns the token that precedes the inputs of each denoiser, or none at all, and the sentinels for spans."""
        return [], sentinels

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides."""
        packed = ("document_ids", "position_ids", "decoder_document_ids", "decoder_position_ids")
        return ("token_ids", "padding_mask", "decoder_token_ids", *(packed if self.options.pack else ()))

    @property
    def row_tokens(self) -> int:
        """The number of tokens, before corruption, of a document that fills a row exactly."""
        return self._row_tokens

    @property
    def target_length(self) -> int:
        """The number of tokens per decoder row."""
        return self._target_length

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """Returns the rows from which `prepare` takes its examples: after corruption, the documents of a row fit into
        both sequence_length and target_length."""

        def growth(sizes):  # Sentinels and </s> minus noise.
            return self._input_lengths[sizes] - sizes

        also = [(self._target_length, lambda sizes: self._target_lengths[sizes])]
        return PackedRows(
            corpus,
            self._length,
            growth,
            longest=self._row_tokens,
            also=also,
            pack=self.options.pack,
            filled=lambda sizes: self._mean_input_lengths[sizes],
        )

    def measured(self, batch):
        """Returns the weights of the targets in metrics and baselines: only those of the spans' tokens."""
        return batch["target_weights"] * tf.gather(self._is_text, batch["targets"])

    def prepare(self, example):
        """Converts one example of PackedRows to features with static shapes (L is sequence_length, T target_length).

        Returns:
          token_ids int32 [L], padding_mask bool [L], decoder_token_ids, targets int32 [T], target_weights float32 [T];
          with `pack` also document_ids, position_ids int32 [L], decoder_document_ids, decoder_position_ids int32 [T].
        """
        token_ids, document_ids = example["token_ids"], example["document_ids"]
        return self.corrupt(token_ids, document_ids, self.draw(document_ids, example["seed"]))

    def draw(self, document_ids, seed, denoisers=None):
        """Selects the noise tokens of D documents: document_ids int32 [N], denoisers int32 [D] -> bool [N].

        denoisers: the number of each document's denoiser; None means the first one.
        """
        sizes = shared.document_sizes(document_ids)
        cases = tf.stack([tf.zeros_like(sizes) if denoisers is None else denoisers, sizes], 1)
        noise, spans = tf.gather_nd(self._noise, cases), tf.gather_nd(self._spans, cases)
        drawn = tf.maximum(sizes, 2)
        runs = [_random_parts(counts, spans, shared.fold(seed, i)) for i, counts in enumerate((drawn - noise, noise))]
        is_noise = tf.repeat(tf.tile([False, True], [tf.size(runs[0])]), tf.reshape(tf.stack(runs, 1), [-1]))
        # Removes the second position of documents with a single token, which exists only for the random selection.
        drawn_documents = tf.repeat(tf.range(1, tf.size(sizes) + 1), drawn)
        return tf.boolean_mask(is_noise, shared.positions_in(drawn_documents) < tf.gather(sizes, drawn_documents - 1))

    def corrupt(self, token_ids, document_ids, noise, modes=None):
        """Returns the features of `prepare` for token_ids, document_ids int32 [N] and noise bool [N]; no document may
        start with noise. modes: int32 [D], the token that precedes the inputs of each document, or None."""
        noise = tf.cast(noise, tf.int32)
        # The </s> that is added to each document is kept in inputs and targets: it is neither noise nor other text.
        tokens, documents = shared.frame(token_ids, document_ids, last_id=self._eos)
        noise, _ = shared.frame(noise, document_ids, last_id=-1)
        inputs, input_documents = self._replace(tokens, documents, noise == 1)
        targets, target_documents = self._replace(tokens, documents, noise == 0)
        if modes is not None:
            inputs, input_documents = shared.frame(inputs, input_documents, first_id=self._pad)
            begins = shared.positions_in(input_documents) == 0
            inputs = tf.where(begins, tf.gather(modes, input_documents - 1), inputs)
        lengths = self._length, self._target_length
        return shared.encoder_decoder_features(
            inputs, input_documents, targets, target_documents, lengths, self._pad, self.options.pack
        )

    def _replace(self, tokens, documents, replaced):
        """Replaces each run of `replaced` with one sentinel, numbered within its document, in tokens and documents."""
        continues = tf.concat([[False], (documents[1:] == documents[:-1]) & replaced[:-1]], 0)[: tf.size(documents)]
        begins = tf.cast(replaced & ~continues, tf.int32)
        runs = tf.math.segment_sum(begins, documents)[1:]  # Per document; there is no document 0.
        number = tf.cumsum(begins) - 1 - tf.gather(tf.cumsum(runs, exclusive=True), documents - 1)
        tokens = tf.where(begins > 0, tf.gather(self._sentinels, tf.maximum(number, 0)), tokens)
        kept = ~(replaced & continues)
        return tf.boolean_mask(tokens, kept), tf.boolean_mask(documents, kept)


def _random_parts(counts, parts, seed):
    """Divides counts[d] items into parts[d] nonempty parts, uniformly: int32 [D] each -> sizes, int32 [sum(parts)]."""
    documents = tf.repeat(tf.range(1, tf.size(counts) + 1), counts)
    # The first item begins a part; the beginnings of the other parts are selected at random.
    first = shared.positions_in(documents) == 0
    scores = tf.where(first, -0.5, tf.random.stateless_uniform([tf.size(documents)], seed))
    begins = shared.draw(scores, documents, parts)
    return tf.math.bincount(tf.cumsum(tf.cast(begins, tf.int32)) - 1)
