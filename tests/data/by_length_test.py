"""Rows of token ids, their storage, and batches of rows with similar length."""

import collections
import unittest

import numpy as np
import tensorflow as tf

from tests import helpers
from tfzoo.data import by_length, encoded, order
from tfzoo.data.frames import Framer
from tfzoo.data.pipeline import ROW_NUMBERS
from tfzoo.errors import UserError
from tfzoo.text import framing
from tfzoo.text.framing import PAIR, TEXT, Frame
from tfzoo.text.reader import Reader
from tfzoo.text.wordpiece import WordPiece

LETTERS = "abcdefghij"


def tokenizer():
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS])


class Rows:
    """Rows whose only token is their index, repeated."""

    SIGNATURE = {"token_ids": (np.int32, (None,)), "padding_mask": (np.bool_, (None,)), "weight": (np.float32, ())}

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths)

    def batch(self, indices, length):
        mask = np.arange(length) < self.lengths[indices][:, None]
        ids = np.where(mask, indices[:, None], -1).astype(np.int32)
        return {"token_ids": ids, "padding_mask": mask, "weight": np.ones(len(indices), np.float32)}


def context(pipelines=1, replicas=1, rank=0):
    return tf.distribute.InputContext(pipelines, rank, replicas)


class FramerTest(tf.test.TestCase):
    def test_it_equals_the_reader_of_exported_models(self):
        tokens = tokenizer()
        encode = encoded.tokenize_function(tokens)
        draw = np.random.default_rng(0)
        pairs = [
            [" ".join(draw.choice(list(LETTERS), n)) for n in sizes]
            for sizes in draw.integers(0, 15, (200, 2)).tolist()
        ]
        for layout, pair, start in (
            (("cls $A sep", "cls $A sep $B:1 sep:1"), False, None),
            (("cls $A sep", "cls $A sep $B:1 sep:1"), True, None),
            (("cls $A sep", "cls $A sep sep $B sep"), True, 3),
            (("$A sep cls:2", "$A sep $B:1 sep:1 cls:2"), True, None),
            (("$A", None), False, None),
        ):
            for length in (6, 8, 13, 40):
                frame = framing.frame(layout, tokens, pair)
                framer = Framer(frame, length, 0, start)
                inputs = ["token_ids", "segment_ids", "padding_mask"]
                inputs += ["decoder_token_ids", "decoder_padding_mask"] if start is not None else []
                reader = Reader(tokens, frame, inputs, length, start_id=start)
                texts = {TEXT: tf.constant([a for a, _ in pairs])} | ({PAIR: [b for _, b in pairs]} if pair else {})
                reading = reader.read(texts)
                columns = [encode([pair[i] for pair in pairs]) for i in range(1 + pair)]
                counts = [np.array([len(ids) for ids in column]) for column in columns]
                lengths = framer.lengths(*counts)
                rows = framer.rows(list(zip(*columns)), int(lengths.max()))
                self.assertAllEqual(lengths, reading.inputs["padding_mask"].numpy().sum(1))
                self.assertEqual({*rows}, {*reading.inputs})
                for name, values in rows.items():
                    self.assertAllEqual(values, reading.inputs[name], f"{layout} {pair} {length} {name}")

    def test_no_room(self):
        with self.assertRaisesRegex(UserError, "--sequence_length=2 leaves no room for text"):
            Framer(Frame((2, TEXT, 3), (0, 0, 0)), 2, 0)


class EncodedTest(unittest.TestCase):
    def chunks(self):
        self.calls += 1
        for first in (0, 2, 4):
            yield {
                "text": [np.arange(i, dtype=np.int32) for i in range(first, first + 2)],
                "label": np.array([first, first + 1], np.float32),
                "several": np.eye(2, dtype=np.float32) * first,
            }

    def test_chunks_come_back_from_the_cache(self):
        self.calls, folder = 0, helpers.temporary_folder(self)
        for _ in range(2):
            rows = encoded.cached("key", folder, self.chunks)
            self.assertEqual(len(rows), 6)
            for i in range(6):
                self.assertEqual(rows.values("text", i).tolist(), list(range(i)))
            self.assertEqual(rows.lengths("text").tolist(), [0, 1, 2, 3, 4, 5])
            self.assertEqual(rows.columns["label"].tolist(), [0, 1, 2, 3, 4, 5])
            self.assertEqual(rows.columns["several"].tolist(), [[0, 0], [0, 0], [2, 0], [0, 2], [4, 0], [0, 4]])
        self.assertEqual(self.calls, 1)

    def test_a_damaged_file_is_written_again(self):
        self.calls, folder = 0, helpers.temporary_folder(self)
        encoded.cached("key", folder, self.chunks)
        (path,) = folder.glob("rows-*/label.bin")
        path.write_bytes(b"\1" * path.stat().st_size)
        self.assertEqual(encoded.cached("key", folder, self.chunks).columns["label"].tolist(), [0, 1, 2, 3, 4, 5])
        self.assertEqual(self.calls, 2)

    def test_no_rows(self):
        self.assertEqual(len(encoded.cached("key", helpers.temporary_folder(self), lambda: iter(()))), 0)


class OrderTest(tf.test.TestCase):
    def test_a_number_of_examples_that_is_a_tensor(self):
        """As for one of several sources."""
        for position in (0, 5, 13):
            expected = order.epoch_and_index(tf.constant(position, tf.int64), 7, 3)
            found = order.epoch_and_index(tf.constant(position, tf.int64), tf.constant(7, tf.int64), 3)
            self.assertEqual([*map(int, found)], [*map(int, expected)])

    def test_places_of_many_positions_are_those_of_each(self):
        """TensorFlow's own function takes one position with one seed."""
        for seed, count in ((0, 1), (0, 7), (5, 1000), (2**31 - 1, 33)):
            epochs, indices = order.epoch_and_index(tf.range(3 * count, dtype=tf.int64), count, seed)
            for position in range(0, 3 * count, max(1, count // 10)):
                epoch = position // count
                expected = tf.random.experimental.index_shuffle(
                    tf.constant(position % count, tf.int64), tf.constant([seed, epoch], tf.int64), count - 1
                )
                self.assertEqual((int(epochs[position]), int(indices[position])), (epoch, int(expected)))


class BatchesTest(tf.test.TestCase):
    def test_an_epoch_contains_each_row_once_and_little_padding(self):
        lengths = np.random.default_rng(0).integers(3, 60, 1024)
        batches = list(by_length.training_batches(Rows(lengths), batch_size=8, seed=1, first_step=0, num_steps=128))
        rows = [int(row) for batch in batches for row in batch["token_ids"].numpy().max(1)]
        # The last window of the epoch is complete: 128 steps are four windows of 32.
        self.assertEqual(collections.Counter(rows), collections.Counter(range(1024)))
        masks = [batch["padding_mask"].numpy() for batch in batches]
        self.assertLess(1 - sum(m.sum() for m in masks) / sum(m.size for m in masks), 0.15)
        self.assertTrue(all(mask.shape[1] % 8 == 0 for mask in masks))
        widths = [mask.shape[1] for mask in masks]
        self.assertNotEqual(widths, sorted(widths))  # Batches are not in the order of their length.

    def test_epochs_follow_each_other_without_a_gap_and_differ(self):
        lengths = np.random.default_rng(0).integers(3, 20, 100)
        batch_order = by_length.BatchOrder(lengths, 8, seed=0)
        rows = [batch_order.rows_of(step).tolist() for step in range(75)]  # Six epochs: 600 rows.
        counts = collections.Counter(row for batch in rows for row in batch)
        self.assertTrue(all(5 <= count <= 7 for count in counts.values()) and len(counts) == 100)
        self.assertTrue(all(len(set(batch)) == 8 for batch in rows[:12]))
        self.assertNotEqual(sorted(rows[0]), sorted(rows[12]))
        self.assertNotEqual(
            rows, [by_length.BatchOrder(lengths, 8, seed=1).rows_of(step).tolist() for step in range(75)]
        )

    def test_both_sides_of_rows_are_padded_to_their_own_length(self):
        sides = np.random.default_rng(0).integers(1, 30, (64, 2))
        found = []

        class Sides(Rows):
            SIGNATURE = {"token_ids": (np.int32, (None,)), "targets": (np.int32, (None,)), "weight": (np.float32, ())}

            def batch(self, indices, positions):
                found.append((indices, positions))
                ids = [np.zeros((len(indices), length), np.int32) for length in positions]
                return {"token_ids": ids[0], "targets": ids[1], "weight": np.ones(len(indices), np.float32)}

        rows = Sides(sides[:, 1])
        rows.sides = sides
        for batches in (
            by_length.training_batches(rows, batch_size=8, seed=0, first_step=0, num_steps=8),
            by_length.evaluation_batches(rows, batch_size=8),
        ):
            found.clear()
            shapes = [(batch["token_ids"].shape[1], batch["targets"].shape[1]) for batch in batches]
            self.assertEqual(sorted(shapes), sorted(positions for _, positions in found))
            for indices, positions in found:
                self.assertAllEqual(positions, -(-sides[indices].max(0) // 8) * 8)
            self.assertLess(sum(target for _, target in shapes), sum(source for source, _ in shapes))

    def test_a_resumed_run_and_workers_read_the_same_rows(self):
        rows = Rows(np.random.default_rng(0).integers(3, 60, 200))
        options = dict(batch_size=8, seed=3, num_steps=20)
        whole = [batch["token_ids"].numpy() for batch in by_length.training_batches(rows, first_step=0, **options)]
        later = [batch["token_ids"].numpy() for batch in by_length.training_batches(rows, first_step=13, **options)]
        for one, other in zip(whole[13:], later, strict=True):
            self.assertAllEqual(one, other)
        for pipelines, replicas in ((1, 2), (2, 2), (2, 4)):
            parts = [
                list(by_length.training_batches(
                    rows, first_step=0, context=context(pipelines, replicas, rank), **options
                ).take(20 * replicas // pipelines))
                for rank in range(pipelines)
            ]  # fmt: skip
            each = replicas // pipelines
            for step, batch in enumerate(whole):
                together = [part[step * each + i]["token_ids"].numpy() for part in parts for i in range(each)]
                self.assertAllEqual(np.concatenate(together), batch)

    def test_positions_are_counted(self):
        rows, places = Rows([3] * 40), {}
        batches = by_length.training_batches(
            rows, batch_size=8, seed=0, first_step=2, num_steps=4, length=10, places=places
        )
        self.assertEqual([batch["token_ids"].shape for batch in batches], [(8, 10)] * 2)
        self.assertEqual(places, {2: (24, 80), 3: (24, 80)})

    def test_an_evaluation_contains_each_row_once(self):
        lengths = np.random.default_rng(0).integers(3, 60, 53)
        for pipelines, replicas in ((1, 1), (1, 2), (2, 2)):
            found = collections.Counter()
            weights = 0.0
            for rank in range(pipelines):
                for batch in by_length.evaluation_batches(
                    Rows(lengths), batch_size=8, context=context(pipelines, replicas, rank)
                ):
                    numbers = batch[ROW_NUMBERS].numpy()
                    self.assertAllEqual(batch["token_ids"].numpy().max(1)[numbers >= 0], numbers[numbers >= 0])
                    self.assertAllEqual(batch["weight"], (numbers >= 0).astype(np.float32))
                    found.update(numbers[numbers >= 0].tolist())
                    weights += float(batch["weight"].numpy().sum())
            self.assertEqual(found, collections.Counter(range(53)))
            self.assertEqual(weights, 53)

    def test_a_part_of_an_evaluation(self):
        batches = by_length.evaluation_batches(Rows(np.arange(1, 51)), batch_size=8, num_batches=2)
        numbers = np.concatenate([batch[ROW_NUMBERS].numpy() for batch in batches])
        self.assertAllEqual(np.sort(numbers), np.arange(16))


if __name__ == "__main__":
    tf.test.main()
