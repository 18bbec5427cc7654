"""Markers around two entities, and the room of a row."""

import itertools
import types
import unittest

from tfzoo.errors import UserError
from tfzoo.text import marked


def tokenizer(*vocab, special=()):
    return types.SimpleNamespace(vocab=list(vocab), special_ids=[vocab.index(token) for token in special])


class MarkersTest(unittest.TestCase):
    def test_the_first_two_tokens_of_the_vocabulary(self):
        self.assertEqual(marked.markers(tokenizer("a", "#", "$")), ("$", "#"))
        self.assertEqual(marked.markers(tokenizer("▁$", "▁#", "#")), ("▁$", "#"))
        self.assertEqual(marked.markers(tokenizer("Ġ#", "Ġ$")), ("Ġ$", "Ġ#"))
        self.assertEqual(marked.markers(tokenizer("$", "@", "*", "#", special=("#",))), ("$", "@"))

    def test_a_vocabulary_without_them(self):
        with self.assertRaisesRegex(UserError, "the vocabulary contains fewer than two of the tokens"):
            marked.markers(tokenizer("a", "$"))


class BordersTest(unittest.TestCase):
    def test_space_before_an_entity_belongs_to_it(self):
        text = "The child  sat in the cradle."
        for first, second in (((4, 9), (22, 28)), ((22, 28), (4, 9))):
            found = marked.borders(text, first, second)
            parts = [text[a:b] for a, b in itertools.pairwise(found)]
            self.assertEqual(parts, ["The", " child", "  sat in the", " cradle", "."])
        self.assertEqual(marked.borders("ab", (0, 1), (1, 2)), [0, 0, 1, 1, 2, 2])
        self.assertEqual(marked.borders(" a b", (1, 2), (3, 4)), [0, 0, 2, 2, 4, 4])


class KeptTest(unittest.TestCase):
    def test_everything_that_fits(self):
        self.assertEqual(marked.kept([3, 4, 5, 6, 7], 25), (3, 4, 3, 2, 6, 7))

    def test_what_is_cut(self):
        for counts, room, expected in (
            ([9, 4, 2, 4, 9], 16, (3, 4, 1, 1, 4, 3)),  # The context, on both sides.
            ([1, 4, 2, 4, 9], 16, (1, 4, 1, 1, 4, 5)),
            ([9, 4, 2, 4, 1], 16, (5, 4, 1, 1, 4, 1)),
            ([9, 4, 9, 4, 9], 13, (0, 4, 3, 2, 4, 0)),  # Between the entities.
            ([9, 8, 9, 3, 9], 9, (0, 6, 0, 0, 3, 0)),  # The longer entity.
            ([9, 8, 9, 8, 9], 9, (0, 5, 0, 0, 4, 0)),
            ([0, 3, 0, 3, 0], 2, (0, 1, 0, 0, 1, 0)),
        ):
            with self.subTest(counts=counts, room=room):
                self.assertEqual(marked.kept(counts, room), expected)

    def test_rows_are_filled_and_both_markers_stay(self):
        for counts in itertools.product((0, 1, 4), (3, 5), (0, 1, 6), (3, 7), (0, 2, 5)):
            for room in range(2, 30):
                found = marked.kept(counts, room)
                self.assertEqual(sum(found), min(room, sum(counts)), (counts, room))
                self.assertGreaterEqual(min(found.earlier, found.later), 1)
                self.assertGreaterEqual(min(found), 0)
                pairs = (found.before, found.earlier, found.left + found.right, found.later, found.after)
                self.assertTrue(all(a <= b for a, b in zip(pairs, counts, strict=True)), (counts, room))


if __name__ == "__main__":
    unittest.main()
