"""Training of vocabularies. Does not import TensorFlow."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from tfzoo.errors import UserError, one_line
from tfzoo.text.settings import SPECIAL_TOKENS, SPLIT_PATTERNS

COVERAGE = 0.9999  # The rarest letters, together one character in 10,000, get no token.


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> list[str]:
    """Learns a WordPiece vocabulary with the `tokenizers` library.

    [PAD] [UNK] [CLS] [SEP] [MASK] are tokens 0 to 4. Every letter that is kept has a token for the beginning of a word
    and one for its inside, so no word of such letters is unknown. The same texts, in any order, give the same
    vocabulary. The texts are held in memory, and normalised as `WordPiece` does.

    Source: Schuster and Nakajima, Japanese and Korean Voice Search (ICASSP 2012); the library merges the most frequent
    pair, as in byte-pair encoding.

    Args:
      texts: the corpus.
      vocab_size: maximum number of tokens.
      lowercase: whether to lower-case texts and strip accents.

    Returns:
      The tokens; token i is at index i.

    Raises:
      UserError: vocab_size leaves no room for letters next to the special tokens, or the texts contain no letters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    room = (vocab_size - len(SPECIAL_TOKENS)) // 2
    if room < 1:
        raise UserError(
            f"vocab_size ({vocab_size}) must be at least {len(SPECIAL_TOKENS) + 2}: "
            "five special tokens and the two forms of one letter"
        )
    texts = [normalizer.normalize_str(text) for text in texts]
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(text)
    del letters[" "]
    if not letters:
        raise UserError(f"the {len(texts)} texts contain no letters to learn a vocabulary from; check the corpus")

    # The library numbers letters and their ## forms in the order of a hash table that differs between processes, and
    # uses these numbers to break ties between pairs and between rare letters. So both are chosen here and passed to it
    # in order: the letters as its alphabet, their ## forms as special tokens.
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
    tokenizer.pre_tokenizer = splitter  # The texts are already normalised.
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


def train_characters(texts: Iterable[str], specials: Iterable[str] = ()) -> list[str]:
    """Returns a vocabulary for `Characters`: `specials`, then every code point of `texts`, in order.

    Source: Karpathy, nanoGPT (data/shakespeare_char/prepare.py), which has no specials.

    Raises:
      UserError: the texts contain no characters.
    """
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    if not characters:
        raise UserError("the texts contain no characters to make a vocabulary of; check the corpus")
    return [*specials, *sorted(characters)]


def train_byte_level(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    pattern: str = "gpt2",
) -> tuple[list[str], list[tuple[str, str]]]:
    """Learns a vocabulary for `ByteLevelBPE` with the `tokenizers` library.

    The special tokens come first, then the 256 bytes, then the tokens made by merges, most frequent first. The same
    texts, in any order, give the same vocabulary.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.2.

    Args:
      texts: the corpus.
      vocab_size: maximum number of tokens.
      special_tokens: the special tokens.
      pattern: one of SPLIT_PATTERNS; splits the texts into words.

    Returns:
      (vocabulary, merges).

    Raises:
      UserError: vocab_size leaves no room for the bytes next to the special tokens, or an option is invalid.
    """
    if pattern not in SPLIT_PATTERNS:
        raise UserError(f"pattern: {pattern!r} is not one of {' '.join(SPLIT_PATTERNS)}")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    invalid = [token for token in special_tokens if not token or token in alphabet]
    if invalid or len(set(special_tokens)) != len(special_tokens):
        raise UserError(f"special_tokens: {list(special_tokens)} must be distinct, not empty and not single letters")
    if vocab_size < len(alphabet) + len(special_tokens):
        raise UserError(
            f"vocab_size ({vocab_size}) must be at least {len(alphabet) + len(special_tokens)}: "
            f"the 256 bytes and {len(special_tokens)} special tokens"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(special_tokens),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [(left, right) for left, right in model["merges"]]


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    kind: str = "unigram",
    specials: Sequence[str] = ("<pad>", "</s>", "<unk>"),
    byte_fallback: bool = False,
    normalization: str = "nmt_nfkc",
    keep_spaces: bool = False,
) -> bytes:
    """Learns a SentencePiece model with the `sentencepiece` library.

    The same texts, in any order, give the same file. The texts are held in memory.

    Args:
      texts: the corpus.
      vocab_size: maximum number of pieces.
      kind: "unigram" (T5, XLNet, ALBERT) or "bpe" (Llama 2).
      specials: pieces 0, 1, ..., which are never matched in a text. They must include <unk>; <pad>, <s> and </s> have
        their usual meaning, and any other is a control piece. The default is T5's; Llama's are ("<unk>", "<s>",
        "</s>").
      byte_fallback: whether a character without a piece is written as its UTF-8 bytes.
      normalization: the library's name of a normalisation rule. "identity" with `keep_spaces` loses nothing, as in
        Llama 2.
      keep_spaces: whether runs of spaces are kept.

    Returns:
      The content of a spiece.model.

    Raises:
      UserError: the library cannot train such a model on these texts; the message gives the reason.
    """
    # Only training requires the library; tokenizing does not.
    import sentencepiece

    if kind not in ("unigram", "bpe"):
        raise UserError(f"kind: {kind!r} is neither unigram nor bpe")
    if "<unk>" not in specials or len(set(specials)) != len(specials):
        raise UserError(f"specials: {' '.join(specials)} must contain <unk>, and no token twice")
    sentences = sorted(line for text in texts for line in text.split("\n") if line)
    if not sentences:
        raise UserError("the texts contain no lines to learn a vocabulary from; check the corpus")
    ids = {
        name: specials.index(piece) if piece in specials else -1
        for name, piece in (("pad_id", "<pad>"), ("unk_id", "<unk>"), ("bos_id", "<s>"), ("eos_id", "</s>"))
    }
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # A small corpus gives fewer.
            byte_fallback=byte_fallback,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=not keep_spaces,
            split_digits=kind == "bpe",  # As in Llama.
            control_symbols=[piece for piece in specials if piece not in ("<pad>", "<unk>", "<s>", "</s>")],
            character_coverage=COVERAGE,
            max_sentence_length=1 << 30,  # In bytes; a longer line would be silently skipped.
            num_threads=1,  # With more threads, the order of summation would depend on the machine.
            minloglevel=2,
            **ids,
        )
    except RuntimeError as error:
        raise UserError(
            f"no model of {vocab_size} pieces ({kind}) can be trained on these texts: {one_line(error)}"
        ) from None
    return model.getvalue()
