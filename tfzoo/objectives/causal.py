"""GPT's objective: each token from those before it (Radford et al. 2018, section 3.1)."""

import types

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.objectives import shared
from tfzoo.objectives.objective import PackOption

tf = lazy.module("tensorflow")

_END_OF_TEXT = "<|endoftext|>"


class Causal(shared.TokenTargets):
    """Predicts the next token of a document, and that it ends where the tokenizer has a token for the end of a text.

    A document's first token is predicted if the tokenizer has one for the beginning. A document longer than a row is
    cut into pieces that share one token, the last target of the one and the first input of the other: so all tokens
    are targets once, and every place in a row has its target. With `pack` several documents share a row, each of
    which sees itself alone.

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
    Options = PackOption
    best_metric = ("causal_loss", "min")
    PACKED = types.MappingProxyType({"pack": True})
    MODEL_KIND = ("decoder", "gpt2 or llama_tiny")
    FIGURES = (("next-token accuracy", "causal_accuracy", "{:.2%}"), ("perplexity", "causal_perplexity", "{:.2f}"))

    def __init__(self, tokenizer, sequence_length: int, **options):
        super().__init__(tokenizer, sequence_length, **options)
        # WordPiece has no such tokens.
        self._bos, self._eos = (getattr(tokenizer, name, None) for name in ("bos_id", "eos_id"))
        if self._eos is None and _END_OF_TEXT in tokenizer.vocab:
            self._eos = tokenizer.vocab.index(_END_OF_TEXT)
        pad = getattr(tokenizer, "pad_id", None)
        self._pad = 0 if pad is None else pad  # Any will do: no token sees what comes after it.

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's inputs that are fed."""
        return ("token_ids", "document_ids", "position_ids") if self.options.pack else ("token_ids",)

    @property
    def row_tokens(self) -> int:
        """How many tokens of one document fit in a row: its last is a target only."""
        return self._length + 1

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """What `prepare` takes its examples from: a document of n tokens takes n - 1 places."""
        return PackedRows(
            corpus, self._length, -1, first_id=self._bos, last_id=self._eos, overlap=1, pack=self.options.pack
        )

    def prepare(self, example):
        """One example of PackedRows -> features with static shapes (L sequence_length).

        token_ids, targets int32 [L], target_weights float32 [L]; packed, document_ids (0 is padding) and position_ids
        int32 [L] too.
        """
        tokens, documents = example["token_ids"], example["document_ids"]
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
