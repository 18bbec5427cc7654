"""tokenizer.onnx: converts texts into the inputs of the model's graph with the operators of onnxruntime-extensions.

An ONNX artifact contains it only if it has been verified to produce the tokenizer's own ids for `LINES`. The operators
are exact for GPT-2's and RoBERTa's byte-level vocabularies and for SentencePiece's models. The ones for BERT are not:
they keep accents, treat full-width punctuation as letters, and put [UNK] inside words.

Importing onnxruntime_extensions into a process that has loaded TensorFlow terminates the process; verify.py therefore
imports it in a process of its own.
"""

import importlib.util
import json
import pathlib
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto

from tfzoo.errors import UserError, one_line
from tfzoo.export import interface, verify
from tfzoo.export.answers import Options
from tfzoo.export.onnx.graph import Graph
from tfzoo.text import framing
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.framing import PAIR, TEXT, Frame
from tfzoo.text.lines import LINES
from tfzoo.text.reader import pad_id
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.sentencepiece_files import KINDS

NAME = "tokenizer.onnx"
_EXTENSIONS = "ai.onnx.contrib"


def case(model: keras.Model, tokenizer: Any, options: Options) -> dict[str, dict[str, np.ndarray]] | None:
    """Returns `LINES` as the model reads them, under ONNX's names: a case of golden.npz.

    Lines longer than the model reads are omitted, and for a tokenizer without <unk> also lines with characters that are
    not in its vocabulary.

    Returns:
      The case, or None if it is unknown which special tokens the model expects around a text.
    """
    frame = frame_of(model, tokenizer, options)
    if frame is None:
        return None
    names = tuple("text" if part == TEXT else "text_pair" for part in frame.texts)
    rows = []
    for i, line in enumerate(LINES):
        texts = (line, LINES[i - 1])[: len(names)]
        try:
            ids = [tokenizer.tokenize([text])[0].numpy().tolist() for text in texts]
        except tf.errors.InvalidArgumentError:
            continue
        if sum(map(len, ids)) <= frame.room(options.sequence_length):
            rows.append((texts, *_framed(frame, dict(zip(frame.texts, ids)))))
    length = max((len(ids) for _, ids, _ in rows), default=0)

    def table(rows, fill):
        return np.array([[*row, *[fill] * (length - len(row))] for row in rows], np.int64).reshape(len(rows), length)

    columns = {
        "input_ids": table([ids for _, ids, _ in rows], pad_id(tokenizer)),
        "attention_mask": table([[1] * len(ids) for _, ids, _ in rows], 0),
        "token_type_ids": table([segments for _, _, segments in rows], 0),
    }
    model_inputs = {value.onnx for value in interface.inputs_of(model).values()}
    return {
        "inputs": {name: np.array([texts[i] for texts, _, _ in rows], "U") for i, name in enumerate(names)},
        "outputs": {name: value for name, value in columns.items() if name in model_inputs},
    }


def arrays(model: keras.Model, tokenizer: Any, options: Options) -> dict[str, dict]:
    """Returns the arrays of `case` for golden.npz; {} if there is no such case."""
    lines = None if tokenizer is None else case(model, tokenizer, options)
    return {} if lines is None else {"tokenizer": {"lines": lines}}


def frame_of(model: keras.Model, tokenizer: Any, options: Options) -> Frame | None:
    """Returns the special tokens that the model expects around a text or a pair; None if they are unknown."""
    pair = options.text_pair or model.head_names == ("next_sentence",) or "span" in model.heads
    try:
        return framing.frame(model.LAYOUT, tokenizer, pair)
    except UserError:
        return None


def _framed(frame: Frame, ids: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Returns the ids and the segments of a row."""
    row: list[int] = []
    segments: list[int] = []
    for part, segment in zip(frame.parts, frame.segments):
        new = ids[part] if isinstance(part, str) else [part]
        row, segments = row + new, segments + [segment] * len(new)
    return row, segments


def write(model: keras.Model, tokenizer: Any, options: Options, folder: pathlib.Path) -> str | None:
    """Writes tokenizer.onnx into the folder of an artifact, which contains golden.npz.

    The graph converts `text` (and `text_pair`), string [batch], into `input_ids`, `attention_mask` and, if the model
    reads them, `token_type_ids`, int64 [batch, sequence]. As in a SavedModel, texts are truncated to the maximum length
    that the artifact reads.

    Returns:
      None, or the reason why the graph was not written.
    """
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        return "onnxruntime-extensions is not installed, so the graph could not be verified"
    frame = frame_of(model, tokenizer, options)
    try:
        if frame is None:
            raise UserError("it is unknown which special tokens the model expects around a text")
        path = folder / NAME
        path.write_bytes(emit(tokenizer, frame, options, _inputs(model)).SerializeToString(deterministic=True))
    except UserError as error:
        return str(error)
    try:
        verify.replay_tokenizer_graph(folder)
    except Exception as error:  # The operators may raise any exception.
        path.unlink()
        return f"the operators of onnxruntime-extensions produce different ids: {one_line(error, 200)}"
    return None


def _inputs(model: keras.Model) -> list[str]:
    names = [value.onnx for value in interface.inputs_of(model).values()]
    return [name for name in names if name in ("input_ids", "attention_mask", "token_type_ids")]


def emit(tokenizer: Any, frame: Frame, options: Options, outputs: list[str]) -> onnx.ModelProto:
    """Returns the graph of a tokenizer.

    Args:
      tokenizer: the tokenizer.
      frame: the special tokens around a text or a pair.
      options: sequence_length is the maximum length.
      outputs: the outputs to compute, of input_ids, attention_mask and token_type_ids.

    Raises:
      UserError: onnxruntime-extensions has no operator that is exact for this tokenizer.
    """
    graph = _Graph()
    kind: Any = _byte_level
    if isinstance(tokenizer, SentencePiece) and tokenizer.is_plain:
        kind = _sentencepiece
    elif not (isinstance(tokenizer, ByteLevelBPE) and tokenizer.is_gpt2):
        name = getattr(tokenizer, "kind", type(tokenizer).__name__)
        raise UserError(f"onnxruntime-extensions has no operator that produces the ids of {name} for every text")
    names = ["text" if part == TEXT else "text_pair" for part in frame.texts]
    texts = [graph.input(name, "batch", dtype=TensorProto.STRING) for name in names]
    pieces = {part: kind(graph, tokenizer, text) for part, text in zip(frame.texts, texts)}
    # Each of two texts may use half of the room, plus what the other text leaves unused.
    room = frame.room(options.sequence_length)
    kept = {TEXT: graph.add("Min", pieces[TEXT].counts, graph.ints(room))}
    if PAIR in pieces:
        left = graph.add("Max", graph.add("Sub", graph.ints(room), pieces[PAIR].counts), graph.ints((room + 1) // 2))
        kept[TEXT] = graph.add("Min", pieces[TEXT].counts, left)
        kept[PAIR] = graph.add("Min", pieces[PAIR].counts, graph.add("Sub", graph.ints(room), kept[TEXT]))
    # `begins`, [B, 1] each: where each part begins. Every position of a row is then compared with all parts.
    begins, end = [], graph.add("Mul", kept[TEXT], graph.ints(0))
    for part in frame.parts:
        begins.append(end)
        end = graph.add("Add", end, kept[part] if isinstance(part, str) else graph.ints(1))
    # At least one position, so that the maximum over no rows is defined.
    longest = graph.add("ReduceMax", graph.add("Concat", end, graph.array(np.array([[1]])), axis=0), keepdims=0)
    place = graph.add("Range", graph.whole(0), longest, graph.whole(1))
    place = graph.add("Expand", graph.add("Unsqueeze", place, graph.ints(0)), graph.shape(end, longest))
    ids, segments = graph.add("Mul", place, graph.ints(0)), graph.add("Mul", place, graph.ints(0))
    ids = graph.add("Add", ids, graph.ints(pad_id(tokenizer)))
    for part, segment, begin in zip(frame.parts, frame.segments, begins):
        at = graph.add("Sub", place, begin)
        size = kept[part] if isinstance(part, str) else graph.ints(1)
        inside = graph.add("And", graph.add("GreaterOrEqual", at, graph.ints(0)), graph.add("Less", at, size))
        value = graph.ints(part) if isinstance(part, int) else pieces[part].at(graph, at, inside)
        ids = graph.add("Where", inside, value, ids)
        segments = graph.add("Where", inside, graph.ints(segment), segments)
    mask = graph.add("Cast", graph.add("Less", place, end), to=TensorProto.INT64)
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    for name in outputs:
        graph.output(name, values[name], "batch", "sequence", dtype=TensorProto.INT64)
    return graph.model("tokenizer")


class _Pieces:
    """The ids of all rows, concatenated, int64 [N], and where each row begins and how many ids it has, int64 [B, 1]."""

    def __init__(self, flat: str, begins: str, counts: str):
        self.flat, self.begins, self.counts = flat, begins, counts

    def at(self, graph: "_Graph", at: str, inside: str) -> str:
        """Returns the ids at the positions `at` [B, L] of the rows; only those where `inside` is true are valid."""
        flat = graph.add("Concat", self.flat, graph.ints(0), axis=0)  # Never empty.
        index = graph.add("Where", inside, graph.add("Add", at, self.begins), graph.ints(0))
        return graph.add("Gather", flat, index)


def _byte_level(graph: "_Graph", tokenizer: ByteLevelBPE, text: str) -> _Pieces:
    vocab = json.dumps({token: i for i, token in enumerate(tokenizer.vocab)}, ensure_ascii=False)
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.merges)
    settings = dict(vocab=vocab, merges=merges, padding_length=-1)
    ids, mask = graph.add("GPT2Tokenizer", text, outputs=2, domain=_EXTENSIONS, **settings)
    width = graph.add("Shape", ids, start=1, end=2)
    rows = graph.add("Range", graph.whole(0), graph.add("Squeeze", graph.add("Shape", ids, end=1)), graph.whole(1))
    begins = graph.add("Mul", graph.add("Unsqueeze", rows, graph.ints(1)), width)
    counts = graph.add("ReduceSum", mask, graph.ints(1), keepdims=1)
    return _Pieces(graph.add("Reshape", ids, graph.ints(-1)), begins, counts)


def _sentencepiece(graph: "_Graph", tokenizer: SentencePiece, text: str) -> _Pieces:
    no = graph.array(np.array([False]))
    settings = [graph.ints(0), graph.array(np.zeros(1, np.float32)), no, no, no]
    ids, splits = graph.add(
        "SentencepieceTokenizer", text, *settings, outputs=2, domain=_EXTENSIONS, model=tokenizer.model
    )
    begins = graph.add("Slice", splits, graph.ints(0), graph.ints(-1))
    ends = graph.add("Slice", splits, graph.ints(1), graph.ints(2**31))
    counts = graph.add("Unsqueeze", graph.add("Sub", ends, begins), graph.ints(1))
    flat = graph.add("Cast", ids, to=TensorProto.INT64)
    if KINDS[tokenizer.kind].shifted:  # The first pieces, <unk> <s> </s>, have the ids 3, 0 and 2.
        shifted = graph.add("Add", flat, graph.ints(1))
        first = graph.add("Gather", graph.array(np.array([3, 0, 2])), graph.add("Min", flat, graph.ints(2)))
        flat = graph.add("Where", graph.add("Less", flat, graph.ints(3)), first, shifted)
    return _Pieces(flat, graph.add("Unsqueeze", begins, graph.ints(1)), counts)


class _Graph(Graph):
    """A graph whose nodes and constants are numbered instead of named after layers."""

    def __init__(self):
        super().__init__({}, profile="compat")

    def add(self, operator: str, *inputs, **attributes) -> Any:
        return super().add(operator, *inputs, **{"at": "tokenizer", **attributes})

    def array(self, value) -> str:
        return self.constant(f"constants/array_{len(self.initializers)}", np.asarray(value))

    def shape(self, rows: str, length: str) -> str:
        """Returns int64 [2]: the number of rows of `rows` [B, 1], and `length` []."""
        length = self.add("Unsqueeze", length, self.ints(0))
        return self.add("Concat", self.add("Shape", rows, end=1), length, axis=0)
