"""The base class of answers: reading texts, the inputs and outputs of a signature, and its expected outputs."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfzoo.export.checks import Checks
from tfzoo.export.interface import Signature, Tensor
from tfzoo.export.precision import Limits
from tfzoo.generation.folder import decoder_start_id
from tfzoo.text import framing
from tfzoo.text.framing import PAIR, TEXT
from tfzoo.text.reader import Reader, Reading, pad_id

SPACE = r"[\s\p{Z}]+"
Call = Callable[[dict], dict]  # The model: inputs -> outputs.


@dataclasses.dataclass(frozen=True)
class Options:
    """How texts are read and answered.

    Attributes:
      sequence_length: the maximum number of tokens in a text, including special tokens.
      text_pair: whether a classifier reads pairs of texts.
      long_texts: what to do with longer texts: "truncate" or "refuse".
      refuse: what to refuse if a row is invalid: the "call" or the "row" (see checks.py).
      pooling: the pooling of a model without heads: mean, first, last or pooled; None means mean.
      prompt_name: the prompt that a model with a head embed puts before texts; None means the model's default.
      prompt: the text that a model that writes texts puts before each text.
      messages: whether a text is a message of the user, which the model answers; the tokenizer's frame is then that of
        the chat template.
      max_new_tokens: the maximum number of tokens that a language model generates.
      search: decoding options for the likeliest text: beams, penalties and forbidden tokens.
    """

    sequence_length: int
    text_pair: bool = False
    long_texts: str = "truncate"
    refuse: str = "call"
    pooling: str | None = None
    prompt_name: str | None = None
    prompt: str = ""
    messages: bool = False
    max_new_tokens: int = 64
    search: dict[str, Any] = dataclasses.field(default_factory=dict)


class Answer:
    """The inputs and answers of a text signature. Each head has a subclass; `answers.find` chooses one.

    Attributes:
      pieces: {TEXT, and PAIR if it reads two texts: the name of the input}.
      special: special tokens that are recognised in texts.
      mask: the text of the mask token, for a head that fills in masks; otherwise "".
      fills: what the texts of golden.npz contain in two places.
      offsets: whether the answers need the tokens' positions in the texts.
      outputs: the outputs, apart from `truncated` bool [B], which every signature has: whether the text was longer than
        the export reads and was therefore cut.
    """

    pieces: Mapping[str, str] = {TEXT: "text"}
    special: tuple[str, ...] = ()
    mask = ""
    offsets = False
    outputs: Mapping[str, Tensor]

    def __init__(self, model: keras.Model, tokenizer: Any, options: Options):
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.reader = Reader(
            tokenizer,
            framing.frame(model.LAYOUT, tokenizer, PAIR in self.pieces),
            model.INPUTS,
            options.sequence_length,
            model.fixed_length,
            decoder_start_id(model, tokenizer) if model.is_encoder_decoder else None,
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the signature's texts."""
        return tuple(self.pieces.values())

    @property
    def fills(self) -> tuple[str, str]:
        return self.mask, self.mask

    def row(self, texts: Sequence[str], asked: Mapping[str, Any] | None = None) -> "Row":
        """Returns one text, or pair of texts, as the model reads it."""
        return Row(self, texts, asked)

    @property
    def signature(self) -> Signature:
        """The signature serving_default."""
        texts = {name: Tensor("string", ("batch",)) for name in self.inputs}
        error = {"error": Tensor("string", ("batch",))} if self.options.refuse == "row" else {}
        return Signature(texts, {**self.outputs, "truncated": Tensor("bool", ("batch",)), **error})

    def functions(self, call: Call) -> dict[str, tuple[Signature, Callable[..., dict]]]:
        """Returns the signatures by name, each with the function that computes it: tensors by name -> tensors by
        name."""
        return {"serving_default": (self.signature, lambda **texts: self.answer(texts, call))}

    def answer(self, texts: Mapping[str, Any], call: Call, by_row: bool | None = None, **more) -> dict:
        """Computes the outputs for texts in TensorFlow's stock ops.

        Args:
          texts: strings [B] by name.
          call: the model.
          by_row: see Checks; None means as in the export's options.
          **more: further inputs of a subclass, tensors [B] by name.

        Raises:
          tf.errors.InvalidArgumentError: the inputs have different numbers of rows, or the export refuses them.
        """
        checks = Checks(self.options.refuse == "row" if by_row is None else by_row)
        checks.same_rows({**texts, **more})
        texts, more = checks.passed(texts), checks.passed(more)
        by_piece = {piece: texts[name] for piece, name in self.pieces.items()}
        reading = self.reader.read(by_piece, self.special, self.offsets)
        if self.options.long_texts == "refuse":
            checks.rows(reading.truncated, self._too_long)
        more = self.check(reading, checks, **more)
        reading.inputs = checks.passed(reading.inputs)
        if checks.by_row:
            self._empty(reading, checks.refused(reading.truncated))
        outputs = self.answer_reading(reading, texts, call, **more)
        return checks.answered({**outputs, "truncated": reading.truncated})

    @property
    def _too_long(self) -> str:
        return f"the text is longer than {self.options.sequence_length} tokens"

    def _empty(self, reading: Reading, refused) -> None:
        """Replaces the texts of refused rows, bool [B], by padding that the model can compute with."""
        refused = refused[:, tf.newaxis]
        inputs = reading.inputs
        inputs["token_ids"] = tf.where(refused, pad_id(self.tokenizer), inputs["token_ids"])
        inputs["padding_mask"] = inputs["padding_mask"] | refused
        reading.of = {piece: of & ~refused for piece, of in reading.of.items()}

    def check(self, reading: Reading, checks: Checks, **more) -> dict[str, Any]:
        """Adds the checks of a subclass and returns `more` in a form that is safe to compute with."""
        del reading, checks
        return more

    def answer_reading(self, reading: Reading, texts: Mapping[str, Any], call: Call) -> dict:
        """Computes `outputs` from a reading of the texts."""
        raise NotImplementedError

    def expected(
        self, texts: Mapping[str, Sequence[str]], limits: Limits, asked: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """Computes the outputs for golden.npz: in Python, row by row, without padding.

        Args:
          texts: texts by name.
          limits: the margin within which an answer is too close to call.
          asked: for each row the further inputs of a subclass, by name.
        """
        rows = [self.row(*each) for each in itertools.zip_longest(zip(*texts.values()), asked)]
        errors = [self.refusal(row) if self.options.refuse == "row" else "" for row in rows]
        kept = [i for i, refusal in enumerate(errors) if not refusal]
        outputs = self.expected_of_rows([rows[i] for i in kept], limits)
        outputs["truncated"] = np.array([rows[i].truncated for i in kept], bool)
        if self.options.refuse == "call":
            return outputs
        spread = {name: _spread(value, kept, len(rows)) for name, value in outputs.items()}
        return spread | {"error": np.array(errors, "U")}

    def expected_of_rows(self, rows: "Sequence[Row]", limits: Limits) -> dict[str, Any]:
        """Computes `outputs` for `expected`."""
        raise NotImplementedError

    def refusal(self, row: "Row") -> str:
        """Returns the reason for refusing a row; "" if it is valid."""
        return self._too_long if row.truncated and self.options.long_texts == "refuse" else ""

    def more_cases(self, cases: Mapping[str, dict], limits: Limits) -> dict[str, dict[str, dict]]:
        """Returns cases of the other signatures for golden.npz, in the form of serving_default's `cases`."""
        del cases, limits
        return {}

    def facts(self) -> dict[str, Any]:
        """Returns, for manifest.json, what a program needs to compute the same answers from the bare graph."""
        start, frame = self.reader.start_id, self.reader.frame
        return {
            "texts": list(self.inputs),
            "frame": [
                {"text" if isinstance(part, str) else "id": part, "segment": segment}
                for part, segment in zip(frame.parts, frame.segments)
            ],
            **({} if start is None else {"decoder_start_token_id": start}),
        }


class Row:
    """One text, or pair of texts, as the model reads it: the Reader's work in Python.

    Attributes:
      ids: the ids of the tokens.
      tokens: (id, start, end) of each token.
      of: for each token TEXT or PAIR, the text that it belongs to; None for special tokens.
      asked: the further inputs of the row.
    """

    def __init__(self, answer: Answer, texts: Sequence[str], asked: Mapping[str, Any] | None = None):
        reader, self.asked = answer.reader, asked
        self.texts = dict(zip(answer.inputs, [reader.wording.worded_text(texts[0]), *texts[1:]]))
        tokens = self.read(answer)
        room = answer.options.sequence_length - sum(isinstance(part, int) for part in reader.frame.parts)
        counts = {piece: len(row) for piece, row in tokens.items()}
        kept = dict(counts)
        while sum(kept.values()) > room:  # Remove one token at a time from the longer text; on a tie from the second.
            kept[max(kept, key=lambda piece: (kept[piece], piece == PAIR))] -= 1
        self.truncated = kept != counts
        self.tokens: list[tuple[int, int, int]] = []
        self.of: list[str | None] = []
        segments: list[int] = []
        for part, segment in zip(reader.frame.parts, reader.frame.segments):
            new = tokens[part][: kept[part]] if isinstance(part, str) else [(part, 0, 0)]
            self.tokens += new
            self.of += [part if isinstance(part, str) else None] * len(new)
            segments += [segment] * len(new)
        self.ids = [token[0] for token in self.tokens]
        length = reader.static or max(1, len(self.ids))
        empty = length - len(self.ids)
        ids = self.ids + [pad_id(reader.tokenizer)] * empty
        inputs = {
            "token_ids": np.array([ids], np.int32),
            "segment_ids": np.array([segments + [0] * empty], np.int32),
            "padding_mask": np.array([[True] * len(self.ids) + [False] * empty]),
        }
        if reader.prompt_length:
            inputs["pooling_mask"] = inputs["padding_mask"] & (np.arange(length) >= reader.prompt_length)
        if reader.start_id is not None:
            inputs["decoder_token_ids"] = np.array([[reader.start_id, *ids[:-1]]], np.int32)
            inputs["decoder_padding_mask"] = inputs["padding_mask"] | (np.arange(length) == 0)
        self.inputs = {name: value for name, value in inputs.items() if name in reader.inputs}
        self.model = answer.model

    def read(self, answer: Answer) -> dict[str, list[tuple[int, int, int]]]:
        """Returns the tokens of each text, (id, start, end), by TEXT or PAIR."""
        reader = answer.reader
        tokens: dict[str, list] = {}
        for piece, name in answer.pieces.items():
            if answer.special or not reader.has_offsets:
                ids = reader.tokenizer.tokenize([self.texts[name]], special=answer.special)[0].numpy().tolist()
                tokens[piece] = [(i, 0, 0) for i in ids]
            else:
                columns = reader.tokenizer.tokenize_with_offsets([self.texts[name]])
                tokens[piece] = list(zip(*(column[0].numpy().tolist() for column in columns)))
        return tokens

    def outputs(self, name: str, **more) -> np.ndarray:
        """Returns one of the model's outputs for this row, float64."""
        return np.asarray(keras.ops.cast(self.model(self.inputs | more)[name], "float32"))[0].astype(np.float64)

    def places(self, piece: str) -> list[int]:
        """Returns the positions of the tokens that belong to the text `piece`."""
        return [i for i, of in enumerate(self.of) if of == piece]


# In TensorFlow


def scatter(rows, values, counts):
    """Arranges values by row.

    Args:
      rows: int32 [N], the row of each value, ascending.
      values: [N].
      counts: [B], the number of values in each row.

    Returns:
      [B, max(counts)], filled up with "" or 0.
    """
    ranks = tf.range(tf.size(rows)) - tf.gather(tf.cumsum(counts, exclusive=True), rows)
    # The maximum over no rows is the lowest integer.
    shape = tf.stack([tf.size(counts), tf.maximum(tf.reduce_max(counts), 0)])
    empty = tf.fill(shape, "") if values.dtype == tf.string else tf.zeros(shape, values.dtype)
    return tf.tensor_scatter_nd_update(empty, tf.stack([rows, ranks], 1), values)


def cut(texts, starts, ends):
    """Cuts parts out of texts.

    Args:
      texts: strings [N].
      starts, ends: int32 [N], in code points.

    Returns:
      The parts without surrounding spaces, and where these start and end.
    """
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    parts = tf.strings.substr(texts, starts, ends - starts, unit="UTF8_CHAR")
    left = tf.strings.regex_replace(parts, f"^{SPACE}", "")
    bare = tf.strings.regex_replace(left, f"{SPACE}$", "")
    starts += tf.strings.length(parts, unit="UTF8_CHAR") - tf.strings.length(left, unit="UTF8_CHAR")
    return bare, starts, starts + tf.strings.length(bare, unit="UTF8_CHAR")


# In Python


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Returns the softmax of x along an axis."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _spread(value, kept: Sequence[int], rows: int):
    """Inserts empty rows for the refused ones into an array, or group of arrays, of the kept rows."""
    if isinstance(value, dict):
        return {name: _spread(part, kept, rows) for name, part in value.items()} | {
            "decided": ~_spread(~value["decided"], kept, rows)
        }
    result = np.zeros((rows, *value.shape[1:]), value.dtype)
    result[kept] = value
    return result


def part_of(answer: Answer, row: Row, first: int, last: int, text: str) -> tuple[str, int, int]:
    """Returns the text of a row's tokens from first to last without surrounding spaces, and its start and end in
    `text`."""
    if not answer.reader.has_offsets:
        (joined,) = answer.tokenizer.detokenize([row.ids[first : last + 1]]).numpy()
        return joined.decode(errors="replace").strip(" "), 0, 0
    start, end = row.tokens[first][1], row.tokens[last][2]
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return part.strip(), start, start + len(part.strip())


def ranked(apart: np.ndarray, top: int) -> np.ndarray:
    """Returns whether each of the `top` ranks is decided, which all ranks after the last one are.

    apart: bool, apart[i] is true if rank i clearly leads rank i + 1.
    """
    apart = np.append(apart, np.ones(max(0, top - len(apart)), bool))[:top]
    return apart & np.append(True, apart[:-1])
