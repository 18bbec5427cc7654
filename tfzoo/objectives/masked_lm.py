"""The objective of BERT: masked language modeling and next-sentence prediction (Devlin et al. 2019, section 3.1).

The options select its descendants:

- --mask_unit=word: whole-word masking (the BERT models released in May 2019); with --chinese_words also for Chinese, by
  the words of jieba (BERT-wwm; Cui et al. 2019, section 2.1).
- --mask_unit=ngram: 1 to 4 consecutive words with probabilities of 40, 30, 20 and 10% (MacBERT; Cui et al. 2020,
  section 3.1); --ngram_weights=6,3,2 are those of ALBERT, proportional to 1/n (Lan et al. 2020, section 4.1).
- --mask_unit=span: spans of SpanBERT (Joshi et al. 2020, section 3.1), without its span-boundary objective.
- --mask_patterns=10: static masks, ten for each text, as in BERT's data; 0 is RoBERTa's dynamic masking (Liu et al.
  2019, section 4.1).
- --mask_rate and --final_mask_rate: another rate than 15% (Wettig et al. 2023), or one that changes linearly during the
  training (Ankner et al. 2023).
- --pairs=sentence_order: ALBERT's sentence-order prediction (Lan et al. 2020, section 3.1); translation: XLM's
  translation language modeling (Lample and Conneau 2019, section 3.3); none: only masked language modeling.
"""

import dataclasses
import math
import types

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.pairs import OrderRows, PairRows
from tfzoo.data.parallel import ParallelRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.data.words import with_words
from tfzoo.errors import UserError
from tfzoo.objectives import masking, shared
from tfzoo.objectives.baselines import masked_lm_baselines
from tfzoo.objectives.objective import GROUP, MAIN, MaskRateOption, Objective, PackOption
from tfzoo.options import option

tf = lazy.module("tensorflow")

MASK_UNITS = ("token", "word", "ngram", "span")
PREDICTED_PAIRS = ("next_sentence", "sentence_order")  # Pairs that have a label, which a head predicts.
PAIRS = ("none", *PREDICTED_PAIRS, "translation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(MaskRateOption, PackOption):
    """The flags of masked language modeling."""

    final_mask_rate: float | None = option(
        None,
        "Mask rate at the end of the training, which evaluations use; it changes linearly from --mask_rate. By "
        "default, it does not change.",
        group=GROUP,
        low=0.01,
        high=0.9,
        decides_rows=True,
    )
    mask_unit: str = option(
        "token",
        "Tokens that are masked together: single tokens; the pieces of a word; 1 to 4 consecutive words (see "
        "--ngram_weights); or spans of up to 10 words, which are all replaced in the same way (SpanBERT).",
        group=GROUP,
        choices=MASK_UNITS,
    )
    ngram_weights: str = option(
        "4,3,2,1",
        "--mask_unit=ngram: relative frequencies of 1, 2, ... words; the default is that of MacBERT, 6,3,2 is that of "
        "ALBERT.",
        group=GROUP,
    )
    chinese_words: bool = option(
        False,
        "The words of --mask_unit are also those of Chinese text, which jieba finds; otherwise, each Chinese character "
        "is a word.",
        group=GROUP,
        decides_rows=True,
    )
    mask_patterns: int = option(
        0,
        "Number of different masks of a row, which repeat after as many epochs (static masking; 10 in BERT's data); 0 "
        "masks a row differently in every epoch (dynamic masking).",
        group=GROUP,
        low=0,
    )
    pairs: str = option(
        "next_sentence",
        "Content of the two segments of a row: none has one segment; next_sentence: text, and in half of the rows "
        "text from elsewhere, which the model must detect; sentence_order: consecutive text, in half of the rows "
        "swapped, which the model must detect; translation: a sentence and its translation, from parallel text.",
        group=GROUP,
        choices=PAIRS,
        decides_rows=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _proportions(self.ngram_weights)
        weights = self.ngram_weights
        if self.mask_unit != "ngram" and weights != Options.ngram_weights:
            raise UserError(f"--ngram_weights={weights}: requires --mask_unit=ngram; add it, or omit the flag")


class MaskedLM(Objective):
    """Selects 15% of the tokens for prediction; of these, 80% become [MASK], 10% a random token, 10% are unchanged.

    In a row of n tokens, round(0.15 n) tokens are selected, at least 1; special tokens are neither selected nor used
    as random tokens.

    Worked example, with [CLS] 2, [SEP] 3, [MASK] 4, a rate of 0.5 and a seed that happens to select the first and the
    third token: first [10, 11], second [12, 13] become

        token_ids         [2, 4, 11, 3, 4, 13, 3]
        segment_ids       [0, 0, 0, 0, 1, 1, 1]
        masked_positions  [1, 4]
        masked_ids        [10, 12]

    padded to sequence_length and to the maximum number of selected tokens.

    With `pack`, several documents share a row, unless sentence pairs are requested. Each document has its own [CLS] and
    [SEP], and the rules above apply to each document instead of to the row.

    With other units than tokens, words are visited in random order, and each begins a unit if it is not yet selected,
    until the budget is spent (`masking.draw_units`). A unit that would exceed the budget has fewer words, and a word
    that exceeds the rest of the budget is passed over, so that a short row may end up without any selected token. Only
    the tokens of a span are all replaced in the same way: with [MASK], with random tokens, or with themselves.

    Example of words, table 1 of Cui et al. 2019, where "probability" has the pieces pro, ##babi, ##lity:

        text                     使 用 语 言 模 型 来 预 测 下 一 个 词 的 pro ##babi ##lity 。
        words                    使用 语言 模型 来 预测 下 一个 词 的 probability 。
        --mask_unit=token        使 用 语 言 [M] 型 来 [M] 测 下 一 个 词 的 pro [M] ##lity 。
        with --mask_unit=word    使 用 语 言 [M] [M] 来 [M] [M] 下 一 个 词 的 [M] [M] [M] 。

    Example of a span, figure 1 of Joshi et al. 2020: four words, all of which become [MASK]:

        Super Bowl 50 was [M] [M] [M] [M] to determine the champion

    Example of a translation, figure 1 of Lample and Conneau 2019. Words of both sentences are masked, and the positions
    restart, so that they are aligned. The segments take the place of the paper's language embeddings:

        tokens        [CLS] the [M] [M] blue [SEP] [M] rideaux étaient [M] [SEP]
        position_ids  0     1   2   3   4    5     1   2       3       4   5
        segment_ids   0     0   0   0   0    0     1   1       1       1   1
    """

    name = "masked_lm"
    Options = Options
    best_metric = ("masked_lm_loss", "min")
    PACKED = types.MappingProxyType({"pack": True, "pairs": "none"})
    MODEL_KIND = ("encoder", "bert_small or roberta_base")
    FIGURES = (
        ("masked-token accuracy", "masked_lm_accuracy", "{:.2%}"),
        ("perplexity", "masked_lm_perplexity", "{:.1f}"),
        ("next-sentence accuracy", "next_sentence_accuracy", "{:.2%}"),
        ("sentence-order accuracy", "sentence_order_accuracy", "{:.2%}"),
    )

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the tokenizer lacks a required special token, or does not mark the pieces that continue a word,
            as all units but tokens require.
        """
        super().__init__(tokenizer, sequence_length, **options)
        missing = [role for role in ("cls", "sep", "mask", "pad") if getattr(tokenizer, f"{role}_id", None) is None]
        if missing:
            raise UserError(
                f"{type(tokenizer).__name__}: masked language modelling requires a tokenizer with cls, sep, mask and "
                f"pad tokens, but this one has no token for {', '.join(missing)}; use a WordPiece tokenizer"
            )
        unit, self._continues = self.options.mask_unit, getattr(tokenizer, "continues", None)
        if unit != "token" and self._continues is None:
            raise UserError(
                f"--mask_unit={unit}: {type(tokenizer).__name__} does not mark the pieces that continue a word; use "
                "--mask_unit=token, or a WordPiece tokenizer"
            )
        ngrams = _proportions(self.options.ngram_weights)
        # The probabilities of units of 1, 2, ... words; None for single tokens.
        self._unit_words = {"word": np.ones(1), "ngram": ngrams, "span": masking.span_lengths()}.get(unit)
        self._rate = self.options.mask_rate
        self._final_rate = self.options.final_mask_rate or self._rate
        self._largest_rate = max(self._rate, self._final_rate)
        self._label = self.options.pairs if self.options.pairs in PREDICTED_PAIRS else None
        self._translation = self.options.pairs == "translation"
        self._pack = self.options.pack and not self._label
        self._predictions = max(1, math.ceil(self._largest_rate * self.row_tokens))
        if self._pack and self._translation:  # Many short pairs, each with at least one selected token, need more.
            sizes = np.arange(2, self._length)
            self._predictions = int(np.max(self._length * self._most_drawn(sizes) // (sizes + 3)))
        words = np.setdiff1d(np.arange(tokenizer.vocab_size), tokenizer.special_ids)
        self._ordinary_ids = tf.constant(words, tf.int32)

    @property
    def patterns(self) -> int:
        return self.options.mask_patterns

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the model must have. Models have one head for both kinds of labels of sentence pairs."""
        return ("lm", "next_sentence") if self._label else ("lm",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides; segment_ids only for models with segments."""
        packed = ("document_ids",) if self._pack else ()
        positions = ("position_ids",) if self._pack or self._translation else ()
        return ("token_ids", "segment_ids", "padding_mask", "masked_positions", *packed, *positions)

    @property
    def row_tokens(self) -> int:
        """The number of text tokens that fit into a row next to [CLS] and two [SEP], or one [SEP] for a packed
        document without a pair."""
        return self._length - (2 if self._pack and not self._translation else 3)

    def _most_drawn(self, sizes):
        """Returns the maximum number of tokens selected in documents of these sizes; in float32, as in the graph."""
        return np.maximum(np.round(np.float32(self._largest_rate) * sizes.astype(np.float32)), 1)

    def rows(self, corpus: TokenizedCorpus) -> PairRows | PackedRows | ParallelRows:
        """Returns the rows from which `prepare` takes its examples.

        Raises:
          UserError: jieba is required, but not installed; or the corpus is not parallel text, as translation requires.
        """
        if self.options.chinese_words:
            corpus = with_words(corpus, self._tokenizer)
        if self._translation:
            extra = dict(first_extra=2, second_extra=1)
            return ParallelRows(corpus, *[self._length] * 2, **extra, total_tokens=self._length, pack=self._pack)
        if self._label == "sentence_order":
            return OrderRows(corpus, self.row_tokens)
        if not self._pack:
            return PairRows(corpus, self.row_tokens, pairs=self._label is not None)

        def drawn(sizes):
            return np.minimum(self._most_drawn(sizes), self._predictions)

        return PackedRows(corpus, self._length, extra=2, also=[(self._predictions, drawn)])

    def prepare(self, example):
        """Converts one example of `rows` to features with static shapes (L is sequence_length, P the maximum number of
        selected tokens).

        Returns:
          token_ids, segment_ids int32 [L], padding_mask bool [L], masked_positions, masked_ids int32 [P],
          masked_weights float32 [P]; with packing also document_ids, position_ids int32 [L]; with translations also
          position_ids; with labeled pairs, named as --pairs, NAME int32 [], NAME_weight float32 [].
        """
        if self._translation:
            return self._prepare_translation(example)
        if self._pack:
            cls, sep = self._tokenizer.cls_id, self._tokenizer.sep_id
            token_ids, document_ids = shared.frame(example["token_ids"], example["document_ids"], cls, sep)
            positions = shared.positions_in(document_ids)
            return self._masked(token_ids, tf.zeros_like(token_ids), document_ids, example, positions)
        first, second = example["first"], example["second"]
        cls, sep = [self._tokenizer.cls_id], [self._tokenizer.sep_id]
        # A row that is not split has one segment and one [SEP].
        ending = tf.concat([second, sep], 0)[: tf.where(tf.size(second) > 0, tf.size(second) + 1, 0)]
        token_ids = tf.concat([cls, first, sep, ending], 0)
        segment_ids = tf.concat([tf.zeros_like(token_ids[: tf.size(first) + 2]), tf.ones_like(ending)], 0)
        features = self._masked(token_ids, segment_ids, tf.ones_like(token_ids), example)
        if self._label:
            features[self._label] = tf.maximum(example["label"], 0)
            features[f"{self._label}_weight"] = tf.cast(example["label"] >= 0, tf.float32)
        return features

    def _prepare_translation(self, example):
        """Returns the features of an example of ParallelRows; the words of both texts have positions from 1 on."""
        cls, sep = self._tokenizer.cls_id, self._tokenizer.sep_id
        first, first_documents = shared.frame(example["first"], example["first_documents"], cls, sep)
        second, second_documents = shared.frame(example["second"], example["second_documents"], None, sep)
        order = tf.argsort(tf.concat([first_documents, second_documents], 0), stable=True)

        def paired(of_first, of_second):  # Each text is followed by its translation.
            return tf.gather(tf.concat([of_first, of_second], 0), order)

        return self._masked(
            paired(first, second),
            paired(tf.zeros_like(first), tf.ones_like(second)),
            paired(first_documents, second_documents),
            example,
            paired(shared.positions_in(first_documents), 1 + shared.positions_in(second_documents)),
        )

    def _masked(self, token_ids, segment_ids, document_ids, example, position_ids=None):
        """Returns the features of a row; each document in it is masked separately."""
        tokenizer, seed = self._tokenizer, example["seed"]
        continues = None
        if self.options.chinese_words:  # As `with_words` marks them.
            continues = token_ids < 0
            token_ids = tf.where(continues, ~token_ids, token_ids)
        positions, unit = self._draw(token_ids, document_ids, continues, example)
        drawn_ids = tf.gather(token_ids, positions)
        kind, word = tf.unstack(
            tf.random.stateless_uniform([2, self._predictions], shared.fold(seed, 1))[:, : tf.size(positions)]
        )
        kind = tf.gather(kind, unit)
        random_ids = tf.gather(
            self._ordinary_ids, tf.cast(word * tf.cast(tf.size(self._ordinary_ids), tf.float32), tf.int32)
        )
        shown_ids = tf.where(kind < 0.8, tokenizer.mask_id, tf.where(kind < 0.9, random_ids, drawn_ids))
        token_ids = tf.tensor_scatter_nd_update(token_ids, positions[:, None], shown_ids)
        features = {
            "token_ids": shared.pad(token_ids, self._length, tokenizer.pad_id),
            "segment_ids": shared.pad(segment_ids, self._length, 0),
            "padding_mask": tf.range(self._length) < tf.size(token_ids),
            "masked_positions": shared.pad(positions, self._predictions, 0),
            "masked_ids": shared.pad(drawn_ids, self._predictions, 0),
            "masked_weights": shared.pad(tf.ones_like(positions, tf.float32), self._predictions, 0.0),
        }
        if position_ids is not None:
            features["position_ids"] = shared.pad(position_ids, self._length, 0)
        if self._pack:
            features["document_ids"] = shared.pad(document_ids, self._length, 0)
        return features

    def _draw(self, token_ids, document_ids, continues, example):
        """Selects the positions to predict, n of them, at most self._predictions.

        continues: bool [N], whether a token continues a word; None means as the tokenizer says.

        Returns:
          positions, ascending, and the number of the unit that is replaced as a whole, from 0: int32 [n] each.
        """
        special = tf.reduce_any(token_ids[:, None] == self._tokenizer.special_ids, 1)
        candidates = tf.cast(tf.where(~special)[:, 0], tf.int32)
        documents = tf.gather(document_ids, candidates)
        counts = shared.document_sizes(documents)
        rate = self._rate
        if self._final_rate != self._rate:
            progress = example["progress"]
            rate = self._rate * (1.0 - progress) + self._final_rate * progress  # Exact at both ends.
            rate = tf.minimum(rate, self._largest_rate)
        wanted = tf.cast(tf.round(rate * tf.cast(counts, tf.float32)), tf.int32)
        wanted = tf.minimum(tf.clip_by_value(wanted, 1, self._predictions), counts)
        if self._unit_words is None:
            positions = tf.boolean_mask(candidates, masking.draw_tokens(documents, wanted, example["seed"]))
            return positions, tf.range(tf.size(positions))
        if continues is None:
            continues = tf.gather(tf.constant(self._continues), token_ids)
        units = masking.draw_units(
            candidates, documents, tf.gather(continues, candidates), wanted, self._unit_words, example["seed"]
        )
        positions, units = tf.boolean_mask(candidates, units > 0), tf.boolean_mask(units, units > 0)
        if self.options.mask_unit != "span":
            return positions, tf.range(tf.size(positions))
        changes = tf.concat([[0], tf.cast(units[1:] != units[:-1], tf.int32)], 0)[: tf.size(units)]
        return positions, tf.cumsum(changes)

    def check_model(self, name, page):
        super().check_model(name, page)
        # Options allow this, because tfzoo.corpus packs rows with words whatever is masked later.
        if self.options.chinese_words and self._unit_words is None:
            raise UserError("--chinese_words: single tokens are masked; add --mask_unit=word, or omit the flag")
        if set(self.heads) - set(page.Model.HEADS):
            raise UserError(f"--model={name}: has no next-sentence head; add --pairs=none")

    def reads_what_it_needs(self, model_class):
        return "masked_positions" in model_class.INPUTS

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): the cross-entropy in nats of the predicted tokens, plus that of the pair's label
        for each of them.

        With n predicted tokens in every row, the quotient is the mean masked-LM loss plus the mean next-sentence loss
        of Devlin et al. Weighting a row's pair by its number of predicted tokens gives both losses the same weight,
        which makes sums over replicas and microbatches exact.
        """
        outputs = shared.forward(models[MAIN], batch, training)
        weights = batch["masked_weights"]
        words, _ = shared.cross_entropy(outputs["logits"], batch["masked_ids"])
        loss = tf.reduce_sum(words * weights)
        if self._label:
            pair, _ = shared.cross_entropy(outputs["next_sentence_logits"], batch[self._label])
            loss += tf.reduce_sum(pair * batch[f"{self._label}_weight"] * tf.reduce_sum(weights, 1))
        return loss, tf.reduce_sum(weights)

    def metrics(self, models, batch):
        """Returns masked_lm_loss, masked_lm_accuracy and, with labeled pairs, those of the pairs, such as
        next_sentence_loss and next_sentence_accuracy, as (sum, weight)."""
        outputs = shared.forward(models[MAIN], batch, training=False)
        words, word_hits = shared.cross_entropy(outputs["logits"], batch["masked_ids"])
        weights = batch["masked_weights"]
        result = {
            "masked_lm_loss": (tf.reduce_sum(words * weights), tf.reduce_sum(weights)),
            "masked_lm_accuracy": (tf.reduce_sum(word_hits * weights), tf.reduce_sum(weights)),
        }
        if self._label:
            weights = batch[f"{self._label}_weight"]
            pair, pair_hits = shared.cross_entropy(outputs["next_sentence_logits"], batch[self._label])
            result[f"{self._label}_loss"] = (tf.reduce_sum(pair * weights), tf.reduce_sum(weights))
            result[f"{self._label}_accuracy"] = (tf.reduce_sum(pair_hits * weights), tf.reduce_sum(weights))
        return result

    def baselines(self, train_ids, batches) -> dict[str, dict[str, float]]:
        """Returns the figures of the frequency and bigram baselines: `masked_lm_baselines`."""
        return masked_lm_baselines(train_ids, batches, self._tokenizer)


def _proportions(weights: str) -> np.ndarray:
    """Returns the probabilities of 1, 2, ... words that --ngram_weights states, float64 [n]; raises UserError."""
    try:
        values = np.array([float(weight) for weight in weights.split(",")])
    except ValueError:
        values = np.zeros(0)
    if not len(values) or not np.all(np.isfinite(values)) or np.any(values < 0) or not values.sum():
        raise UserError(f"--ngram_weights={weights}: must be numbers separated by commas, such as 4,3,2,1")
    return values / values.sum()
