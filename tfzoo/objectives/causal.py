"""The objective of GPT: predict each token from the previous ones (Radford et al. 2018, section 3.1)."""

import types
from collections.abc import Mapping
from typing import Any, ClassVar

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.objectives import shared
from tfzoo.objectives.baselines import ngram_baseline
from tfzoo.objectives.objective import PackOption
from tfzoo.options import Checked

tf = lazy.module("tensorflow")

_END_OF_TEXT = "<|endoftext|>"


class Causal(shared.TokenTargets):
    """Predicts the next token of a document, including its end if the tokenizer has an end-of-text token.

    The first token of a document is predicted if the tokenizer has a beginning-of-text token. A document longer than a
    row is cut into pieces that overlap by one token, the last target of one piece and the first input of the next:
    thus every token is a target once, and every position in a row has a target. With `pack`, several documents share a
    row, and each attends only to itself.

    Worked example, with <s> 1 and </s> 2 around documents [10, 11] and [12], packed in a row:

        tokens        [1, 10, 11, 2, 1, 12, 2]
        documents        [1,  1,  1, 1, 2,  2, 2]

    become, padded to sequence_length,

        token_ids       [ 1, 10, 11,  1, 12]
        document_ids       [ 1,  1,  1,  2,  2]
        position_ids    [ 0,  1,  2,  0,  1]
        targets         [10, 11,  2, 12,  2]
        target_weights  [ 1,  1,  1,  1,  1]
    """

    name = PREFIX = "causal"
    Options: ClassVar[type[Checked]] = PackOption
    best_metric = ("causal_loss", "min")
    PACKED: ClassVar[Mapping[str, Any] | None] = types.MappingProxyType({"pack": True})
    MODEL_KIND = ("decoder", "gpt2 or llama_tiny")
    FIGURES = (("next-token accuracy", "causal_accuracy", "{:.2%}"), ("perplexity", "causal_perplexity", "{:.2f}"))

    def __init__(self, tokenizer, sequence_length: int, **options):
        super().__init__(tokenizer, sequence_length, **options)
        # WordPiece does not have these tokens.
        self._bos, self._eos = (getattr(tokenizer, name, None) for name in ("bos_id", "eos_id"))
        if self._eos is None and _END_OF_TEXT in tokenizer.vocab:
            self._eos = tokenizer.vocab.index(_END_OF_TEXT)
        pad = getattr(tokenizer, "pad_id", None)
        self._pad = 0 if pad is None else pad  # Any id works: no token attends to later ones.

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides."""
        return ("token_ids", "document_ids", "position_ids") if self.options.pack else ("token_ids",)

    @property
    def row_tokens(self) -> int:
        """The number of tokens of one document that fit into a row; the last one is only a target."""
        return self._length + 1

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """Returns the rows from which `prepare` takes its examples: a document of n tokens needs n - 1 positions."""
        return PackedRows(
            corpus, self._length, -1, first_id=self._bos, last_id=self._eos, overlap=1, pack=self.options.pack
        )

    def prepare(self, example):
        """Converts one example of PackedRows to features with static shapes (L is sequence_length).

        Returns:
          token_ids, targets int32 [L], target_weights float32 [L]; with `pack` also document_ids (0 is padding) and
          position_ids int32 [L].
        """
        return self.shift(example["token_ids"], example["document_ids"])

    def shift(self, tokens, documents):
        """Returns the features of `prepare` for tokens, documents int32 [N]: each token's target is the next one."""
        followed = documents[:-1] == documents[1:]
        token_ids, targets = tf.boolean_mask(tokens[:-1], followed), tf.boolean_mask(tokens[1:], followed)
        document_ids = tf.boolean_mask(documents[:-1], followed)
        features = {
            "token_ids": shared.pad(token_ids, self._length, self._pad),
            "targets": shared.pad(targets, self._length, 0),
            "target_weights": shared.pad(tf.ones_like(targets, tf.float32), self._length, 0.0),
        }
        if self.options.pack:
            features["document_ids"] = shared.pad(document_ids, self._length, 0)
            features["position_ids"] = shared.pad(shared.positions_in(document_ids), self._length, 0)
        return features

    def row_baselines(self, rows, batches):
        """Returns the figures of a Kneser-Ney model: `ngram_baseline`."""
        return ngram_baseline(rows, self.row_tokens, batches, self._tokenizer, self.PREFIX)

    def outputs(self, model, batch, training):
        """Returns the outputs of the model; in a model with hashes, padding would be sorted among the tokens."""
        from tfzoo import nn

        if not self.options.pack and not isinstance(model, nn.DecoderModel):
            batch = batch | {"padding_mask": batch["target_weights"] > 0}
        return super().outputs(model, batch, training)
