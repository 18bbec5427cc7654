"""SentencePiece tokenizers of T5, XLNet, ALBERT, Llama, XLM-R, mBART and Marian.

They consist of TensorFlow ops only, so an exported model accepts text.

Source: Kudo and Richardson, SentencePiece (arXiv:1808.06226); Kudo, Subword Regularization (arXiv:1804.10959), for the
unigram model; Sennrich et al. (arXiv:1508.07909) for byte-pair encoding.
"""

import functools
import json
import os
import pathlib
import sys
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tfzoo import files
from tfzoo.errors import UserError, one_line
from tfzoo.text import sentencepiece_files, settings
from tfzoo.text.components import processors
from tfzoo.text.components.normalizers import past_nul
from tfzoo.text.framing import PAIR, TEXT, Frame
from tfzoo.text.pieces import Pieces
from tfzoo.text.sentencepiece_files import SPACE, Definition
from tfzoo.text.settings import CONFIG_FILE, ROLES
from tfzoo.text.token_files import AddedToken
from tfzoo.text.tokenizer import Tokenizer, join, sentencepiece_op, valid_utf8

_PYTHON_SPACES = (
    r"[\x{9}-\x{d}\x{1c}-\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
)


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
      model: the content of a spiece.model, or a Definition, which replaces all other arguments.
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
        model: bytes | Definition,
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
        if isinstance(model, Definition):
            definition = model
        else:
            definition = Definition(
                model, kind, sentinels=sentinels, lowercase=lowercase, keep_accents=keep_accents, roles=roles,
                added_tokens=added_tokens, prefix=prefix, vocab=vocab, other=other, name=name,
            )  # fmt: skip
        texts = [text for text, _ in definition.tokens]
        super().__init__("sentencepiece", texts, definition.role_ids, definition.controls, definition.added)
        self._definition, self._row = definition, definition.row
        self._sentinel_ids = tuple(definition.ids[f"<extra_id_{i}>"] for i in range(definition.sentinels))

        with tf.init_scope():  # Created once, outside any graph under construction.
            try:
                self._model = self._bare = sentencepiece_op(definition.op_model)
                if definition.bare_model is not None:  # For pieces that are not first.
                    self._bare = sentencepiece_op(definition.bare_model)
                self._model.tokenize(tf.constant(["a"]))
                if definition.vocab is not None:  # Text that is not a piece of this model can have an id.
                    self._texts = sentencepiece_op(definition.op_model, tf.string)
                    entries = tf.lookup.KeyValueTensorInitializer(
                        list(definition.vocab), list(definition.vocab.values()), value_dtype=tf.int32
                    )
                    self._ids = tf.lookup.StaticHashTable(entries, default_value=definition.unknown)
            except (tf.errors.OpError, ValueError) as error:
                reason = one_line(error, 200)
                raise UserError(f"{definition.name}: the model cannot be used ({reason}); get the file again") from None
            self._new_ids = None if definition.new_ids is None else tf.constant(definition.new_ids, tf.int32)
            self._splits = self._comma_table()
            self._pieces = tf.constant(definition.surfaces())

    @classmethod
    def from_file(cls, path: str | os.PathLike, kind: str = "t5", **options) -> "SentencePiece":
        """Reads a spiece.model, tokenizer.model or sentencepiece.bpe.model; `options` are those of the class.

        Raises:
          UserError: the file is missing or is not a valid model; the message names the file.
        """
        return cls(files.read_bytes(path), kind, name=os.fspath(path), **options)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "SentencePiece":
        """Reads tokenizer_config.json and the model's file from a Hugging Face folder: see sentencepiece_files.read.

        Raises:
          UserError: a file is missing or damaged, or requires something that is not supported.
        """
        tokenizer = cls(sentencepiece_files.read(folder))
        if tokenizer.kind == "llama":
            config = settings.read(folder)
            begins, ends = config.get("add_bos_token", True), config.get("add_eos_token", False)
            tokenizer.frames = processors.begin_and_end(
                [tokenizer.bos_id] if begins and tokenizer.bos_id is not None else [],
                [tokenizer.eos_id] if ends and tokenizer.eos_id is not None else [],
            )
        if tokenizer.kind == "marian":
            if tokenizer.eos_id is None:
                path = pathlib.Path(folder, tokenizer._row.vocab)
                raise UserError(f"{path}: has no end-of-text token; get the folder again")
            end = (tokenizer.eos_id,)
            tokenizer.frames = Frame((TEXT, *end), (0, 0)), Frame((TEXT, PAIR, *end), (0, 1, 1))
        return tokenizer

    def _contents(self) -> dict[str, str | bytes]:
        """Returns the model's file and tokenizer_config.json, for `tfzoo.text.load` and Hugging Face's tokenizers."""
        config: dict = {"tokenizer_class": self._row.tokenizer_class}
        for role, text in self._definition.roles.items():
            if getattr(self, f"{role}_id") is not None:
                config[ROLES[role]] = text
        if self._row.sentinels:
            config["extra_ids"] = self._definition.sentinels
        if self._row.cleans:
            config |= {
                "do_lower_case": self._definition.lowercase, "keep_accents": self._definition.keep_accents,
                "remove_space": True,
            }  # fmt: skip
        contents: dict[str, str | bytes] = {
            self._row.file: self._definition.model,
            CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        }
        if self._row.vocab:
            ids = {text: i for i, text in enumerate(self._vocab) if text}
            contents[self._row.vocab] = json.dumps(ids, indent=2, ensure_ascii=False) + "\n"
            contents[self._row.other] = self._definition.other
        return contents

    @property
    def op(self) -> tf_text.SentencepieceTokenizer:
        """TensorFlow's operation, whose ids are those of the pieces."""
        return self._model

    @property
    def op_model(self) -> bytes:
        """The operation's model: the file's, with the changes that `prefix` requires."""
        return self._definition.op_model

    @property
    def is_plain(self) -> bool:
        """Whether a text becomes ids by the model alone, without any other processing."""
        return not (self._row.cleans or self._row.vocab or self._definition.prefix) and all(
            token.special for token in self._added
        )

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return self._definition.kind

    @property
    def model(self) -> bytes:
        """The content of the model's file."""
        return self._definition.model

    @property
    def sentinel_ids(self) -> list[int]:
        """The ids of <extra_id_0>, <extra_id_1>, ..., numbered downwards from vocab_size - 1."""
        return list(self._sentinel_ids)

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal that is equal for equal models and options."""
        return self._definition.fingerprint()

    def _valid(self, texts: tf.Tensor) -> tf.Tensor:
        return texts  # Bytes that are not UTF-8 are handled as in the library, mostly as <unk>.

    def _encode(self, pieces: Pieces) -> tuple:
        """Returns ids and offsets with the library's own alignment.

        The space before a word belongs to the word's first piece.

        Raises:
          UserError: alignment is requested and the kind is xlnet, albert or marian, whose processing does not keep a
            map.
        """
        if self._definition.prefix == "first" and self._added:
            return self._encode_first_and_others(pieces)
        if not pieces.aligned:
            return self._tokenize_pieces(pieces.texts), None, None
        if self._row.cleans or self._row.vocab:
            raise UserError(f"offsets: a tokenizer of kind {self.kind!r} has no offsets; use tokenize")
        ids, starts, ends = self._model.tokenize_with_offsets(pieces.texts)
        rows = ids.value_rowids()
        # Bytes are counted across the whole batch, so one search serves all pieces.
        _, begins = tf.strings.unicode_decode_with_offsets(pieces.texts, "UTF-8")
        first_byte = tf.cumsum(tf.cast(tf.strings.length(pieces.texts), tf.int64), exclusive=True)
        byte_of = begins.flat_values + tf.gather(first_byte, begins.value_rowids())
        first_character = begins.row_starts()
        place = tf.concat([pieces.starts, [0]], 0)
        place = tf.gather(place, tf.minimum(first_character, tf.size(place, tf.int64) - 1))
        place = tf.where(pieces.first, 0, place)  # Otherwise only an estimate if bytes are not UTF-8.

        def character(byte: tf.Tensor) -> tf.Tensor:
            index = tf.searchsorted(
                byte_of, tf.cast(byte, tf.int64) + tf.gather(first_byte, rows), side="left", out_type=tf.int64
            )
            index = tf.cast(index - tf.gather(first_character, rows), tf.int32)
            return index + tf.gather(place, rows)

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
        if self._definition.suffixed:
            texts = tf.strings.regex_replace(texts, f"{SPACE}$", "")
        elif self._definition.strips:
            texts = tf.strings.regex_replace(texts, f"^{SPACE}+", "")
        elif self._definition.prefixed:
            texts = tf.strings.regex_replace(texts, f"^{SPACE}", "")
        texts = tf.strings.regex_replace(texts, SPACE, " ")
        if self._row.vocab:
            texts = tf.strings.regex_replace(texts, f"^{_PYTHON_SPACES}+|{_PYTHON_SPACES}+$", "")
        return valid_utf8(texts) if self._definition.has_bytes else texts

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
        if not self._definition.keep_accents:
            texts = tf_text.normalize_utf8(texts, "NFKD")
            texts = tf.strings.regex_replace(texts, _accents(), "")
        if self._definition.lowercase:
            # ICU's lower-casing depends on the process's locale, and a Turkish one maps I to ı, so İ is replaced first.
            texts = tf.strings.regex_replace(texts, "İ", "i\u0307")
            texts = past_nul(texts, lambda text: tf.strings.lower(tf.strings.lower(text), encoding="utf-8"))
        return texts

    def _comma_table(self) -> tuple[tf.Tensor, tf.Tensor] | None:
        """Returns how XLNet and ALBERT split pieces such as "9,", which is the same for every text.

        Returns:
          For each id its row in the table, int32 [pieces], 0 for the id itself; and the table, int32 [rows, most],
          padded with -1. None if there is no such piece.
        """
        splits = self._definition.without_commas(lambda texts: self._model.tokenize(texts).to_list())
        if not splits:
            return None
        which = np.zeros(len(self._definition.pieces), np.int32)
        which[list(splits)] = np.arange(1, 1 + len(splits))
        table = tf.ragged.constant([[], *splits.values()], dtype=tf.int32).to_tensor(-1)
        return tf.constant(which), table


@functools.cache
def _accents() -> str:
    """Returns a character class of all characters whose unicodedata.combining is not 0."""
    codes = [c for c in range(sys.maxunicode + 1) if unicodedata.combining(chr(c))]
    starts = [c for c in codes if not unicodedata.combining(chr(c - 1))]
    ends = [c for c in codes if c == sys.maxunicode or not unicodedata.combining(chr(c + 1))]
    return "[" + "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in zip(starts, ends, strict=True)) + "]"
