"""What the files of a SentencePiece tokenizer define, for the tokenizers with TensorFlow and without it.

Importing this module does not import TensorFlow.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo import files, json_files
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import Field
from tfzoo.text import sentencepiece_proto, settings, token_files
from tfzoo.text.sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from tfzoo.text.settings import CONFIG_FILE, ROLES
from tfzoo.text.token_files import AddedToken

SPACE = "\u2581"  # SentencePiece's own symbol for a space.
_FIELDS = {"keep_accents": Field(bool, null=False), "extra_ids": Field(int, low=0, high=10_000, null=False)}
_ADDING = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")


@dataclasses.dataclass(frozen=True)
class Kind:
    """The differences between the models that use SentencePiece that are not stored in the model's file."""

    tokenizer_class: str  # Hugging Face's name.
    file: str
    roles: dict[str, str]  # Role -> the token's text.
    sentinels: int = 0  # <extra_id_0>, <extra_id_1>, ..., numbered downwards from the last id.
    cleans: bool = False  # XLNet's text preprocessing, which is Python code there.
    lowercase: bool = False
    keep_accents: bool = True
    shifted: bool = False  # fairseq's ids: <s> <pad> </s> <unk>, then the model's own from 3 on, plus 1.
    added: tuple[str, ...] = ()  # Tokens after the last piece.
    vocab: str = ""  # The file with the ids, if they are not the model's own.
    other: str = ""  # A second model, which tokenizes translations.


_FAIRSEQ = {
    "bos": "<s>", "pad": "<pad>", "eos": "</s>", "unknown": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>",
}  # fmt: skip
_MBART_LANGUAGES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
KINDS = {
    "t5": Kind(
        "T5Tokenizer", "spiece.model", {"pad": "<pad>", "eos": "</s>", "unknown": "<unk>"}, sentinels=100
    ),
    "llama": Kind("LlamaTokenizer", "tokenizer.model", {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}),
    "xlnet": Kind(
        "XLNetTokenizer",
        "spiece.model",
        {**_FAIRSEQ, "cls": "<cls>", "sep": "<sep>"},
        cleans=True,
        keep_accents=False,
    ),
    "albert": Kind(
        "AlbertTokenizer",
        "spiece.model",
        {
            "pad": "<pad>", "unknown": "<unk>", "bos": "[CLS]", "cls": "[CLS]",
            "eos": "[SEP]", "sep": "[SEP]", "mask": "[MASK]",
        },
        cleans=True,
        lowercase=True,
        keep_accents=False,
    ),
    "xlm-roberta": Kind(
        "XLMRobertaTokenizer", "sentencepiece.bpe.model", _FAIRSEQ, shifted=True, added=("<mask>",)
    ),
    "mbart": Kind(
        "MBartTokenizer",
        "sentencepiece.bpe.model",
        _FAIRSEQ,
        shifted=True,
        added=(*_MBART_LANGUAGES.split(), "<mask>"),
    ),
    "marian": Kind(
        "MarianTokenizer",
        "source.spm",
        {"pad": "<pad>", "eos": "</s>", "unknown": "<unk>"},
        vocab="vocab.json",
        other="target.spm",
    ),
}  # fmt: skip


class Definition:
    """A SentencePiece model, the kind of tokenizer that uses it and its options: all that a text's ids depend on.

    Args: those of tfzoo.text.sentencepiece.SentencePiece.

    Attributes:
      kind: one of KINDS; `row` is its entry there.
      model, other: the contents of the model's file and of the second model's.
      op_model: the model that is used: the file's, with the changes that `prefix` requires.
      bare_model: the model for pieces of a text that are not the first; None if it is the same.
      proto: the parsed model.
      tokens: the text and the type of every id; `ids` is text -> id.
      pieces: the text and the type of every piece, whose index is what the model returns; for a kind with a `vocab`
        those of every id.
      unknown: the index of the unknown piece.
      new_ids: int [P], the id of every piece; None if it is the piece's index.
      roles, role_ids: role -> text, and role -> id for those that exist.
      special_ids: the sorted ids of the tokens that do not represent text; `controls` are those of the type CONTROL.
      sentinels, lowercase, keep_accents, added, prefix, vocab: the options, with the kind's defaults.

    Raises:
      UserError: see SentencePiece.
    """

    def __init__(
        self,
        model: bytes,
        kind: str = "t5",
        *,
        sentinels: int | None = None,
        lowercase: bool | None = None,
        keep_accents: bool | None = None,
        roles: Mapping[str, str] | None = None,
        added_tokens: Sequence[AddedToken] = (),
        prefix: str | None = None,
        vocab: Mapping[str, int] | None = None,
        other: bytes = b"",
        name: str = "SentencePiece model",
    ):
        if kind not in KINDS:
            raise UserError(f"kind: {kind!r} is not one of {' '.join(KINDS)}{suggest(kind, KINDS)}")
        row = KINDS[kind]
        sentinels = row.sentinels if sentinels is None else sentinels
        if sentinels and not row.sentinels:
            raise UserError(f"sentinels: {sentinels} given for kind {kind!r}; only t5 has sentinels")
        if not row.cleans and (lowercase or keep_accents is False):
            raise UserError(f"lowercase, keep_accents: kind {kind!r} has neither option; only xlnet and albert do")
        if bool(row.vocab) != (vocab is not None):
            raise UserError(
                f"vocab: kind {kind!r} {'requires it; pass it' if row.vocab else 'does not use it; omit it'}"
            )
        self.kind, self.row, self.sentinels, self.prefix = kind, row, sentinels, prefix
        self.model, self.other, self.name, self.vocab = bytes(model), other, name, vocab
        self.lowercase = row.lowercase if lowercase is None else lowercase
        self.keep_accents = row.keep_accents if keep_accents is None else keep_accents
        self.added = tuple(added_tokens)
        self.proto = proto = sentencepiece_proto.parse(self.model, name)
        pieces = [(piece.piece.decode(), piece.type) for piece in proto.pieces]
        unknown = next(i for i, (_, type_) in enumerate(pieces) if type_ == UNKNOWN)
        self.roles = row.roles | dict(roles or {})
        if vocab is not None:
            pieces, unknown = _of_vocab(pieces, vocab, self.roles)
        self.pieces, self.unknown = pieces, unknown
        self.tokens, self.new_ids, self.ids = _numbered(pieces, kind, sentinels, added_tokens, name)
        unknown_role = next((role for role in self.roles if role not in ROLES), None)
        if unknown_role is not None:
            raise UserError(f"roles: {unknown_role!r} is not one of {' '.join(ROLES)}")
        types = [type_ for _, type_ in self.tokens]
        self.role_ids = {
            role: self.ids[text]
            for role, text in self.roles.items()
            if text in self.ids and types[self.ids[text]] != NORMAL
        }
        self.role_ids["unknown"] = unknown if self.new_ids is None else int(self.new_ids[unknown])
        self.controls = [i for i, type_ in enumerate(types) if type_ == CONTROL]
        self.special_ids = token_files.special_ids(
            [text for text, _ in self.tokens], self.controls, self.role_ids, self.added
        )
        self.prefixed = proto.normalizer_spec.add_dummy_prefix and prefix != "never"
        self.strips = proto.normalizer_spec.remove_extra_whitespaces
        self.suffixed = proto.trainer_spec.treat_whitespace_as_suffix
        self.has_bytes = BYTE in types
        self.op_model = sentencepiece_proto.with_prefix(proto, self.model, prefix)
        self.bare_model = sentencepiece_proto.with_prefix(proto, self.model, "never") if prefix == "first" else None

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal models and options."""
        options: tuple = (
            self.kind, self.sentinels, self.lowercase, self.keep_accents, sorted(self.role_ids.items())
        )  # fmt: skip
        if self.added or self.prefix:
            options += (self.prefix, [dataclasses.astuple(token) for token in self.added])
        if self.row.vocab:
            tokens = [text for text, _ in self.tokens]
            options += (tuple(tokens), hashlib.sha256(self.other).hexdigest())
        return hashlib.sha256(f"{options}\n".encode() + self.model).hexdigest()

    def surfaces(self) -> list[bytes]:
        """Returns the bytes that every id contributes to a joined text, in which spaces are still U+2581."""
        dropped = token_files.dropped_ids(self.special_ids, self.role_ids)
        unknown = self.proto.trainer_spec.unk_surface
        return [b"" if i in dropped else _surface(*token, unknown) for i, token in enumerate(self.tokens)]

    def without_commas(self, tokenize: Callable[[list[str]], list[list[int]]]) -> dict[int, list[int]]:
        """Returns the pieces such as "9,", which XLNet and ALBERT split, with the pieces that replace each of them.

        Args:
          tokenize: texts -> the indices of the pieces of each of them.
        """
        if not self.row.cleans:
            return {}
        pieces, ids = self.pieces, {text: i for i, (text, _) in enumerate(self.pieces)}
        chosen = [i for i, (text, _) in enumerate(pieces) if len(text) > 1 and text[-1] == "," and text[-2].isdigit()]
        without = tokenize([pieces[i][0][:-1].replace(SPACE, "") for i in chosen]) if chosen else []
        found = {}
        for i, parts in zip(chosen, without, strict=True):
            if not pieces[i][0].startswith(SPACE) and parts and pieces[parts[0]][0].startswith(SPACE):
                rest = pieces[parts[0]][0][1:]
                parts = ([ids.get(rest, self.unknown)] if rest else []) + parts[1:]
            found[i] = [*parts, ids.get(",", self.unknown)]
        return found


def read(folder: str | os.PathLike) -> Definition:
    """Reads tokenizer_config.json and the model's file from a Hugging Face folder.

    If tokenizer_config.json has no tokenizer_class, as in old folders, the model_type in config.json determines the
    kind.

    Raises:
      UserError: a file is missing or damaged, or requires something that is not supported.
    """
    folder = pathlib.Path(folder)
    path = folder / CONFIG_FILE
    if not path.exists():
        raise UserError(
            f"{path}: no such file, so the kind of tokenizer is unknown; add it, or pass the model's file to "
            "SentencePiece.from_file"
        )
    config = settings.read(folder, _FIELDS)
    kind = _kind_of(folder, config)
    row = KINDS[kind]
    options: dict[str, Any] = {}
    if row.sentinels:
        options["sentinels"] = config.get("extra_ids", row.sentinels)
    if row.cleans:
        options["lowercase"] = config.get("do_lower_case", row.lowercase)
        options["keep_accents"] = config.get("keep_accents", row.keep_accents)
        if config.get("remove_space", True) is not True:
            raise UserError(f"{path}: remove_space is {config['remove_space']!r}; only true is supported")
    if kind == "llama":
        options["prefix"] = _llama_prefix(config)
    if row.vocab:
        options |= _marian_files(folder, row, config)
    role_texts = {role: settings.token_text(config.get(name)) for role, name in ROLES.items()}
    options["roles"] = {role: token for role, token in role_texts.items() if token is not None}
    options["name"] = os.fspath(folder / row.file)
    model = files.read_bytes(folder / row.file)
    definition = Definition(model, kind, **options)
    ids = {text: i for i, (text, _) in enumerate(definition.tokens)}
    adding = {name: config[name] for name in _ADDING if config.get(name)}
    adding |= {ROLES[role]: config[ROLES[role]] for role, token in options["roles"].items() if token not in ids}
    added = token_files.added_tokens(folder, {}, adding, ids)
    return Definition(model, kind, added_tokens=added, **options) if added else definition


def _kind_of(folder: pathlib.Path, config: Mapping[str, Any]) -> str:
    path, class_name = folder / CONFIG_FILE, config.get("tokenizer_class")
    if class_name is None:
        other = folder / "config.json"
        kind = json_files.read(other).get("model_type") if other.exists() else None
        if kind not in KINDS:
            raise UserError(
                f"{path}: has no tokenizer_class, and {other} has model_type {kind!r}, which is not one of "
                f"{' '.join(KINDS)}; add a tokenizer_class"
            )
        return kind
    names = {row.tokenizer_class: kind for kind, row in KINDS.items()}
    kind = names.get(str(class_name).removesuffix("Fast"))
    if kind is None:
        raise UserError(f"{path}: tokenizer_class is {class_name!r}; only {' '.join(names)} are supported")
    return kind


def _numbered(
    pieces: list[tuple[str, int]], kind: str, sentinels: int, added_tokens: Sequence[AddedToken], name: str
) -> tuple[list[tuple[str, int]], np.ndarray | None, dict[str, int]]:
    """Returns every id's text and type, every piece's id (None if ids equal indices), and every text's id."""
    row = KINDS[kind]
    if row.shifted:
        texts = [text for text, _ in pieces]
        if texts[:3] != ["<unk>", "<s>", "</s>"]:
            raise UserError(f"{name}: pieces 0 to 2 are {' '.join(texts[:3])}, but kind {kind} requires <unk> <s> </s>")
        frame = [("<s>", CONTROL), ("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)]
        tokens = frame + pieces[3:]
        new_ids = np.arange(len(pieces)) + 1
        new_ids[:3] = 3, 0, 2
    else:
        tokens = list(pieces)
        new_ids = None
    tokens += [(text, CONTROL) for text in row.added]
    tokens += [(f"<extra_id_{i}>", CONTROL) for i in reversed(range(sentinels))]
    beyond = {token.id: token for token in added_tokens if token.id >= len(tokens)}
    if max(beyond, default=0) >= settings.MAX_TOKENS:
        raise UserError(
            f"{name}: an added token has the id {max(beyond)}, but at most {settings.MAX_TOKENS} tokens are supported"
        )
    for i in range(len(tokens), max(beyond, default=-1) + 1):
        token = beyond.get(i)
        tokens.append((token.content, CONTROL if token.special else USER_DEFINED) if token else ("", CONTROL))
    ids: dict[str, int] = {}
    for i, (text, _) in enumerate(tokens):
        if not text:
            continue
        if text in ids:
            raise UserError(f"{name}: piece {text!r} already exists, but kind {kind} adds it; use another kind")
        ids[text] = i
    return tokens, new_ids, ids


def _of_vocab(
    pieces: list[tuple[str, int]], vocab: Mapping[str, int], roles: Mapping[str, str]
) -> tuple[list[tuple[str, int]], int]:
    """Returns the text and type of every id if a separate file defines the ids, and the id of unknown pieces."""
    types = dict(pieces) | {text: CONTROL for role, text in roles.items() if role != "unknown"}
    types[roles["unknown"]] = UNKNOWN
    return [(text, types.get(text, NORMAL)) for text in vocab], vocab[roles["unknown"]]


def _marian_files(folder: pathlib.Path, row: Kind, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the ids, in order, and the second model."""
    if config.get("separate_vocabs") or config.get("sp_model_kwargs"):
        name = "separate_vocabs" if config.get("separate_vocabs") else "sp_model_kwargs"
        raise UserError(f"{folder / CONFIG_FILE}: {name} is {config[name]!r}, which is not supported")
    path, other = folder / row.vocab, folder / row.other
    vocab = json_files.read(path)
    unknown = settings.token_text(config.get("unk_token")) or row.roles["unknown"]
    if sorted(vocab.values(), key=str) != sorted(range(len(vocab)), key=str) or unknown not in vocab:
        raise UserError(
            f"{path}: must contain each id from 0 to {len(vocab) - 1} once, and {unknown}; get the file again"
        )
    model = files.read_bytes(other)
    sentencepiece_proto.parse(model, str(other))
    return {"vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "other": model}


def _llama_prefix(config: dict[str, Any]) -> str | None:
    """Returns where LlamaTokenizer adds a space: with `legacy` before every text, else not after an added token."""
    if config.get("add_prefix_space") is False:
        return "never"
    return "first" if config.get("legacy") is False else None


def _surface(text: str, type_: int, unknown: str) -> bytes:
    if type_ == BYTE:
        return bytes([int(text[1:-1], 16)])  # <0x41>
    return unknown.encode() if type_ == UNKNOWN else text.encode()
