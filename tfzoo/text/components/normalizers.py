"""The normalizer of a tokenizer.json: functions of Pieces that are applied to a text before it is split."""

import base64
import binascii
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text.components import charsmap, patterns
from tfzoo.text.pieces import BORDER, SPACE, Pieces, alternate, characters

Normalizer = Callable[[Pieces], Pieces]
# Characters that BERT's cleaning deletes, including the replacement character, and those that it treats as a space.
BERT_DELETED = r"[\x{0}-\x{8}\x{b}\x{c}\x{e}-\x{1f}\x{7f}-\x{9f}\p{Cf}\p{Co}\x{FFFD}]"
# \p{Z}, tab and line ends, but not the plain space, because replacing each one would take half of the total time.
BERT_SPACES = r"[\t\n\r\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
_CJK = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)
# Text that can be composed: a letter followed by marks, and the parts of a Korean syllable.
_COMPOSES = (
    r"(?s)[^\p{M}]\p{M}+"
    r"|[\x{1100}-\x{1112}][\x{1161}-\x{1175}][\x{11a8}-\x{11c2}]?|[\x{ac00}-\x{d7a3}][\x{11a8}-\x{11c2}]"
)


def compile_all(record: Any, where: str) -> list[Normalizer]:
    """Returns the functions of a normalizer, in order; none if `record` is None.

    Raises:
      UserError: a normalizer is not supported.
    """
    if record is None:
        return []
    if record.get("type") == "Sequence":
        return [normalizer for part in record.get("normalizers", []) for normalizer in compile_all(part, where)]
    return [_compile(record, where)]


def _compile(record: dict[str, Any], where: str) -> Normalizer:
    kind = record.get("type")
    if kind in ("NFD", "NFKD"):
        return functools.partial(Pieces.each_character, rewrite=functools.partial(_unicode, form=kind))
    if kind in ("NFC", "NFKC"):
        return functools.partial(_compose, form=kind)
    if kind == "Lowercase":
        return functools.partial(Pieces.each_character, rewrite=lowercase)
    if kind == "StripAccents":
        return functools.partial(Pieces.each_character, rewrite=_strip_marks)
    if kind == "BertNormalizer":
        return functools.partial(Pieces.each_character, rewrite=_bert(record))
    if kind == "Replace":
        pattern, content = patterns.of(record.get("pattern"), where), record.get("content", "")
        return lambda pieces: pieces.replace(pattern, content)
    if kind == "Prepend":
        content = record.get("prepend", "")
        return lambda pieces: pieces.prepend(content, pieces.texts != "")
    if kind == "Strip":
        sides = [
            f"(?:{edge})"
            for edge, on in ((f"^[{SPACE}]+", "strip_left"), (f"[{SPACE}]+$", "strip_right"))
            if record.get(on)
        ]
        return (lambda pieces: pieces.replace("|".join(sides), "")) if sides else (lambda pieces: pieces)
    if kind == "Precompiled":
        try:
            data = base64.b64decode(record.get("precompiled_charsmap") or "", validate=True)
            return charsmap.Charsmap(charsmap.kept(data))
        except (binascii.Error, ValueError) as error:
            raise UserError(f"{where}: precompiled_charsmap is damaged ({error}); get the file again") from None
    if kind == "Nmt":
        return functools.partial(Pieces.each_character, rewrite=_nmt)
    raise UserError(f"{where}: the normalizer {show(kind)} is not supported")


def lowercase(texts: tf.Tensor) -> tf.Tensor:
    """Lower-cases each character by itself, so a sigma never takes its final form."""
    texts = tf.strings.regex_replace(texts, "Σ", "σ")
    texts = tf.strings.regex_replace(texts, "İ", "i\u0307")
    # Unicode lower-casing depends on the process's locale, and a Turkish one maps I to ı, so ASCII is lower-cased
    # first.
    return past_nul(texts, lambda text: tf.strings.lower(tf.strings.lower(text), encoding="utf-8"))


def past_nul(texts: tf.Tensor, rewrite: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Applies to texts an operation that ends a text at NUL and leaves noncharacters unchanged."""
    # NUL is replaced by a pair that occurs in no text, because its first character is always paired too.
    texts = tf.strings.regex_replace(texts, "\U0010ffff", "\U0010ffff\U0010fffd")
    texts = rewrite(tf.strings.regex_replace(texts, r"\x{0}", "\U0010ffff\U0010fffe"))
    texts = tf.strings.regex_replace(texts, "\U0010ffff\U0010fffe", "\0")
    return tf.strings.regex_replace(texts, "\U0010ffff\U0010fffd", "\U0010ffff")


def _strip_marks(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(texts, r"\p{M}", "")


def _unicode(texts: tf.Tensor, form: str) -> tf.Tensor:
    return past_nul(texts, lambda text: tf_text.normalize_utf8(text, form))


def _compose(pieces: Pieces, form: str) -> Pieces:
    """Composes pieces to Unicode form `form`.

    A letter and its marks, or the parts of a syllable, become fewer characters: the first is mapped to the characters
    that it was composed of, the others to the last ones. (As in the library, except for marks after a character that is
    decomposed, such as ½.)
    """
    if not pieces.aligned:
        return dataclasses.replace(pieces, texts=_unicode(pieces.texts, form))
    parts = tf.strings.split(tf.strings.regex_replace(pieces.texts, _COMPOSES, BORDER + rb"\0" + BORDER), BORDER)
    composed_parts = parts.with_values(_unicode(parts.flat_values, form))
    old, new = characters(parts.flat_values), characters(composed_parts.flat_values)
    together = alternate(parts) & (old != new)
    # Each character between them becomes what it becomes alone.
    counts = _counts_alone(pieces.texts, form)
    owner, place = tf.repeat(tf.range(tf.size(old)), old), tf.ragged.range(old).flat_values
    lost = tf.gather(old - new, owner)
    inside = tf.gather(together, owner)
    composed = tf.where(lost > 0, tf.cast((place == 0) | (place > lost), tf.int32), 1)
    composed = tf.where((lost < 0) & (place == tf.gather(old, owner) - 1), 1 - lost, composed)
    counts = tf.where(inside, composed, counts)
    return dataclasses.replace(
        pieces,
        texts=tf.strings.reduce_join(composed_parts, axis=1),
        starts=tf.repeat(pieces.starts, counts),
        ends=tf.repeat(pieces.ends, counts),
    )


def _counts_alone(texts: tf.Tensor, form: str) -> tf.Tensor:
    """Returns the number of characters that each character of the texts becomes by itself, int32 [C]."""
    distinct, which = tf.unique(tf.strings.unicode_decode(texts, "UTF-8").flat_values)
    becomes = _unicode(tf.strings.unicode_encode(distinct[:, tf.newaxis], "UTF-8"), form)
    return tf.gather(characters(becomes), which)


def _bert(record: dict[str, Any]) -> Callable[[tf.Tensor], tf.Tensor]:
    lower = record.get("lowercase", True)
    accents = record.get("strip_accents")

    def rewrite(texts: tf.Tensor) -> tf.Tensor:
        if record.get("clean_text", True):
            texts = tf.strings.regex_replace(texts, BERT_DELETED, "")
            texts = tf.strings.regex_replace(texts, BERT_SPACES, " ")
        if record.get("handle_chinese_chars", True):
            texts = tf.strings.regex_replace(texts, f"[{_CJK}]", r" \0 ")
        if lower if accents is None else accents:
            texts = tf.strings.regex_replace(_unicode(texts, "NFD"), r"\p{Mn}", "")
        return lowercase(texts) if lower else texts

    return rewrite


def _nmt(texts: tf.Tensor) -> tf.Tensor:
    texts = tf.strings.regex_replace(texts, r"[\x{1}-\x{8}\x{b}\x{e}-\x{1f}\x{7f}\x{8f}\x{9f}]", "")
    return tf.strings.regex_replace(
        texts, r"[\t\n\x{c}\r\x{1680}\x{200b}-\x{200f}\x{2028}\x{2029}\x{2581}\x{feff}\x{fffd}]", " "
    )
