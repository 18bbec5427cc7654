"""golden.npz: inputs, and what the Keras model answers to them, computed eagerly and apart from the exports.

Arrays are named SIGNATURE/CASE/inputs/NAME and SIGNATURE/CASE/outputs/NAME. Where a NAME is a group, `values` are what
is wanted and `decided`, of the same shape, says where it must be so: elsewhere the model holds two answers for equally
likely within the tolerance. Logits of words would fill the file. They are the group `positions` [N, 2] (row, place),
`values` [N, V] at these, and for all places `argmax`, `logsumexp`, `decided` and `real` [B, L]: where that is false,
anything may stand.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfzoo import generation, nn
from tfzoo.errors import CheckFailed
from tfzoo.export import answers
from tfzoo.export.answers import Answer, Options
from tfzoo.export.onnx import emit as onnx_emit
from tfzoo.text.framing import PAIR, TEXT

_VALUES = 400_000  # Logits kept of one case, at most, where four places do not take more.
_AT_ONCE = 64  # Places whose logits are looked at in double precision.
_WRITTEN = 16  # Tokens written greedily.
# Where there is a mask token it stands for {}.
_TEXTS = (
    "The {} of the function is a {}.",
    "Größe, naïve café, Ωmega: {} 東京 {}! 🙂 ﬁn",
    "",
    "Ada Lovelace met a man from Paris, in the U.S. of 1843; of the two   words the last is 'function'.",
)


def tolerances(model: keras.Model, names: Sequence[str]) -> dict[str, dict]:
    """What is allowed of outputs with numbers: by depth and precision, a share of the largest (or of 1, where that is
    less), or of each number itself where they are probabilities."""
    config = model.config
    layers = config.num_layers + config.resolved_num_decoder_layers * isinstance(model, nn.EncoderDecoderModel)
    allowed = {"float32": 2e-5 if layers < 12 else 1e-4, "float16": 1e-2, "bfloat16": 8e-2}[model.compute_dtype]
    limits = {
        "scores": ("each", 10 * allowed),
        "probabilities": ("each", 10 * allowed),
        "no_answer": ("each", 10 * allowed),
    }
    whole = (
        "types",
        "texts",
        "answers",
        "words",
        "starts",
        "ends",
        "label",
        "labels",
        "classes",
        "truncated",
        "generated_text",
    )
    return {
        name: dict(zip(("of", "allowed"), limits.get(name, ("largest", allowed))))
        for name in names
        if name not in whole and not name.startswith("num_")
    }


def _margin(model: keras.Model) -> float:
    """Two logits, or logarithms of probabilities, that are nearer than this times the largest are not told apart."""
    return 2 * tolerances(model, ["logits"])["logits"]["allowed"]


# Ids in


def token_cases(model: keras.Model, tokenizer: Any, options: Options) -> dict[str, dict[str, np.ndarray]]:
    """Inputs, by case: three batch sizes, lengths up to the longest, padded rows, non-ASCII text."""
    random = np.random.default_rng(0)
    longest = options.sequence_length
    static = model.family == "reformer"
    cases = {}
    for batch, length in ((1, max(1, longest // 16)), (3, max(1, longest // 4)), (2, longest)):
        length = longest if static else length
        inputs = {}
        for name in onnx_emit.inputs_of(model):
            # Of an encoder-decoder the two sides have lengths of their own.
            own = max(1, length - length // 3) if name.startswith("decoder_") else length
            lengths = np.linspace(own, max(1, own // 3), batch).astype(int)  # The first row is full.
            real = np.arange(own) < lengths[:, None]
            if name.endswith("token_ids"):
                values = np.where(real, random.integers(0, model.config.vocab_size, (batch, own)), 0)
            elif name.endswith("padding_mask"):
                values = real
            elif name == "segment_ids":
                values = np.arange(own) >= lengths[:, None] // 2
            else:
                values = random.integers(0, lengths[:, None], (batch, 2))  # entity_positions
            inputs[name] = values if values.dtype == bool and name != "segment_ids" else values.astype(np.int32)
        cases[f"{batch}x{length}"] = inputs
    if tokenizer is not None and not static:
        cases["text"] = _text_case(model, tokenizer, longest)
    return cases


def _text_case(model, tokenizer, longest, texts: Sequence[str] = _TEXTS) -> dict[str, np.ndarray]:
    rows = [list(row)[:longest] for row in tokenizer.tokenize([text.format("", "") for text in texts]).to_list()]
    length = max(1, max(map(len, rows)))
    real = np.arange(length) < np.array([len(row) for row in rows])[:, None]
    ids = np.array([row + [answers.pad_id(tokenizer)] * (length - len(row)) for row in rows], np.int32)
    inputs = {}
    for name in onnx_emit.inputs_of(model):
        inputs[name] = real if name.endswith("mask") else ids if name.endswith("token_ids") else np.zeros_like(ids)
    if "entity_positions" in inputs:
        inputs["entity_positions"] = np.zeros((len(rows), 2), np.int32)
    return inputs


def calibration(
    model: keras.Model, tokenizer: Any, options: Options, texts: Sequence[str] = ()
) -> list[dict[str, np.ndarray]]:
    """Rows without padding, under ONNX's names: of the texts (a pair's are parted by a tab), else of golden.npz's,
    and where there is no tokenizer of golden.npz's ids."""
    if tokenizer is None:
        cases = token_cases(model, None, options).values()
        rows = [{name: value[:1] for name, value in inputs.items()} for inputs in cases]
    else:
        answer = answers.find(model, tokenizer, options)
        mask = getattr(answer, "mask", "")
        rows = []
        for text in filter(str.strip, texts or [text.format(mask, mask) for text in _TEXTS]):
            if answer is None:
                rows.append(_text_case(model, tokenizer, options.sequence_length, [text]))
            elif len((row := _Row(answer, (text.split("\t") * 2)[: len(answer.inputs)])).ids):
                rows.append(row.inputs)
    return [
        {onnx_emit.NAMES[name]: row[name].astype(np.int64) for name in onnx_emit.inputs_of(model) if name in row}
        for row in rows
    ]


def outputs(model: keras.Model, inputs: Mapping[str, np.ndarray], real: np.ndarray | None = None) -> dict[str, Any]:
    """What a model gives for ids, in our names. real: see `logits`."""
    found = model(dict(inputs))
    arrays = {name: np.asarray(keras.ops.cast(found[name], "float32")) for name in onnx_emit.outputs_of(model)}
    return {name: logits(model, value, real) if name == "logits" else value for name, value in arrays.items()}


def onnx_case(
    model: keras.Model, inputs: Mapping[str, np.ndarray], cached: bool, right: bool = False
) -> dict[str, dict]:
    """A case of `token_cases` under the names of ONNX, and what the model gives: verify.py's `reader` takes these.

    cached: for graphs that take past keys and values. Padding is then on the left (or `right`), and a decoder of an
    encoder-decoder has none.
    """
    inputs, real = dict(inputs), None
    if "padding_mask" in inputs:
        # A row of no tokens has no answer: what comes is the mean of padding, and in half precision another mean.
        some = inputs["padding_mask"].any(1)
        inputs = {name: value[some] for name, value in inputs.items()}
    if cached and isinstance(model, nn.EncoderDecoderModel):
        del inputs["decoder_padding_mask"]
    elif cached:
        inputs = {name: value[:, : _steady(model.config)] for name, value in inputs.items()}
        if not right:
            inputs = {name: _to_the_right(value, inputs["padding_mask"]) for name, value in inputs.items()}
        real = inputs["padding_mask"]
    asked = dict(inputs)
    if real is not None:
        asked["position_ids"] = np.maximum(real.cumsum(1) - 1, 0).astype(np.int32)
    found = outputs(model, asked, real)
    renamed: dict[str, Any] = {}
    for ours, theirs in onnx_emit.output_names(model).items():
        if ours == "span_logits":
            renamed |= {"start_logits": found[ours][..., 0], "end_logits": found[ours][..., 1]}
        elif not cached or ours == "logits":
            renamed[theirs] = found[ours]
    return {
        "inputs": {onnx_emit.NAMES[name]: value.astype(np.int64) for name, value in inputs.items()},
        "outputs": renamed,
    }


def _steady(config) -> int:
    """The length up to which keys that are kept are those that a longer text would give."""
    scaling = config.rotary_scaling
    if scaling.get("rope_type", scaling.get("type")) in (
        "dynamic",
        "longrope",
    ):  # Longer ones turn all by other angles.
        return scaling.get("original_max_position_embeddings") or config.max_positions
    return config.max_positions


def _to_the_right(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(row, len(row) - count) for row, count in zip(values, real.sum(1))])


def written_cases(model: keras.Model, tokenizer: Any, options: Options) -> dict[str, dict[str, dict]]:
    """What a model writes greedily behind some ids (an encoder-decoder: in answer to them), as `onnx_case` has it.

    Each token is of the logits of all before it, read at once. Nothing ends a text early.
    """
    random = np.random.default_rng(1)
    both = isinstance(model, nn.EncoderDecoderModel)
    longest = min(options.sequence_length, _steady(model.config))
    count, length = max(1, min(_WRITTEN, longest // 2)), max(1, longest // 4)
    prompts = {"ids": random.integers(0, model.config.vocab_size, (2, length))}
    if tokenizer is not None and len(row := tokenizer.tokenize([_TEXTS[-1]]).to_list()[0]):
        prompts["text"] = np.array([row[:length]])
    start = answers.special_ids(model).get("decoder_start_token_id", 0)
    cases: dict[str, dict[str, dict]] = {}
    for case, ids in prompts.items():
        inputs = {"token_ids": ids, "padding_mask": np.ones(ids.shape, bool)}
        written = np.full((len(ids), 1), start) if both else ids
        first, decided = written.shape[1], []
        for _ in range(count):
            if both:
                values = model({**inputs, "decoder_token_ids": written.astype(np.int32)})["logits"]
            else:
                values = model({"token_ids": written.astype(np.int32)})["logits"]
            values = np.asarray(values, np.float64)[:, -1]
            second, largest = np.sort(values, -1)[:, -2:].T
            decided.append(largest - second > _margin(model) * np.maximum(1.0, np.abs(values).max(-1)))
            written = np.concatenate([written, values.argmax(-1)[:, None]], 1)
        asked = {"input_ids": ids, "attention_mask": np.ones(ids.shape), "max_new_tokens": np.array(count)}
        if both:
            asked["decoder_input_ids"] = written[:, :1]
        cases[case] = {
            "inputs": {name: value.astype(np.int64) for name, value in asked.items()},
            "outputs": {
                "generated_ids": {
                    "values": written[:, first:].astype(np.int64),
                    # What follows a token that is not decided is not decided either.
                    "decided": np.logical_and.accumulate(np.stack(decided, 1), 1),
                }
            },
        }
    return cases


def example_outputs(signature: str, answered: Mapping[str, Any]) -> dict[str, Any]:
    """What classify and regress answer where the text signature answers this."""
    if signature == "classify":
        return {"classes": answered["labels"], "scores": answered["scores"]}
    return {"outputs": answered["value"] if "value" in answered else answered["scores"][:, 1]}


def logits(model: keras.Model, values: np.ndarray, real: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The group of arrays that stands for logits [B, L, V]. real: bool [B, L], where they say something."""
    real = np.ones(values.shape[:2], bool) if real is None else real
    batch, length, vocab = values.shape
    least = _margin(model) * max(1.0, values.max(), -values.min())
    logsumexp, decided = np.zeros((batch, length), np.float32), np.zeros((batch, length), bool)
    for first in range(0, batch * length, _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        wide = values.reshape(-1, vocab)[some].astype(np.float64)
        second, largest = np.partition(wide, (-2, -1))[:, -2:].T
        logsumexp.reshape(-1)[some] = np.log(np.exp(wide - largest[:, None]).sum(-1)) + largest
        decided.reshape(-1)[some] = largest - second > least
    decided &= real
    places = np.argwhere(real)
    count = min(len(places), max(4, _VALUES // vocab))
    positions = places[np.linspace(0, len(places) - 1, count).astype(int)].astype(
        np.int32
    )  # First and last among them.
    return {
        "positions": positions,
        "values": values[positions[:, 0], positions[:, 1]],
        "argmax": values.argmax(-1).astype(np.int32),
        "logsumexp": logsumexp,
        "decided": decided,
        "real": real,
    }


# Texts in


def text_cases(answer: Answer) -> dict[str, dict[str, list[str]]]:
    """Texts by input, by case: three batch sizes and none; non-ASCII, empty, without a mask, over the longest."""
    mask = getattr(answer, "mask", "")
    texts = [text.format(mask, mask) for text in _TEXTS]
    long = f"{mask} " + "a " * answer.options.sequence_length + mask
    first = {"0": [], "1": texts[:1], "2": [texts[1], long], "4": texts}
    cases: dict[str, list[tuple[str, ...]]] = {case: [(text,) for text in values] for case, values in first.items()}
    if len(answer.inputs) == 2:
        cases = {case: [(b[-24:], a) for a, b in zip(values, values[::-1])] for case, values in first.items()}
    if answer.options.long_texts == "refuse":
        cases = {case: [row for row in rows if not _Row(answer, row).truncated] for case, rows in cases.items()}
    if isinstance(answer, answers.Continuations):  # There is nothing behind which to go on in an empty text.
        cases = {case: [row for row in rows if _Row(answer, row).ids] for case, rows in cases.items()}
    return {
        case: {name: [row[i] for row in rows] for i, name in enumerate(answer.inputs)} for case, rows in cases.items()
    }


def generate_case(answer: answers.Continuations, texts: Mapping[str, Sequence[str]]) -> dict[str, dict]:
    """A case of the signature `generate`: so many tokens a row, the likeliest text, the likeliest token each time, and
    tokens that are drawn, in turns."""
    count, most = len(texts["text"]), answer.options.max_new_tokens
    way = np.arange(count) % 3
    asked = {
        "max_new_tokens": 1 + np.arange(count) * 3 % most,
        "temperature": np.array([0, 1, 0.8])[way],
        "top_k": np.array([0, 1, 5])[way],
        "top_p": np.array([1, 1, 0.9])[way],
        "seed": np.arange(count),
    }
    asked = {name: values.astype(answer.ROWS[name]) for name, values in asked.items()}
    rows = [dict(zip(asked, values)) for values in zip(*(values.tolist() for values in asked.values()))]
    return {
        "inputs": {"text": np.array(texts["text"], "U"), **asked},
        "outputs": text_outputs(answer, texts, rows),
    }


def text_outputs(answer: Answer, texts: Mapping[str, Sequence[str]], *more) -> dict[str, Any]:
    """What the text signature answers: row by row, without padding, in Python. more: of `generate`, what each is
    asked for."""
    rows = [_Row(answer, row) for row in zip(*texts.values())]
    found = _EXPECTED[type(answer)](answer, rows, *more)
    return found | {"truncated": np.array([row.truncated for row in rows], bool)}


class _Row:
    """One text, or pair of texts, as the model reads it."""

    def __init__(self, answer: Answer, row: Sequence[str]):
        reader, self.texts = answer.reader, dict(zip(answer.inputs, row))
        special = [answer.mask] if isinstance(answer, answers.Words) else []
        tokens: dict[str, list] = {}  # Piece -> [(id, start, end)].
        for piece, name in reader.pieces.items():
            if special or not reader.has_offsets:
                ids = reader.tokenizer.tokenize([self.texts[name]], special=special)[0].numpy().tolist()
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
        ids = self.ids + [answers.pad_id(reader.tokenizer)] * empty
        inputs = {
            "token_ids": np.array([ids], np.int32),
            "segment_ids": np.array([segments + [0] * empty], np.int32),
            "padding_mask": np.array([[True] * len(self.ids) + [False] * empty]),
        }
        if reader.start_id is not None:
            inputs["decoder_token_ids"] = np.array([[reader.start_id, *ids[:-1]]], np.int32)
            inputs["decoder_padding_mask"] = inputs["padding_mask"]
        self.inputs = {name: value for name, value in inputs.items() if name in answer.model.INPUTS}
        self.model = answer.model

    def outputs(self, name: str, **more) -> np.ndarray:
        """One output for this row, float64."""
        return np.asarray(keras.ops.cast(self.model(self.inputs | more)[name], "float32"))[0].astype(np.float64)

    def places(self, piece: str) -> list[int]:
        return [i for i, of in enumerate(self.of) if of == piece]


def _softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _labels(answer: answers.Labels, rows: list[_Row]) -> dict:
    count = len(answer.labels)
    logits = np.array([row.outputs(f"{answer.head}_logits") for row in rows]).reshape(len(rows), count)
    if count == 1:
        return {"value": logits[:, 0].astype(np.float32)}
    ordered = np.sort(logits, -1)
    decided = ordered[:, -1] - ordered[:, -2] > _margin(answer.model) * np.maximum(1, np.abs(logits).max(-1))
    labels = np.array(answer.labels)
    named = np.tile(labels, (len(rows), 1))
    if answer.problem_type == "regression":
        return {"labels": named, "values": logits.astype(np.float32)}
    several = answer.problem_type == "multi_label_classification"
    scores = 1 / (1 + np.exp(-logits)) if several else _softmax(logits)
    return {
        "label": {"values": labels[logits.argmax(-1)], "decided": decided},
        "labels": named,
        "scores": scores.astype(np.float32),
    }


def _entities(answer: answers.Entities, rows: list[_Row]) -> dict:
    tags, margin = answer.tags, _margin(answer.model)
    found: list[list[dict]] = []
    decided = []
    for row in rows:
        places = row.places(TEXT)
        logits = row.outputs("tag_logits")
        chances = _softmax(logits)
        words: list[list[int]] = []
        for i in places:
            joins = words and answer.continues[row.ids[i]] and answer.ends_word[row.ids[i - 1]]
            words[-1].append(i) if joins else words.append([i])
        entities: list[dict] = []
        previous, sure = -1, True
        for word in words:
            label = int(chances[word[0]].argmax())
            best, second = np.sort(logits[word[0]])[::-1][:2] if logits.shape[-1] > 1 else (1.0, 0.0)
            sure = sure and best - second > margin * max(1, np.abs(logits).max())
            kind = tags.kinds[label]
            if kind >= 0:
                if tags.opens[label] or kind != previous:
                    entities.append({"type": tags.names[kind], "tokens": [], "scores": []})
                entities[-1]["tokens"] += word
                entities[-1]["scores"].append(chances[word[0]].max())
            previous = kind
        for entity in entities:
            first, last = entity["tokens"][0], entity["tokens"][-1]
            entity["span"] = _span(answer, row, first, last, row.texts["text"])
        found.append(entities)
        decided.append(sure)
    shape = (len(rows), max(map(len, found), default=0))

    def table(value, dtype):
        values = np.zeros(shape, dtype)
        for i, entities in enumerate(found):
            values[i, : len(entities)] = [value(entity) for entity in entities]
        return values

    sure_at = np.repeat(np.array(decided, bool)[:, None], shape[1], axis=1)
    longest = max((len(entity["span"][0]) for entities in found for entity in entities), default=1) or 1
    outputs: dict[str, Any] = {
        "types": {"values": table(lambda e: e["type"], np.array([*tags.names, ""]).dtype), "decided": sure_at},
        "texts": {"values": table(lambda e: e["span"][0], f"U{longest}"), "decided": sure_at},
        "scores": table(lambda e: np.mean(e["scores"]), np.float32),
        "num_entities": {"values": np.array([len(e) for e in found], np.int32), "decided": np.array(decided, bool)},
    }
    for i, name in enumerate(("starts", "ends") if answer.reader.has_offsets else ()):
        outputs[name] = {"values": table(lambda e, i=i: e["span"][1 + i], np.int32), "decided": sure_at}
    return outputs


def _span(answer: Answer, row: _Row, first: int, last: int, text: str) -> tuple[str, int, int]:
    """The text of tokens first to last, without the spaces around it, and where it stands."""
    if not answer.reader.has_offsets:
        (joined,) = answer.tokenizer.detokenize([row.ids[first : last + 1]]).numpy()
        return joined.decode(errors="replace").strip(" "), 0, 0
    start, end = row.tokens[first][1], row.tokens[last][2]
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return part.strip(), start, start + len(part.strip())


def _spans(answer: answers.Spans, rows: list[_Row]) -> dict:
    top, margin = answers.TOP, _margin(answer.model)
    shape = (len(rows), top)
    scores, decided, null = np.zeros(shape, np.float32), np.ones(shape, bool), np.zeros(len(rows), np.float32)
    spans: list[list[tuple[str, int, int]]] = []
    for number, row in enumerate(rows):
        logits, places = row.outputs("span_logits"), row.places(PAIR)
        asked = [0, *places] if answer.null_first else places
        chances = np.zeros_like(logits)
        if asked:
            chances[asked] = _softmax(logits[asked], axis=0)
        null[number] = chances[0].prod() if answer.null_first else 0
        candidates = sorted(
            (
                (chances[i, 0] * chances[j, 1], -i, -j)
                for i in places
                for j in places
                if i <= j < i + answers.LONGEST_ANSWER
            ),
            reverse=True,
        )[: top + 1]
        spans.append([_span(answer, row, -i, -j, row.texts["context"]) for _, i, j in candidates[:top]])
        chance = np.array([score for score, _, _ in candidates])
        scores[number, : len(spans[-1])] = chance[:top]
        # A rank is decided where it leads the next by more than the tolerance, and is so led.
        apart = chance[:-1] > chance[1:] * (1 + 2 * margin * max(1, np.abs(logits).max()))
        decided[number] = _ranked(apart, top)
    longest = max((len(text) for row in spans for text, _, _ in row), default=1) or 1
    columns = [np.zeros(shape, f"U{longest}"), np.zeros(shape, np.int32), np.zeros(shape, np.int32)]
    for number, found in enumerate(spans):
        for column, values in zip(columns, zip(*found)):
            column[number, : len(found)] = values
    names = ("answers", "starts", "ends") if answer.reader.has_offsets else ("answers",)
    groups = {name: {"values": values, "decided": decided} for name, values in zip(names, columns)}
    return groups | {"scores": scores, "no_answer": null}


def _ranked(apart: np.ndarray, top: int) -> np.ndarray:
    """apart[i]: rank i leads rank i + 1 -> decided [top]; ranks beyond the last are."""
    apart = np.append(apart, np.ones(max(0, top - len(apart)), bool))[:top]
    return apart & np.append(True, apart[:-1])


def _words(answer: answers.Words, rows: list[_Row]) -> dict:
    top = answer.top
    vocab = np.array(answer.vocab)
    masks = [[i for i, token in enumerate(row.ids) if token == answer.tokenizer.mask_id] for row in rows]
    shape = (len(rows), max(map(len, masks), default=0), top)
    found = np.zeros(shape, vocab.dtype)
    probabilities, decided = np.zeros(shape, np.float32), np.ones(shape, bool)
    tolerance = tolerances(answer.model, ["probabilities"])["probabilities"]["allowed"]
    for number, (row, places) in enumerate(zip(rows, masks)):
        if not places:
            continue
        is_mask = np.isin(np.arange(row.inputs["token_ids"].shape[1]), places)[None]
        more = answers.masked_inputs(answer.model, np.array([places], np.int32), is_mask)
        for column, chance in enumerate(_softmax(row.outputs("logits", **more))):
            chance = np.where(answer.readable, chance, -1)
            order = np.argsort(-chance, kind="stable")[: top + 1]
            found[number, column] = vocab[order[:top]]
            probabilities[number, column] = chance[order[:top]]
            decided[number, column] = _ranked(chance[order[:-1]] > chance[order[1:]] * (1 + 2 * tolerance), top)
    return {
        "words": {"values": found, "decided": decided},
        "probabilities": probabilities,
        "num_masks": np.array([len(places) for places in masks], np.int32),
    }


def _embeddings(answer: answers.Embeddings, rows: list[_Row]) -> dict:
    how, size = answer.options.pooling, answers.sequence_size(answer.model)
    vectors = np.zeros((len(rows), size), np.float32)
    for number, row in enumerate(rows):
        if how == "pooled":
            vectors[number] = row.outputs("pooled")
            continue
        states = row.outputs("sequence")[: len(row.ids)]
        if how == "mean":
            vectors[number] = states.mean(0) if len(states) else 0
        else:  # Of a text without tokens there is its padding.
            vectors[number] = row.outputs("sequence")[0 if how == "first" else max(0, len(row.ids) - 1)]
    return {"embeddings": vectors}


def _continuations(
    answer: answers.Continuations, rows: list[_Row], asked: Sequence[Mapping[str, Any]] | None = None
) -> dict:
    """Each row is written by itself.

    asked: what `generate` is told of each; None for the text signature.
    """
    forced = any(name.startswith("forced") for name in answer.ids)
    noises = _noises(_margin(answer.model))
    texts, lengths, decided = [], [], []
    for i, row in enumerate(rows):
        search = answer.options.search
        own = {"max_new_tokens": answer.options.max_new_tokens} if asked is None else dict(asked[i])
        drawn = own.get("top_k", 0) > 1
        if asked is not None and own["temperature"] > 0:
            search = answers.without_beams(search)
        own = own | {"do_sample": True} if drawn else {"max_new_tokens": own["max_new_tokens"]}
        options = search | own
        ids = _written(answer, row, **options)
        if search or forced or drawn:  # No single logit decides: does a little noise change it?
            again = [_written(answer, row, **options, logits_processor=noise) for noise in noises]
            decided.append(all(np.array_equal(others, ids) for others in again))
        else:  # Read again as a whole.
            logits = _next_logits(answer, row, ids)
            second, largest = np.sort(logits, -1)[:, -2:].T
            sure = largest - second > _margin(answer.model) * max(1.0, np.abs(logits).max())
            if (sure & (logits.argmax(-1) != ids)).any():
                raise CheckFailed(
                    f"{answer.model.name} writes with its cache what it does not write without it: {row.texts}"
                )
            decided.append(bool(sure.all()))
        texts.append(answer.tokenizer.detokenize([ids.tolist()]).numpy()[0].decode(errors="replace"))
        lengths.append(len(ids))
    sure_at = np.array(decided, bool)
    return {
        "generated_text": {"values": np.array(texts, "U"), "decided": sure_at},
        "num_tokens": {"values": np.array(lengths, np.int32), "decided": sure_at},
    }


def _written(answer: answers.Continuations, row: _Row, **options) -> np.ndarray:
    written = generation.generate_ids(answer.model, [row.ids], return_scores=True, **answer.ids, **options)
    return np.asarray(written.token_ids)[0, : int(written.lengths[0])]


@functools.cache  # Decoding is compiled for each.
def _noises(margin: float) -> list[Callable]:
    """Logits processors that add what rounding may."""

    def noise(seed, history, logits):
        largest = tf.reduce_max(tf.where(tf.math.is_finite(logits), tf.abs(logits), 1.0))
        return logits + margin * tf.maximum(1.0, largest) * tf.random.stateless_normal(tf.shape(logits), [seed, 0])

    return [functools.partial(noise, seed) for seed in (1, 2)]


def _next_logits(answer: answers.Continuations, row: _Row, ids: np.ndarray) -> np.ndarray:
    """[N, V]: what the model gives for each of `ids`, reading all before it at once."""
    if answer.reader.start_id is None:
        whole = np.array([[*row.ids, *ids[:-1]]], np.int32)
        return np.asarray(answer.model({"token_ids": whole})["logits"], np.float64)[0, len(row.ids) - 1 :]
    decoder = np.array([[answer.reader.start_id, *ids[:-1]]], np.int32)
    inputs = {"token_ids": np.array([row.ids], np.int32), "decoder_token_ids": decoder}
    return np.asarray(answer.model(inputs)["logits"], np.float64)[0]


_EXPECTED: dict[type[Answer], Any] = {
    answers.Labels: _labels,
    answers.NextSentence: _labels,
    answers.Entities: _entities,
    answers.Spans: _spans,
    answers.Words: _words,
    answers.Embeddings: _embeddings,
    answers.Continuations: _continuations,
}


def write(path: str | os.PathLike, signatures: dict) -> None:
    """Writes {signature: {case: {"inputs" or "outputs": {name: array or group of arrays}}}}."""
    flat: dict[str, Any] = {}

    def add(values: dict, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{name}/")
            else:
                flat[prefix + name] = value

    add(signatures, "")
    np.savez_compressed(path, **flat)
