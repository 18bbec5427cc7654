"""Prefix language modeling: predict the second part of a document from the first (Liu et al. 2018, "Generating
Wikipedia by Summarizing Long Sequences"; Raffel et al. 2020, sections 3.2.1 and 3.3.1)."""

from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.causal import Causal
from tfzoo.objectives.objective import PackOption
from tfzoo.text import framing

tf = lazy.module("tensorflow")


class PrefixLM(shared.TokenTargets):
    """Cuts each document at a random position: the encoder reads the first part, the decoder predicts the rest.

    The cut of a document of n tokens is uniformly distributed over the n - 1 positions between two tokens, as in the t5
    library. A single token is predicted from an empty prefix. Both parts end with </s>. The decoder inputs are the
    targets shifted by one position, starting with the padding id. With cls and sep tokens in the vocabulary instead of
    sentinels, both parts are framed as in BART: <s> part </s>. With `pack`, several documents share a row, and each is
    cut separately. Either part may be almost the whole document. Therefore the encoder row and the decoder row both
    have sequence_length positions, about half of which are padding.

    Worked example, table 3 of Raffel et al., with the words numbered from 10 on and </s> 1. "Thank you for inviting me
    to your party last week .", cut after four words,

        token_ids  [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]

    becomes "Thank you for inviting" and "me to your party last week .":

        token_ids          [10, 11, 12, 13, 1]
        targets            [14, 15, 16, 17, 18, 19, 20, 1]
        decoder_token_ids  [0, 14, 15, 16, 17, 18, 19, 20]

    padded to sequence_length. For decoders, the features are those of `DecoderPrefixLM`.
    """

    name = PREFIX = "prefix_lm"
    Options = PackOption
    best_metric = ("prefix_lm_loss", "min")
    MODEL_KIND = ("encoder_decoder", "t5_small or bart_base, or a causal decoder, such as gpt2 or llama_tiny")
    FIGURES = (
        ("next-token accuracy", "prefix_lm_accuracy", "{:.2%}"),
        ("perplexity", "prefix_lm_perplexity", "{:.2f}"),
    )

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the tokenizer has no </s> or padding token.
        """
        super().__init__(tokenizer, sequence_length, **options)
        self._start, self._begin, self._end = framing.encoder_decoder_ends(tokenizer)
        self._pad: Any = getattr(tokenizer, "pad_id", None)
        if self._end is None or self._pad is None:
            raise UserError(
                f"{type(tokenizer).__name__}: prefix_lm requires, for an encoder-decoder, a tokenizer with end-of-text "
                "and padding tokens; use a SentencePiece tokenizer of kind t5"
            )
        self._num_begins = int(self._begin is not None)  # Of each part.

    @classmethod
    def form_for(cls, page):
        from tfzoo import nn

        return DecoderPrefixLM if issubclass(page.Model, nn.DecoderModel) else cls

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides."""
        packed = ("document_ids", "position_ids", "decoder_document_ids", "decoder_position_ids")
        return ("token_ids", "padding_mask", "decoder_token_ids", *(packed if self.options.pack else ()))

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """Returns the rows from which `prepare` takes its examples: wherever its documents are cut, both parts fit."""

        def extra(sizes):  # A part has at most n - 1 tokens and </s>. A single token is a part by itself.
            return np.maximum(sizes, 2) - sizes + self._num_begins

        def filled(sizes):  # On average, a part has half of the tokens.
            return (sizes + 2) / 2 + self._num_begins

        longest = self._length - self._num_begins
        return PackedRows(corpus, self._length, extra, longest=longest, pack=self.options.pack, filled=filled)

    def prepare(self, example):
        """Converts one example of PackedRows to features with static shapes (L is sequence_length).

        Returns:
          token_ids, decoder_token_ids, targets int32 [L], padding_mask bool [L], target_weights float32 [L]; with
          `pack` also document_ids, position_ids, decoder_document_ids, decoder_position_ids int32 [L].
        """
        document_ids = example["document_ids"]
        return self.split(example["token_ids"], document_ids, draw_cuts(document_ids, example["seed"]))

    def split(self, token_ids, document_ids, cuts):
        """Returns the features of `prepare` for token_ids, document_ids int32 [N] and cuts int32 [D], the number of
        tokens in each document's prefix."""
        in_prefix = shared.positions_in(document_ids) < tf.gather(cuts, document_ids - 1)
        # </s> is added to both parts of each document, even if one is empty.
        tokens, documents = shared.frame(token_ids, document_ids, last_id=self._end)
        part, _ = shared.frame(tf.where(in_prefix, 0, 1), document_ids, last_id=2)
        inputs, input_documents = (tf.boolean_mask(x, part != 1) for x in (tokens, documents))
        targets, target_documents = (tf.boolean_mask(x, part != 0) for x in (tokens, documents))
        if self._begin is not None:
            inputs, input_documents = shared.frame(inputs, input_documents, first_id=self._begin)
            targets, target_documents = shared.frame(targets, target_documents, first_id=self._begin)
        return shared.encoder_decoder_features(
            inputs,
            input_documents,
            targets,
            target_documents,
            [self._length] * 2,
            self._pad,
            self.options.pack,
            self._start,
        )


class DecoderPrefixLM(Causal):
    """Prefix language modeling for decoders: causal language modeling in which the tokens of the prefix, inputs as all
    others, are not targets.

    The positions of the cuts have the same distribution as in `PrefixLM`; tokens that Causal adds count as tokens of
    the document. Attention remains causal within the prefix, as in Liu et al. 2018. In Raffel et al. (figure 3), the
    tokens of the prefix attend to each other in both directions. A model trained like that requires the same attention
    over the prompt in generation and in every export, which tfzoo's decoders do not support.

    Worked example, the row of Causal with the cuts after three and after two tokens:

        tokens        [1, 10, 11, 2, 1, 12, 2]
        documents     [1,  1,  1, 1, 2,  2, 2]

    become, padded to sequence_length,

        token_ids       [ 1, 10, 11,  1, 12]
        document_ids    [ 1,  1,  1,  2,  2]
        position_ids    [ 0,  1,  2,  0,  1]
        padding_mask    [ 1,  1,  1,  1,  1]
        targets         [10, 11,  2, 12,  2]
        target_weights  [ 0,  0,  1,  0,  1]
    """

    name = PREFIX = "prefix_lm"
    best_metric = PrefixLM.best_metric
    FIGURES = PrefixLM.FIGURES
    PACKED = None

    def prepare(self, example):
        """Converts one example of PackedRows to features with static shapes (L is sequence_length).

        Returns:
          token_ids, targets int32 [L], target_weights float32 [L], padding_mask bool [L]; with `pack` also document_ids
          (0 is padding) and position_ids int32 [L].
        """
        tokens, documents = example["token_ids"], example["document_ids"]
        return self.split(tokens, documents, draw_cuts(documents, example["seed"]))

    def split(self, tokens, documents, cuts):
        """Returns the features of `prepare` for tokens, documents int32 [N] and cuts int32 [D], the number of tokens in
        each document's prefix."""
        features = self.shift(tokens, documents)
        position = shared.positions_in(documents)
        predicted = tf.boolean_mask(position >= tf.gather(cuts, documents - 1), position > 0)
        return features | {
            "padding_mask": features["target_weights"] > 0,
            "target_weights": shared.pad(tf.cast(predicted, tf.float32), self._length, 0.0),
        }


def draw_cuts(document_ids, seed):
    """Returns the number of tokens in the prefix of each document: from 1 to one less than the document has, uniformly
    distributed, or 0 for a single token; int32 [D]."""
    places = shared.document_sizes(document_ids) - 1
    uniform = tf.random.stateless_uniform(tf.shape(places), shared.fold(seed, 0))
    return tf.minimum(1 + tf.cast(uniform * tf.cast(places, tf.float32), tf.int32), places)
