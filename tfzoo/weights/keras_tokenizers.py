"""The byte-level tokenizers of KerasHub's presets, converted to Hugging Face's.

A preset contains vocabulary.json and merges.txt, without the version line that older readers of merges.txt skip. The
class of its tokenizer determines the rest: how a text is split, and the roles of the special tokens.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tfzoo import files, json_files
from tfzoo.errors import UserError, one_line, suggest
from tfzoo.json_files import Field
from tfzoo.text.settings import SPLIT_PATTERNS

VOCABULARY, MERGES, SETTINGS = "vocabulary.json", "merges.txt", "tokenizer.json"
_SPECIAL = re.compile(r"<\|[^|]*\|>")  # The form of Llama 3's and Qwen's special tokens.
_END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A tokenizer class of KerasHub: Hugging Face's class, the split pattern of texts, and the tokens by role."""

    name: str
    roles: Mapping[str, str]
    pattern: str = "gpt2"
    nfc: bool = False
    ignore_merges: bool = False
    further_stops: tuple[str, ...] = ()  # Tokens that also end a text, if the vocabulary has them.


_ROBERTA = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
KINDS = {
    "GPT2Tokenizer": Kind("GPT2Tokenizer", {"bos": _END, "eos": _END, "unk": _END}),
    "RobertaTokenizer": Kind("RobertaTokenizer", _ROBERTA),
    "BartTokenizer": Kind("BartTokenizer", _ROBERTA),
    "Llama3Tokenizer": Kind(
        "PreTrainedTokenizerFast",
        {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"},
        "llama3",
        ignore_merges=True,
        further_stops=("<|eot_id|>",),
    ),
    "QwenTokenizer": Kind("Qwen2Tokenizer", {"eos": _END, "pad": _END}, "qwen2", nfc=True),
    "Qwen3Tokenizer": Kind("Qwen2Tokenizer", {"eos": "<|im_end|>", "pad": _END}, "qwen2", nfc=True),
}
_OPTIONAL = ("unk", "mask")  # Roles whose token a vocabulary may lack.


class ByteLevelFiles:
    """The files of such a tokenizer, to be written to a Hugging Face folder."""

    def __init__(self, kind: Kind, vocab: Mapping[str, int], merges: list[tuple[str, str]], add_prefix_space: bool):
        self._kind, self._ids, self._merges, self._add_prefix_space = kind, vocab, merges, add_prefix_space
        self._roles = {role: token for role, token in kind.roles.items() if token in vocab}

    @classmethod
    def from_preset(cls, folder: pathlib.Path, backbone: str) -> "ByteLevelFiles":
        """Reads assets/tokenizer/ and tokenizer.json of a preset with the backbone class `backbone`.

        Raises:
          UserError: a file is missing or damaged, or the tokenizer class is not one of KINDS.
        """
        settings: dict[str, Any] = {"class_name": backbone.replace("Backbone", "Tokenizer"), "config": {}}
        if (folder / SETTINGS).exists():
            settings |= json_files.read(folder / SETTINGS)
            json_files.check(settings, {"class_name": Field(str), "config": Field(dict)}, folder / SETTINGS)
            json_files.check(settings["config"], {"add_prefix_space": Field(bool)}, folder / SETTINGS)
        name = settings["class_name"]
        if name not in KINDS:
            raise UserError(
                f"{folder / SETTINGS}: class_name {name!r} is not a supported byte-level tokenizer"
                f"{suggest(name, KINDS)}; use one of {', '.join(KINDS)}"
            )
        assets = folder / "assets" / "tokenizer"
        vocab = json_files.read(assets / VOCABULARY)
        json_files.check(vocab, dict.fromkeys(vocab, Field(int, low=0)), assets / VOCABULARY)
        merges = _read_merges(assets / MERGES)
        for role, token in KINDS[name].roles.items():
            if token not in vocab and role not in _OPTIONAL:
                raise UserError(
                    f"{assets / VOCABULARY}: has no {token}, which {name} requires; restore the preset's own file"
                )
        return cls(KINDS[name], vocab, merges, bool(settings["config"].get("add_prefix_space")))

    @property
    def vocab_size(self) -> int:
        return max(self._ids.values(), default=-1) + 1

    def config_fields(self) -> dict[str, Any]:
        """Returns config.json's ids of special tokens; null (None) if there is no such token."""
        ids: dict[str, Any] = {f"{role}_token_id": self._ids.get(self._roles.get(role, "")) for role in ("bos", "eos")}
        stops = [ids["eos_token_id"], *(self._ids[token] for token in self._kind.further_stops if token in self._ids)]
        if len(stops) > 1:
            ids["eos_token_id"] = stops
        if "pad" in self._roles:
            ids["pad_token_id"] = self._ids[self._roles["pad"]]
        return ids

    def save(self, folder: pathlib.Path) -> None:
        """Writes tokenizer.json, vocab.json, merges.txt and tokenizer_config.json.

        Raises:
          UserError: vocabulary and merges do not belong to the same tokenizer.
        """
        roles = {f"{role}_token": token for role, token in self._roles.items()}
        config = {"tokenizer_class": self._kind.name, "add_prefix_space": self._add_prefix_space} | roles
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self._merges)]
        try:
            content = self._tokenizer().to_str(pretty=False)
        except Exception as error:  # The library raises no other type.
            raise UserError(
                f"{VOCABULARY} and {MERGES} do not belong to the same tokenizer: {one_line(error, 200)}"
            ) from None
        files.atomic_write(folder / "tokenizer.json", content)
        files.atomic_write(folder / "vocab.json", json.dumps(self._ids, ensure_ascii=False))
        files.atomic_write(folder / "merges.txt", "".join(f"{line}\n" for line in lines))
        files.atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _tokenizer(self) -> tokenizers.Tokenizer:
        kind, prefix = self._kind, self._add_prefix_space
        tokenizer = tokenizers.Tokenizer(
            models.BPE(vocab=dict(self._ids), merges=self._merges, ignore_merges=kind.ignore_merges)
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        if kind.pattern != "gpt2":
            split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERNS[kind.pattern]), behavior="isolated")
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        if kind.nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        bos, end, first = (self._roles.get(role) for role in ("bos", "sep", "cls"))
        if end and first:
            frame = ((end, self._ids[end]), (first, self._ids[first]))
            tokenizer.post_processor = processors.RobertaProcessing(*frame, trim_offsets=True, add_prefix_space=prefix)
        elif kind.pattern == "llama3" and bos:
            template = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, self._ids[bos])]
            )
            tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
        special = {*self._roles.values(), *filter(_SPECIAL.fullmatch, self._ids)}
        in_order = sorted(special, key=self._ids.__getitem__)
        tokenizer.add_special_tokens([tokenizers.AddedToken(t, lstrip=t == self._roles.get("mask")) for t in in_order])
        return tokenizer


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
    lines = files.read_text(path).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        parts = line.rstrip("\r").split(" ")
        if line.startswith("#version:") or parts == [""]:
            continue
        if len(parts) != 2 or not all(parts):
            raise UserError(f"{path}, line {number}: {line[:40]!r} is not two tokens; restore the preset's own file")
        merges.append((parts[0], parts[1]))
    return merges
