"""The objective of BERT: masked language modeling and next-sentence prediction (Devlin et al. 2019, section 3.1)."""

import dataclasses
import math
import types

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.pairs import PairRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.baselines import masked_lm_baselines
from tfzoo.objectives.objective import GROUP, MAIN, MaskRateOption, Objective, PackOption
from tfzoo.options import option

tf = lazy.module("tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(MaskRateOption, PackOption):
    """The flags of masked language modeling."""

    whole_words: bool = option(False, "Mask all pieces of a word together.", group=GROUP)
    next_sentence: bool = option(
        True, "Also predict whether the second segment follows the first.", group=GROUP, decides_rows=True
    )


class MaskedLM(Objective):
    """Selects 15% of the tokens for prediction; of these, 80% become [MASK], 10% a random token, 10% are unchanged.

    In a row of n tokens, round(0.15 n) tokens are selected, at least 1; special tokens are neither selected nor used
    as random tokens. With whole_words, all pieces of a word are selected together (the "whole word masking" of the
    models released in 2019): words are visited in random order and selected if they still fit, so that a short row may
    end up without any.

    Worked example, with [CLS] 2, [SEP] 3, [MASK] 4, a rate of 0.5 and a seed that happens to select the first and the
    third token: first [10, 11], second [12, 13] become

        token_ids         [2, 4, 11, 3, 4, 13, 3]
        segment_ids       [0, 0, 0, 0, 1, 1, 1]
        masked_positions  [1, 4]
        masked_ids        [10, 12]

    padded to sequence_length and to the maximum number of selected tokens.

    With `pack`, several documents share a row, unless sentence pairs are requested. Each document has its own [CLS] and
    [SEP], and the rules above apply to each document instead of to the row.
    """

    name = "masked_lm"
    Options = Options
    best_metric = ("masked_lm_loss", "min")
    PACKED = types.MappingProxyType({"pack": True, "next_sentence": False})
    MODEL_KIND = ("encoder", "bert_small or roberta_base")
    FIGURES = (
        ("masked-token accuracy", "masked_lm_accuracy", "{:.2%}"),
        ("perplexity", "masked_lm_perplexity", "{:.1f}"),
        ("next-sentence accuracy", "next_sentence_accuracy", "{:.2%}"),
    )

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the tokenizer lacks a required special token, or does not mark the pieces that continue a word,
            as whole_words requires.
        """
        super().__init__(tokenizer, sequence_length, **options)
        missing = [role for role in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{role}_id", None) is None]
        if missing:
            raise UserError(
                f"{type(tokenizer).__name__}: masked language modelling requires a tokenizer with cls, sep, mask and "
                f"pad tokens, but this one has no token for {', '.join(missing)}; use a WordPiece tokenizer"
            )
        continues = getattr(tokenizer, "continues", None)
        if self.options.whole_words and continues is None:
            raise UserError(
                f"--whole_words: {type(tokenizer).__name__} does not mark the pieces that continue a word; omit it, "
                "or use a WordPiece tokenizer"
            )
        self._rate, self._whole_words = self.options.mask_rate, self.options.whole_words
        self._next_sentence = self.options.next_sentence
        self._pack = self.options.pack and not self._next_sentence
        self._predictions = max(1, math.ceil(self._rate * self.row_tokens))
        words = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
        self._ordinary_ids = tf.constant(words, tf.int32)
        self._continues = continues

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the model must have."""
        return ("lm", "next_sentence") if self._next_sentence else ("lm",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides; segment_ids only for models with segments."""
        packed = ("document_ids", "position_ids") if self._pack else ()
        return ("token_ids", "segment_ids", "padding_mask", "masked_positions", *packed)

    @property
    def row_tokens(self) -> int:
        """The number of text tokens that fit into a row next to [CLS] and two [SEP], or one [SEP] with packing."""
        return self._length - (2 if self._pack else 3)

    def rows(self, corpus: TokenizedCorpus) -> PairRows | PackedRows:
        """Returns the rows from which `prepare` takes its examples."""
        if not self._pack:
            return PairRows(corpus, self.row_tokens, pairs=self._next_sentence)

        def drawn(sizes):  # The maximum number; computed in float32, as in the graph.
            return np.clip(np.round(np.float32(self._rate) * sizes.astype(np.float32)), 1, self._predictions)

        return PackedRows(corpus, self._length, extra=2, also=[(self._predictions, drawn)])

    def prepare(self, example):
        """Converts one example of PairRows or, with packing, PackedRows to features with static shapes (L is
        sequence_length, P the maximum number of predictions).

        Returns:
          token_ids, segment_ids int32 [L], padding_mask bool [L], masked_positions, masked_ids int32 [P],
          masked_weights float32 [P]; with packing also document_ids, position_ids int32 [L], otherwise next_sentence
          int32 [], next_sentence_weight float32 [].
        """
        if self._pack:
            cls, sep = self._tokenizer.cls_id, self._tokenizer.sep_id
            token_ids, document_ids = shared.frame(example["token_ids"], example["document_ids"], cls, sep)
            return self._masked(token_ids, tf.zeros_like(token_ids), document_ids, example["seed"]) | {
                "document_ids": shared.pad(document_ids, self._length, 0),
                "position_ids": shared.pad(shared.positions_in(document_ids), self._length, 0),
            }
        first, second = example["first"], example["second"]
        cls, sep = [self._tokenizer.cls_id], [self._tokenizer.sep_id]
        # A row that is not split has one segment and one [SEP].
        ending = tf.concat([second, sep], 0) if self._next_sentence else second[:0]
        ending = ending[: tf.where(tf.size(second) > 0, tf.size(ending), 0)]
        token_ids = tf.concat([cls, first, sep, ending], 0)
        segment_ids = tf.concat([tf.zeros_like(token_ids[: tf.size(first) + 2]), tf.ones_like(ending)], 0)
        has_pair = tf.logical_and(example["next_sentence"] >= 0, self._next_sentence)
        return self._masked(token_ids, segment_ids, tf.ones_like(token_ids), example["seed"]) | {
            "next_sentence": tf.maximum(example["next_sentence"], 0),
            "next_sentence_weight": tf.cast(has_pair, tf.float32),
        }

    def _masked(self, token_ids, segment_ids, document_ids, seed):
        """Returns the features of a row; each document in it is masked separately."""
        tokenizer = self._tokenizer
        positions = self._draw(token_ids, document_ids, seed)
        drawn_ids = tf.gather(token_ids, positions)
        kind, word = tf.unstack(
            tf.random.stateless_uniform([2, self._predictions], shared.fold(seed, 1))[:, : tf.size(positions)]
        )
        random_ids = tf.gather(
            self._ordinary_ids, tf.cast(word * tf.cast(tf.size(self._ordinary_ids), tf.float32), tf.int32)
        )
        shown_ids = tf.where(kind < 0.8, tokenizer.mask_id, tf.where(kind < 0.9, random_ids, drawn_ids))
        token_ids = tf.tensor_scatter_nd_update(token_ids, positions[:, None], shown_ids)
        return {
            "token_ids": shared.pad(token_ids, self._length, tokenizer.pad_id),
            "segment_ids": shared.pad(segment_ids, self._length, 0),
            "padding_mask": tf.range(self._length) < tf.size(token_ids),
            "masked_positions": shared.pad(positions, self._predictions, 0),
            "masked_ids": shared.pad(drawn_ids, self._predictions, 0),
            "masked_weights": shared.pad(tf.ones_like(positions, tf.float32), self._predictions, 0.0),
        }

    def _draw(self, token_ids, document_ids, seed):
        """Selects the positions to predict, in ascending order: int32 [n], n at most self._predictions."""
        special = tf.reduce_any(token_ids[:, None] == self._tokenizer.special_ids, 1)
        candidates = tf.cast(tf.where(~special)[:, 0], tf.int32)
        documents = tf.gather(document_ids, candidates)
        counts = shared.document_sizes(documents)
        wanted = tf.cast(tf.round(self._rate * tf.cast(counts, tf.float32)), tf.int32)
        wanted = tf.minimum(tf.clip_by_value(wanted, 1, self._predictions), counts)
        scores = tf.random.stateless_uniform([tf.size(candidates)], shared.fold(seed, 0))
        if not self._whole_words:
            return tf.boolean_mask(candidates, shared.draw(scores, documents, wanted))
        # A continuation piece shares the score of the previous piece; a special token ends a word.
        begins = ~tf.gather(tf.constant(self._continues), tf.gather(token_ids, candidates))
        begins |= tf.concat([[True], candidates[1:] != candidates[:-1] + 1], 0)[: tf.size(candidates)]
        word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        pieces = tf.math.bincount(word, minlength=0)
        owners, scores = tf.boolean_mask(documents, begins), tf.boolean_mask(scores, begins)
        by_score = shared.order_by_score(scores, owners)

        def take(state, index):
            taken, _, document = state
            taken = tf.where(owners[index] == document, taken, 0)
            fits = taken + pieces[index] <= wanted[owners[index] - 1]
            return tf.where(fits, taken + pieces[index], taken), fits, owners[index]

        _, chosen, _ = tf.scan(take, by_score, (tf.constant(0), tf.constant(False), tf.constant(0)))
        chosen = tf.scatter_nd(by_score[:, None], tf.cast(chosen, tf.int32), [tf.size(pieces)]) > 0
        return tf.boolean_mask(candidates, tf.gather(chosen, word))

    def check_model(self, name, page):
        super().check_model(name, page)
        if set(self.heads) - set(page.Model.HEADS):
            raise UserError(f"--model={name}: has no next-sentence head; add --nonext_sentence")

    def reads_what_it_needs(self, model_class):
        return "masked_positions" in model_class.INPUTS

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): the cross-entropy in nats of the predicted tokens, plus that of the sentence pair for
        each of them.

        With n predicted tokens in every row, the quotient is the mean masked-LM loss plus the mean next-sentence loss
        of Devlin et al. Weighting a row's pair by its number of predicted tokens gives both losses the same weight,
        which makes sums over replicas and microbatches exact.
        """
        outputs = shared.forward(models[MAIN], batch, training)
        weights = batch["masked_weights"]
        words, _ = shared.cross_entropy(outputs["logits"], batch["masked_ids"])
        loss = tf.reduce_sum(words * weights)
        if self._next_sentence:
            pair, _ = shared.cross_entropy(outputs["next_sentence_logits"], batch["next_sentence"])
            loss += tf.reduce_sum(pair * batch["next_sentence_weight"] * tf.reduce_sum(weights, 1))
        return loss, tf.reduce_sum(weights)

    def metrics(self, models, batch):
        """Returns masked_lm_loss, masked_lm_accuracy, next_sentence_loss, next_sentence_accuracy as (sum, weight)."""
        outputs = shared.forward(models[MAIN], batch, training=False)
        words, word_hits = shared.cross_entropy(outputs["logits"], batch["masked_ids"])
        weights = batch["masked_weights"]
        result = {
            "masked_lm_loss": (tf.reduce_sum(words * weights), tf.reduce_sum(weights)),
            "masked_lm_accuracy": (tf.reduce_sum(word_hits * weights), tf.reduce_sum(weights)),
        }
        if self._next_sentence:
            pair_weights = batch["next_sentence_weight"]
            pair, pair_hits = shared.cross_entropy(outputs["next_sentence_logits"], batch["next_sentence"])
            result["next_sentence_loss"] = (tf.reduce_sum(pair * pair_weights), tf.reduce_sum(pair_weights))
            result["next_sentence_accuracy"] = (
                tf.reduce_sum(pair_hits * pair_weights),
                tf.reduce_sum(pair_weights),
            )
        return result

    def baselines(self, train_ids, batches) -> dict[str, dict[str, float]]:
        """Returns the figures of the frequency and bigram baselines: `masked_lm_baselines`."""
        return masked_lm_baselines(train_ids, batches, self._tokenizer)
