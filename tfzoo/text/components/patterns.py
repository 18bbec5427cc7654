"""Translates the regular expressions of tokenizer.json, which are Oniguruma's, to RE2's syntax."""

import re
from typing import Any

import tensorflow as tf

from tfzoo.errors import UserError, one_line
from tfzoo.json_files import show
from tfzoo.text.pieces import SPACE, literal

WORD = r"\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}"  # \w; RE2's own covers ASCII only.
# Rust's \w, which is the above plus joiners and encircled letters.
RUST_WORD = WORD + r"\x{200c}\x{200d}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189}"
LOOKAHEAD = r"|\s+(?!\S)|\s+"  # The end of the patterns of byte-level tokenizers.
_CLASSES = {"s": SPACE, "d": r"\p{Nd}", "w": WORD}
_TOKEN = re.compile(r"\\[pP]\{[^{}]*\}|\\x\{[0-9a-fA-F]+\}|\\.|\[\^?\]?|\]|\(\?(?:i:|:|.)?|[*+?}][+]|.", re.DOTALL)


def of(record: Any, where: str) -> str:
    """Returns RE2's expression for a component's pattern, {"String": ...} or {"Regex": ...}; errors call it `where`."""
    if isinstance(record, str):
        return literal(record)
    if isinstance(record, dict) and isinstance(record.get("String"), str):
        return literal(record["String"])
    if isinstance(record, dict) and isinstance(record.get("Regex"), str):
        return translate(record["Regex"], where)
    raise UserError(f"{where}: is {show(record)}, not a String or Regex pattern; correct it")


def translate(pattern: str, where: str) -> str:
    """Returns RE2's expression for a pattern; raises UserError if RE2 has no equivalent or cannot use it."""

    def refuse(construct: str):
        raise UserError(
            f"{where}: {show(pattern)} contains {construct}, which cannot be reproduced exactly and is not supported"
        )

    out, depth = [], 0
    for part in _TOKEN.findall(pattern):
        if part[0] == "[" and depth:
            refuse("a character class within another")
        elif part[0] == "[":
            depth = 1
            out.append(part)
        elif part == "]" and depth:
            depth = 0
            out.append(part)
        elif part[0] == "\\" and part[1:] in _CLASSES:
            out.append(_CLASSES[part[1]] if depth else f"[{_CLASSES[part[1]]}]")
        elif part[0] == "\\" and part[1:].lower() in _CLASSES:
            if depth:
                refuse(f"{part} in a character class")
            out.append(f"[^{_CLASSES[part[1].lower()]}]")
        elif part[0] == "\\" and part[1] in "bBAzZGKRXhHkg0123456789uU":
            refuse(part)
        elif depth:
            out.append(part)
        elif part.startswith("(?") and part not in ("(?:", "(?i:"):
            refuse(f"{part}...)")
        elif len(part) == 2 and part[1] == "+" and part[0] in "*+?}":
            refuse(f"the possessive quantifier {part}")
        elif part in ("^", "$"):
            refuse(part)
        else:
            out.append(part)
    result = "".join(out)
    try:
        with tf.init_scope():
            tf.strings.regex_full_match("", result)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"{where}: {show(pattern)}: RE2 cannot use it ({one_line(error, 120)}); correct it") from None
    return result
