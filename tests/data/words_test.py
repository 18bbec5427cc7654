"""Words of Chinese text: which tokens are marked, with a small segmenter and with jieba. NumPy only."""

import importlib.util
import re
import sys
import types
import unittest
from unittest import mock

import numpy as np

from tfzoo.data import words
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError

# Table 1 of Cui et al. 2019; "probability" has three pieces.
TOKENS = [*"使用语言模型来预测下一个词的", "pro", "##babi", "##lity", "。"]
WORDS = "使用 语言 模型 来 预测 下 一个 词 的 probability 。"
CONTINUES = [0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0]
VOCAB = sorted(set(TOKENS))


def cut(text):
    """Splits a text into words of the example."""
    return re.findall("使用|语言|模型|预测|一个|.", text)


def tokenizer():
    return types.SimpleNamespace(vocab=VOCAB, continues=np.array([token.startswith("##") for token in VOCAB]))


def corpus(*sentences, documents=None):
    """Returns a corpus of sentences, lists of tokens; documents are the numbers of their sentences."""
    ids = [VOCAB.index(token) for sentence in sentences for token in sentence]
    starts = np.cumsum([0, *map(len, sentences)])
    borders = starts[np.cumsum([0, *(documents or [len(sentences)])])]
    return TokenizedCorpus(np.array(ids, np.int32), starts.astype(np.int64), borders.astype(np.int64))


class WithWordsTest(unittest.TestCase):
    def setUp(self):
        self.cuts = []
        patched = mock.patch.object(words, "_cut", lambda: lambda text: self.cuts.append(text) or cut(text))
        patched.start()
        self.addCleanup(patched.stop)

    def test_the_example(self):
        text = corpus(TOKENS)
        marked = words.with_words(text, tokenizer()).token_ids[0 : len(TOKENS)]
        self.assertEqual(marked.dtype, np.int32)
        self.assertEqual((marked < 0).astype(int).tolist(), CONTINUES)
        np.testing.assert_array_equal(np.where(marked < 0, ~marked, marked), text.token_ids)

    def test_any_slice_is_that_of_the_whole(self):
        text = corpus(TOKENS, [*"语言"], [*"言模型"], ["pro"], documents=[2, 1, 1])
        whole = words.with_words(text, tokenizer()).token_ids[0:24]
        self.assertEqual(len(whole), 24)
        for begin in range(25):
            for end in range(begin, 25):
                ids = words.with_words(text, tokenizer()).token_ids
                np.testing.assert_array_equal(ids[begin:end], whole[begin:end])
        self.assertEqual((whole[18:20] < 0).tolist(), [False, True])
        self.assertEqual((whole[20:23] < 0).tolist(), [False, False, True])  # Words do not cross sentences.

    def test_a_sentence_is_split_once(self):
        text = corpus([*"语言"], [*"模型来"], documents=[1, 1])
        rows = PackedRows(words.with_words(text, tokenizer()), 8)
        self.assertEqual(self.cuts, [])
        first, second = rows.row(0), rows.row(0)
        np.testing.assert_array_equal(first[0], second[0])
        self.assertEqual(first[0].tolist(), [VOCAB.index("语"), ~VOCAB.index("言")] + [
            VOCAB.index("模"), ~VOCAB.index("型"), VOCAB.index("来")
        ])  # fmt: skip
        self.assertEqual(self.cuts, ["语言", "模型来"])

    def test_nothing(self):
        text = TokenizedCorpus(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64))
        ids = words.with_words(text, tokenizer()).token_ids
        self.assertEqual((len(ids), len(ids[0:0])), (0, 0))


class JiebaTest(unittest.TestCase):
    def test_without_it(self):
        words._cut.cache_clear()
        with mock.patch.dict(sys.modules, {"jieba": None}):
            with self.assertRaisesRegex(
                UserError, r"^--chinese_words: requires jieba, .*; pip install 'tfzoo\[corpus\]'"
            ):
                words.with_words(corpus(TOKENS), tokenizer())

    @unittest.skipUnless(importlib.util.find_spec("jieba"), "requires jieba")
    def test_its_words_are_those_of_the_example(self):
        marked = words.with_words(corpus(TOKENS), tokenizer()).token_ids[: len(TOKENS)]
        self.assertEqual((marked < 0).astype(int).tolist(), CONTINUES)


if __name__ == "__main__":
    unittest.main()
