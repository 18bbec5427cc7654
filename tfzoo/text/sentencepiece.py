"""SentencePiece tokenizers of T5, XLNet, ALBERT, Llama, XLM-R, mBART and Marian.

They consist of TensorFlow ops only, so an exported model accepts text.

Source: Kudo and Richardson, SentencePiece (arXiv:1808.06226); Kudo, Subword Regularization (arXiv:1804.10959), for the
unigram model; Sennrich et al. (arXiv:1508.07909) for byte-pair encoding.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from tfzoo import files, json_files
from tfzoo.errors import UserError, one_line, suggest
from tfzoo.json_files import Field
from tfzoo.text import settings, token_files, untrusted
from tfzoo.text.added import AddedToken
from tfzoo.text.components import processors
from tfzoo.text.components.normalizers import past_nul
from tfzoo.text.framing import PAIR, TEXT, Frame
from tfzoo.text.pieces import Pieces
from tfzoo.text.sentencepiece_proto import BYTE, CONTROL, MODEL_TYPES, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from tfzoo.text.settings import CONFIG_FILE, ROLES
from tfzoo.text.tokenizer import Tokenizer, join, sentencepiece_op, valid_utf8

_FIELDS = {"keep_accents": Field(bool, null=False), "extra_ids": Field(int, low=0, high=10_000, null=False)}
_ADDING = ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")
_LONGEST_PIECE = 1_000  # Bytes. The library recurses once for each.
_SPACE = "\u2581"  # SentencePiece's own symbol for a space.
_PYTHON_SPACES = (
    r"[\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
)


@dataclasses.dataclass(frozen=True)
class _Kind:
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
    "t5": _Kind(
        "T5Tokenizer", "spiece.model", {"pad": "<pad>", "eos": "</s>", "unknown": "<unk>"}, sentinels=100
    ),
    "llama": _Kind("LlamaTokenizer", "tokenizer.model", {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}),
    "xlnet": _Kind(
        "XLNetTokenizer",
        "spiece.model",
        {**_FAIRSEQ, "cls": "<cls>", "sep": "<sep>"},
        cleans=True,
        keep_accents=False,
    ),
    "albert": _Kind(
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
    "xlm-roberta": _Kind(
        "XLMRobertaTokenizer", "sentencepiece.bpe.model", _FAIRSEQ, shifted=True, added=("<mask>",)
    ),
    "mbart": _Kind(
        "MBartTokenizer",
        "sentencepiece.bpe.model",
        _FAIRSEQ,
        shifted=True,
        added=(*_MBART_LANGUAGES.split(), "<mask>"),
    ),
    "marian": _Kind(
        "MarianTokenizer",
        "source.spm",
        {"pad": "<pad>", "eos": "</s>", "unknown": "<unk>"},
        vocab="vocab.json",
        other="target.spm",
    ),
}  # fmt: skip


class SentencePiece(Tokenizer):
    """Converts text to token ids and back, identically eagerly, in `tf.data` and in a SavedModel.

    The ids equal those of the `sentencepiece` library up to release 0.2.1, for every text. Later releases choose
    differently between equally probable segmentations of a unigram model, such as those of a run of one character
    ("AAA"): 0.2.3 does so in one of 45,397 natural lines with T5's vocabulary, and more often with vocabularies of a
    small corpus. The processing that model families add is included: T5's 100 sentinels, numbered downwards from the
    last id; XLNet's and ALBERT's treatment of quotes, accents and case, and their splitting of pieces such as "9,";
    fairseq's numbering in XLM-R and mBART. A SavedModel that contains this tokenizer requires `import tensorflow_text`
    before it is loaded.

    Special tokens in a text are plain text, except pieces that the model's file declares as user-defined symbols: these
    are matched in any text, special or not, both in the library and in tfzoo (XLNet's <eop> is one).

    What counts as an accent (`keep_accents=False`) depends on the Unicode version of this Python, and what counts as
    lower case (`lowercase=True`) on that of TensorFlow's ICU: rare characters added to Unicode between two versions may
    differ.

    An option that is None uses the default of `kind`.

    Args:
      model: the content of a spiece.model.
      kind: one of KINDS.
      sentinels: number of sentinels, for kind t5 only.
      lowercase, keep_accents: the preprocessing of kinds xlnet and albert.
      roles: role -> text of a piece; replaces some of the kind's. A role whose piece is not in the vocabulary has
        no id.
      added_tokens: tokens that are matched in a text; their ids may follow those of the pieces.
      prefix: which texts get a space before them: "always", "first" (not the text after an added token) or "never";
        None uses the model's setting.
      vocab, other: for kind marian only: the pieces' ids, and the model of target texts, which is only kept for
        saving.
      name: the name of the model in errors.

    Raises:
      UserError: `model` is not a SentencePiece model, is truncated, has no unknown piece, or has a repeated piece;
        or an option does not apply to the kind.
    """

    def __init__(
        self,
        model: bytes,
        kind: str = "t5",
        *,
        sentinels: int | None = None,
        lowercase: bool | None = None,
        keep_accents: bool | None = None,
        roles: dict[str, str] | None = None,
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
        proto = _parse(bytes(model), name)
        pieces = [(piece.piece.decode(), piece.type) for piece in proto.pieces]
        unknown = next(i for i, (_, type_) in enumerate(pieces) if type_ == UNKNOWN)

        by_role = row.roles | (roles or {})
        if vocab is not None:
            pieces, unknown = _of_vocab(pieces, vocab, by_role)
        tokens, new_ids, ids = _numbered(pieces, kind, sentinels, added_tokens, name)
        unknown_role = next((role for role in by_role if role not in ROLES), None)
        if unknown_role is not None:
            raise UserError(f"roles: {unknown_role!r} is not one of {' '.join(ROLES)}")
        types = [type_ for _, type_ in tokens]
        role_ids = {role: ids[text] for role, text in by_role.items() if text in ids and types[ids[text]] != NORMAL}
        role_ids["unknown"] = unknown if new_ids is None else int(new_ids[unknown])
        controls = [i for i, type_ in enumerate(types) if type_ == CONTROL]
        super().__init__("sentencepiece", [text for text, _ in tokens], role_ids, controls, added_tokens)
        self._kind = kind
        self._row = row
        self._sentinels = sentinels
        self._lowercase = row.lowercase if lowercase is None else lowercase
        self._keep_accents = row.keep_accents if keep_accents is None else keep_accents
        self._bytes, self._other = bytes(model), other
        self._roles = tuple(by_role.items())
        self._sentinel_ids = tuple(ids[f"<extra_id_{i}>"] for i in range(sentinels))
        self._prefix = prefix
        self._prefixed = proto.normalizer_spec.add_dummy_prefix and prefix != "never"
        self._strips = proto.normalizer_spec.remove_extra_whitespaces
        self._suffixed = proto.trainer_spec.treat_whitespace_as_suffix
        self._has_bytes = BYTE in types

        with tf.init_scope():  # Created once, outside any graph under construction.
            try:
                self._op_model = _with_prefix(proto, self._bytes, prefix)
                self._model = self._bare = sentencepiece_op(self._op_model)
                if prefix == "first":  # For pieces that are not first.
                    self._bare = sentencepiece_op(_with_prefix(proto, self._bytes, "never"))
                self._model.tokenize(tf.constant(["a"]))
                if vocab is not None:  # Text that is not a piece of this model can have an id.
                    self._texts = sentencepiece_op(self._op_model, tf.string)
                    entries = tf.lookup.KeyValueTensorInitializer(
                        list(vocab), list(vocab.values()), value_dtype=tf.int32
                    )
                    self._ids = tf.lookup.StaticHashTable(entries, default_value=unknown)
            except (tf.errors.OpError, ValueError) as error:
                reason = one_line(error, 200)
                raise UserError(f"{name}: the model cannot be used ({reason}); get the file again") from None
            self._new_ids = None if new_ids is None else tf.constant(new_ids, tf.int32)
            self._splits = self._comma_table(pieces, unknown) if row.cleans else None
            dropped = self._dropped()
            self._pieces = tf.constant(
                [
                    b"" if i in dropped else _surface(text, type_, proto.trainer_spec.unk_surface)
                    for i, (text, type_) in enumerate(tokens)
                ]
            )

    @classmethod
    def from_file(cls, path: str | os.PathLike, kind: str = "t5", **options) -> "SentencePiece":
        """Reads a spiece.model, tokenizer.model or sentencepiece.bpe.model; `options` are those of the class.

        Raises:
          UserError: the file is missing or is not a valid model; the message names the file.
        """
        return cls(files.read_bytes(path), kind, name=os.fspath(path), **options)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "SentencePiece":
        """Reads tokenizer_config.json and the model's file from a Hugging Face folder.

        If tokenizer_config.json has no tokenizer_class, as in old folders, the model_type in config.json determines the
        kind.

        Raises:
          UserError: a file is missing or damaged, or requires something that is not supported.
        """
        path = pathlib.Path(folder, CONFIG_FILE)
        if not path.exists():
            raise UserError(
                f"{path}: no such file, so the kind of tokenizer is unknown; add it, or pass the model's file to "
                "SentencePiece.from_file"
            )
        config = settings.read(folder, _FIELDS)
        class_name = config.get("tokenizer_class")
        if class_name is None:
            other = pathlib.Path(folder, "config.json")
            kind = json_files.read(other).get("model_type") if other.exists() else None
            if kind not in KINDS:
                raise UserError(
                    f"{path}: has no tokenizer_class, and {other} has model_type {kind!r}, which is not one of "
                    f"{' '.join(KINDS)}; add a tokenizer_class"
                )
        else:
            names = {row.tokenizer_class: kind for kind, row in KINDS.items()}
            kind = names.get(str(class_name).removesuffix("Fast"))
            if kind is None:
                raise UserError(f"{path}: tokenizer_class is {class_name!r}; only {' '.join(names)} are supported")
        row = KINDS[kind]
        options: dict = {}
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
            options |= _marian_files(pathlib.Path(folder), row, config)
        role_texts = {role: settings.token_text(config.get(name)) for role, name in ROLES.items()}
        role_texts = {role: token for role, token in role_texts.items() if token is not None}
        file = pathlib.Path(folder, row.file)
        tokenizer = cls.from_file(file, kind, roles=role_texts, **options)
        ids = {token: i for i, token in enumerate(tokenizer.vocab)}
        adding = {name: config[name] for name in _ADDING if config.get(name)}
        adding |= {ROLES[role]: config[ROLES[role]] for role, token in role_texts.items() if token not in ids}
        added = token_files.added_tokens(pathlib.Path(folder), {}, adding, ids)
        if added:
            tokenizer = cls.from_file(file, kind, roles=role_texts, added_tokens=added, **options)
        if kind == "llama":
            begins, ends = config.get("add_bos_token", True), config.get("add_eos_token", False)
            tokenizer.frames = processors.begin_and_end(
                [tokenizer.bos_id] if begins and tokenizer.bos_id is not None else [],
                [tokenizer.eos_id] if ends and tokenizer.eos_id is not None else [],
            )
        if kind == "marian":
            if tokenizer.eos_id is None:
                raise UserError(f"{path}: {row.vocab} has no end-of-text token; get the folder again")
            end = (tokenizer.eos_id,)
            tokenizer.frames = Frame((TEXT, *end), (0, 0)), Frame((TEXT, PAIR, *end), (0, 1, 1))
        return tokenizer

    def _contents(self) -> dict[str, str | bytes]:
        """Returns the model's file and tokenizer_config.json, for `tfzoo.text.load` and Hugging Face's tokenizers."""
        config: dict = {"tokenizer_class": self._row.tokenizer_class}
        for role, text in self._roles:
            if getattr(self, f"{role}_id") is not None:
                config[ROLES[role]] = text
        if self._row.sentinels:
            config["extra_ids"] = self._sentinels
        if self._row.cleans:
            config |= {
                "do_lower_case": self._lowercase, "keep_accents": self._keep_accents, "remove_space": True,
            }  # fmt: skip
        contents: dict[str, str | bytes] = {
            self._row.file: self._bytes,
            CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        }
        if self._row.vocab:
            ids = {text: i for i, text in enumerate(self._vocab) if text}
            contents[self._row.vocab] = json.dumps(ids, indent=2, ensure_ascii=False) + "\n"
            contents[self._row.other] = self._other
        return contents

    @property
    def op(self) -> tf_text.SentencepieceTokenizer:
        """TensorFlow's operation, whose ids are those of the pieces."""
        return self._model

    @property
    def op_model(self) -> bytes:
        """The operation's model: the file's, with the changes that `prefix` requires."""
        return self._op_model

    @property
    def is_plain(self) -> bool:
        """Whether a text becomes ids by the model alone, without any other processing."""
        return not (self._row.cleans or self._row.vocab or self._prefix) and all(token.special for token in self._added)

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self._kind

    @property
    def model(self) -> bytes:
        """The content of the model's file."""
        return self._bytes

    @property
    def sentinel_ids(self) -> list[int]:
        """The ids of <extra_id_0>, <extra_id_1>, ..., numbered downwards from vocab_size - 1."""
        return list(self._sentinel_ids)

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal models and options."""
        options: tuple = (self._kind, self._sentinels, self._lowercase, self._keep_accents, sorted(self._role_ids))
        if self._added or self._prefix:
            options += (self._prefix, [dataclasses.astuple(token) for token in self._added])
        if self._row.vocab:
            options += (tuple(self._vocab), hashlib.sha256(self._other).hexdigest())
        return hashlib.sha256(f"{options}\n".encode() + self._bytes).hexdigest()

    def _valid(self, texts: tf.Tensor) -> tf.Tensor:
        return texts  # Bytes that are not UTF-8 are handled as in the library, mostly as <unk>.

    def _encode(self, pieces: Pieces) -> tuple:
        """Returns ids and offsets with the library's own alignment.

        The space before a word belongs to the word's first piece.

        Raises:
          UserError: alignment is requested and the kind is xlnet, albert or marian, whose processing does not keep a
            map.
        """
        if self._prefix == "first" and self._added:
            return self._encode_first_and_others(pieces)
        if not pieces.aligned:
            return self._tokenize_pieces(pieces.texts), None, None
        if self._row.cleans or self._row.vocab:
            raise UserError(f"offsets: a tokenizer of kind {self._kind!r} has no offsets; use tokenize")
        ids, starts, ends = self._model.tokenize_with_offsets(pieces.texts)
        rows = ids.value_rowids()
        # Bytes are counted across the whole batch, so one search serves all pieces.
        _, begins = tf.strings.unicode_decode_with_offsets(pieces.texts, "UTF-8")
        first_byte = tf.cumsum(tf.cast(tf.strings.length(pieces.texts), tf.int64), exclusive=True)
        byte_of = begins.flat_values + tf.gather(first_byte, begins.value_rowids())
        first_character = begins.row_starts()
        place = tf.concat([pieces.starts, [0]], 0)
        # Not needed without added tokens, and only an estimate if bytes are not UTF-8.
        place = tf.gather(place, tf.minimum(first_character, tf.size(place, tf.int64) - 1)) if self._added else None

        def character(byte: tf.Tensor) -> tf.Tensor:
            index = tf.searchsorted(
                byte_of, tf.cast(byte, tf.int64) + tf.gather(first_byte, rows), side="left", out_type=tf.int64
            )
            index = tf.cast(index - tf.gather(first_character, rows), tf.int32)
            return index if place is None else index + tf.gather(place, rows)

        return (
            self._renumber(ids),
            ids.with_flat_values(character(starts.flat_values)),
            ids.with_flat_values(character(ends.flat_values)),
        )

    def _detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Converts ids to texts as the library decodes them.

        Padding and special tokens are dropped, including sentinels; the unknown piece and the mask remain as text (that
        of the unknown piece is defined by the model, usually " ⁇ "). Normalisation is not undone. Byte pieces that are
        not valid UTF-8, in ids that did not come from a text, become U+FFFD, not always as many as in the library.

        Args:
          ids: int [N, L] or ragged [N, None].

        Returns:
          Strings [N].

        Raises:
          tf.errors.InvalidArgumentError: an id is outside the vocabulary.
        """
        texts = join(self._pieces, ids)
        if self._suffixed:
            texts = tf.strings.regex_replace(texts, f"{_SPACE}$", "")
        elif self._strips:
            texts = tf.strings.regex_replace(texts, f"^{_SPACE}+", "")
        elif self._prefixed:
            texts = tf.strings.regex_replace(texts, f"^{_SPACE}", "")
        texts = tf.strings.regex_replace(texts, _SPACE, " ")
        if self._row.vocab:
            texts = tf.strings.regex_replace(texts, f"^{_PYTHON_SPACES}+|{_PYTHON_SPACES}+$", "")
        return valid_utf8(texts) if self._has_bytes else texts

    def _encode_first_and_others(self, pieces: Pieces) -> tuple:
        """Encodes the first pieces of texts and the other pieces with a model each, and joins the results."""
        if pieces.aligned:
            raise UserError("offsets: a tokenizer with legacy=false and added tokens has no offsets; use tokenize")
        first = self._renumber(self._model.tokenize(tf.where(pieces.first, pieces.texts, "")))
        others = self._renumber(self._bare.tokenize(tf.where(pieces.first, "", pieces.texts)))
        return tf.concat([first, others], 1), None, None

    def _look_up(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Encodes Marian's texts: a language code before a text, such as >>fra<<, is one token."""
        coded = tf.strings.regex_full_match(texts, "(?s)>>.*?<<.*")
        code = tf.strings.regex_replace(tf.boolean_mask(texts, coded), "(?s)^(>>.*?<<).*$", r"\1")
        rest = tf.strings.regex_replace(texts, "(?s)^>>.*?<<", "", replace_global=False)
        pieces = self._texts.tokenize(rest)
        codes = tf.RaggedTensor.from_row_lengths(self._ids.lookup(code), tf.cast(coded, tf.int64))
        return tf.concat([codes, pieces.with_flat_values(self._ids.lookup(pieces.flat_values))], 1)

    def _tokenize_pieces(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if self._row.vocab:
            return self._look_up(texts)
        if not self._row.cleans:
            return self._renumber(self._model.tokenize(texts))
        ids = self._model.tokenize(self._clean(texts))
        if self._splits is None:
            return ids
        which, table = self._splits
        pieces = tf.gather(table, tf.gather(which, ids.flat_values))
        values = tf.where(
            (tf.gather(which, ids.flat_values) == 0)[:, tf.newaxis] & (tf.range(tf.shape(table)[1]) == 0),
            ids.flat_values[:, tf.newaxis],
            pieces,
        )
        split = tf.RaggedTensor.from_tensor(values, padding=-1, row_splits_dtype=tf.int64)
        return ids.with_flat_values(split).merge_dims(1, 2)

    def _renumber(self, ids: tf.RaggedTensor) -> tf.RaggedTensor:
        if self._new_ids is None:
            return ids
        return ids.with_flat_values(tf.gather(self._new_ids, ids.flat_values))

    def _clean(self, texts: tf.Tensor) -> tf.Tensor:
        """Applies the preprocessing of XLNet's and ALBERT's own code, in its order.

        Source: prepro_utils.preprocess_text of XLNet's release, tokenization.preprocess_text of ALBERT's.
        """
        texts = tf.strings.regex_replace(valid_utf8(texts), f"{_PYTHON_SPACES}+", " ")
        texts = tf.strings.regex_replace(texts, "^ | $", "")
        texts = tf.strings.regex_replace(texts, "``|''", '"')
        if not self._keep_accents:
            texts = tf_text.normalize_utf8(texts, "NFKD")
            texts = tf.strings.regex_replace(texts, _accents(), "")
        if self._lowercase:
            # ICU's lower-casing depends on the process's locale, and a Turkish one maps I to ı, so İ is replaced first.
            texts = tf.strings.regex_replace(texts, "İ", "i\u0307")
            texts = past_nul(texts, lambda text: tf.strings.lower(tf.strings.lower(text), encoding="utf-8"))
        return texts

    def _comma_table(self, pieces: list[tuple[str, int]], unknown: int) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Returns how XLNet and ALBERT split pieces such as "9,", which is the same for every text.

        Returns:
          For each id its row in the table, int32 [pieces], 0 for the id itself; and the table, int32 [rows, most],
          padded with -1. None if there is no such piece.
        """
        ids = {text: i for i, (text, _) in enumerate(pieces)}
        chosen = [i for i, (text, _) in enumerate(pieces) if len(text) > 1 and text[-1] == "," and text[-2].isdigit()]
        if not chosen:
            return None
        without = self._model.tokenize([pieces[i][0][:-1].replace(_SPACE, "") for i in chosen]).to_list()
        rows: list[list[int]] = [[]]
        for i, parts in zip(chosen, without, strict=True):
            if not pieces[i][0].startswith(_SPACE) and parts and pieces[parts[0]][0].startswith(_SPACE):
                rest = pieces[parts[0]][0][1:]
                parts = ([ids.get(rest, unknown)] if rest else []) + parts[1:]
            rows.append([*parts, ids.get(",", unknown)])
        which = np.zeros(len(pieces), np.int32)
        which[chosen] = np.arange(1, len(rows))
        table = tf.ragged.constant(rows, dtype=tf.int32).to_tensor(-1)
        return tf.constant(which), table


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


def _marian_files(folder: pathlib.Path, row: _Kind, config: dict[str, Any]) -> dict[str, Any]:
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
    _parse(model, str(other))
    return {"vocab": dict(sorted(vocab.items(), key=lambda item: item[1])), "other": model}


def _llama_prefix(config: dict[str, Any]) -> str | None:
    """Returns where LlamaTokenizer adds a space: with `legacy` before every text, else not after an added token."""
    if config.get("add_prefix_space") is False:
        return "never"
    return "first" if config.get("legacy") is False else None


def _with_prefix(proto: Any, model: bytes, prefix: str | None) -> bytes:
    """Returns the model with add_dummy_prefix set as `prefix` requires."""
    if prefix is None or proto.normalizer_spec.add_dummy_prefix == (prefix != "never"):
        return model
    # The last of a protocol buffer's fields takes precedence: normalizer_spec (3) with add_dummy_prefix (3).
    return model + bytes([3 << 3 | 2, 2, 3 << 3, prefix != "never"])


def _surface(text: str, type_: int, unknown: str) -> bytes:
    """Returns the bytes that a piece contributes to a joined text, in which spaces are still U+2581."""
    if type_ == BYTE:
        return bytes([int(text[1:-1], 16)])  # <0x41>
    return unknown.encode() if type_ == UNKNOWN else text.encode()


@functools.cache
def _accents() -> str:
    """Returns a character class of all characters whose unicodedata.combining is not 0."""
    codes = [c for c in range(sys.maxunicode + 1) if unicodedata.combining(chr(c))]
    starts = [c for c in codes if not unicodedata.combining(chr(c - 1))]
    ends = [c for c in codes if c == sys.maxunicode or not unicodedata.combining(chr(c + 1))]
    return "[" + "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in zip(starts, ends, strict=True)) + "]"


@functools.cache
def _model_proto() -> type:
    """Returns the protocol buffer message of a model's file, with the fields that are read here.

    The fields are those of SentencePiece's sentencepiece_model.proto. SentencePiece's own generated module requires a
    newer protobuf than TensorFlow's.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tfzoo_sentencepiece.proto", package="tfzoo", syntax="proto2")

    def add(name: str, *fields: tuple) -> None:
        kind = file.message_type.add(name=name)
        for number, field_name, type_, default in fields:
            added = kind.field.add(name=field_name, number=number, label=field.LABEL_OPTIONAL)
            if isinstance(type_, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".tfzoo.{type_}"
                added.label = field.LABEL_REPEATED if default == "repeated" else field.LABEL_OPTIONAL
            else:
                added.type = type_
                if default is not None:
                    added.default_value = default

    add(
        "Piece",
        (1, "piece", field.TYPE_BYTES, None),
        (2, "score", field.TYPE_FLOAT, None),
        (3, "type", field.TYPE_INT32, "1"),
    )
    add(
        "TrainerSpec",
        (3, "model_type", field.TYPE_INT32, "1"),
        (24, "treat_whitespace_as_suffix", field.TYPE_BOOL, None),
        (44, "unk_surface", field.TYPE_STRING, " \u2047 "),
    )
    add(
        "NormalizerSpec",
        (1, "name", field.TYPE_BYTES, None),
        (2, "precompiled_charsmap", field.TYPE_BYTES, None),
        (3, "add_dummy_prefix", field.TYPE_BOOL, "true"),
        (4, "remove_extra_whitespaces", field.TYPE_BOOL, "true"),
        (5, "escape_whitespaces", field.TYPE_BOOL, "true"),
    )
    add(
        "Model",
        (1, "pieces", "Piece", "repeated"),
        (2, "trainer_spec", "TrainerSpec", None),
        (3, "normalizer_spec", "NormalizerSpec", None),
        (5, "denormalizer_spec", "NormalizerSpec", None),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tfzoo.Model"))


def _parse(data: bytes, name: str) -> Any:
    """Returns the parsed message of a model's file; errors call the model `name`."""
    proto = _model_proto()()
    if data.startswith(b"version https://git-lfs"):
        raise UserError(f"{name}: is a Git LFS pointer, not the model; fetch the file itself (git lfs pull)")
    # The first field of every model is a piece: tag 1, with a length.
    if not data.startswith(b"\x0a"):
        raise UserError(f"{name}: is not a SentencePiece model (it begins with {data[:8]!r}); get the file again")
    try:
        proto.ParseFromString(data)
        if isinstance(proto.trainer_spec.unk_surface, bytes):  # It is not UTF-8.
            raise message.DecodeError
    except message.DecodeError:
        raise UserError(
            f"{name}: is not a SentencePiece model, or is truncated ({len(data)} bytes); get it again"
        ) from None
    if not proto.pieces or not proto.HasField("trainer_spec") or not proto.HasField("normalizer_spec"):
        raise UserError(
            f"{name}: is truncated, or not a SentencePiece model ({len(data)} bytes, {len(proto.pieces)} pieces, no "
            "settings after them); get it again"
        )
    seen: dict[str, int] = {}
    for i, piece in enumerate(proto.pieces):
        try:
            text = piece.piece.decode()
        except UnicodeDecodeError:
            raise UserError(f"{name}: piece {i} ({piece.piece[:20]!r}) is not UTF-8; get the file again") from None
        if not text:
            raise UserError(f"{name}: piece {i} is empty; train the model again")
        if "\0" in text or len(piece.piece) > _LONGEST_PIECE:
            raise UserError(
                f"{name}: piece {i} ({text[:20]!r}) contains NUL or has more than {_LONGEST_PIECE} bytes; train the "
                "model again"
            )
        if not math.isfinite(piece.score):
            raise UserError(f"{name}: piece {i} ({text!r}) has the score {piece.score}; train the model again")
        if text in seen:
            raise UserError(f"{name}: piece {i} ({text!r}) is the same as piece {seen[text]}; train the model again")
        if piece.type not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
            raise UserError(f"{name}: piece {i} ({text!r}) has type {piece.type}, which SentencePiece does not have")
        if piece.type == BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", text):
            raise UserError(f"{name}: piece {i} ({text!r}) has the type of a byte, but is not of the form <0xFF>")
        seen[text] = i
    unknowns = [i for i, piece in enumerate(proto.pieces) if piece.type == UNKNOWN]
    if len(unknowns) != 1:
        count = "no unknown piece" if not unknowns else f"{len(unknowns)} unknown pieces"
        raise UserError(f"{name}: has {count} among its {len(seen)} pieces; a model has one, usually <unk>")
    if proto.trainer_spec.model_type not in MODEL_TYPES:
        raise UserError(f"{name}: its model_type is {proto.trainer_spec.model_type}, which SentencePiece does not have")
    for charsmap in (proto.normalizer_spec.precompiled_charsmap, proto.denormalizer_spec.precompiled_charsmap):
        try:
            if charsmap:
                untrusted.check_charsmap(charsmap)
        except ValueError as error:
            raise UserError(f"{name}: its normalisation table is damaged ({error}); get the file again") from None
    return proto
