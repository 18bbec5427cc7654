"""What the pages of answers share: how texts are read, what a signature asks and answers, and its expected answers."""

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
Call = Callable[[dict], dict]  # The model.


@dataclasses.dataclass(frozen=True)
class Options:
    """How texts are read.

    sequence_length: tokens of the longest text, special ones included.
    text_pair: a classifier reads pairs of texts.
    long_texts: what becomes of longer ones: "truncate" or "refuse".
    refuse: what is refused where something is wrong with a row: the "call", or the "row" (see checks.py).
    pooling: of a model without heads, what makes a vector: mean, first, last or pooled; None is mean.
    prompt_name: of a model with a head embed, which of its prompts is written before texts; None is its default one.
    max_new_tokens: the most tokens that a language model writes.
    search: options of decoding by which it looks for the likeliest text: beams, penalties and what may not be written.
    """

    sequence_length: int
    text_pair: bool = False
    long_texts: str = "truncate"
    refuse: str = "call"
    pooling: str | None = None
    prompt_name: str | None = None
    max_new_tokens: int = 64
    search: dict[str, Any] = dataclasses.field(default_factory=dict)


class Answer:
    """What a text signature reads and answers. A page has a subclass for a head; `answers.find` chooses one.

    pieces: TEXT, and PAIR of two texts -> the name of the input that goes there.
    special: special tokens that are meant where a text has them.
    mask: the text that stands for a word to be found; "" where nothing is to be found.
    offsets: whether it asks where in the texts tokens are.
    outputs: what it answers, but for `truncated` bool [B], which all do: the text was longer than the export reads,
      and was cut there.
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
        """The names of its texts."""
        return tuple(self.pieces.values())

    @property
    def signature(self) -> Signature:
        """Of serving_default."""
        texts = {name: Tensor("string", ("batch",)) for name in self.inputs}
        error = {"error": Tensor("string", ("batch",))} if self.options.refuse == "row" else {}
        return Signature(texts, {**self.outputs, "truncated": Tensor("bool", ("batch",)), **error})

    def functions(self, call: Call) -> dict[str, tuple[Signature, Callable[..., dict]]]:
        """The signatures, and what answers them: tensors by name in, tensors by name out."""
        return {"serving_default": (self.signature, lambda **texts: self.answer(texts, call))}

    def answer(self, texts: Mapping[str, Any], call: Call, by_row: bool | None = None, **more) -> dict:
        """The outputs for texts, strings [B] by name, `call` being the model, in TensorFlow's stock ops.

        by_row: see Checks; None takes the export's. more: what a page reads beside texts, tensors [B] by name.

        Raises:
          tf.errors.InvalidArgumentError: inputs of different numbers of rows, or what the export refuses.
        """
        checks = Checks(self.options.refuse == "row" if by_row is None else by_row)
        checks.same_rows({**texts, **more})
        texts, more = checks.passed(texts), checks.passed(more)
        given = {piece: texts[name] for piece, name in self.pieces.items()}
        reading = self.reader.read(given, self.special, self.offsets)
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
        """Takes the texts of refused rows, bool [B], away, and leaves something to be computed with."""
        refused = refused[:, tf.newaxis]
        inputs = reading.inputs
        inputs["token_ids"] = tf.where(refused, pad_id(self.tokenizer), inputs["token_ids"])
        inputs["padding_mask"] = inputs["padding_mask"] | refused
        reading.of = {piece: of & ~refused for piece, of in reading.of.items()}

    def check(self, reading: Reading, checks: Checks, **more) -> dict[str, Any]:
        """Adds the page's own checks -> `more`, safe to be computed with."""
        del reading, checks
        return more

    def answer_reading(self, reading: Reading, texts: Mapping[str, Any], call: Call) -> dict:
        """`outputs` for texts as the model reads them."""
        raise NotImplementedError

    def expected(
        self, texts: Mapping[str, Sequence[str]], limits: Limits, asked: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """The outputs for golden.npz: row by row, without padding, in Python.

        limits: what is too close to call. asked: of each row what a page reads beside its texts.
        """
        rows = [Row(self, *each) for each in itertools.zip_longest(zip(*texts.values()), asked)]
        said = [self.refusal(row) if self.options.refuse == "row" else "" for row in rows]
        kept = [i for i, refusal in enumerate(said) if not refusal]
        found = self.expected_of_rows([rows[i] for i in kept], limits)
        found["truncated"] = np.array([rows[i].truncated for i in kept], bool)
        if self.options.refuse == "call":
            return found
        return {name: _spread(value, kept, len(rows)) for name, value in found.items()} | {"error": np.array(said, "U")}

    def expected_of_rows(self, rows: "Sequence[Row]", limits: Limits) -> dict[str, Any]:
        """`outputs` for `expected`."""
        raise NotImplementedError

    def refusal(self, row: "Row") -> str:
        """What is wrong with a row; "" where nothing is."""
        return self._too_long if row.truncated and self.options.long_texts == "refuse" else ""

    def more_cases(self, cases: Mapping[str, dict], limits: Limits) -> dict[str, dict[str, dict]]:
        """Of signatures beside serving_default cases for golden.npz, in the form of serving_default's `cases`."""
        del cases, limits
        return {}

    def facts(self) -> dict[str, Any]:
        """What whoever runs the graph alone has to know to answer alike, for manifest.json."""
        return {"texts": list(self.inputs)}


class Row:
    """One text, or pair of texts, as the model reads it: the Reader's work in Python.

    ids: the tokens'. tokens: (id, start, end) of each. of: TEXT or PAIR, of whose text each is; None of special ones.
    asked: what is read beside the texts.
    """

    def __init__(self, answer: Answer, texts: Sequence[str], asked: Mapping[str, Any] | None = None):
        reader, self.asked = answer.reader, asked
        self.texts = dict(zip(answer.inputs, [reader.wording.worded_text(texts[0]), *texts[1:]]))
        tokens: dict[str, list] = {}  # TEXT or PAIR -> [(id, start, end)].
        for piece, name in answer.pieces.items():
            if answer.special or not reader.has_offsets:
                ids = reader.tokenizer.tokenize([self.texts[name]], special=answer.special)[0].numpy().tolist()
                tokens[piece] = [(i, 0, 0) for i in ids]
            else:
                columns = reader.tokenizer.tokenize_with_offsets([self.texts[name]])
                tokens[piece] = list(zip(*(column[0].numpy().tolist() for column in columns)))
        room = answer.options.sequence_length - sum(isinstance(part, int) for part in reader.frame.parts)
        counts = {piece: len(row) for piece, row in tokens.items()}
        kept = dict(counts)
        while sum(kept.values()) > room:  # One by one from the longer, of equals from the second.
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
            inputs["decoder_padding_mask"] = inputs["padding_mask"]
        self.inputs = {name: value for name, value in inputs.items() if name in reader.inputs}
        self.model = answer.model

    def outputs(self, name: str, **more) -> np.ndarray:
        """One of the model's outputs for this row, float64."""
        return np.asarray(keras.ops.cast(self.model(self.inputs | more)[name], "float32"))[0].astype(np.float64)

    def places(self, piece: str) -> list[int]:
        return [i for i, of in enumerate(self.of) if of == piece]


# In TensorFlow


def scatter(rows, values, counts):
    """values [N], in order, of rows int32 [N], counts [B] of each -> [B, max(counts)], filled up with "" or 0."""
    ranks = tf.range(tf.size(rows)) - tf.gather(tf.cumsum(counts, exclusive=True), rows)
    # Of no rows the maximum is the lowest integer.
    shape = tf.stack([tf.size(counts), tf.maximum(tf.reduce_max(counts), 0)])
    empty = tf.fill(shape, "") if values.dtype == tf.string else tf.zeros(shape, values.dtype)
    return tf.tensor_scatter_nd_update(empty, tf.stack([rows, ranks], 1), values)


def cut(texts, starts, ends):
    """texts: strings [N], starts and ends int32 [N] in code points -> the parts, without spaces around them, and where
    these start and end."""
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    parts = tf.strings.substr(texts, starts, ends - starts, unit="UTF8_CHAR")
    left = tf.strings.regex_replace(parts, f"^{SPACE}", "")
    bare = tf.strings.regex_replace(left, f"{SPACE}$", "")
    starts += tf.strings.length(parts, unit="UTF8_CHAR") - tf.strings.length(left, unit="UTF8_CHAR")
    return bare, starts, starts + tf.strings.length(bare, unit="UTF8_CHAR")


# In Python


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _spread(value, kept: Sequence[int], rows: int):
    """An array of the rows that were kept, or a group of such, with empty rows where others were refused."""
    if isinstance(value, dict):
        return {name: _spread(part, kept, rows) for name, part in value.items()} | {
            "decided": ~_spread(~value["decided"], kept, rows)
        }
    whole = np.zeros((rows, *value.shape[1:]), value.dtype)
    whole[kept] = value
    return whole


def part_of(answer: Answer, row: Row, first: int, last: int, text: str) -> tuple[str, int, int]:
    """The text of a row's tokens first to last, without the spaces around it, and where in `text` it stands."""
    if not answer.reader.has_offsets:
        (joined,) = answer.tokenizer.detokenize([row.ids[first : last + 1]]).numpy()
        return joined.decode(errors="replace").strip(" "), 0, 0
    start, end = row.tokens[first][1], row.tokens[last][2]
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return part.strip(), start, start + len(part.strip())


def ranked(apart: np.ndarray, top: int) -> np.ndarray:
    """apart[i]: rank i leads rank i + 1 -> whether each of the `top` ranks is decided; ranks beyond the last are."""
    apart = np.append(apart, np.ones(max(0, top - len(apart)), bool))[:top]
    return apart & np.append(True, apart[:-1])
