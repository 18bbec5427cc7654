"""The special tokens and words that a chat template puts around a single message of the user."""

from tfzoo.chat.template import ChatTemplate
from tfzoo.errors import UserError
from tfzoo.text.framing import PAIR, TEXT, Frame

_MARK = "\U000f0001"  # Stands for the message; no text contains it.
_EXAMPLES = ("What a day", "How are you? Fine.", "x")


def frames_of(template: ChatTemplate) -> tuple[Frame, Frame] | None:
    """Returns the frame with which a model reads a text as a message of the user, up to the beginning of the answer;
    and that of a message and an answer.

    None if the ids of a message depend on what is around it, or if the template does not support a single message: then
    the text cannot be framed.
    """

    def ids_of(text: str) -> list[int]:
        return template.ids([{"role": "user", "content": text}])

    try:
        around = template.around([{"role": "user", "content": _MARK}], _MARK)
        if around is None:
            return None
        before, after = around
        for text in _EXAMPLES:
            if ids_of(text) != [*before, *template.encoded(text), *after]:
                return None
    except UserError:
        return None
    parts: tuple[int | str, ...] = (*before, TEXT, *after)
    return Frame(parts, (0,) * len(parts)), Frame((*parts, PAIR), (0,) * (len(parts) + 1))
