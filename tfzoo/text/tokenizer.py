"""What tokenizers of every kind share: a vocabulary with roles, the check of texts, and the way back to text."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops import sentencepiece_tokenizer

from tfzoo import files, progress
from tfzoo.errors import UserError
from tfzoo.text import added, batch, settings
from tfzoo.text.added import AddedToken
from tfzoo.text.framing import Frame
from tfzoo.text.pieces import Pieces, literal

VALID_UTF8 = r"[\x{0}-\x{D7FF}\x{E000}-\x{10FFFF}]*"


# What BERT's decoding, and clean_up_tokenization_spaces, make of spaces before punctuation, in this order.
CLEANED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class Tokenizer(tf.Module):
    """The interface that tfzoo.text describes; a kind adds fingerprint, _encode, _detokenize and _write, and _valid and
    _normalize where it does something there."""

    keeps_spaces = False  # Whether texts that are to be joined need a space between them.
    adds_bos = False  # Whether its folder, or the run, says that a decoder's texts begin with bos_id.
    cleans_up = False  # Whether texts made of ids lose the spaces before their punctuation.
    max_length: int | None = None  # Tokens of the longest row, where its files say so.
    padding_side = truncation_side = "right"
    # The special tokens around a text, and around two, where its files say so.
    frames: tuple[Frame, Frame] | None = None

    def __init__(
        self,
        name: str,
        vocab: Sequence[str],
        role_ids: Mapping[str, int],
        special_ids: Sequence[int] = (),
        added_tokens: Sequence[AddedToken] = (),
    ):
        """`vocab[i]` is the text of token i, "" where no token has this id; `role_ids` has the id of those of ROLES
        that there are, `special_ids` of other tokens that stand for no text; `added_tokens` are found in a text."""
        super().__init__(name=name)
        # tf.Module would wrap lists and dicts and track what is in them; arrays and tuples of data it leaves alone.
        self._vocab = np.array(vocab, dtype=object)
        self._role_ids = tuple(role_ids.items())
        gaps = [i for i, token in enumerate(vocab) if not token] if "" in vocab else []
        names_no_text = [token.id for token in added_tokens if token.special]
        self._special = tuple(sorted({*special_ids, *role_ids.values(), *names_no_text, *gaps}))
        self._added = tuple(added_tokens)
        self._files: tuple[tuple[str, bytes], ...] = ()

    @property
    def vocab(self) -> list[str]:
        """The text of every token, as its kind writes it."""
        return list(self._vocab)

    @property
    def vocab_size(self) -> int:
        return len(self._vocab)

    @property
    def special_ids(self) -> list[int]:
        """The ids of the tokens that stand for no text, sorted."""
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
        """The tokens that are found in a text before anything else: special ones where the caller asks for them."""
        return list(self._added)

    __call__ = batch.inputs

    def tokenize(self, texts: tf.Tensor, special: Sequence[str] = ()) -> tf.RaggedTensor:
        """texts: strings [N] -> ids: int32 [N, None], without the tokens that begin or end a sequence.

        `special` names special tokens, such as ("[MASK]",), that become that token where they stand in a text, before
        anything else is looked at; any other is plain text.

        Raises:
          UserError: `special` names what is not a special token.
        """
        added.check(special, self._special_tokens())
        return self._tokenize(Pieces.of(self._valid(strings(texts))), special)[0]

    def tokenize_with_offsets(
        self, texts: tf.Tensor, special: Sequence[str] = ()
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """texts: strings [N] -> (ids, starts, ends), each int32 [N, None]; ids as `tokenize` gives them.

        Token j of text i came from `texts[i][starts[i, j]:ends[i, j]]`, in code points of the text as it was given
        (bytes that are not UTF-8 count as `decode("utf-8", "replace")` does).

        Raises:
          UserError: the tokenizer does to a text what keeps no map, or `special` names what is not a special token.
        """
        added.check(special, self._special_tokens())
        return self._tokenize(Pieces.of(self._valid(strings(texts)), aligned=True), special)

    def _tokenize(self, pieces: Pieces, special: Sequence[str]) -> tuple:
        """Ids, starts and ends, ragged [P, None], of pieces; without alignment the latter are None."""
        asked = {*special}
        found = [token for token in self._added if not token.special or token.content in asked]
        known = {token.content for token in found}
        ids = self._special_tokens()
        found += [AddedToken(content, ids[content]) for content in dict.fromkeys(special) if content not in known]
        raw = [token for token in found if not token.normalized]
        late = [token for token in found if token.normalized]
        if not late:
            return _around(pieces, raw, lambda texts: self._encode(self._normalize(texts)))
        contents = self._as_normalized()
        late = [dataclasses.replace(t, content=contents[t.id]) for t in late if contents[t.id]]
        return _around(pieces, raw, lambda texts: _around(self._normalize(texts), late, self._encode))

    def detokenize(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """ids: int [N, L] or ragged [N, None] -> strings [N].

        Padding and special tokens are dropped, but for those for unknown and masked words, which stay, as text. An id
        that no token has, which a model with a larger vocabulary may give, adds nothing.

        Raises:
          tf.errors.InvalidArgumentError: an id is negative.
        """
        texts = self._detokenize(ids)
        for written, cleaned in CLEANED if self.cleans_up else ():
            texts = tf.strings.regex_replace(texts, literal(written), cleaned)
        return texts

    def keep_files(self, contents: Mapping[str, bytes]) -> None:
        """Makes `save` write these, by their names: what the tokenizer was read from."""
        self._files = tuple(contents.items())

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the tokenizer's files, which `tfzoo.text.load` and Hugging Face's libraries read: those that it was
        read from, as they were, if it was.

        Raises:
          UserError: the folder holds a file of another tokenizer that would not be written over, and would be read.
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

    def _contents(self) -> dict[str, str | bytes]:
        """The files of a tokenizer that was not read from any, by their names."""
        raise NotImplementedError

    def _late(self) -> list[AddedToken]:
        """The added tokens that are looked for in normalised texts."""
        return [token for token in self._added if token.normalized]

    def _as_normalized(self) -> dict[int, str]:
        """The ids of added tokens that are looked for in normalised texts -> what is looked for, and decoded."""
        late = self._late()
        if not late:
            return {}
        with tf.init_scope():
            texts = self._normalize(Pieces.of(tf.constant([token.content for token in late]))).texts.numpy()
        return {token.id: content.decode() for token, content in zip(late, texts, strict=True)}

    def _valid(self, texts: tf.Tensor) -> tf.Tensor:
        """What stands for texts, strings [N], that are not UTF-8."""
        return valid_utf8(texts)

    def _normalize(self, pieces: Pieces) -> Pieces:
        return pieces

    def _encode(self, pieces: Pieces) -> tuple:
        """Ids, starts and ends, ragged [P, None], of normalised pieces without added tokens."""
        raise NotImplementedError

    def _role(self, role: str) -> int | None:
        return dict(self._role_ids).get(role)

    def _special_tokens(self) -> dict[str, int]:
        return {self._vocab[i]: i for i in self._special if self._vocab[i]}

    def _dropped(self) -> set[int]:
        """The special tokens that are not part of a text made of ids: all but those that stand for unknown and masked
        words alone. GPT-2's <|endoftext|> stands for unknown words too, and ends texts."""
        others = {i for role, i in self._role_ids if role not in ("unknown", "mask")}
        return {*self._special} - ({self.unknown_id, self.mask_id} - others)


def _around(pieces: Pieces, tokens: Sequence[AddedToken], encode: Callable[[Pieces], tuple]) -> tuple:
    """Ids, starts and ends of pieces: `encode` gives those of what is around the tokens."""
    if not tokens:
        return encode(pieces)
    found = added.find(pieces, tokens)
    values = zip(encode(found.pieces), (found.ids, found.starts, found.ends))
    return tuple(None if ragged is None else found.merge(ragged, own) for ragged, own in values)


def regroup(values: tf.RaggedTensor | None, rows: tf.Tensor, count: tf.Tensor) -> tf.RaggedTensor | None:
    """Values of parts, ragged [Q, None], by the piece that each part is of, int64 [Q] -> ragged [count, None]."""
    if values is None:
        return None
    rows = tf.gather(rows, values.value_rowids())
    return tf.RaggedTensor.from_value_rowids(values.flat_values, rows, count, validate=False)


def strings(texts: tf.Tensor) -> tf.Tensor:
    """`texts`, which must be strings of shape [N]."""
    texts = tf.convert_to_tensor(texts, tf.string)
    if texts.shape.rank not in (1, None):
        raise ValueError(f"texts must be strings of shape [N], not {texts.shape}")
    return tf.ensure_shape(texts, [None])


def valid_utf8(texts: tf.Tensor) -> tf.Tensor:
    """Strings [N] with U+FFFD for every invalid byte sequence."""
    return tf.cond(  # Looking takes a tenth of the time that transcoding would.
        tf.reduce_all(tf.strings.regex_full_match(texts, VALID_UTF8)),
        lambda: texts,
        lambda: tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace"),
    )


def join(pieces: tf.Tensor, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    """Each row's pieces, one after the other: pieces strings [V], ids int [N, L] or ragged [N, None] -> strings [N].

    An id from V on, which a model with a larger vocabulary may give, adds nothing.

    Raises:
      tf.errors.InvalidArgumentError: an id is negative.
    """
    pieces = tf.concat([pieces, [""]], 0)
    most = tf.size(pieces) - 1
    if isinstance(ids, tf.RaggedTensor):
        ids = ids.with_flat_values(tf.minimum(tf.cast(ids.flat_values, tf.int32), most))
        # Not to_tensor: one long row would make all others as long.
        return tf.strings.unsorted_segment_join(tf.gather(pieces, ids.flat_values), ids.value_rowids(), ids.nrows())
    return tf.strings.reduce_join(tf.gather(pieces, tf.minimum(tf.cast(ids, tf.int32), most)), axis=-1)


def sentencepiece_op(model: bytes, out_type: tf.DType = tf.int32) -> tf_text.SentencepieceTokenizer:
    """tensorflow-text's tokenizer of a serialized model, made so that others and new seeds leave it alone."""
    # A SavedModel's op finds its model by the name of a node: another tokenizer's, in this SavedModel or another of the
    # same process, must not have the same.
    name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
    with progress.quiet():  # The library notes that a model has no table of normalisation.
        op = tf_text.SentencepieceTokenizer(model, out_type=out_type, name=name)
        op._model_resource = _SharedModel(model, name)
    return op


class _SharedModel(sentencepiece_tokenizer._SentencepieceModelResource):
    """A model that no kernel owns: keras.utils.set_random_seed throws all kernels away."""

    def _create_resource(self):
        op = sentencepiece_tokenizer.gen_sentencepiece_tokenizer.sentencepiece_op
        return op(model=self._model, shared_name=self._name)
