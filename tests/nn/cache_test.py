"""Steps over a cache compared with one pass over the full text."""

import numpy as np
import tensorflow as tf

from tests.helpers import noisy_model
from tfzoo import nn
from tfzoo.nn.attention import LONG, causal_attention

TINY = dict(vocab_size=23, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=24, max_positions=32)
PROMPT, ROOM = 5, 6
SHAPES = [tf.TensorSpec([None, heads, None, size]) for heads, size in ((4, 4), (2, 4), (2, 4), (None, None))]


def build(name, **overrides):
    return noisy_model(name, noise=0.15, **(TINY | overrides))


class CacheTest(tf.test.TestCase):
    def test_pieces_of_a_text_give_what_the_whole_gives(self):
        random = np.random.default_rng(1)
        ids = random.integers(3, 20, (3, PROMPT + ROOM)).astype(np.int32)
        memory_ids, memory_mask = random.integers(3, 20, (3, 7)), np.arange(7) < np.array([[7], [4], [2]])
        mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], bool)
        real = np.concatenate([mask, np.ones((3, ROOM), bool)], 1)
        places = np.maximum(np.cumsum(real, 1) - 1, 0).astype(np.int32)
        for name, overrides in (
            ("gpt2", {}),
            ("llama_tiny", dict(num_kv_heads=2, head_dim=6, window=3)),
            ("palm_tiny", dict(head_dim=6)),
            ("t5_small", dict(relative_buckets=8, relative_distance=20, head_dim=6)),
            ("bart_base", {}),
        ):
            model, memory = build(name, **overrides), ()
            inputs = dict(token_ids=ids, padding_mask=real, position_ids=places)
            if hasattr(model, "encode"):
                inputs = {f"decoder_{key}": value for key, value in inputs.items()}
                inputs |= dict(token_ids=memory_ids, padding_mask=memory_mask)
                memory = (model.encode(inputs), tf.constant(memory_mask))
            expected = model(inputs)["logits"].numpy()
            for jit_compile in (False, True) if name == "palm_tiny" else (False,):
                with self.subTest(model=name, jit_compile=jit_compile):
                    run = self.in_pieces
                    if jit_compile:
                        run = tf.function(run, jit_compile=True, autograph=False)
                    actual = run(model, tf.constant(ids), tf.constant(mask), memory, jit_compile)
                    self.assertAllClose(actual.numpy()[real], expected[real], 2e-6, 2e-6)

    def in_pieces(self, model, ids, mask, memory, jit_compile):
        """Reads the prompt, then one token, one more, three at once, and one."""
        sequence, cache = model.start(ids[:, :PROMPT], mask, ROOM, *memory)
        parts, tensors, begin = [sequence], cache.tensors, PROMPT
        slots = tf.range(PROMPT + ROOM)
        seen = tf.concat([mask, tf.ones([mask.shape[0], ROOM], tf.bool)], 1)
        for length in (1, 1, 3, 1):
            rows = slots[begin : begin + length]
            step = cache.step(tensors, rows[None], jit_compile)
            visible = seen[:, None, None] & (slots <= rows[:, None])
            parts.append(
                model.step(ids[:, begin : begin + length], cache.positions[:, begin : begin + length], visible, step)
            )
            tensors, begin = step.tensors, begin + length
        return model.next_logits(tf.concat(parts, 1))

    def test_rows_write_to_slots_of_their_own(self):
        model = build("gpt2")
        ids = tf.constant([[3, 4, 5, 6], [7, 8, 9, 10]])
        _, cache = model.start(ids[:, :2], None, 3)
        before = [x.numpy() for x in cache.tensors]
        slots = tf.constant([[2, 3], [4, 3]])
        step = cache.step(cache.tensors, slots)
        visible = tf.ones([2, 1, 2, 5], tf.bool)
        model.step(ids[:, 2:], tf.constant([[2, 3], [4, 3]]), visible, step)
        for old, new in zip(before, step.tensors):
            changed = np.any(new.numpy() != old, (1, 3))
            self.assertAllEqual(changed, [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])

    def test_a_cache_holds_each_key_head_once_and_the_memory_once(self):
        model = build("llama_tiny", num_kv_heads=2, head_dim=6)
        _, cache = model.start(tf.constant([[3, 4]]), None, 4)
        self.assertEqual({tuple(x.shape) for x in cache.tensors}, {(1, 2, 6, 6)})
        model = build("bart_base")
        memory = model.encode(dict(token_ids=tf.constant([[3, 4, 5]])))
        _, cache = model.start(tf.constant([[2]]), None, 4, memory)
        layer = cache.cross[1]
        step = cache.step(cache.tensors, tf.constant([[1]]))
        model.step(tf.constant([[7]]), tf.constant([[1]]), tf.ones([1, 1, 1, 5], tf.bool), step)
        self.assertIs(step.cross[1].key, layer.key)
        self.assertEqual(layer.key.shape, (1, 4, 3, 4))

    def test_grouped_heads_attend_as_repeated_ones_do(self):
        random = np.random.default_rng(0)
        query, key, value = (
            tf.constant(random.normal(size=(2, h, n, 6)), tf.float32) for h, n in ((6, 3), (2, 5), (2, 5))
        )
        bias = tf.constant(random.normal(size=(2, 1, 3, 5)), tf.float32)
        expected = nn.dot_product_attention(query, *(tf.repeat(x, 3, axis=1) for x in (key, value)), bias)
        self.assertAllClose(nn.cached_attention(query, key, value, bias), expected, 1e-6, 1e-6)

    def test_long_causal_texts_are_computed_in_parts(self):
        random = np.random.default_rng(0)
        for length, past, window in ((LONG + 7, 0, 0), (LONG + 1, 3, 90), (5, 2, 0)):
            query, key, value = (
                random.normal(size=(2, heads, n, 4)).astype(np.float32)
                for heads, n in ((4, length), (2, length + past), (2, length + past))
            )
            real = np.ones((2, length + past), bool)
            real[1, : length // 2] = False
            mask = nn.Mask(tf.constant(real), causal=True, window=window).fold(length, length + past, "float32")
            key4, value4 = (np.repeat(x, 2, 1).astype(np.float64) for x in (key, value))
            scores = query.astype(np.float64) @ key4.swapaxes(2, 3) / 2 + mask.bias.numpy()
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            expected = weights / weights.sum(-1, keepdims=True) @ value4
            sees = real[:, past:] if not window else real[:, past:] & real[:, :length]  # Others attend to nothing.
            for run in (causal_attention, tf.function(causal_attention, SHAPES, autograph=False)):
                actual = run(*map(tf.constant, (query, key, value)), mask.bias).numpy()
                for row in range(2):
                    self.assertAllClose(actual[row][:, sees[row]], expected[row][:, sees[row]], 1e-5, 1e-6)


if __name__ == "__main__":
    tf.test.main()
