"""The tokens of words, and windows, against naive implementations."""

import random
import unittest

import numpy as np

from tfzoo.data.windows import NO_TOKEN, SHARED, first_tokens, window_starts, windows_of


class FirstTokensTest(unittest.TestCase):
    def test_cases(self):
        for name, words, tokens, expected in (
            ("pieces", [(0, 3), (4, 10), (11, 16)], [(0, 3), (4, 6), (6, 10), (11, 16)], [0, 1, 3]),
            ("tokens begin with the space", [(0, 3), (4, 10)], [(0, 3), (3, 6), (6, 10)], [0, 1]),
            ("a token of space alone", [(0, 3), (4, 10)], [(0, 3), (3, 4), (4, 10)], [0, 2]),
            ("no token", [(0, 1), (2, 3), (4, 5)], [(2, 3)], [NO_TOKEN, 0, NO_TOKEN]),
            ("one token for three words", [(0, 1), (1, 2), (2, 3), (4, 5)], [(0, 3), (4, 5)], [0, SHARED, SHARED, 1]),
            ("a token that extends into the next word", [(0, 2), (2, 4)], [(0, 3), (3, 4)], [0, 1]),
            ("a character in three tokens", [(0, 1), (1, 2)], [(0, 1), (0, 1), (0, 1), (1, 2)], [0, 3]),
            ("no words", [], [(0, 1)], []),
            ("no tokens", [(0, 1)], [], [NO_TOKEN]),
        ):
            with self.subTest(name):
                starts, ends = np.array(tokens, np.int32).reshape(-1, 2).T
                self.assertEqual(first_tokens(words, starts, ends).tolist(), expected)


class WindowsTest(unittest.TestCase):
    def test_where_windows_begin(self):
        self.assertEqual(window_starts(0, 4, 1).tolist(), [0])
        self.assertEqual(window_starts(4, 4, 1).tolist(), [0])
        self.assertEqual(window_starts(5, 4, 1).tolist(), [0, 1])
        self.assertEqual(window_starts(10, 4, 1).tolist(), [0, 3, 6])
        self.assertEqual(window_starts(11, 4, 1).tolist(), [0, 3, 6, 7])
        self.assertEqual(window_starts(8, 4, 0).tolist(), [0, 4])

    def test_each_word_is_in_the_window_where_it_is_furthest_from_a_border(self):
        draw = random.Random(0)
        for _ in range(300):
            room = draw.randint(1, 9)
            overlap, count = draw.randrange(room), draw.randint(1, 40)
            tokens = sorted(draw.sample(range(count), draw.randint(1, count)))
            begins = window_starts(count, room, overlap)
            self.assertEqual({i for begin in begins for i in range(begin, min(begin + room, count))}, {*range(count)})
            for before, after in zip(begins, begins[1:]):
                self.assertGreaterEqual(before + room - after, overlap)

            def distance(begin, token, room=room, count=count):
                """Returns the number of tokens to the nearest place where the text is cut; -1 if outside."""
                end = min(begin + room, count)
                if not begin <= token < end:
                    return -1
                left = float("inf") if begin == 0 else token - begin
                return min(left, float("inf") if end == count else end - 1 - token)

            chosen = windows_of(np.array(tokens), begins, count, room).tolist()
            for token, window in zip(tokens, chosen, strict=True):
                found = [distance(begin, token) for begin in begins]
                self.assertEqual(window, found.index(max(found)), (count, room, overlap, token))
            self.assertEqual(chosen, sorted(chosen))

    def test_words_without_tokens_stay_with_the_word_before(self):
        places = np.array([NO_TOKEN, 0, NO_TOKEN, 6, SHARED, 9, NO_TOKEN])
        begins = window_starts(10, 4, 0)
        self.assertEqual(begins.tolist(), [0, 4, 6])
        self.assertEqual(windows_of(places, begins, 10, 4).tolist(), [0, 0, 0, 1, 1, 2, 2])
        self.assertEqual(windows_of(np.array([], np.int32), begins, 10, 4).tolist(), [])


if __name__ == "__main__":
    unittest.main()
