"""The types of all fields of a tokenizer.json's components, which are checked before any component is compiled."""

import pathlib
from collections.abc import Mapping
from typing import Any

from tfzoo import json_files
from tfzoo.json_files import Field, Fields, show
from tfzoo.text import untrusted

_STRING, _SWITCH, _OBJECT, _LIST = Field(str), Field(bool), Field(dict), Field(list)
_COUNT = Field(int, low=0, high=2**31 - 1)
# Component -> the name of the list of its members, if its type is Sequence.
_MEMBERS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
# A name has the same meaning in all types of components.
_FIELDS: Fields = {
    "type": _STRING,
    **dict.fromkeys(("lowercase", "strip_accents", "clean_text", "handle_chinese_chars", "cleanup"), _SWITCH),
    **dict.fromkeys(("strip_left", "strip_right", "individual_digits", "invert", "split", "use_regex"), _SWITCH),
    **dict.fromkeys(("add_prefix_space", "trim_offsets"), _SWITCH),
    **dict.fromkeys(("content", "prepend", "precompiled_charsmap", "delimiter", "replacement"), _STRING),
    **dict.fromkeys(("prepend_scheme", "behavior", "prefix"), _STRING),
    **dict.fromkeys(("start", "stop"), _COUNT),
    "pattern": (_STRING, Field(dict, items=_STRING)),
    **dict.fromkeys(("cls", "sep"), _LIST),
    **dict.fromkeys(("single", "pair"), Field(list, items=Field(dict, items=_OBJECT))),
    "special_tokens": Field(dict, items=_OBJECT),
    **dict.fromkeys(_MEMBERS.values(), Field(list, items=_OBJECT)),
}
_MODEL: Fields = {
    "type": _STRING,
    **dict.fromkeys(("unk_token", "continuing_subword_prefix", "end_of_word_suffix"), _STRING),
    **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), _SWITCH),
    "dropout": Field(float),
    "unk_id": _COUNT,
    "max_input_chars_per_word": _COUNT,
    "vocab": (_OBJECT, _LIST),
    "merges": _LIST,
}
_PARTS: Fields = {
    **dict.fromkeys((*_MEMBERS, "padding", "truncation"), _OBJECT),
    "model": Field(dict, required=True, null=False),
    "added_tokens": Field(list, items=_OBJECT),
}
_PART: Fields = {"id": _STRING, "type_id": _COUNT}
_TOKEN: Fields = {"ids": Field(list, items=_COUNT, required=True)}
_PADDING: Fields = {"pad_token": _STRING, "pad_id": _COUNT}


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a tokenizer.json.

    Raises:
      UserError: the file is missing or damaged, a field has a value of another type or is out of bounds, or a regular
        expression or a normalisation table is refused (tfzoo.text.untrusted).
    """
    record = json_files.read(path)
    json_files.check(record, _PARTS, path)
    check(record, str(path))
    untrusted.check_tokenizer_json(record, path)
    return record


def check(record: Mapping[str, Any], where: str) -> None:
    """Checks the content of a tokenizer.json, whose components are objects or missing.

    Raises:
      UserError: a field has a value of another type or is out of bounds.
    """
    for name in _MEMBERS:
        if record.get(name) is not None:
            _check(record[name], name, f"{where}: {name}")
    json_files.check(record["model"], _MODEL, f"{where}: model")
    if record.get("padding") is not None:
        json_files.check(record["padding"], _PADDING, f"{where}: padding")


def _check(record: dict[str, Any], name: str, where: str) -> None:
    json_files.check(record, _FIELDS, where)
    for member in record.get(_MEMBERS[name]) or ():
        _check(member, name, where)
    for template in (record.get("single"), record.get("pair")):
        for part in template or ():
            for content in part.values():
                json_files.check(content, _PART, where)
    for token, entry in (record.get("special_tokens") or {}).items():
        json_files.check(entry, _TOKEN, f"{where}: {show(token)}")
