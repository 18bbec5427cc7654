"""Batches: rows in the specified order, bitwise equal from whatever step they are read."""

import numpy as np
import tensorflow as tf

from tests.data.corpora import corpus, random_corpus
from tests.objectives import examples
from tfzoo.data import order, pipeline
from tfzoo.data.packing import PackedRows
from tfzoo.data.pairs import PairRows
from tfzoo.objectives.causal import Causal
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.objectives.span_corruption import SpanCorruption
from tfzoo.text.wordpiece import WordPiece


class Plain:
    """An objective that returns its input."""

    def prepare(self, example):
        def pad(x):
            return tf.ensure_shape(tf.pad(x, [[0, 40 - tf.size(x)]], constant_values=-1), [40])

        return example | {"first": pad(example["first"]), "second": pad(example["second"])}


class PipelineTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.rows = PairRows(random_corpus(20, longest=4), 30)

    def training(self, first_step=0, num_steps=12, seed=3, batch_size=4):
        batches = pipeline.training_batches(
            self.rows, Plain(), batch_size=batch_size, seed=seed, first_step=first_step, num_steps=num_steps
        )
        return list(batches.as_numpy_iterator())

    def test_from_any_step_on_the_same_bits(self):
        whole = self.training()
        self.assertLen(whole, 12)
        for first in (0, 1, 7, 11, 12):
            rest = self.training(first)
            self.assertLen(rest, 12 - first)
            for one, two in zip(rest, whole[first:], strict=True):
                for name in one:
                    self.assertEqual(one[name].tobytes(), two[name].tobytes(), name)
        longer = self.training(num_steps=20)[:12]
        self.assertAllEqual([b["seed"] for b in longer], [b["seed"] for b in whole])

    def test_the_batch_size_changes_nothing_but_the_grouping(self):
        small, large = self.training(num_steps=24, batch_size=2), self.training(num_steps=4, batch_size=12)
        for name in small[0]:
            one, two = (np.concatenate([batch[name] for batch in batches]) for batches in (small, large))
            self.assertAllEqual(one, two)

    def test_rows_follow_the_order_and_every_epoch_draws_anew(self):
        count = len(self.rows)
        batches = self.training(num_steps=2 * count, batch_size=1)
        seeds = []
        for position, batch in enumerate(batches):
            epoch, index = order.epoch_and_index(position, count, 3)
            first, *_ = self.rows.row(int(index), np.zeros(4))
            # The first token of a row is its index in the corpus.
            self.assertEqual(batch["first"][0, 0], first[0])
            self.assertEqual(int(epoch), position // count)
            seeds.append(tuple(batch["seed"][0]))
        self.assertLen(set(seeds), 2 * count)
        by_row = {}
        for batch in batches:
            by_row.setdefault(batch["first"][0, 0], []).append(batch["first"][0])
        self.assertTrue(any(not np.array_equal(*both) for both in by_row.values()))

    def test_seeds_differ(self):
        one, two = (np.concatenate([b["first"][:, 0] for b in self.training(seed=s)]) for s in (3, 4))
        self.assertNotAllEqual(one, two)

    def test_static_patterns_repeat(self):
        count = len(self.rows)
        positions = tf.data.Dataset.range(5 * count)
        seeds: dict[int, list] = {}
        examples = pipeline.examples(self.rows, positions, 3, patterns=2)
        for position, example in enumerate(examples.as_numpy_iterator()):
            _, index = order.epoch_and_index(position, count, 3)
            split = len(example["first"])  # The rows repeat too, not only the masks.
            seeds.setdefault(int(index), []).append((tuple(example["seed"]), split, int(example["label"])))
        self.assertLen(seeds, count)
        for values in seeds.values():
            self.assertEqual(values, [values[0], values[1]] * 2 + [values[0]])
            self.assertNotEqual(values[0][0], values[1][0])

    def test_progress_is_a_function_of_the_position(self):
        whole = np.concatenate([batch["progress"] for batch in self.training(num_steps=12)])
        self.assertEqual(whole.dtype, np.float32)
        self.assertAllClose(whole, np.arange(48) / 48)
        evaluated = pipeline.evaluation_batches(self.rows, Plain(), batch_size=4, seed=3, num_batches=3)
        for batch in evaluated.as_numpy_iterator():
            self.assertAllEqual(batch["progress"], np.ones(4))

    def test_evaluation_is_in_order_and_always_alike(self):
        def read(num_batches):
            batches = pipeline.evaluation_batches(self.rows, Plain(), batch_size=4, seed=3, num_batches=num_batches)
            return list(batches.as_numpy_iterator())

        three, again = read(3), read(3)
        self.assertLen(three, 3)
        for one, two in zip(three, again, strict=True):
            for name in one:
                self.assertAllEqual(one[name], two[name])
        firsts = np.concatenate([batch["first"][:, 0] for batch in three])
        self.assertAllEqual(firsts, [self.rows.row(i, np.zeros(4))[0][0] for i in range(12)])

    def test_all_rows_are_evaluated_and_none_twice(self):
        size = 7
        self.assertGreater(len(self.rows) % size, 0)
        batches = pipeline.evaluation_batches(self.rows, Plain(), batch_size=size, seed=3, num_batches=1000)
        whole = {name: shape.shape for name, shape in batches.element_spec.items()}
        for name, shape in whole.items():
            self.assertTrue(shape.is_fully_defined() and shape[0] == size, name)
        firsts = np.concatenate([batch["first"][:, 0] for batch in batches.as_numpy_iterator()])
        count = len(self.rows)
        self.assertAllEqual(firsts[:count], [self.rows.row(i, np.zeros(4))[0][0] for i in range(count)])
        self.assertAllEqual(firsts[count:], [0] * (-count % size))

    def test_an_empty_corpus_gives_no_evaluation_batches(self):
        rows = PairRows(corpus([]), 30)
        batches = pipeline.evaluation_batches(rows, Plain(), batch_size=4, seed=3, num_batches=2)
        self.assertEmpty(list(batches))


class PackedTest(tf.test.TestCase):
    """Another kind of rows, with other feature names and ranks."""

    def test_examples_are_what_the_rows_have(self):
        rows = PackedRows(random_corpus(20, longest=4), 60)
        examples = pipeline.examples(rows, tf.data.Dataset.range(len(rows)), 3, epoch=0)
        for i, example in enumerate(examples.as_numpy_iterator()):
            self.assertEqual(sorted(example), ["document_ids", "progress", "seed", "token_ids"])
            for found, expected in zip((example["token_ids"], example["document_ids"]), rows.row(i), strict=True):
                self.assertAllEqual(found, expected)
        self.assertEqual(examples.element_spec["token_ids"].shape.rank, 1)
        seeds = {tuple(example["seed"]) for example in examples.as_numpy_iterator()}
        self.assertLen(seeds, len(rows))


class PlacesTest(tf.test.TestCase):
    """Returns the fraction of padding of a batch, from its ids and documents: no text here contains the padding id."""

    def batches(self, objective, first_step=0):
        places: dict[int, tuple[int, int]] = {}
        text = examples.word_corpus(40, 30)
        batches = pipeline.training_batches(
            objective.rows(text), objective, batch_size=4, seed=3, first_step=first_step, num_steps=8, places=places
        )
        for step, batch in enumerate(batches.as_numpy_iterator(), first_step):
            self.assertIn(step, places)
            yield step, batch, places.pop(step)

    def test_counts(self):
        spans, words = examples.span_tokenizer(), WordPiece(examples.VOCAB)
        for objective, names in (
            (Causal(examples.word_tokenizer(), 24), ["document_ids"]),
            (SpanCorruption(spans, 24), ["document_ids", "decoder_document_ids"]),
            (MaskedLM(words, 24, pairs="none", pack=True), ["document_ids"]),
            (MaskedLM(words, 24), ["token_ids"]),
            (SpanCorruption(spans, 24, pack=False), ["token_ids", "targets"]),
        ):
            with self.subTest(type(objective).__name__, names=names):
                empty = 0
                for _, batch, (filled, places) in self.batches(objective):
                    self.assertEqual(filled, sum(np.count_nonzero(batch[name]) for name in names))
                    self.assertEqual(places, sum(batch[name].size for name in names))
                    empty += places - filled
                self.assertGreater(empty, 0)
        # Without packing, the ids alone do not reveal it.
        objective = Causal(examples.word_tokenizer(), 24, pack=False)
        for _, batch, (filled, places) in self.batches(objective):
            self.assertEqual((filled, places), (np.count_nonzero(batch["targets"]), 96))

    def test_from_any_step_on_the_same(self):
        objective = SpanCorruption(examples.span_tokenizer(), 24)
        whole = {step: places for step, _, places in self.batches(objective)}
        self.assertGreater(len(set(whole.values())), 1)
        rest = {step: places for step, _, places in self.batches(objective, 5)}
        self.assertEqual(rest, {step: whole[step] for step in (5, 6, 7)})

    def test_what_workers_fetch_beyond_the_end_is_not_counted(self):
        """The batches of several workers repeat after the last step."""
        objective, counted = Causal(examples.word_tokenizer(), 24), {}
        batches = pipeline.training_batches(
            objective.rows(examples.word_corpus(40, 30)), objective, batch_size=4, seed=3, first_step=6, num_steps=8,
            places=counted, context=tf.distribute.InputContext(2, 0, 2),
        )  # fmt: skip
        for step, batch in enumerate(batches.take(5).as_numpy_iterator(), 6):
            if step < 8:
                self.assertEqual(batch["targets"].size, 48)
        self.assertEqual([counted[step][1] for step in (6, 7)], [48, 48])


if __name__ == "__main__":
    tf.test.main()
