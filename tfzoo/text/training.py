"""Training of WordPiece vocabularies; needs no TensorFlow."""

from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from tfzoo.errors import UserError
from tfzoo.text import SPECIAL_TOKENS

COVERAGE = 0.9999  # The rarest letters, together one character in 10,000, get no token.


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> list[str]:
    """The vocabulary, at most `vocab_size` tokens, that the `tokenizers` library learns from `texts`.

    [PAD] [UNK] [CLS] [SEP] [MASK] are tokens 0 to 4. Every letter that is kept has a token for a word's
    beginning and one for its inside, so that no word of such letters is unknown. The same texts, in whatever
    order, give the same vocabulary. The texts are held in memory. They are normalised as `WordPiece` does.

    Source: Schuster and Nakajima, Japanese and Korean Voice Search (ICASSP 2012); the library merges the most
    frequent pair, as byte-pair encoding does.

    Raises:
      UserError: vocab_size has no room for letters beside the special tokens, or the texts hold none.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2
    if room < 1:
        raise UserError(
            f"vocab_size ({vocab_size}) must be at least {len(SPECIAL_TOKENS) + 2}: "
            "five special tokens and a letter's two forms"
        )
    texts = [normalizer.normalize_str(text) for text in texts]
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    del letters[" "]
    if not letters:
        raise UserError(f"the {len(texts)} texts hold no letter to learn a vocabulary from; check the corpus")

    # The library numbers letters and their ## forms in the order of a hash table that differs from one
    # process to the next, and breaks ties between pairs, and between rare letters, by these numbers. So both
    # are chosen here and given to it in order: the letters as its alphabet, their ## forms as if they were
    # special tokens.
    alphabet, covered = [], 0
    for letter, count in sorted(letters.items(), key=lambda item: (-item[1], item[0]))[:room]:
        if covered >= COVERAGE * letters.total():
            break
        alphabet.append(letter)
        covered += count
    inside = [
        f"##{letter}"
        for letter in alphabet
        if len(splitter.pre_tokenize_str(normalizer.normalize_str(f"a{letter}a"))) == 1
    ]

    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter  # The texts are normalised already.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        special_tokens=[*SPECIAL_TOKENS, *inside],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)
