"""The n-gram model: values computed by hand, dictionaries of counts, and results of another program. NumPy only."""

import collections
import os
import pathlib
import unittest
import unittest.mock

import numpy as np

from tfzoo.evaluation import ngram
from tfzoo.evaluation.ngram import KneserNey

BEGIN = "^"


class Dictionaries:
    """The formulas of Chen and Goodman (1999), one probability at a time, from dictionaries of k-grams."""

    def __init__(self, documents, order, vocab_size):
        self.order, self.vocab_size = order, vocab_size
        occurrences = collections.Counter()
        preceding = collections.defaultdict(set)
        for document in documents:
            tokens = (BEGIN, *document)
            for end in range(1, len(tokens) + 1):
                for k in range(1, min(order, end) + 1):
                    gram = tokens[end - k : end]
                    occurrences[gram] += 1
                    if end > k:
                        preceding[gram].add(tokens[end - k - 1])
        self.counts = [{} for _ in range(order + 1)]
        for gram, count in occurrences.items():
            if gram == (BEGIN,):
                continue
            is_lower = len(gram) < order and gram[0] != BEGIN
            self.counts[len(gram)][gram] = len(preceding[gram]) if is_lower else count
        self.followers = collections.defaultdict(list)
        for counts in self.counts:
            for gram in counts:
                self.followers[gram[:-1]].append(gram)
        self.discounts = [self.estimate(counts.values()) for counts in self.counts]

    def estimate(self, counts):
        n = collections.Counter(counts)
        if not all(n[i] for i in (1, 2, 3, 4)):
            return 0.5, 1.0, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        found = tuple(i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))
        return found if min(found) > 0 else (0.5, 1.0, 1.5)

    def discount(self, gram):
        count = self.counts[len(gram)][gram]
        return self.discounts[len(gram)][min(count, 3) - 1]

    def probability(self, context, word):
        """context: the tokens before the word, at most order - 1."""
        lower = self.probability(context[1:], word) if context else 1 / self.vocab_size
        followers = self.followers[context]
        total = sum(self.counts[len(gram)][gram] for gram in followers)
        if not total:
            return lower
        gram = (*context, word)
        share = self.counts[len(gram)][gram] - self.discount(gram) if gram in followers else 0
        return (share + sum(map(self.discount, followers)) * lower) / total

    def score(self, document):
        """Returns the probability of each word of the vocabulary at each place of a document."""
        tokens = (BEGIN, *document)
        contexts = [tokens[max(0, end - self.order + 1) : end] for end in range(1, len(tokens))]
        return np.array([[self.probability(c, word) for word in range(self.vocab_size)] for c in contexts])


def flat(documents):
    """Returns the token ids and document_starts of documents."""
    ids = np.concatenate([np.zeros(0, np.int32), *(np.array(document, np.int32) for document in documents)])
    return ids, np.cumsum([0, *map(len, documents)])


def random_documents(count, longest, vocab_size, seed):
    """Returns documents whose tokens depend on the previous one, some documents empty."""
    random = np.random.default_rng(seed)
    table = random.dirichlet(np.full(vocab_size, 0.3), vocab_size)
    documents = []
    for length in random.integers(0, longest, count):
        document = [0]
        for _ in range(length):
            document.append(int(random.choice(vocab_size, p=table[document[-1]])))
        documents.append(document[1:])
    return documents


class FormulaTest(unittest.TestCase):
    def test_by_hand(self):
        # The document "a b a c". Bigrams: ^a, ab, ba, ac, once each. Before a: ^ and b; before b and c: a.
        # Discounts 0.5 and 1. Of order 1: a (2 - 1) / 4, b and c 0.5 / 4, and (1 + 0.5 + 0.5) / 4 for the rest.
        a, b, c = 1 / 4 + 1 / 2 / 3, 1 / 8 + 1 / 2 / 3, 1 / 8 + 1 / 2 / 3
        expected = {
            (): (1 / 2 + a / 2, b / 2, c / 2),  # After ^, which a follows.
            (0,): (a / 2, 1 / 4 + b / 2, 1 / 4 + c / 2),
            (1,): (1 / 2 + a / 2, b / 2, c / 2),
            (2,): (a, b, c),  # Nothing follows c.
        }
        model = KneserNey(np.array([0, 1, 0, 2]), order=2, vocab_size=3)
        for context, probabilities in expected.items():
            for word, probability in enumerate(probabilities):
                scores = model.score(np.array([*context, word]))
                self.assertAlmostEqual(np.exp(scores.log_probabilities[-1]), probability, places=14)
                self.assertEqual(probabilities[scores.likeliest[-1]], max(probabilities))

    def test_discounts_by_hand(self):
        # n_1 to n_4 are 10, 5, 3, 2: Y = 1/2.
        counts = np.repeat([0, 1, 2, 3, 4, 5, 9], [7, 10, 5, 3, 2, 1, 4])
        np.testing.assert_allclose(ngram._discounts(counts), [0, 1 - 1 / 2, 2 - 3 / 2 * 3 / 5, 3 - 4 / 2 * 2 / 3])
        # No count of 4; and D_2 = 2 - 3 Y n_3 / n_2, which would be negative.
        for counts in ([1, 1, 2, 3], np.repeat([1, 2, 3, 4], [10, 1, 9, 9])):
            self.assertEqual(ngram._discounts(np.array(counts)).tolist(), [0, 0.5, 1, 1.5])

    def test_dictionaries_of_counts(self):
        for seed, (vocab_size, count, longest) in enumerate([(4, 6, 9), (12, 40, 30), (30, 60, 40)]):
            train = random_documents(count, longest, vocab_size - 1, seed)  # The last token never occurs.
            test = [*random_documents(5, 12, vocab_size, seed + 10), train[0], [vocab_size - 1] * 3]
            for order in range(1, 8):
                model = KneserNey(*flat(train), order=order, vocab_size=vocab_size)
                scores = model.score(*flat(test))
                slow = Dictionaries(train, order, vocab_size)
                table = np.concatenate([slow.score(document) for document in test if document])
                expected = np.take_along_axis(table, flat(test)[0][:, None], 1)[:, 0]
                np.testing.assert_allclose(np.exp(scores.log_probabilities), expected, rtol=1e-12)
                chosen = np.take_along_axis(table, scores.likeliest[:, None], 1)[:, 0]
                np.testing.assert_allclose(chosen, table.max(1), rtol=1e-12)
            if seed == 2:  # The discounts of all orders except those of single tokens are estimated.
                self.assertTrue(all(slow.discounts[k] != (0.5, 1.0, 1.5) for k in range(2, 4)))

    def test_probabilities_sum_to_one(self):
        train = random_documents(40, 30, 12, 3)
        model = KneserNey(*flat(train), order=4, vocab_size=15)
        longest = max(train, key=len)
        for context in ([], longest[:1], longest[3:7], longest[-4:], [14, 14, 14], [*longest[:2], 13]):
            scores = model.score(*flat([[*context, word] for word in range(15)]))
            last = scores.log_probabilities.reshape(15, -1)[:, -1]
            self.assertAlmostEqual(np.exp(last).sum(), 1, places=12)


class DocumentsTest(unittest.TestCase):
    def test_documents_are_independent(self):
        train, test = random_documents(30, 20, 9, 4), random_documents(8, 10, 9, 5)
        model = KneserNey(*flat(train), order=4, vocab_size=9)
        other = KneserNey(*flat(train[::-1]), order=4, vocab_size=9)
        together = model.score(*flat(test))
        alone = [model.score(np.array(document, np.int32)).log_probabilities for document in test]
        np.testing.assert_array_equal(together.log_probabilities, np.concatenate(alone))
        np.testing.assert_allclose(other.score(*flat(test)).log_probabilities, together.log_probabilities, rtol=1e-12)

    def test_without_text(self):
        for documents in ([], [[]], [[], []]):
            for order in (1, 3):
                scores = KneserNey(*flat(documents), order=order, vocab_size=4).score(np.array([3, 0]))
                np.testing.assert_allclose(np.exp(scores.log_probabilities), 1 / 4)
        self.assertEqual(KneserNey(np.array([1]), order=2, vocab_size=4).score(np.zeros(0, int)).likeliest.tolist(), [])

    def test_invalid_arguments(self):
        with self.assertRaisesRegex(ValueError, "order 0 must be at least 1"):
            KneserNey(np.array([1]), order=0, vocab_size=4)
        for ids in ([4], [-1]):
            with self.assertRaisesRegex(ValueError, "token ids must be from 0 to 3"):
                KneserNey(np.array(ids), order=2, vocab_size=4)
            with self.assertRaisesRegex(ValueError, "token ids must be from 0 to 3"):
                KneserNey(np.array([0]), order=2, vocab_size=4).score(np.array(ids))


class TinyShakespeareTest(unittest.TestCase):
    def test_another_programs_results(self):
        """With the single discount of Kneser and Ney, n_1 / (n_1 + 2 n_2), the losses are those of another counter."""
        path = pathlib.Path(os.environ.get("TFZOO_DATA", ""), "tinyshakespeare", "input.txt")
        if not path.exists():
            self.skipTest("TFZOO_DATA names no folder with tinyshakespeare/input.txt")
        _, ids = np.unique(list(path.read_text()), return_inverse=True)
        train, test = np.split(ids, [int(0.9 * len(ids))])

        def loss(order):
            model = KneserNey(train, order=order, vocab_size=int(ids.max()) + 1)
            return -model.score(test).log_probabilities.mean()

        def single(counts):
            n_1, n_2 = np.bincount(counts)[1:3]
            return np.array([0, *[n_1 / (n_1 + 2 * n_2)] * 3])

        with unittest.mock.patch.object(ngram, "_discounts", single):
            for order, expected in ((3, 2.0449), (6, 1.5581)):
                self.assertAlmostEqual(loss(order), expected, places=4)
        self.assertLess(loss(6), 1.5227)  # Three discounts are better.


if __name__ == "__main__":
    unittest.main()
