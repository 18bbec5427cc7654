"""The base class of all tokenizers: a vocabulary with roles, validation of texts, and detokenization."""

import dataclasses
import hashlib
import os
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops import sentencepiece_tokenizer

from tfzoo import files, progress
from tfzoo.errors import UserError
from tfzoo.text import added, batch, sentencepiece_proto, settings, template, token_files
from tfzoo.text.framing import Frame
from tfzoo.text.pieces import Pieces, literal
from tfzoo.text.token_files import AddedToken

VALID_UTF8 = r"[\x{0}-\x{D7FF}\x{E000}-\x{10FFFF}]*"


# Replacements of BERT's decoding, and of clean_up_tokenization_spaces, for spaces before punctuation, in this order.
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class Tokenizer(tf.Module):
    """The interface that tfzoo.text describes.

    A subclass implements fingerprint, _encode, _detokenize and _contents, and _valid and _normalize if needed.
    """

    keeps_spaces = False  # Whether texts need a space between them when they are joined.
    adds_bos = False  # Whether the folder, or the run, specifies that a decoder's texts begin with bos_id.
    cleans_up = False  # Whether detokenization removes spaces before punctuation.
    max_length: int | None = None  # Maximum number of tokens in a row, if the files specify it.
    padding_side = truncation_side = "right"
    # The special tokens around one text and around two, if the files specify them.
    frames: tuple[Frame, Frame] | None = None
    # The formats of conversations, if the files specify them: name -> jinja source.
    chat_templates: Mapping[str, str] = types.MappingProxyType({})

    def __init__(
        self,
        name: str,
        vocab: Sequence[str],
        role_ids: Mapping[str, int],
        special_ids: Sequence[int] = (),
        added_tokens: Sequence[AddedToken] = (),
    ):
        """Creates the tokenizer.

        Args:
          name: the name of the tf.Module.
          vocab: `vocab[i]` is the text of token i, "" if no token has id i.
          role_ids: role (one of ROLES) -> id, for the roles that exist.
          special_ids: ids of further tokens that do not represent text.
          added_tokens: tokens that are matched in a text.
        """
        super().__init__(name=name)
        # tf.Module would wrap lists and dicts and track their contents, but not arrays and tuples of data.
        self._vocab = np.array(vocab, dtype=object)
        self._role_ids = tuple(role_ids.items())
        self._special = token_files.special_ids(vocab, special_ids, role_ids, added_tokens)
        self._added = tuple(added_tokens)
        self._files: tuple[tuple[str, bytes], ...] = ()

    @property
    def vocab(self) -> list[str]:
        """The text of every token, in the notation of the tokenizer's kind."""
        return list(self._vocab)

    @property
    def vocab_size(self) -> int:
        return len(self._vocab)

    @property
    def special_ids(self) -> list[int]:
        """The sorted ids of the tokens that do not represent text."""
        return list(self._special)

    @property
    def pad_id(self) -> int | None:
        return self._role("pad")

    @property
    def unknown_id(self) -> int | None:
        return self._role("unknown")

    @property
    def bos_id(self) -> int | None:
        return self._role("bos")

    @property
    def eos_id(self) -> int | None:
        return self._role("eos")

    @property
    def cls_id(self) -> int | None:
        return self._role("cls")

    @property
    def sep_id(self) -> int | None:
        return self._role("sep")

    @property
    def mask_id(self) -> int | None:
        return self._role("mask")

    @property
    def added_tokens(self) -> list[AddedToken]:
        """The tokens that are matched in a text before any other processing; special ones only on request."""
        return list(self._added)

    __call__ = batch.inputs

    def tokenize(self, texts: tf.Tensor, special: Sequence[str] = ()) -> tf.RaggedTensor:
        """Converts texts to ids, without the tokens that begin or end a sequence.

        Args:
          texts: strings [N].
          special: special tokens, such as ("[MASK]",), that are recognised where they are written in a text, before any
            other processing; all others are plain text.

        Returns:
          Ids, ragged int32 [N, None].

        Raises:
          UserError: `special` contains a text that is not a special token.
        """
        token_files.check_special(special, self._special_tokens())
        return self._tokenize(Pieces.of(self._valid(strings(texts))), special)[0]

    def tokenize_with_offsets(
        self, texts: tf.Tensor, special: Sequence[str] = ()
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Converts texts to ids and offsets.

        Token j of text i came from `texts[i][starts[i, j]:ends[i, j]]`, in code points of the original text (bytes that
        are not UTF-8 count as in `decode("utf-8", "replace")`).

        Args:
          texts: strings [N].
          special: as for `tokenize`.

        Returns:
          (ids, starts, ends), each ragged int32 [N, None]; the ids are those of `tokenize`.

        Raises:
          UserError: the tokenizer's processing does not keep a map to the text, or `special` contains a text that is
            not a special token.
        """
        token_files.check_special(special, self._special_tokens())
        return self._tokenize(Pieces.of(self._valid(strings(texts)), aligned=True), special)

    def _tokenize(self, pieces: Pieces, special: Sequence[str]) -> tuple:
        """Returns ids, starts and ends of pieces, ragged [P, None]; without alignment, starts and ends are None."""
        requested = {*special}
        matched = [token for token in self._added if not token.special or token.content in requested]
        contents_matched = {token.content for token in matched}
        ids = self._special_tokens()
        matched += [
            AddedToken(content, ids[content]) for content in dict.fromkeys(special) if content not in contents_matched
        ]
        unnormalized = [token for token in matched if not token.normalized]
        normalized = [token for token in matched if token.normalized]
        if not normalized:
            return _around(pieces, unnormalized, lambda texts: self._encode(self._normalize(texts)))
        contents = self._as_normalized()
        normalized = [dataclasses.replace(t, content=contents[t.id]) for t in normalized if contents[t.id]]
        return _around(pieces, unnormalized, lambda texts: _around(self._normalize(texts), normalized, self._encode))

    def detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Converts ids to texts.

        Padding and special tokens are dropped, except those for unknown and masked words, which remain as text. An id
        without a token, which a model with a larger vocabulary may produce, adds nothing.

        Args:
          ids: int [N, L] or ragged [N, None].

        Returns:
          Strings [N].

        Raises:
          tf.errors.InvalidArgumentError: an id is negative.
        """
        texts = self._detokenize(ids)
        for written, cleaned in CLEANED if self.cleans_up else ():
            texts = tf.strings.regex_replace(texts, literal(written), cleaned)
        return texts

    def keep_files(self, contents: Mapping[str, bytes]) -> None:
        """Sets the files that `save` writes, by name: those that the tokenizer was read from."""
        self._files = tuple(contents.items())

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the tokenizer's files, which `tfzoo.text.load` and Hugging Face's libraries read.

        If the tokenizer was read from files, these files are written unchanged.

        Raises:
          UserError: the folder contains a file of another tokenizer that would not be overwritten, but would be loaded.
        """
        folder = pathlib.Path(folder)
        contents = dict(self._files) or self._contents()
        for name in settings.FILES:
            if name not in contents and (folder / name).exists():
                raise UserError(
                    f"{folder / name}: belongs to another tokenizer, and would be loaded with the one saved here; "
                    "remove it, or save to another folder"
                )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            files.atomic_write(folder / name, content)
        template.write_chat_templates(folder, self.chat_templates)

    def _contents(self) -> dict[str, str | bytes]:
        """Returns the files, by name, of a tokenizer that was not read from files."""
        raise NotImplementedError

    def _late(self) -> list[AddedToken]:
        """Returns the added tokens that are matched in normalised texts."""
        return [token for token in self._added if token.normalized]

    def _as_normalized(self) -> dict[int, str]:
        """Returns id -> normalised content of the added tokens that are matched in normalised texts."""
        tokens = self._late()
        if not tokens:
            return {}
        with tf.init_scope():
            texts = self._normalize(Pieces.of(tf.constant([token.content for token in tokens]))).texts.numpy()
        return {token.id: content.decode() for token, content in zip(tokens, texts, strict=True)}

    def _valid(self, texts: tf.Tensor) -> tf.Tensor:
        """Replaces what is not UTF-8 in texts, strings [N]."""
        return valid_utf8(texts)

    def _normalize(self, pieces: Pieces) -> Pieces:
        return pieces

    def _encode(self, pieces: Pieces) -> tuple:
        """Returns ids, starts and ends, ragged [P, None], of normalised pieces that contain no added tokens."""
        raise NotImplementedError

    def _role(self, role: str) -> int | None:
        return dict(self._role_ids).get(role)

    def _special_tokens(self) -> dict[str, int]:
        return {self._vocab[i]: i for i in self._special if self._vocab[i]}

    def _dropped(self) -> set[int]:
        """Returns the special tokens that detokenization drops."""
        return token_files.dropped_ids(self._special, dict(self._role_ids))


def _around(pieces: Pieces, tokens: Sequence[AddedToken], encode: Callable[[Pieces], tuple]) -> tuple:
    """Returns ids, starts and ends of pieces with added tokens; `encode` encodes what is between the tokens."""
    if not tokens:
        return encode(pieces)
    matches = added.find(pieces, tokens)
    values = zip(encode(matches.pieces), (matches.ids, matches.starts, matches.ends))
    return tuple(None if ragged is None else matches.merge(ragged, token_values) for ragged, token_values in values)


def regroup(values: tf.RaggedTensor | None, rows: tf.Tensor, count: tf.Tensor) -> tf.RaggedTensor | None:
    """Groups values of parts by piece.

    Args:
      values: ragged [Q, None], the values of each part.
      rows: int64 [Q], the piece that each part belongs to.
      count: the number of pieces.

    Returns:
      Ragged [count, None].
    """
    if values is None:
        return None
    rows = tf.gather(rows, values.value_rowids())
    return tf.RaggedTensor.from_value_rowids(values.flat_values, rows, count, validate=False)


def strings(texts: tf.Tensor) -> tf.Tensor:
    """Returns `texts` as a tensor; raises ValueError unless they are strings of shape [N]."""
    texts = tf.convert_to_tensor(texts, tf.string)
    if texts.shape.rank not in (1, None):
        raise ValueError(f"texts must be strings of shape [N], not {texts.shape}")
    return tf.ensure_shape(texts, [None])


def valid_utf8(texts: tf.Tensor) -> tf.Tensor:
    """Returns strings [N] with U+FFFD for every invalid byte sequence."""
    return tf.cond(  # The check takes a tenth of the time that transcoding would.
        tf.reduce_all(tf.strings.regex_full_match(texts, VALID_UTF8)),
        lambda: texts,
        lambda: tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace"),
    )


def join(pieces: tf.Tensor, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    """Joins each row's pieces.

    An id of V or more, which a model with a larger vocabulary may produce, adds nothing.

    Args:
      pieces: strings [V].
      ids: int [N, L] or ragged [N, None].

    Returns:
      Strings [N].

    Raises:
      tf.errors.InvalidArgumentError: an id is negative.
    """
    pieces = tf.concat([pieces, [""]], 0)
    last = tf.size(pieces) - 1
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.with_flat_values(tf.minimum(tf.cast(ids.flat_values, tf.int32), last))
        # Not to_tensor, which would pad all rows to the longest.
        return tf.strings.unsorted_segment_join(tf.gather(pieces, ids.flat_values), ids.value_rowids(), ids.nrows())
    return tf.strings.reduce_join(tf.gather(pieces, tf.minimum(tf.cast(ids, tf.int32), last)), axis=-1)


def sentencepiece_op(model: bytes, out_type: tf.DType = tf.int32) -> tf_text.SentencepieceTokenizer:
    """Returns tensorflow-text's tokenizer for a serialized model, independent of other tokenizers and of new seeds."""
    # A SavedModel's op finds its model by the name of a node, so no other tokenizer, in this SavedModel or another in
    # the same process, may have the same name.
    name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
    with progress.quiet():  # The library logs that a model has no normalisation table.
        # Its own resource is replaced, so it gets a model that is quickly read.
        op = tf_text.SentencepieceTokenizer(_SMALL_MODEL, out_type=out_type)
        op._model_resource = _SharedModel(model, name)
    return op


_SMALL_MODEL = sentencepiece_proto.write(
    [(b"?", 0, sentencepiece_proto.UNKNOWN), (b"a", 0, sentencepiece_proto.NORMAL)], sentencepiece_proto.BPE
)


class _SharedModel(sentencepiece_tokenizer._SentencepieceModelResource):
    """A model that no kernel owns, because keras.utils.set_random_seed discards all kernels."""

    def _create_resource(self):
        op = sentencepiece_tokenizer.gen_sentencepiece_tokenizer.sentencepiece_op
        return op(model=self._model, shared_name=self._name)
