"""Which old tokens represent the text of new tokens, within and between the kinds of tokenizers."""

import pathlib
import unittest

from tests import helpers, tiny_run
from tfzoo.text import training
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.byte_level_model import BYTES
from tfzoo.text.characters import Characters
from tfzoo.text.origins import origins
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.settings import SPECIAL_TOKENS
from tfzoo.text.wordpiece import WordPiece


def wordpiece(*tokens, lowercase=True):
    return WordPiece([*SPECIAL_TOKENS, *tokens], lowercase)


def byte_level(*merges):
    """Returns a byte-level tokenizer with GPT-2's special token and these merges."""
    words = ["".join(merge) for merge in merges]
    return ByteLevelBPE(["<|endoftext|>", *BYTES, *words], merges, special_tokens=["<|endoftext|>"])


class OriginsTest(unittest.TestCase):
    def found(self, tokenizer, old):
        """Returns {token: (same, old tokens)}."""
        vocab = old.vocab
        return {
            token: (origin.same, [vocab[i] for i in origin.ids])
            for token, origin in zip(tokenizer.vocab, origins(tokenizer, old), strict=True)
        }

    def test_wordpiece(self):
        old = wordpiece("a", "in", "##g", "##ing", "play", "##er", "##s", ".", "##1", "1")
        new = wordpiece("play", "playing", "##ers", "##ing", "##1", "☃", ".s", "in")
        found = self.found(new, old)
        for token in (*SPECIAL_TOKENS, "play", "##ing", "##1", "in"):
            self.assertEqual(found[token], (True, [token]))
        self.assertEqual(found["playing"], (False, ["play", "##ing"]))
        self.assertEqual(found["##ers"], (False, ["##er", "##s"]))
        self.assertEqual(found["☃"], (False, []))
        self.assertEqual(found[".s"], (False, ["."]))  # The word s is unknown.

    def test_upper_case_comes_from_lower_case(self):
        found = self.found(wordpiece("The", "the", lowercase=False), wordpiece("the", "1"))
        self.assertEqual((found["the"], found["The"]), ((True, ["the"]), (False, ["the"])))

    def test_an_extended_or_a_cut_vocabulary_is_copied(self):
        old = wordpiece("a", "b", "1")
        found = origins(wordpiece("a", "b", "1", "ab"), old)
        self.assertEqual([origin.ids for origin in found[:8]], [(i,) for i in range(8)])
        self.assertTrue(all(origin.same for origin in found[:8]))
        self.assertEqual([origin.ids for origin in origins(wordpiece("a"), old)], [(i,) for i in range(6)])

    def test_byte_level(self):
        old = byte_level(("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©"))
        new = byte_level(("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("he", "he"), ("Ã", "©"), ("Ġ", "Ã"))
        found = self.found(new, old)
        for token in ("<|endoftext|>", "a", "Ã", "Ġ", "he", "Ġthe", "Ã©"):
            self.assertEqual(found[token], (True, [token]))
        self.assertEqual(found["hehe"], (False, ["he", "he"]))
        self.assertEqual(found["ĠÃ"], (False, []))  # A space and half a character.

    def test_between_kinds(self):
        pieces = wordpiece("1", "the", "he", "##he", "t", "##r", "##e")
        letters = byte_level(("h", "e"), ("Ġ", "t"), ("Ġt", "he"), ("Ġt", "r"), ("Ġtr", "e"))
        found = self.found(letters, pieces)
        self.assertEqual(found["Ġthe"], (True, ["the"]))
        self.assertEqual(found["he"], (True, ["##he"]))
        self.assertEqual(found["Ġtre"], (False, ["t", "##r", "##e"]))
        self.assertEqual(found["<|endoftext|>"], (False, []))
        found = self.found(pieces, letters)
        self.assertEqual(found["the"], (True, ["Ġthe"]))
        self.assertEqual(found["##he"], (True, ["he"]))
        self.assertEqual(found["he"], (False, ["Ġ", "he"]))
        self.assertEqual(found["[MASK]"], (False, []))

    def test_characters(self):
        found = self.found(byte_level(("Ġ", "t"), ("h", "e")), Characters(["a", "t", "h", "e", " "]))
        self.assertEqual(found["Ġt"], (False, [" ", "t"]))
        self.assertEqual(found["he"], (False, ["h", "e"]))
        self.assertEqual(found["t"], (True, ["t"]))
        self.assertEqual(found["z"], (False, []))  # This tokenizer rejects unknown characters.

    def test_sentencepiece(self):
        """Every token of a trained vocabulary has an origin whose tokens, joined, are its text."""
        path = tiny_run.write_corpus(helpers.temporary_folder(self) / "corpus.txt")
        sentences = pathlib.Path(path).read_text().split("\n\n")
        new, old = (SentencePiece(training.train_sentencepiece(sentences, size)) for size in (120, 60))
        found = self.found(new, old)
        for token in ("<pad>", "</s>", "<unk>", "<extra_id_0>", "▁"):
            self.assertEqual(found[token], (True, [token]))
        split = {token: ids for token, (same, ids) in found.items() if not same}
        self.assertGreater(len(split), 20)
        for token, ids in split.items():
            self.assertEqual("".join(ids).removeprefix("▁"), token.removeprefix("▁"))
        same = [token for token, (same, _) in found.items() if same]
        self.assertEqual(same, [token for token in new.vocab if token in set(old.vocab)])
        found = self.found(wordpiece("ab", "##ab"), new)
        self.assertEqual(found["ab"], (True, ["▁ab"]))
        self.assertEqual("".join(found["##ab"][1]), "ab")
        self.assertEqual(found["[PAD]"], (True, ["<pad>"]))


if __name__ == "__main__":
    unittest.main()
