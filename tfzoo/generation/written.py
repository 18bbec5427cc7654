"""Generated texts: what new tokens add to the text before them, and a text that grows token by token. Does not import
TensorFlow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tfzoo.errors import UserError

HALF = "\ufffd"  # The replacement character, as which part of a character is decoded.


class Answer(NamedTuple):
    """A generated text."""

    text: str
    token_ids: list[int]  # Including the token that ends the text.
    scores: list[float]  # The model's unmodified log-probability of each token.
    sequence_score: float  # The value by which a beam search ranks; otherwise the sum of the scores.


def added_text(
    detokenize: Callable[[Sequence[int]], str],
    special: Mapping[int, str],
    token_ids: Sequence[int],
    before: Sequence[int] = (),
    skip_special: bool = True,
) -> str:
    """Returns the text that token_ids add to the text of `before`.

    Args:
      detokenize: returns the text of ids without special tokens.
      special: the names of the special tokens by id.
      token_ids, before: ids.
      skip_special: whether to omit special tokens, rather than write their names.
    """
    if not skip_special:
        parts, run = [], list[int]()
        for i in token_ids:
            if i in special:
                parts += [detokenize(run), special[i]]
                run = []
            else:
                run.append(i)
        return "".join([*parts, detokenize(run)])
    start = detokenize(before)
    joined = detokenize([*before, *token_ids])
    return joined[len(start) :] if joined.startswith(start) else detokenize(token_ids)


def check_not_empty(prompts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Raises UserError if a prompt has no tokens; `rows` are the ids of each prompt without added special tokens."""
    for i, ids in enumerate(rows):
        if not ids:
            raise UserError(f"prompt {i} ({prompts[i]!r}) is empty; write the beginning of a text")


def check_one_text(num_prompts: int, options: Mapping[str, Any]) -> None:
    """Raises UserError if `on_text` is given although there is more than one text."""
    if num_prompts > 1 or options.get("num_return_sequences", 1) > 1:
        raise UserError("on_text supports only one text; give one prompt and set num_return_sequences to 1")


class Growing:
    """A text that becomes known one token at a time."""

    def __init__(self, decode: Callable[[Sequence[int]], str], on_text: Callable[[str], Any]):
        self._decode, self._on_text, self._ids, self._shown = decode, on_text, list[int](), ""

    def feed(self, token: int) -> None:
        """Adds a token and passes the text that can no longer change, which is whole characters, to on_text."""
        self._ids.append(token)
        self.end(self._decode(self._ids).rstrip(HALF))

    def end(self, text: str) -> None:
        """Passes the new part of a text to on_text."""
        if text.startswith(self._shown) and text != self._shown:
            new, self._shown = text[len(self._shown) :], text
            self._on_text(new)
