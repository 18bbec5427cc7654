"""Windows of long texts, and the entities in them."""

import random
import unittest

from tfzoo.prediction import windows
from tfzoo.prediction.windows import Window


class WindowsTest(unittest.TestCase):
    def test_windows_cover_the_text_and_overlap(self):
        generator = random.Random(0)
        for _ in range(200):
            text = "".join(generator.choice("ab 東.") for _ in range(generator.randint(2, 400)))
            tokens = generator.randint(1, 30)
            for overlap in (windows.OVERLAP, 0.0):
                cut = windows.cut(text, tokens, overlap)
                self.assertGreaterEqual(len(cut), 2)
                self.assertEqual((cut[0].start, cut[-1].end), (0, len(text)))
                for one, other in zip(cut, cut[1:]):
                    self.assertLess(one.start, other.start)
                    self.assertLess(one.end, other.end + 1)
                    self.assertGreaterEqual(one.end, other.start)  # No part of the text is left out.
                    if not overlap:
                        self.assertEqual(one.end, other.start)

    def test_borders_are_at_spaces(self):
        text = " ".join(["word"] * 300)
        for window in windows.cut(text, 100)[1:]:
            self.assertEqual(text[window.start], " ")

    def test_halves(self):
        text = "a" * 100
        for window in (Window(0, 100), Window(10, 12)):
            one, other = windows.halved(text, window)
            self.assertEqual((one.start, other.end), window)
            self.assertLess(one.end - one.start, window.end - window.start)
            self.assertGreaterEqual(one.end, other.start)
        self.assertEqual(windows.halved(text, Window(10, 11)), [])

    def joined(self, spans):
        """Joins entities given as (start, end) in each of the windows 0-60 and 40-100."""
        borders = [Window(0, 60), Window(40, 100)]
        found = [
            [{"type": "T", "start": a - window.start, "end": b - window.start, "window": i} for a, b in entities]
            for i, (window, entities) in enumerate(zip(borders, spans))
        ]
        return [(each["start"], each["end"], each["window"]) for each in windows.joined(borders, found, 100)]

    def test_an_entity_is_taken_from_the_window_where_it_is_deeper(self):
        self.assertEqual(
            self.joined([[(0, 5), (42, 46)], [(42, 46), (90, 100)]]), [(0, 5, 0), (42, 46, 0), (90, 100, 1)]
        )
        self.assertEqual(self.joined([[(54, 58)], [(54, 58)]]), [(54, 58, 1)])
        # A window that starts or ends inside an entity reports a part of it.
        self.assertEqual(self.joined([[(36, 46)], [(40, 46)]]), [(36, 46, 0)])
        self.assertEqual(self.joined([[(55, 60)], [(55, 66)]]), [(55, 66, 1)])
        # The deeper window reports nothing there: neither does the join.
        self.assertEqual(self.joined([[], [(42, 46)]]), [])
        self.assertEqual(self.joined([[(54, 58)], []]), [])
        # Each window reports another extent in the middle, where the other one is deeper: one of them is kept.
        self.assertEqual(self.joined([[(50, 57)], [(44, 51)]]), [(44, 51, 1)])


if __name__ == "__main__":
    unittest.main()
