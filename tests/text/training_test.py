"""Vocabulary training: small texts with a known vocabulary, which must be the same in every process."""

import json
import unittest

from tests.helpers import printed_in_every_process
from tfzoo.errors import UserError
from tfzoo.text import SPECIAL_TOKENS, training


class TrainWordPieceTest(unittest.TestCase):
    def test_letters_first_then_the_frequent_pairs(self):
        vocab = training.train_wordpiece(["aab aab aab aab", "Áab c"], 14, lowercase=True)
        self.assertEqual(vocab[:5], list(SPECIAL_TOKENS))
        self.assertEqual(set(vocab[5:11]), {"a", "b", "c", "##a", "##b", "##c"})
        self.assertEqual(vocab[11:], ["##ab", "aab"])  # "Áab" became "aab"; then nothing is left to merge.

    def test_cased_keeps_case_and_accents(self):
        vocab = training.train_wordpiece(["Áa É"], 100, lowercase=False)
        self.assertLessEqual({"Á", "É", "a", "##a"}, set(vocab))
        self.assertNotIn("á", vocab)

    def test_letters_that_are_words_have_no_inside_form(self):
        vocab = training.train_wordpiece(["漢字 x, y!"], 100, lowercase=True)
        self.assertLessEqual({"漢", "字", ",", "!", "x", "##x"}, set(vocab))
        self.assertFalse({"##漢", "##字", "##,", "##!"} & set(vocab))

    def test_size_is_never_exceeded_and_the_rarest_letters_are_dropped_first(self):
        for size in (7, 8, 20, 60):
            vocab = training.train_wordpiece(["zzzz yyy xx w abcdefghijklmnop"] * 3, size, lowercase=True)
            self.assertLessEqual(len(vocab), size)
            self.assertIn("z", vocab)
            self.assertEqual(len(set(vocab)), len(vocab))
        with self.assertRaisesRegex(UserError, r"vocab_size \(6\) must be at least 7"):
            training.train_wordpiece(["a"], 6, lowercase=True)
        with self.assertRaisesRegex(UserError, "no letter"):
            training.train_wordpiece(iter(["", " \0"]), 100, lowercase=True)

    def test_letters_too_rare_to_matter_get_no_token(self):
        vocab = training.train_wordpiece(["ab" * 40] * 500 + ["q"], 100, lowercase=True)
        self.assertIn("a", vocab)
        self.assertNotIn("q", vocab)

    def test_results_do_not_depend_on_process_or_order(self):
        # Many pairs of equal frequency, so that any nondeterministic order shows.
        script = (
            "import json, random, sys\n"
            "from tfzoo.text.training import train_wordpiece\n"
            "letters = 'abcdefghijklmnopqrstuvwxyzäöüéèçñ漢字'\n"
            "texts = [''.join(random.Random(i).choices(letters + ' ', k=50)) for i in range(200)]\n"
            "random.Random(int(sys.argv[1])).shuffle(texts)\n"
            "print(json.dumps(train_wordpiece(texts, 500, lowercase=False)))\n"
        )
        self.assertEqual(len(json.loads(printed_in_every_process(script))), 500)


if __name__ == "__main__":
    unittest.main()
