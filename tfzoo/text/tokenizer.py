"""What tokenizers of every kind share: a vocabulary with roles, the check of texts, and the way back to text."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops import sentencepiece_tokenizer

from tfzoo import progress

_VALID_UTF8 = r"[\x{0}-\x{D7FF}\x{E000}-\x{10FFFF}]*"


class Tokenizer(tf.Module):
    """The interface that tfzoo.text describes; a kind adds tokenize, tokenize_with_offsets, detokenize, save,
    from_folder and fingerprint."""

    keeps_spaces = False  # Whether texts that are to be joined need a space between them.
    adds_bos = False  # Whether its folder, or the run, says that a decoder's texts begin with bos_id.

    def __init__(self, name: str, vocab: Sequence[str], role_ids: Mapping[str, int], special_ids: Sequence[int] = ()):
        """`vocab[i]` is the text of token i; `role_ids` has the id of those of ROLES that there are, `special_ids` of
        other tokens that stand for no text."""
        super().__init__(name=name)
        # tf.Module would wrap lists and dicts and track what is in them; arrays and tuples of data it leaves alone.
        self._vocab = np.array(vocab, dtype=object)
        self._role_ids = tuple(role_ids.items())
        self._special = tuple(sorted({*special_ids, *role_ids.values()}))

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

    def _role(self, role: str) -> int | None:
        return dict(self._role_ids).get(role)

    def _special_tokens(self) -> dict[str, int]:
        return {self._vocab[i]: i for i in self._special}

    def _dropped(self) -> set[int]:
        """The special tokens that are not part of a text made of ids: all but those that stand for unknown and masked
        words alone. GPT-2's <|endoftext|> stands for unknown words too, and ends texts."""
        others = {i for role, i in self._role_ids if role not in ("unknown", "mask")}
        return {*self._special} - ({self.unknown_id, self.mask_id} - others)


def strings(texts: tf.Tensor) -> tf.Tensor:
    """`texts`, which must be strings of shape [N]."""
    texts = tf.convert_to_tensor(texts, tf.string)
    if texts.shape.rank not in (1, None):
        raise ValueError(f"texts must be strings of shape [N], not {texts.shape}")
    return tf.ensure_shape(texts, [None])


def valid_utf8(texts: tf.Tensor) -> tf.Tensor:
    """Strings [N] with U+FFFD for every invalid byte sequence."""
    return tf.cond(  # Looking takes a tenth of the time that transcoding would.
        tf.reduce_all(tf.strings.regex_full_match(texts, _VALID_UTF8)),
        lambda: texts,
        lambda: tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace"),
    )


def join(pieces: tf.Tensor, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    """Each row's pieces, one after the other: pieces strings [V], ids int [N, L] or ragged [N, None] -> strings [N].

    Raises:
      tf.errors.InvalidArgumentError: an id is not from 0 to V - 1.
    """
    if not isinstance(ids, tf.RaggedTensor):
        return tf.strings.reduce_join(tf.gather(pieces, tf.convert_to_tensor(ids)), axis=-1)
    # Not to_tensor: one long row would make all others as long.
    return tf.strings.unsorted_segment_join(tf.gather(pieces, ids.flat_values), ids.value_rowids(), ids.nrows())


def sentencepiece_op(model: bytes) -> tf_text.SentencepieceTokenizer:
    """tensorflow-text's tokenizer of a serialized model, made so that others and new seeds leave it alone."""
    # A SavedModel's op finds its model by the name of a node: another tokenizer's, in this SavedModel or another of the
    # same process, must not have the same.
    name = f"sentencepiece_{hashlib.sha256(model).hexdigest()}"
    with progress.quiet():  # The library notes that a model has no table of normalisation.
        op = tf_text.SentencepieceTokenizer(model, out_type=tf.int32, name=name)
        op._model_resource = _SharedModel(model, name)
    return op


class _SharedModel(sentencepiece_tokenizer._SentencepieceModelResource):
    """A model that no kernel owns: keras.utils.set_random_seed throws all kernels away."""

    def _create_resource(self):
        op = sentencepiece_tokenizer.gen_sentencepiece_tokenizer.sentencepiece_op
        return op(model=self._model, shared_name=self._name)
