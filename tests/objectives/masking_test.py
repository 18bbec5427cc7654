"""Units of words: the same as those of a sequential implementation, and the distributions of the papers."""

import numpy as np
import tensorflow as tf

from tfzoo.objectives import masking, shared

SEED = (5, 2)


def ids(values):
    return tf.constant(values, tf.int32, [len(values)])


def numbers_of(count, seed, number):
    return tf.random.stateless_uniform([count], shared.fold(tf.constant(seed), number)).numpy()


def sequential(positions, documents, continues, wanted, probabilities, seed):
    """The definition of `draw_units`, word by word, without TensorFlow's operations."""
    scores, lengths = (numbers_of(len(positions), seed, number) for number in (0, 2))
    words: list[list[int]] = []  # The indices of the tokens of each word.
    for i in range(len(positions)):
        next_to = i > 0 and positions[i] == positions[i - 1] + 1 and documents[i] == documents[i - 1]
        if next_to and continues[i]:
            words[-1].append(i)
        else:
            words.append([i])
    units, borders = np.zeros(len(positions), int), np.cumsum(probabilities).astype(np.float32)[:-1]
    for document, budget in enumerate(wanted, 1):
        own = [w for w, word in enumerate(words) if documents[word[0]] == document]
        for start in sorted(own, key=lambda w: scores[words[w][0]]):
            longest = 1 + sum(lengths[words[start][0]] >= border for border in borders)
            for w in range(start, start + longest):
                if w >= len(words) or units[words[w][0]]:
                    break
                gap = w > start and positions[words[w][0]] != positions[words[w - 1][-1]] + 1
                if gap or documents[words[w][0]] != document or len(words[w]) > budget:
                    break
                units[words[w]] = start + 1
                budget -= len(words[w])
    return units


def compiled(probabilities):
    """Returns draw_units(positions, documents, continues, wanted, seed) as one graph for all sizes."""
    signature = [tf.TensorSpec([None], kind) for kind in (tf.int32, tf.int32, tf.bool, tf.int32)]

    @tf.function(input_signature=[*signature, tf.TensorSpec([2], tf.int32)])
    def draw(positions, documents, continues, wanted, seed):
        return masking.draw_units(positions, documents, continues, wanted, probabilities, seed)

    return draw


class DrawUnitsTest(tf.test.TestCase):
    def test_the_units_are_those_of_a_sequential_implementation(self):
        random = np.random.default_rng(0)
        for probabilities in (np.ones(1), np.array([0.4, 0.3, 0.2, 0.1]), masking.span_lengths()):
            draw = compiled(probabilities)
            for number in range(60):
                count = number * 2
                # Documents of different lengths; some positions contain special tokens, which are never masked.
                positions = np.sort(random.choice(int(count * 1.2) + 1, count, replace=False))
                documents = 1 + np.sort(random.integers(0, 1 + number % 5, count))
                continues = random.random(count) < 0.4
                sizes = np.bincount(documents - 1) if count else np.zeros(0, int)
                wanted = np.minimum(random.integers(0, 12, len(sizes)), sizes)
                found = draw(
                    ids(positions), ids(documents), tf.constant(continues), ids(wanted), tf.constant([number, 1])
                )
                expected = sequential(positions, documents, continues, wanted, probabilities, (number, 1))
                self.assertAllEqual(found, expected)

    def sizes_of_units(self, probabilities):
        """Returns the sizes of many units in sixty long documents of words of one token."""
        positions = tf.range(60 * 4000)
        units = masking.draw_units(
            positions, 1 + positions // 4000, positions < 0, ids([200] * 60), probabilities, tf.constant(SEED)
        ).numpy()
        self.assertAllEqual(np.count_nonzero(units.reshape(60, 4000), 1), [200] * 60)
        return np.unique(units[units > 0], return_counts=True)[1]

    def test_ngrams_have_their_proportions(self):
        # About one unit in twenty is shortened, by another unit or by the budget.
        for proportions in ([0.4, 0.3, 0.2, 0.1], [6 / 11, 3 / 11, 2 / 11]):
            sizes = self.sizes_of_units(np.array(proportions))
            found = np.bincount(sizes, minlength=len(proportions) + 1)[1:] / len(sizes)
            self.assertAllClose(found, proportions, atol=0.03)

    def test_spans_have_the_lengths_of_the_paper(self):
        lengths = masking.span_lengths()
        self.assertAllClose(lengths[1:] / lengths[:-1], [0.8] * 9)
        self.assertAllClose(lengths.sum(), 1)
        self.assertNear(np.dot(lengths, np.arange(1, 11)), 3.8, 0.005)
        sizes = self.sizes_of_units(lengths)
        self.assertEqual(sizes.max(), 10)
        self.assertBetween(sizes.mean(), 3.4, 3.85)

    def test_a_unit_does_not_cross_a_special_token_or_a_document(self):
        ten = np.array([0.0] * 9 + [1.0])
        positions, documents = ids([1, 2, 4, 5, 6, 7]), ids([1, 1, 1, 1, 2, 2])
        for number in range(20):
            units = masking.draw_units(
                positions, documents, tf.zeros([6], tf.bool), ids([4, 2]), ten, tf.constant([number, 1])
            ).numpy()
            self.assertTrue(np.all(units > 0))
            self.assertFalse({*units[:2]} & {*units[2:]} or {*units[2:4]} & {*units[4:]})

    def test_tokens(self):
        documents, wanted = ids([1, 1, 1, 3, 3]), ids([2, 0, 1])
        drawn = masking.draw_tokens(documents, wanted, tf.constant(SEED)).numpy()
        scores = numbers_of(5, SEED, 0)
        expected = np.zeros(5, bool)
        expected[np.argsort(scores[:3])[:2]] = expected[3 + np.argmin(scores[3:])] = True
        self.assertAllEqual(drawn, expected)


if __name__ == "__main__":
    tf.test.main()
