"""The pre_tokenizer of a tokenizer.json: functions of Pieces that split a text into words."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text.components import patterns
from tfzoo.text.pieces import BORDER, SPACE, Pieces, literal

Split = Callable[[Pieces], Pieces]
_PUNCTUATION = r"\p{P}$+<=>^`|~"  # Unicode punctuation, and all ASCII punctuation.
_BEHAVIORS = {  # The replacement for a match.
    "Isolated": BORDER + rb"\0" + BORDER,
    "Removed": BORDER + rb"\0" + BORDER,
    "Contiguous": BORDER + rb"\0" + BORDER,
    "MergedWithPrevious": rb"\0" + BORDER,
    "MergedWithNext": BORDER + rb"\0",
}


def parts(record: Any) -> list[dict[str, Any]]:
    """Returns the members of a pre_tokenizer, which may be missing, a single one, or a sequence."""
    if record is None:
        return []
    if record.get("type") == "Sequence":
        return [part for member in record.get("pretokenizers", []) for part in parts(member)]
    return [record]


def compile_one(record: dict[str, Any], where: str) -> Split:
    """Returns the function of a pre_tokenizer that is neither a sequence nor byte-level.

    Raises:
      UserError: the pre_tokenizer is not supported.
    """
    kind = record.get("type")
    if kind == "BertPreTokenizer":
        return lambda pieces: split(split(pieces, f"[{SPACE}]+", "Removed"), f"[{_PUNCTUATION}]", "Isolated")
    if kind == "WhitespaceSplit":
        return functools.partial(split, pattern=f"[{SPACE}]+", behavior="Removed")
    if kind == "Whitespace":
        words = f"[{patterns.RUST_WORD}]+|[^{SPACE}{patterns.RUST_WORD}]+"
        return lambda pieces: split(split(pieces, f"[{SPACE}]+", "Removed"), words, "Isolated")
    if kind == "Punctuation":
        return functools.partial(split, pattern=f"[{_PUNCTUATION}]", behavior=_behavior(record, where))
    if kind == "Digits":
        behavior = "Isolated" if record.get("individual_digits") else "Contiguous"
        return functools.partial(split, pattern=r"\p{N}", behavior=behavior)
    if kind == "CharDelimiterSplit":
        return functools.partial(split, pattern=literal(record.get("delimiter", "")), behavior="Removed")
    if kind == "Split":
        return _split(record, where)
    if kind == "Metaspace":
        return _metaspace(record, where)
    raise UserError(f"{where}: the pre_tokenizer {show(kind)} is not supported")


def split(pieces: Pieces, pattern: str, behavior: str) -> Pieces:
    if behavior == "Contiguous":
        pattern = f"(?:{pattern})+"
    marked = tf.strings.regex_replace(pieces.texts, pattern, _BEHAVIORS[behavior])
    return pieces.split(marked, drop_matches=behavior == "Removed")


def _behavior(record: dict[str, Any], where: str) -> str:
    behavior = record.get("behavior", "Isolated")
    if behavior not in _BEHAVIORS:
        raise UserError(f"{where}: behavior is {show(behavior)}, not one of {', '.join(_BEHAVIORS)}; correct it")
    return behavior


def _split(record: dict[str, Any], where: str) -> Split:
    behavior, pattern_record = _behavior(record, where), record.get("pattern")
    expression = pattern_record.get("Regex") if isinstance(pattern_record, dict) else None
    if isinstance(expression, str) and expression.endswith(patterns.LOOKAHEAD):
        if behavior not in ("Isolated", "Removed") or (behavior == "Removed") != bool(record.get("invert")):
            raise UserError(
                f"{where}: behavior {behavior} with invert {record.get('invert')} is not supported for {expression!r}"
            )
        return _words(expression, where, drop_rest=behavior == "Removed")
    pattern = patterns.of(pattern_record, where)
    if not record.get("invert") or behavior == "Isolated":
        return functools.partial(split, pattern=pattern, behavior=behavior)
    if behavior == "Removed":  # Matches are kept.
        return lambda pieces: _matches(pieces, pattern)
    raise UserError(f"{where}: the behavior {behavior} with invert is not supported")


def _words(expression: str, where: str, drop_rest: bool) -> Split:
    """Returns the split by a pattern that ends with a lookahead.

    With such a pattern, a run of white space before a word ends one character early. A mark is inserted there first,
    because RE2 does not match across it.
    """
    first = expression.removesuffix(patterns.LOOKAHEAD)
    pattern = patterns.translate(first, where) + rf"|[{SPACE}]+"
    takes_line_ends = r"\s*[\r\n]" in first  # An alternative before the last two.
    last = SPACE.replace(r"\t-\r", r"\t\x{b}\x{c}") if takes_line_ends else SPACE
    run_ends = rf"([{SPACE}])([{last}][^{SPACE}])"

    def apply(pieces: Pieces) -> Pieces:
        # Each piece is split where a mark is inserted, which only affects words.
        marked = tf.strings.regex_replace(pieces.texts, run_ends, rb"\1" + BORDER + rb"\2")
        parts = pieces.split(marked)
        return _matches(parts, pattern) if drop_rest else split(parts, pattern, "Isolated")

    return apply


def _matches(pieces: Pieces, pattern: str) -> Pieces:
    """Returns only the matches of a pattern."""
    # A match follows an odd number of borders; text between matches is dropped.
    marked = tf.strings.regex_replace(pieces.texts, pattern, BORDER + rb"\0" + BORDER)
    marked = tf.strings.join([BORDER, marked])
    return pieces.split(marked, drop_matches=True)


def _metaspace(record: dict[str, Any], where: str) -> Split:
    mark = record.get("replacement", "\u2581")
    scheme = record.get("prepend_scheme") or ("always" if record.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never") or not isinstance(mark, str) or len(mark) != 1:
        raise UserError(
            f"{where}: Metaspace has prepend_scheme {show(scheme)} and replacement {show(mark)}; correct it"
        )
    starts = f"(?s){literal(mark)}.*"

    def apply(pieces: Pieces) -> Pieces:
        pieces = pieces.replace(" ", mark)
        if scheme != "never":
            lacks = ~tf.strings.regex_full_match(pieces.texts, starts) & (pieces.texts != "")
            pieces = pieces.prepend(mark, lacks & pieces.first if scheme == "first" else lacks)
        if not record.get("split", True):
            return dataclasses.replace(pieces)
        return split(pieces, literal(mark), "MergedWithNext")

    return apply
