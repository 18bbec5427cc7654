"""The post_processor of a tokenizer.json: the special tokens around one text and around two."""

from collections.abc import Mapping
from typing import Any

from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text.framing import BARE, PAIR, TEXT, Frame

Frames = tuple[Frame, Frame]


def compile_processor(record: Any, ids: Mapping[str, int], where: str) -> Frames:
    """Returns the frames of one text and of a pair.

    Raises:
      UserError: the post_processor uses a token that does not exist, or is not supported.
    """
    if record is None:
        return BARE
    kind = record.get("type")
    if kind == "Sequence":
        compiled = [compile_processor(part, ids, where) for part in record.get("processors", [])]
        framed = [frames for frames in compiled if frames != BARE]
        if len(framed) > 1:
            raise UserError(f"{where}: {len(framed)} processors add special tokens around a text; only one may")
        return framed[0] if framed else BARE
    if kind == "ByteLevel":
        return BARE
    if kind in ("BertProcessing", "RobertaProcessing"):
        cls, sep = (_id(record, name, ids, where) for name in ("cls", "sep"))
        second = int(kind == "BertProcessing")
        between = (sep,) if second else (sep, sep)
        single = Frame((cls, TEXT, sep), (0, 0, 0))
        middle = (0,) * len(between)
        return single, Frame((cls, TEXT, *between, PAIR, sep), (0, 0, *middle, second, second))
    if kind == "TemplateProcessing":
        tokens = record.get("special_tokens") or {}
        single, pair = (_template(record.get(name), tokens, ids, where) for name in ("single", "pair"))
        return single, pair
    raise UserError(f"{where}: the post_processor {show(kind)} is not supported")


def _id(record: dict[str, Any], name: str, ids: Mapping[str, int], where: str) -> int:
    value = record.get(name)
    if not isinstance(value, list) or len(value) != 2 or type(value[1]) is not int:
        raise UserError(f"{where}.{name}: is {show(value)}, not a token and its id; get the file again")
    return value[1]


def _template(parts: Any, tokens: Any, ids: Mapping[str, int], where: str) -> Frame:
    names: list[int | str] = []
    segments: list[int] = []
    for part in parts or []:
        kind, content = next(iter(part.items())) if isinstance(part, dict) and len(part) == 1 else ("", {})
        if kind == "Sequence" and content.get("id") in ("A", "B"):
            part_ids: list[int | str] = [TEXT if content["id"] == "A" else PAIR]
        elif kind == "SpecialToken" and content.get("id") in tokens:
            part_ids = list(tokens[content["id"]].get("ids", []))
        else:
            raise UserError(f"{where}: the template's part {show(part)} is not a text or a known token; correct it")
        names += part_ids
        segments += [content.get("type_id", 0)] * len(part_ids)
    return Frame(tuple(names), tuple(segments))


def begin_and_end(bos: list[int], eos: list[int]) -> Frames:
    """Returns frames with bos before and eos after each text, as add_bos_token and add_eos_token specify."""
    single = Frame((*bos, TEXT, *eos), (0,) * (1 + len(bos) + len(eos)))
    second = len(single.parts)
    return single, Frame((*single.parts, *bos, PAIR, *eos), (*single.segments, *(1,) * second))
