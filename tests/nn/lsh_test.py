"""LSH and local attention compared with naive float64 attention, and reversible layers with plain ones."""

import unittest.mock
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.nn import formulas
from tests.nn.formulas import Values, normal, numeric_gradient, randomize, relative_error
from tfzoo.errors import UserError
from tfzoo.nn import lsh

SMALL: dict[str, Any] = dict(
    vocab_size=11, hidden_size=12, num_layers=2, num_heads=2, head_dim=4, intermediate_size=20, max_positions=64
)
SMALL |= dict(attention_layers=["lsh", "local"], lsh_chunk_length=4, local_chunk_length=4, num_hashes=2)
SMALL |= dict(num_buckets=[4], axial_shape=[8, 8], axial_dims=[4, 8])
DROPOUT = dict(dropout=0.2, attention_dropout=0.3, lsh_attention_dropout=0.3)
NO_DROPOUT = dict(dropout=0.0, attention_dropout=0.0)


def config(**overrides):
    return lsh.LSHConfig(**SMALL | NO_DROPOUT | overrides)


def single(*arrays):
    return [tf.constant(array, tf.float32) for array in arrays]


def windows(order, size, before, after):
    """Returns [N, C, W]: for each sorted position the tokens that its chunk attends to, in a ring. order: [N C]."""
    chunks = np.reshape(order, (-1, size))
    count = len(chunks)
    near = [[(n + step) % count for step in range(-before, after + 1)] for n in range(count)]
    return np.stack([np.broadcast_to(np.concatenate(chunks[each]), (size, len(each) * size)) for each in near])


def naive(query, key, value, seen, causal, real, share):
    """Computes one head [L, D] over all rounds; seen [R, L, L] counts how often a round's query has a key in its
    window.
    """
    length = len(query)
    scores = query @ key.T
    forbidden = ~np.broadcast_to(real, (length, length)) | (np.triu(np.ones((length, length), bool), 1) & causal)
    scores = np.where(forbidden, -1e9, scores)
    if share:
        scores[np.arange(length), np.arange(length)] = -1e5
    highest = np.where(seen > 0, scores, -np.inf).max(-1, keepdims=True)
    exponents = seen * np.exp(np.where(seen > 0, scores, highest) - highest)
    y = exponents @ value / exponents.sum(-1, keepdims=True)
    total = highest + np.log(exponents.sum(-1, keepdims=True))
    weights = np.exp(total - total.max(0))
    return (y * weights).sum(0) / weights.sum(0)


def naive_lsh(query_key, value, buckets, size, before=1, after=0, causal=False, real=None):
    batch, heads, length, depth = query_key.shape
    rounds = buckets.shape[2]
    real = np.ones((batch, length), bool) if real is None else real
    key = query_key / np.sqrt((query_key**2).mean(-1, keepdims=True) + 1e-6) / np.sqrt(depth)
    result = np.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            sorts = [np.lexsort((np.arange(length), bucket, ~real[b])) for bucket in buckets[b, h]]
            seen = np.zeros((rounds, length, length))
            each = windows(np.concatenate(sorts), size, before, after).reshape(rounds, length, -1)
            for r in range(rounds):
                for place, token in enumerate(sorts[r]):
                    np.add.at(seen[r, token], each[r, place], 1)
            result[b, h] = naive(query_key[b, h], key[b, h], value[b, h], seen, causal, real[b], True)
    return result


def naive_local(query, key, value, size, before=1, after=0, causal=False, real=None):
    batch, heads, length, depth = query.shape
    real = np.ones((batch, length), bool) if real is None else real
    seen = np.zeros((1, length, length))
    for token, window in enumerate(windows(np.arange(length), size, before, after).reshape(length, -1)):
        np.add.at(seen[0, token], window, 1)
    parts = [
        [
            naive(query[b, h] / np.sqrt(depth), key[b, h], value[b, h], seen, causal, real[b], False)
            for h in range(heads)
        ]
        for b in range(batch)
    ]
    return np.array(parts)


OPTIONS = [
    dict(),
    dict(causal=True),
    dict(before=0),
    dict(before=1, after=1),
    dict(before=2, after=0, causal=True),
    dict(before=3, after=2),
    dict(real=np.arange(16) < np.array([[16], [9], [3]])),
    dict(real=np.arange(16) < np.array([[16], [9], [3]]), causal=True),
]


def arguments(options, size):
    options = dict(options)
    real = options.pop("real", None)
    return dict(chunks=lsh.Chunks(size, **options), padding_mask=real)


class AttentionTest(tf.test.TestCase):
    def test_lsh_attention_with_given_buckets(self):
        for rounds in (1, 2, 4):
            query_key, value = (normal(3, 2, 16, 4, seed=i) for i in range(2))
            buckets = np.random.default_rng(rounds).integers(0, 5, (3, 2, rounds, 16)).astype(np.int32)
            for options in OPTIONS:
                expected = naive_lsh(query_key, value, buckets, 4, **options)
                y = lsh.lsh_attention(*single(query_key, value), tf.constant(buckets), **arguments(options, 4))
                real = options.get("real", np.ones((3, 16), bool))[:, None, :, None] & np.ones(y.shape, bool)
                self.assertLess(relative_error(y.numpy()[real], expected[real]), 1e-5, (rounds, options))

    def test_gradients_of_lsh_attention(self):
        arrays = [normal(1, 2, 8, 3, seed=i) for i in range(2)]
        upstream = normal(1, 2, 8, 3, seed=4)
        buckets = np.random.default_rng(3).integers(0, 3, (1, 2, 2, 8)).astype(np.int32)
        for options in (dict(), dict(causal=True, real=np.arange(8) < 6)):
            options = options | ({"real": options["real"][None]} if "real" in options else {})
            tensors = single(*arrays)
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                y = lsh.lsh_attention(*tensors, tf.constant(buckets), **arguments(options, 2))
            gradients = tape.gradient(y, tensors, single(upstream)[0])
            for gradient, array in zip(gradients, arrays, strict=True):
                expected = numeric_gradient(
                    lambda: np.sum(upstream * naive_lsh(*arrays, buckets, 2, **options)),  # noqa: B023
                    array,
                )
                self.assertLess(relative_error(gradient, expected), 1e-5)

    def test_local_attention(self):
        query, key, value = (normal(3, 2, 16, 4, seed=i) for i in range(3))
        for options in OPTIONS:
            expected = naive_local(query, key, value, 4, **options)
            y = lsh.local_attention(*single(query, key, value), **arguments(options, 4))
            real = options.get("real", np.ones((3, 16), bool))[:, None, :, None] & np.ones(y.shape, bool)
            self.assertLess(relative_error(y.numpy()[real], expected[real]), 1e-5, options)

    def test_a_token_attends_to_itself_only_where_there_is_nothing_else(self):
        query_key, value = (normal(1, 1, 4, 3, seed=i) for i in range(2))
        buckets = tf.zeros((1, 1, 1, 4), "int32")
        y = lsh.lsh_attention(*single(query_key, value), buckets, lsh.Chunks(4, before=0, causal=True))
        self.assertAllClose(y[0, 0, :2], [value[0, 0, 0], value[0, 0, 0]], 1e-6, 1e-6)


class HashTest(tf.test.TestCase):
    def test_a_bucket_is_the_largest_of_both_halves(self):
        vectors, rotations = normal(2, 3, 9, 4), normal(3, 4, 2, 5, seed=1)
        rotated = np.einsum("bhld,hdrs->bhrls", vectors, rotations)

        def half(part):
            return np.concatenate([part, -part], -1).argmax(-1)

        self.assertAllEqual(lsh.hash_buckets(*single(vectors, rotations), [10]), half(rotated))
        both = half(rotated[..., :2]) + 4 * half(rotated[..., 2:])
        self.assertAllEqual(lsh.hash_buckets(*single(vectors, rotations), [4, 6]), both)

    def test_the_length_decides_the_number_of_buckets(self):
        self.assertEqual(lsh.bucket_factors(16, 4, 64), [8])  # 2 x 16 / 4
        self.assertEqual(lsh.bucket_factors(24, 4, 1024), [8])  # 12 is not a power of two; at most 2 x 16 at once.
        self.assertEqual(lsh.bucket_factors(256, 4, 1024), [8, 16])
        self.assertEqual(lsh.bucket_factors(16384, 64, 524288), [16, 32])

    def test_near_vectors_meet(self):
        vectors = normal(1, 1, 64, 8)
        near = vectors + 0.01 * normal(1, 1, 64, 8, seed=1)
        buckets = [lsh.hash_buckets(*single(x, normal(1, 8, 1, 8, seed=2)), [16]) for x in (vectors, near)]
        self.assertGreater(np.mean(buckets[0] == buckets[1]), 0.9)


class LayersTest(tf.test.TestCase):
    def layer(self, cls, **overrides):
        layer = cls(config(**overrides))
        layer.build((None, None, 12))
        randomize(layer)
        return layer

    def outputs(self, layer, x, **kwargs):
        y = layer(x, **kwargs)
        return y[0] if isinstance(y, tuple) else y

    def test_padding_has_no_influence(self):
        (x,) = single(normal(2, 13, 12))
        mask = np.arange(13) < np.array([[13], [6]])
        for cls in (lsh.LSHAttention, lsh.LocalAttention):
            layer = self.layer(cls, causal=False, lsh_chunks_after=1)
            y = self.outputs(layer, x, padding_mask=mask).numpy()
            changed = tf.where(mask[..., None], x, 9.0)
            self.assertAllClose(self.outputs(layer, changed, padding_mask=mask).numpy()[mask], y[mask], 1e-6, 1e-6)
            self.assertEqual(y.shape, (2, 13, 12))
            # Padding to whole chunks by hand gives the same result.
            more = self.outputs(layer, tf.pad(x, [[0, 0], [0, 3], [0, 0]]), padding_mask=np.pad(mask, [[0, 0], [0, 3]]))
            self.assertAllClose(more.numpy()[:, :13][mask], y[mask], 1e-6, 1e-6)

    def test_no_position_depends_on_a_later_one(self):
        (x,) = single(normal(1, 11, 12))
        for cls in (lsh.LSHAttention, lsh.LocalAttention):
            layer = self.layer(cls, causal=True)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(self.outputs(layer, x), -1)
            depends = np.abs(tape.jacobian(y, x).numpy()[0, :, 0]).sum(-1)
            self.assertAllEqual(np.triu(depends, 1), np.zeros((11, 11)))
            self.assertGreater(np.tril(depends, -1).sum(), 0.1)

    def test_one_chunk_is_attended_to_in_full(self):
        x = normal(2, 4, 12)
        layer = self.layer(lsh.LSHAttention, causal=False, num_hashes=4)
        v = Values(layer)
        heads = [(x @ v(dense.kernel)).reshape(2, 4, 2, 4).transpose(0, 2, 1, 3) for dense in layer.inputs_to_heads]
        expected = naive_lsh(*heads, np.zeros((2, 2, 1, 4)), 4, before=0)
        expected = expected.transpose(0, 2, 1, 3).reshape(2, 4, 8) @ v(layer.output_projection.kernel)
        self.assertLess(relative_error(layer(*single(x))[0], expected), 1e-5)

    def test_the_buckets_of_a_call_repeat_it(self):
        layer = self.layer(lsh.LSHAttention)
        (x,) = single(normal(1, 32, 12))
        y, buckets = layer(x, hash_seed=(1, 2))
        self.assertAllEqual(layer(x, hash_seed=(3, 4), buckets=buckets)[0], y)
        self.assertNotAllEqual(layer(x, hash_seed=(3, 4))[0], y)
        (rotations,) = single(normal(2, 4, 2, 2, seed=3))
        self.assertAllEqual(layer(x, rotations=rotations, hash_seed=(1, 2))[1], layer(x, rotations=rotations)[1])

    def test_the_mlp_in_chunks_is_the_mlp(self):
        x, upstream = single(normal(2, 13, 12), normal(2, 13, 12, seed=1))
        whole, chunked = (self.layer(lsh.ChunkedMLP, mlp_chunk_length=size) for size in (0, 4))
        chunked.set_weights(whole.get_weights())
        results = []
        for layer in (whole, chunked):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            weights = [w.value for w in layer.trainable_weights]
            results.append([y, *tape.gradient(y, [x, *weights], upstream)])
        for one, two in zip(*results, strict=True):
            self.assertAllClose(one, two, 1e-5, 1e-5)
        v = Values(whole)
        hidden = np.maximum(formulas.dense(v, whole.up, x.numpy().astype(np.float64)), 0)
        self.assertLess(relative_error(whole(x), formulas.dense(v, whole.down, hidden)), 1e-5)

    def test_chunks_of_the_mlp_drop_different_units(self):
        layer = self.layer(lsh.ChunkedMLP, mlp_chunk_length=4, dropout=0.5)
        y = layer(tf.ones((1, 8, 12)), seed=(1, 2), training=True)
        self.assertGreater(np.abs(y[:, :4] - y[:, 4:]).max(), 1e-3)
        self.assertAllEqual(layer(tf.ones((1, 8, 12)), seed=(1, 2), training=True), y)


def plain(functions, values, a, b):
    """Computes what `reversible` does, by automatic differentiation."""
    for function, part in zip(functions, values, strict=True):
        a, b = b, a + function(b, part, None)[0]
    return a, b


class ReversibleTest(tf.test.TestCase):
    def stack(self, dtype=None, **overrides):
        stack = lsh.ReversibleStack(config(**overrides), dtype=dtype)
        stack.build()
        randomize(stack)
        return stack

    def gradients(self, stack, x, mask, reverse):
        stack.seed_generator.state.assign([3, 4])
        weights = [w.value for block in stack.blocks for w in block.trainable_weights]
        with tf.GradientTape() as tape:
            tape.watch(x)
            a, b = stack.streams(x, mask, (), True, reverse)
            loss = tf.reduce_sum(a * tf.cos(b))
        return [loss, *tape.gradient(loss, [x, *weights])]

    def test_recomputed_gradients_are_those_of_automatic_differentiation(self):
        (x,) = single(normal(2, 16, 12))
        mask = tf.constant(np.arange(16) < np.array([[16], [11]]))
        layers = dict(num_layers=3, attention_layers=["lsh", "local", "lsh"])
        for overrides in (DROPOUT, DROPOUT | dict(mlp_chunk_length=8, causal=False)):
            stack = self.stack(**layers, **overrides)
            actual, expected = (self.gradients(stack, x, mask, reverse) for reverse in (lsh.reversible, plain))
            for one, two in zip(actual, expected, strict=True):
                self.assertLess(relative_error(one, two.numpy()), 1e-5)
        in_graph = tf.function(lambda: self.gradients(stack, x, mask, lsh.reversible))()
        for one, two in zip(in_graph, expected, strict=True):
            self.assertLess(relative_error(one, two.numpy()), 1e-5)

    def test_what_is_kept_does_not_grow_with_depth(self):
        def kept(num_layers, reverse):
            """Returns the number of floating-point elements that the forward pass keeps for the backward pass."""
            stack = self.stack(num_layers=num_layers, attention_layers=["lsh"] * num_layers, **DROPOUT)

            @tf.function
            def step(x):
                a, b = stack.streams(x, None, (), True, reverse)
                before.update(a.graph.get_operations())
                return tf.gradients([a, b], x)

            before: set = set()
            graph = step.get_concrete_function(tf.TensorSpec((5, 16, 12), tf.float32)).graph
            used = {t.ref() for op in graph.get_operations() if op not in before for t in op.inputs if t.op in before}
            tensors = [t.deref() for t in used]
            return sum(np.prod(t.shape) for t in tensors if t.dtype.is_floating and 5 in t.shape[:1])

        reversible = kept(3, lsh.reversible)
        self.assertEqual(reversible, kept(1, lsh.reversible))
        self.assertLess(reversible, 4 * 5 * 16 * 12 + 1)
        self.assertGreater(kept(3, plain), 10 * reversible)

    def test_memory_is_linear_in_the_length(self):
        def largest(length, **overrides):
            stack = self.stack(max_positions=4096, **overrides)
            graph = tf.function(lambda x: stack(x, training=True)).get_concrete_function(
                tf.TensorSpec((None, length, 12), tf.float32)
            )
            shapes = [o.shape for op in graph.graph.get_operations() for o in op.outputs if o.shape.rank]
            return max(np.prod([n or 1 for n in shape]) for shape in shapes)

        self.assertEqual(largest(2048), 4 * largest(512))
        self.assertLess(largest(2048, num_buckets=[]), 2048**2 / 8)

    def test_streams_keep_float32_in_half_precision(self):
        (x,) = single(normal(2, 13, 12))
        exact = self.stack()
        for dtype, tolerance in (("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)):
            stack = self.stack(dtype)
            stack.set_weights(exact.get_weights())
            a, _ = stack.streams(tf.pad(x, [[0, 0], [0, 3], [0, 0]]), None, (), False)
            self.assertEqual(a.dtype, "float32")
            rotations = [tf.random.stateless_normal((2, 4, 2, 2), (5, 5))]
            expected = exact(x, rotations=rotations)
            y = stack(x, rotations=rotations)
            self.assertEqual(y.dtype, dtype.removeprefix("mixed_"))
            # A token near the border of two buckets may fall into the other one, but few do.
            errors = np.abs(tf.cast(y, tf.float32) - expected).max(-1)
            self.assertLess(np.median(errors), tolerance * np.abs(expected).max())

    def test_seeds(self):
        stack = self.stack(**DROPOUT)
        (x,) = single(normal(1, 32, 12))
        self.assertAllEqual(stack(x), stack(x))
        self.assertNotAllEqual(stack(x, training=True), stack(x, training=True))
        seeds, hashes, outputs = [], [], []
        without = self.stack()  # Without dropout, replicas compute the same.
        for replica in range(2):
            context = unittest.mock.Mock(num_replicas_in_sync=2, replica_id_in_sync_group=replica)
            stack.seed_generator.state.assign([3, 4])
            with unittest.mock.patch.object(tf.distribute, "get_replica_context", return_value=context):
                seeds.append(stack.seed(True).numpy())
                hashes.append(stack.seed(True, per_replica=False).numpy())
                without.seed_generator.state.assign([3, 4])
                outputs.append(without(x, training=True))
        self.assertNotAllEqual(*seeds)
        self.assertAllEqual(*hashes)
        self.assertAllEqual(*outputs)

    def test_hashes_change_from_step_to_step_without_dropout(self):
        stack = self.stack(num_layers=1, attention_layers=["lsh"])
        (x,) = single(normal(1, 32, 12))
        self.assertNotAllEqual(stack(x, training=True), stack(x, training=True))

    def test_lengths_must_be_static(self):
        stack = self.stack()
        with self.assertRaisesRegex(ValueError, "length must be static"):
            tf.function(stack).get_concrete_function(tf.TensorSpec((None, None, 12), tf.float32))


class EmbeddingsTest(tf.test.TestCase):
    def test_axial_positions(self):
        for shape, dims in (([3, 4], [2, 5]), ([12], [7]), ([2, 3, 2], [1, 2, 3])):
            layer = lsh.AxialPositions(shape, dims, keras.initializers.RandomNormal(seed=0))
            layer.build()
            tables = [np.reshape(table, (size, dim)) for table, size, dim in zip(layer.axes, shape, dims)]
            for length in (1, 5, 12):
                rows = [
                    np.concatenate([t[i] for t, i in zip(tables, np.unravel_index(p, shape))]) for p in range(length)
                ]
                self.assertAllEqual(layer(tf.zeros((1, length), "int32")), rows)
            with self.assertRaisesRegex(ValueError, "length 13 exceeds the 12 positions"):
                layer(tf.zeros((1, 13), "int32"))

    def test_embeddings_are_a_sum(self):
        ids = np.random.default_rng(0).integers(0, 11, (2, 13))
        for axial in (True, False):
            layer = lsh.AxialEmbeddings(config(axial_positions=axial))
            layer.build()
            expected = layer.tokens.embeddings.numpy()[ids] + layer.positions(tf.constant(ids)).numpy()
            self.assertAllClose(layer(tf.constant(ids)), expected, 1e-6, 1e-6)

    def test_dropout_takes_whole_columns_of_positions(self):
        layer = lsh.AxialEmbeddings(config(dropout=0.5))
        layer.build()
        layer.tokens.embeddings.assign(tf.zeros((11, 12)))
        y = layer(tf.zeros((3, 20), "int32"), training=True).numpy()
        kept = np.any(y != 0, -1)
        self.assertAllEqual(kept[:, :8], kept[:, 8:16])
        self.assertAllEqual(kept[:, :4], kept[:, 16:])
        positions = 2 * layer.positions(tf.zeros((3, 20), "int32")).numpy()
        self.assertAllClose(y, np.where(kept[..., None], positions, 0), 1e-4, 1e-4)
        self.assertTrue(kept.any() and not kept.all())


class ConfigTest(tf.test.TestCase):
    def test_bad_values_are_named(self):
        for overrides, message in (
            (dict(attention_layers=["lsh", "full"]), "attention_layers .* may hold only lsh and local"),
            (dict(attention_layers=["lsh"]), r"attention_layers .* must have num_layers \(2\) items"),
            (dict(num_buckets=[3]), "num_buckets .* even"),
            (dict(lsh_chunks_after=1), "lsh_chunks_after .1. must be 0 in a causal model"),
            (dict(axial_dims=[4, 4]), "axial_dims .* add up to 12"),
            (dict(axial_shape=[8]), "axial_dims .* one item for each axis"),
            (dict(num_hashes=0), "num_hashes .0. must be from 1"),
        ):
            with self.assertRaisesRegex(UserError, message):
                config(**overrides)

    def test_whole_chunks_of_every_kind(self):
        both = config(lsh_chunk_length=6)
        self.assertEqual([both.padded_length(n) for n in (1, 4, 5, 12, 13)], [1, 4, 12, 12, 24])


if __name__ == "__main__":
    tf.test.main()
