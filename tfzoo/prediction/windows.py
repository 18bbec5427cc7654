"""Long texts: cut into overlapping windows, whose answers are joined. Uses only the standard library.

Windows are cut by characters, before tokenization, so that a model, a SavedModel and an ONNX graph read the same ones.
Whether a window fits is known once it was read: one that was truncated is cut again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

BYTES_PER_TOKEN = 3  # Of UTF-8: fewer than in nearly all texts, so that few windows are cut again.
OVERLAP = 0.25  # Of a window.
_SHIFT = 1 / 16  # How far a border may move, as a fraction of the window, to the next space.


class Window(NamedTuple):
    """A part of a text, from one code point to another."""

    start: int
    end: int


def cut(text: str, tokens: int, overlap: float = OVERLAP) -> list[Window]:
    """Cuts a text that is longer than `tokens` tokens into at least two windows of about equal size."""
    size = max(1, tokens) * BYTES_PER_TOKEN
    length = len(text.encode(errors="replace"))
    # `count` windows of a size cover 1 + (count - 1) * (1 - overlap) of it.
    count = max(2, 1 + -int(-(length / size - 1) // (1 - overlap)))
    return _cut(text, Window(0, len(text)), count, overlap)


def halved(text: str, window: Window, overlap: float = OVERLAP) -> list[Window]:
    """Cuts a window in two; returns an empty list if it is a single character."""
    return _cut(text, window, 2, overlap) if window.end - window.start > 1 else []


def _cut(text: str, whole: Window, count: int, overlap: float) -> list[Window]:
    length = whole.end - whole.start
    count = min(count, length)
    size = length / (1 + (count - 1) * (1 - overlap))
    step, reach = size * (1 - overlap), int(size * _SHIFT)
    windows: list[Window] = []
    for i in range(count):
        start = whole.start + int(i * step)
        end = whole.end if i == count - 1 else max(start + 1, whole.start + int(i * step + size))
        if not overlap:  # Borders that windows share move together.
            start = start if i == 0 else windows[-1].end
            end = end if i == count - 1 else _space_before(text, end, max(reach, 1), start)
        else:
            # Both move inwards, so that no window grows. The space belongs to the word that follows it.
            start = start if i == 0 else max(_space_after(text, start, reach), windows[-1].start + 1)
            end = end if i == count - 1 else _space_before(text, end, reach, start)
        windows.append(Window(start, end))
    return windows


def _space_after(text: str, place: int, reach: int) -> int:
    return next((i for i in range(place, place + reach + 1) if text[i].isspace()), place)


def _space_before(text: str, place: int, reach: int, start: int) -> int:
    return next((i for i in range(place, max(start, place - reach - 1), -1) if text[i].isspace()), place)


def joined(windows: Sequence[Window], found: Sequence[Sequence[dict[str, Any]]], length: int) -> list[dict[str, Any]]:
    """Joins the entities of a text's windows.

    An entity in several windows is taken from the one in which it is furthest from a border, where the model sees most
    of its surroundings; the ends of the text are no borders. An entity that the deepest window does not confirm is
    omitted, unless that window has another entity at that place, which in its turn is less deep.

    Args:
      windows: the windows.
      found: the entities of each window; start and end count from the window's start.
      length: the length of the text.

    Returns:
      The entities in the order of the text; start and end count from the text's start.
    """
    moved = [
        [
            {**entity, "start": entity["start"] + window.start, "end": entity["end"] + window.start}
            for entity in entities
        ]
        for window, entities in zip(windows, found)
    ]
    candidates = [
        (_depth(window, entity, length), entity) for window, entities in zip(windows, moved) for entity in entities
    ]
    taken: list[dict[str, Any]] = []
    for depth, entity in sorted(candidates, key=lambda candidate: -candidate[0]):
        depths = [_depth(window, entity, length) for window in windows]
        deepest = moved[depths.index(max(depths))]
        confirmed = depth >= max(depths) or any(_overlap(entity, other) for other in deepest)
        if confirmed and not any(_overlap(entity, other) for other in taken):
            taken.append(entity)
    return sorted(taken, key=lambda entity: (entity["start"], entity["end"]))


def _depth(window: Window, entity: dict[str, Any], length: int) -> float:
    """Returns the distance of an entity to the nearest border of a window; negative if the window does not contain
    it."""
    left = entity["start"] - window.start if window.start else float("inf")
    right = window.end - entity["end"] if window.end < length else float("inf")
    return min(left, right)


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["start"] < other["end"] and other["start"] < one["end"]
