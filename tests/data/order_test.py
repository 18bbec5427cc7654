"""The order of examples: every index once per epoch, determined only by (seed, epoch, position)."""

import numpy as np
import tensorflow as tf

from tfzoo.data import order


def order_of(positions, num_examples, seed):
    """Returns (epochs, indices) as arrays, computed one at a time as in the pipeline."""
    dataset = tf.data.Dataset.from_tensor_slices(np.asarray(positions, np.int64))
    pairs = list(dataset.map(lambda p: order.epoch_and_index(p, num_examples, seed)).as_numpy_iterator())
    return np.array(pairs).T


class EpochAndIndexTest(tf.test.TestCase):
    def test_every_index_once_an_epoch(self):
        for num_examples in (1, 2, 7, 64, 97):
            epochs, indices = order_of(range(3 * num_examples), num_examples, seed=5)
            self.assertAllEqual(epochs, np.repeat([0, 1, 2], num_examples))
            for epoch in range(3):
                self.assertAllEqual(np.sort(indices[epochs == epoch]), np.arange(num_examples))

    def test_epochs_and_seeds_have_orders_of_their_own(self):
        _, indices = order_of(range(200), 100, seed=1)
        _, others = order_of(range(100), 100, seed=2)
        for one, two in ((indices[:100], indices[100:]), (indices[:100], others)):
            self.assertLess(np.mean(one == two), 0.1)
        self.assertLess(np.mean(indices[:100] == np.arange(100)), 0.1)
        self.assertLess(abs(np.corrcoef(indices[:100], np.arange(100))[0, 1]), 0.4)

    def test_a_pure_function_of_the_position(self):
        positions = np.random.default_rng(0).integers(0, 300, 60)
        epochs, indices = order_of(range(300), 97, seed=3)
        again = order_of(positions, 97, seed=3)
        self.assertAllEqual(again, [epochs[positions], indices[positions]])
        eager = [order.epoch_and_index(p, 97, 3) for p in positions[:5]]
        self.assertAllEqual(np.array(eager).T, again[:, :5])

    def test_positions_past_what_32_bits_hold(self):
        epochs, indices = order_of(np.arange(10) + 10 * 2**33, 10, seed=3)
        self.assertAllEqual(epochs, np.full(10, 2**33))
        self.assertAllEqual(np.sort(indices), np.arange(10))


class ExampleSeedTest(tf.test.TestCase):
    def seed(self, seed, epoch, index):
        return order.example_seed(seed, tf.constant(epoch, tf.int64), tf.constant(index, tf.int64))

    def test_each_example_of_each_epoch_has_its_own(self):
        seeds = {
            tuple(self.seed(seed, epoch, index).numpy())
            for seed in (0, 1, 2**31 - 1)
            for epoch in range(4)
            for index in range(10)
        }
        self.assertLen(seeds, 120)

    def test_repeatable(self):
        self.assertAllEqual(self.seed(7, 3, 2), self.seed(7, 3, 2))
        self.assertEqual(self.seed(7, 3, 2).dtype, tf.int64)


if __name__ == "__main__":
    tf.test.main()
