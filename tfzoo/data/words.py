"""Words of Chinese text, which is written without spaces and tokenized into characters.

In whole-word masking for Chinese (BERT-wwm; Cui et al. 2019, https://arxiv.org/abs/1906.08101, section 2.1), the
characters of a word are masked together. The words are those of jieba. Importing this module does not import
TensorFlow.
"""

import dataclasses
import functools
import re
import warnings
from typing import Any

import numpy as np

from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")
_OTHER = " "  # Takes the place of a token that is not a Chinese character.


def with_words(corpus: TokenizedCorpus, tokenizer) -> TokenizedCorpus:
    """Returns a corpus in which the id i of every token that continues a word is replaced with its complement, ~i < 0.

    Thus all kinds of rows keep the words without further arrays. Chinese characters continue a word of jieba; other
    tokens continue a word if the tokenizer says so. A sentence's words are computed when it is first read, and kept.

    Args:
      corpus: the documents.
      tokenizer: splits Chinese text into characters and has `vocab` and `continues`, bool [V].

    Raises:
      UserError: jieba is not installed.
    """
    _cut()
    return dataclasses.replace(corpus, token_ids=_MarkedIds(corpus, tokenizer))  # type: ignore[arg-type]


class _MarkedIds:
    """The token ids of `with_words`; slices are arrays int32 [n]."""

    def __init__(self, corpus: TokenizedCorpus, tokenizer):
        self._ids, self._sentences = corpus.token_ids, corpus.sentence_starts
        # One character for each token, so that characters and tokens of a sentence have the same positions.
        self._characters = np.array([text if _HAN.fullmatch(text) else _OTHER for text in tokenizer.vocab])
        self._suffixes = tokenizer.continues
        self._continues = np.zeros(len(self._ids), bool)
        self._known = np.zeros(len(self._sentences), bool)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(len(self._ids))
        first = np.searchsorted(self._sentences, begin, side="right") - 1
        for sentence in range(first, np.searchsorted(self._sentences, end)):
            if not self._known[sentence]:
                self._find(sentence)
        ids = self._ids[begin:end]
        return np.where(self._continues[begin:end], ~ids, ids)

    def _find(self, sentence: int) -> None:
        """Computes the words of a sentence; if several threads do, they write the same values."""
        start, end = self._sentences[sentence : sentence + 2]
        ids = self._ids[start:end]
        continues = self._suffixes[ids]
        for run in re.finditer(f"[^{_OTHER}]+", "".join(self._characters[ids].tolist())):
            place = run.start()
            for word in _cut()(run[0]):
                continues[place + 1 : place + len(word)] = True
                place += len(word)
        self._continues[start:end] = continues
        self._known[sentence] = True


@functools.cache
def _cut() -> Any:
    """Returns jieba's function from a text to the list of its words.

    Raises:
      UserError: jieba is not installed.
    """
    try:
        with warnings.catch_warnings():  # Of escape sequences and of pkg_resources, when jieba is imported.
            warnings.simplefilter("ignore")
            import jieba
    except ImportError:
        raise UserError(
            "--chinese_words: requires jieba, which is not installed; pip install 'tfzoo[corpus]', or omit the flag"
        ) from None
    words = jieba.Tokenizer()
    # As `initialize` does, but without its cache in a shared temporary folder, which other users can write to.
    words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
    words.initialized = True
    return words.lcut
