"""Functions shared by objectives: documents, random selection, and the frequency baseline."""

import math
import types

import numpy as np
import tensorflow as tf

from tfzoo.objectives import shared


def ids(*values):
    return tf.constant(values, tf.int32, [len(values)])


class BlocksTest(tf.test.TestCase):
    def test_positions_begin_anew(self):
        self.assertAllEqual(shared.positions_in(ids(1, 1, 2, 3, 3, 3)), [0, 1, 0, 0, 1, 2])
        self.assertAllEqual(shared.positions_in(ids(1, 3, 3)), [0, 0, 1])  # A document may have no remaining items.
        self.assertAllEqual(shared.positions_in(ids()), [])

    def test_frame(self):
        tokens, documents = ids(10, 11, 12), ids(1, 1, 2)
        for first, last, expected, expected_documents in (
            (None, None, [10, 11, 12], [1, 1, 2]),
            (7, None, [7, 10, 11, 7, 12], [1, 1, 1, 2, 2]),
            (None, 8, [10, 11, 8, 12, 8], [1, 1, 1, 2, 2]),
            (7, 8, [7, 10, 11, 8, 7, 12, 8], [1, 1, 1, 1, 2, 2, 2]),
        ):
            framed, framed_documents = shared.frame(tokens, documents, first, last)
            self.assertAllEqual(framed, expected)
            self.assertAllEqual(framed_documents, expected_documents)
        for part in shared.frame(ids(), ids(), 7, 8):
            self.assertAllEqual(part, [])

    def test_draw_takes_the_least_of_each_block(self):
        scores = tf.constant([0.9, 0.5, -0.5, 0.1, 0.7, 0.0, 0.99])
        drawn = shared.draw(scores, ids(1, 1, 1, 2, 2, 3, 4), ids(2, 1, 0, 1))
        self.assertAllEqual(drawn, [False, True, True, True, False, False, True])
        self.assertAllEqual(shared.draw(tf.zeros([0]), ids(), ids()), [])


class CrossEntropyTest(tf.test.TestCase):
    def test_by_the_formula(self):
        # Some logits far apart, some -inf, some beyond the range of exp.
        random = np.random.default_rng(0)
        logits = random.normal(size=[3, 4, 50]).astype(np.float32) * np.float32([1, 30, 1e-3, 1])[:, None]
        logits[0, 3] += 2000
        logits[1, 3, 10:] = -np.inf
        labels = random.integers(0, 10, [3, 4]).astype(np.int32)
        upstream = np.float32(random.normal(size=[3, 4]))
        upstream[2, 2] = 0
        exact = logits.astype(np.float64)
        log_total = np.log(np.sum(np.exp(exact - exact.max(-1, keepdims=True)), -1)) + exact.max(-1)
        one_hot = np.eye(50)[labels]
        expected_loss = log_total - np.take_along_axis(exact, labels[..., None], -1)[..., 0]
        expected_gradient = (np.exp(exact - log_total[..., None]) - one_hot) * upstream[..., None]

        for function in (shared.cross_entropy, tf.function(shared.cross_entropy)):
            with tf.GradientTape() as tape:
                given = tf.constant(logits)
                tape.watch(given)
                loss, hits = function(given, tf.constant(labels))
            self.assertAllClose(loss, expected_loss, rtol=1e-6, atol=1e-6)
            self.assertAllClose(
                tape.gradient(loss, given, output_gradients=upstream), expected_gradient, rtol=1e-5, atol=1e-7
            )
            self.assertAllEqual(hits, np.argmax(logits, -1) == labels)

    def test_label_smoothing_by_the_formula(self):
        random = np.random.default_rng(1)
        logits = (random.normal(size=[5, 40]) * 6).astype(np.float32)
        logits[3] += 1000
        labels = random.integers(0, 40, [5]).astype(np.int32)
        upstream = np.float32(random.normal(size=[5]))
        exact = logits.astype(np.float64)
        exact -= exact.max(-1, keepdims=True)
        log_p = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
        for smoothing in (0.0, 0.1, 0.7):
            # Szegedy et al. 2016, section 7: q(k) = (1 - smoothing) [k = label] + smoothing / V.
            target = (1 - smoothing) * np.eye(40)[labels] + smoothing / 40
            for graph in (False, True):

                def function(logits, labels, smoothing=smoothing):
                    return shared.cross_entropy(logits, labels, smoothing)[0]

                with tf.GradientTape() as tape:
                    given = tf.constant(logits)
                    tape.watch(given)
                    loss = (tf.function(function) if graph else function)(given, tf.constant(labels))
                self.assertAllClose(loss, -np.sum(target * log_p, -1), rtol=1e-5, atol=1e-4)
                self.assertAllClose(
                    tape.gradient(loss, given, output_gradients=upstream),
                    (np.exp(log_p) - target) * upstream[:, None],
                    rtol=1e-5,
                    atol=1e-6,
                )


class FrequencyTest(tf.test.TestCase):
    def test_by_hand(self):
        # Tokens 2, 3, 4; 0 and 1 are special. In the text: 2 three times, 3 once, 4 never; plus one each.
        tokenizer = types.SimpleNamespace(vocab_size=5, special_ids=[0, 1])
        targets = np.array([[2, 3, 1], [4, 2, 0]], np.int32)
        weights = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
        batches = [{"targets": targets[i : i + 1], "target_weights": weights[i : i + 1]} for i in range(2)]
        found = shared.frequency_baseline(np.array([2, 3, 2, 2]), batches, tokenizer, "causal")
        # A quarter of the four targets is special: 1.
        frequency = {1: 1 / 4, 2: 3 / 4 * 4 / 7, 3: 3 / 4 * 2 / 7, 4: 3 / 4 * 1 / 7}
        self.assertEqual(sorted(found["frequency"]), ["causal_accuracy", "causal_loss"])
        self.assertAlmostEqual(found["frequency"]["causal_accuracy"], 1 / 4)
        self.assertAlmostEqual(found["frequency"]["causal_loss"], -sum(map(math.log, frequency.values())) / 4)


if __name__ == "__main__":
    tf.test.main()
