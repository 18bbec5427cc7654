"""Two-stream relative attention: compared with the formulas, and what each stream may depend on."""

import numpy as np
import tensorflow as tf

from tests.nn import two_stream
from tests.nn.formulas import Values, check_gradients, normal, randomize, relative_error
from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.nn.relative import RelativeAttention, TwoStreamConfig, relative_shift, relative_sinusoids

BATCH, LENGTH, SIZE, PAST = 2, 5, 12, 3


def config(**overrides):
    values = dict(vocab_size=9, hidden_size=SIZE, num_layers=2, num_heads=3, intermediate_size=10)
    return TwoStreamConfig(**values | overrides)


def make_stack(dtype=None, **overrides):
    stack = nn.TwoStreamStack(config(**overrides), dtype=dtype, name="stack")
    stack.build((None, None, stack.config.hidden_size))
    randomize(stack)
    return stack


def order_mask(ranks):
    """Returns permutation_mask [B, L, L] for ranks [B, L], each token's position in the prediction order."""
    return ranks[:, None, :] < ranks[:, :, None]


RANKS = np.array([[3, 1, 4, 0, 2], [0, 1, 2, 3, 4]])
INPUTS = {
    "target_mapping": np.eye(LENGTH)[[[4, 0, 2], [1, 3, 4]]],
    "segment_ids": np.array([[0, 0, 1, 1, 2], [1, 1, 0, 0, 0]], np.int32),
    "padding_mask": np.array([[False, False, True, True, True], [True, True, True, True, False]]),
    "permutation_mask": order_mask(RANKS),
    "previous_sequence": normal(2, BATCH, PAST, SIZE, seed=1),
    "previous_mask": np.array([[False, True, True], [False, False, False]]),
}
CASES = [
    (),
    ("segment_ids",),
    ("padding_mask",),
    ("permutation_mask",),
    ("previous_sequence",),
    ("previous_sequence", "previous_mask"),
    ("target_mapping",),
    ("target_mapping", "permutation_mask"),
    ("target_mapping", "permutation_mask", "padding_mask", "segment_ids"),
    tuple(INPUTS),
]


def tensors(names, inputs=INPUTS):
    return {name: tf.constant(inputs[name], None if inputs[name].dtype.kind in "bi" else tf.float32) for name in names}


class PositionsTest(tf.test.TestCase):
    def test_sinusoids(self):
        for length, keys in ((1, 1), (3, 3), (2, 6)):
            table = relative_sinusoids(tf.constant(length), tf.constant(keys), 8)
            distances = range(keys, -length, -1)
            self.assertAllClose(table, [two_stream.encoding(d, 8) for d in distances], 1e-6, 1e-6)

    def test_shift_turns_distances_into_keys(self):
        for length, keys in ((1, 1), (1, 4), (4, 4), (3, 7), (2, 3)):
            distances = list(range(keys, -length, -1))
            x = tf.constant(normal(2, 3, length, len(distances)), tf.float32)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = relative_shift(x)
            upstream = normal(*y.shape, seed=1)
            expected, gradient = np.zeros(y.shape), np.zeros(x.shape)
            for i in range(length):
                for j in range(keys):
                    at = distances.index(keys - length + i - j)
                    expected[:, :, i, j] = x[:, :, i, at]
                    gradient[:, :, i, at] = upstream[:, :, i, j]
            self.assertAllEqual(y, expected)
            upstream = tf.constant(upstream, tf.float32)
            self.assertAllClose(tape.gradient(y, x, output_gradients=upstream), gradient)

    def test_impossible_sizes_are_named(self):
        with self.assertRaisesRegex(UserError, r"memory_length \(-1\) must be at least 0"):
            config(memory_length=-1)
        with self.assertRaisesRegex(UserError, r"hidden_size \(9\) must be even"):
            config(hidden_size=9)


class AttentionTest(tf.test.TestCase):
    def layer(self, size, heads, **overrides):
        layer = RelativeAttention(config(hidden_size=size, num_heads=heads, **overrides), name="attention")
        layer.build((None, None, size))
        randomize(layer)
        return layer

    def test_gradients(self):
        layer, x, upstream = self.layer(4, 2), normal(1, 3, 4), normal(1, 3, 4, seed=1)
        segments, sees = [0, 1, 1], np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], bool)
        v, test = Values(layer), self

        class Layer:
            trainable_weights = layer.trainable_weights

            def __call__(self, x):
                other = np.not_equal.outer(segments, segments)[None].astype(np.float32)
                bias = nn.mask_bias(tf.constant(sees)[None], "float32")
                test.assertEqual(x.dtype, "float32")
                return layer(x, layer.keys(x, relative_sinusoids(3, 3, 4)), bias, other)

        def formula():
            attended = two_stream.attention(v, layer, x[0], range(3), x[0], 0, lambda i, j: sees[i, j], segments)
            return attended[None]

        check_gradients(self, Layer(), x, upstream, v, formula)

    def test_a_width_of_heads_of_their_own(self):
        layer, x = self.layer(8, 2, head_dim=6), normal(1, 4, 8)
        y = layer(tf.constant(x, tf.float32), layer.keys(tf.constant(x, tf.float32), relative_sinusoids(4, 4, 8)))
        expected = two_stream.attention(Values(layer), layer, x[0], range(4), x[0], 0, lambda i, j: True)
        self.assertLess(relative_error(y[0], expected), 1e-5)


class StackTest(tf.test.TestCase):
    def test_equals_the_formulas(self):
        stack, content = make_stack(), normal(BATCH, LENGTH, SIZE)
        v = Values(stack)
        for names in CASES:
            outputs = stack(tf.constant(content, tf.float32), **tensors(names))
            expected = two_stream.stack(v, stack, content, **{name: INPUTS[name] for name in names})
            for output, reference in zip(outputs, expected, strict=True):
                self.assertEqual(output is None, reference is None, names)
                if output is not None:
                    self.assertLess(relative_error(output, reference), 1e-5, names)

    def test_one_head(self):
        stack, content = make_stack(num_heads=1), normal(4, 7, SIZE)
        for _ in range(20):  # An out-of-bounds write does not always have a visible effect.
            y = stack(tf.constant(content, tf.float32))[0]
        self.assertLess(relative_error(y, two_stream.stack(Values(stack), stack, content)[0]), 1e-5)

    def test_lengths_may_be_unknown_while_tracing(self):
        stack, content = make_stack(), normal(BATCH, LENGTH, SIZE)

        @tf.function
        def run(content, inputs):
            return stack(content, **inputs)

        inputs = tensors(INPUTS)
        specs = {name: tf.TensorSpec([2] + [None] * (len(x.shape) - 1), x.dtype) for name, x in inputs.items()}
        specs["previous_sequence"] = tf.TensorSpec([2, None, None, SIZE])
        traced = run.get_concrete_function(tf.TensorSpec([None, None, SIZE]), specs)
        for output, expected in zip(
            traced(tf.constant(content, tf.float32), inputs), stack(tf.constant(content, tf.float32), **inputs)
        ):
            self.assertLess(relative_error(output, expected.numpy()), 1e-5)
        self.assertEqual(traced.structured_outputs[0].shape[2], SIZE)

    def test_gradients_reach_every_weight(self):
        stack, content = make_stack(), tf.constant(normal(BATCH, LENGTH, SIZE), tf.float32)
        with tf.GradientTape() as tape:
            y = stack(content, **tensors(INPUTS))[1]
        for weight, gradient in zip(
            stack.trainable_weights,
            tape.gradient(y, stack.trainable_weights, tf.constant(normal(*y.shape, seed=2), y.dtype)),
        ):
            self.assertGreater(np.abs(gradient).max(), 1e-4, weight.path)

    def test_half_precision_stays_near(self):
        content = normal(BATCH, LENGTH, SIZE)
        for dtype, tolerance in (("bfloat16", 0.1), ("float16", 0.01)):
            stack = make_stack(dtype=f"mixed_{dtype}")
            outputs = stack(tf.constant(content, dtype), **tensors(INPUTS))
            expected = two_stream.stack(Values(stack), stack, content, **INPUTS)
            for output, reference in zip(outputs, expected, strict=True):
                self.assertEqual(output.dtype, dtype)
                self.assertLess(relative_error(tf.cast(output, tf.float64), reference), tolerance)

    def test_dropout_only_while_training(self):
        stack, content = make_stack(), tf.constant(normal(BATCH, LENGTH, SIZE), tf.float32)
        inputs = tensors(INPUTS)
        self.assertAllEqual(stack(content, **inputs)[1], stack(content, **inputs)[1])
        one, two = (stack(content, **inputs, training=True)[1] for _ in range(2))
        self.assertGreater(np.abs(one - two).max(), 1e-2)


class VisibilityTest(tf.test.TestCase):
    def test_what_a_position_may_not_see_does_not_change_it(self):
        stack, content = make_stack(), normal(BATCH, LENGTH, SIZE)
        names = ("segment_ids", "permutation_mask", "previous_sequence")
        inputs = tensors(names) | {"target_mapping": tf.eye(LENGTH, batch_shape=[BATCH])}
        h, g, _ = stack(tf.constant(content, tf.float32), **inputs)
        for changed in range(LENGTH):
            other = content.copy()
            other[:, changed] += 3.0
            new_h, new_g, _ = stack(tf.constant(other, tf.float32), **inputs)
            for b in range(BATCH):
                for i in range(LENGTH):
                    earlier, own = RANKS[b, changed] < RANKS[b, i], changed == i
                    # The content stream depends on its own token, the query stream only on earlier ones.
                    self.assertEqual(np.abs(new_h[b, i] - h[b, i]).max() > 1e-4, earlier or own)
                    self.assertEqual(np.abs(new_g[b, i] - g[b, i]).max() > 1e-4, earlier)
                    if not earlier:
                        self.assertAllEqual(new_g[b, i], g[b, i])
                        if not own:
                            self.assertAllEqual(new_h[b, i], h[b, i])

    def test_a_target_changes_nothing_but_itself(self):
        stack, content = make_stack(), tf.constant(normal(BATCH, LENGTH, SIZE), tf.float32)
        names = ("permutation_mask", "padding_mask", "segment_ids")
        alone = stack(content, **tensors(names))[0]
        all_targets = tf.eye(LENGTH, batch_shape=[BATCH])
        together = stack(content, **tensors(names), target_mapping=all_targets)
        self.assertLess(relative_error(together[0], alone.numpy()), 1e-6)
        one = stack(content, **tensors(names), target_mapping=all_targets[:, 3:4])[1]
        self.assertLess(relative_error(one, together[1][:, 3:4].numpy()), 1e-5)

    def test_padding_on_either_side_is_as_none(self):
        stack, content = make_stack(), normal(1, 3, SIZE)
        # The first token in order attends to nothing, so it is not a target.
        segments, mapping = np.array([[0, 1, 1]]), np.eye(3)[None, 1:]
        permutation = order_mask(np.array([[0, 2, 1]]))

        def run(left, right):
            sides = (left, right)

            def pad(x, *axes, value=0):
                widths = [sides if axis in axes else (0, 0) for axis in range(x.ndim)]
                return np.pad(x, widths, constant_values=value)

            h, g, _ = stack(
                tf.constant(pad(content, 1, value=7.0), tf.float32),
                segment_ids=pad(segments, 1),
                padding_mask=pad(np.ones((1, 3), bool), 1, value=False),
                target_mapping=pad(mapping, 2),
                permutation_mask=pad(permutation, 1, 2, value=True),
            )
            return h[:, left : left + 3], g

        for sides in ((2, 0), (0, 2), (1, 1)):
            for padded, plain in zip(run(*sides), run(0, 0), strict=True):
                self.assertLess(relative_error(padded, plain.numpy()), 1e-5)


class MemoryTest(tf.test.TestCase):
    def test_reading_in_two_pieces_equals_reading_at_once(self):
        stack, content = make_stack(), tf.constant(normal(BATCH, LENGTH, SIZE), tf.float32)
        places = np.arange(LENGTH)
        # Read together; the first two attend only to each other, as when they are read before the others.
        sees = np.broadcast_to((places[:, None] >= 2) | (places < 2), (BATCH, LENGTH, LENGTH))
        whole = stack(content, permutation_mask=tf.constant(sees))[0]
        first, _, memory = stack(content[:, :2], previous_sequence=tf.zeros([2, BATCH, 0, SIZE]))
        second, _, memory = stack(content[:, 2:], previous_sequence=memory)
        self.assertLess(relative_error(tf.concat([first, second], 1), whole.numpy()), 1e-5)
        self.assertEqual(memory.shape, (2, BATCH, LENGTH, SIZE))
        self.assertAllEqual(memory[0], content)

    def test_the_last_positions_are_kept(self):
        content = tf.constant(normal(BATCH, LENGTH, SIZE), tf.float32)
        inputs = tensors(["previous_sequence"])
        stack = make_stack()
        everything = stack(content, **inputs)[2]
        self.assertEqual(everything.shape[2], PAST + LENGTH)
        for kept in (1, 4, 6, 99):
            stack.config = config(memory_length=kept)
            self.assertAllEqual(stack(content, **inputs)[2], everything[:, :, -kept:])

    def test_no_gradient_flows_through_a_memory_to_what_was_read_before(self):
        stack, content = make_stack(), tf.constant(normal(BATCH, LENGTH, SIZE), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(content)
            memory = stack(content[:, :2], previous_sequence=tf.zeros([2, BATCH, 0, SIZE]))[2]
            y = tf.reduce_sum(stack(content[:, 2:], previous_sequence=memory)[0][..., 0])
        gradient = tape.gradient(y, content)
        self.assertAllEqual(gradient[:, :2], np.zeros([BATCH, 2, SIZE]))
        self.assertGreater(np.abs(gradient[:, 2:]).min(), 0)


if __name__ == "__main__":
    tf.test.main()
