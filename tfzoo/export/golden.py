"""golden.npz: inputs and the Keras model's answers to them, computed eagerly and independently of the exports.

Arrays are named SIGNATURE/CASE/inputs/NAME and SIGNATURE/CASE/outputs/NAME. A NAME may be a group of arrays:

    values, decided    expected values, and where they must match; elsewhere the model considers two answers equally
                       likely within the tolerance
    values, real       numbers, and the rows [B] or tokens [B, L] at which they are meaningful
    positions, ...     logits over the vocabulary, which would make the file too large: `values` [N, V] at `positions`
                       [N, 2] (row, token), and for all tokens `argmax`, `logsumexp`, `decided` and `real` [B, L]
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfzoo import progress
from tfzoo.export import answers, interface
from tfzoo.export.answers import Answer, Options
from tfzoo.export.precision import Limits
from tfzoo.generation.folder import special_ids
from tfzoo.text.reader import pad_id

_VALUES = 400_000  # Maximum number of logits kept per case, unless four positions need more.
_AT_ONCE = 64  # Positions whose logits are processed in double precision at a time.
_WRITTEN = 16  # Tokens generated greedily.
# {} is replaced by the answer's `fills`, such as the mask token.
_TEXTS = (
    "The {} of the function is a {}.",
    "Größe, naïve café, Ωmega: {} 東京 {}! 🙂 ﬁn",
    "",
    "Ada Lovelace met a man from Paris, in the U.S. of 1843; of the two   words the last is 'function'.",
)

# Ids in


def token_cases(
    model: keras.Model, tokenizer: Any, options: Options, fixed_length: bool | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Returns inputs by case: three batch sizes, lengths up to the longest, padded rows, non-ASCII text.

    Args:
      model: the exported model.
      tokenizer: its tokenizer; None omits the case with text.
      options: the options of the export.
      fixed_length: whether all cases have the longest length; None means the model's own attribute.
    """
    random = np.random.default_rng(0)
    longest, fixed = options.sequence_length, model.fixed_length if fixed_length is None else fixed_length
    cases = {}
    for batch, length in ((1, max(1, longest // 16)), (3, max(1, longest // 4)), (2, longest)):
        length = longest if fixed else length
        cases[f"{batch}x{length}"] = interface.sample(model, batch, length, random, fixed)
    if tokenizer is not None and not fixed:
        cases["text"] = _text_case(model, tokenizer, longest)
    return cases


def _text_case(model, tokenizer, longest, texts: Sequence[str] = _TEXTS) -> dict[str, np.ndarray]:
    rows = tokenizer.tokenize([text.format("", "") for text in texts]).to_list()
    return interface.padded(model, [row[:longest] for row in rows], pad_id(tokenizer))


def calibration(
    model: keras.Model, tokenizer: Any, options: Options, texts: Sequence[str] = ()
) -> list[dict[str, np.ndarray]]:
    """Returns rows without padding for calibrating int8_static, under ONNX's names.

    The rows are made from `texts` (a tab separates the two texts of a pair), by default from the texts of golden.npz,
    and without a tokenizer from the ids of golden.npz.
    """
    if tokenizer is None:
        cases = token_cases(model, None, options).values()
        rows = [{name: value[:1] for name, value in inputs.items()} for inputs in cases]
    else:
        answer = answers.find(model, tokenizer, options)
        fills = answer.fills if answer else ("", "")
        rows = []
        for text in filter(str.strip, texts or [text.format(*fills) for text in _TEXTS]):
            if answer is None:
                rows.append(_text_case(model, tokenizer, options.sequence_length, [text]))
            elif len((row := answer.row((text.split("\t") * 2)[: len(answer.inputs)])).ids):
                rows.append(row.inputs)
    exported = interface.inputs_of(model)
    return [interface.to_onnx({name: row[name] for name in exported if name in row}) for row in rows]


_known: contextvars.ContextVar[tuple[keras.Model | None, dict[tuple, dict[str, Any]]]]
_known = contextvars.ContextVar("known", default=(None, {}))


@contextlib.contextmanager
def once(model: keras.Model) -> Iterator[None]:
    """Within the context, `outputs` of the model are computed only once for the same inputs and limits, even if several
    formats need them. The weights must not change in it."""
    token = _known.set((model, {}))
    try:
        yield
    finally:
        _known.reset(token)


def outputs(model: keras.Model, inputs: Mapping[str, np.ndarray], limits: Limits) -> dict[str, Any]:
    """Returns the model's outputs for ids under tfzoo's names, as groups of arrays that mark the real tokens."""
    of, known = _known.get()
    key = limits, *((name, value.dtype.str, value.shape, value.tobytes()) for name, value in sorted(inputs.items()))
    if key not in known or model is not of:
        named = _outputs(model, inputs, limits)
        if model is not of:
            return named
        known[key] = named
    return dict(known[key])


def _outputs(model: keras.Model, inputs: Mapping[str, np.ndarray], limits: Limits) -> dict[str, Any]:
    computed = model(dict(inputs))
    named: dict[str, Any] = {}
    for name, axes in interface.outputs_of(model).items():
        values = np.asarray(keras.ops.cast(computed[name], "float32"))
        real = interface.real_of(inputs, axes, values.shape)
        named[name] = logits(values, real, limits) if name == "logits" else {"values": values, "real": real}
    return named


def token_arrays(model, tokenizer, options: Options, limits: Limits) -> dict[str, dict]:
    """Returns the cases of the signature `tokens` for golden.npz."""
    arrays = each(
        token_cases(model, tokenizer, options),
        lambda inputs: {"inputs": inputs, "outputs": outputs(model, inputs, limits)},
    )
    if options.refuse == "row":
        for sides in arrays.values():
            sides["outputs"]["error"] = np.full(len(sides["inputs"]["token_ids"]), "", "U1")
    return arrays


def onnx_case(
    model: keras.Model, inputs: Mapping[str, np.ndarray], limits: Limits, cached: bool = False, right: bool = False
) -> dict[str, dict]:
    """Returns a case of `token_cases` and the model's outputs for it, under ONNX's names, as verify.py reads them.

    Args:
      model: the exported model.
      inputs: a case of `token_cases`.
      limits: see `logits`.
      cached: whether the graphs take past keys and values. Padding is then on the left, and the decoder of an
        encoder-decoder has none.
      right: whether padding stays on the right even though the graphs are cached.
    """
    inputs = dict(inputs)
    if "padding_mask" in inputs:
        # A row without tokens has no answer: the output is a mean over padding, which differs in half precision.
        nonempty = inputs["padding_mask"].any(1)
        inputs = {name: value[nonempty] for name, value in inputs.items()}
    if cached and model.is_encoder_decoder:
        del inputs["decoder_padding_mask"]
    elif cached:
        inputs = {name: value[:, : _steady(model.config)] for name, value in inputs.items()}
        if not right:
            inputs = {name: _to_the_right(value, inputs["padding_mask"]) for name, value in inputs.items()}
    model_inputs = dict(inputs)
    if cached and not model.is_encoder_decoder:
        model_inputs["position_ids"] = np.maximum(inputs["padding_mask"].cumsum(1) - 1, 0).astype(np.int32)
    groups = outputs(model, model_inputs, limits)
    renamed: dict[str, Any] = {}
    for name, onnx_name in interface.onnx_outputs(model).items():
        if name == "span_logits":
            sides = zip(("start_logits", "end_logits"), np.moveaxis(groups[name]["values"], -1, 0))
            renamed |= {side: {"values": values, "real": groups[name]["real"]} for side, values in sides}
        elif not cached or name == "logits":
            renamed[onnx_name] = groups[name]
    return {"inputs": interface.to_onnx(inputs), "outputs": renamed}


def _steady(config) -> int:
    """Returns the length up to which cached keys equal those computed for a longer text."""
    scaling = config.rotary_scaling
    # Beyond the original length these scalings change the rotation of all keys.
    if scaling.get("rope_type", scaling.get("type")) in ("dynamic", "longrope"):
        return scaling.get("original_max_position_embeddings") or config.max_positions
    return config.max_positions


def _to_the_right(values: np.ndarray, real: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(row, len(row) - count) for row, count in zip(values, real.sum(1))])


def written_cases(
    model: keras.Model, tokenizer: Any, options: Options, limits: Limits
) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns greedy continuations of some ids (an encoder-decoder's answers to them), in the form of `onnx_case`.

    Each token is chosen from the logits of a single pass over all tokens before it. Nothing ends a text early.
    """
    random = np.random.default_rng(1)
    both = model.is_encoder_decoder
    longest = min(options.sequence_length, _steady(model.config))
    count, length = max(1, min(_WRITTEN, longest // 2)), max(1, longest // 4)
    prompts = {"ids": random.integers(0, model.config.vocab_size, (2, length))}
    if tokenizer is not None and len(row := tokenizer.tokenize([_TEXTS[-1]]).to_list()[0]):
        prompts["text"] = np.array([row[:length]])
    start = special_ids(model).get("decoder_start_token_id", 0)
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
            decided.append(largest - second > limits.margin * np.maximum(1.0, np.abs(values).max(-1)))
            written = np.concatenate([written, values.argmax(-1)[:, None]], 1)
        case_inputs = {"input_ids": ids, "attention_mask": np.ones(ids.shape), "max_new_tokens": np.array(count)}
        if both:
            case_inputs["decoder_input_ids"] = written[:, :1]
        cases[case] = {
            "inputs": {name: value.astype(np.int64) for name, value in case_inputs.items()},
            "outputs": {
                "generated_ids": {
                    "values": written[:, first:].astype(np.int64),
                    # Tokens after an undecided token are not decided either.
                    "decided": np.logical_and.accumulate(np.stack(decided, 1), 1),
                }
            },
        }
    return cases


def logits(values: np.ndarray, real: np.ndarray, limits: Limits) -> dict[str, np.ndarray]:
    """Returns the group of arrays that represents logits in golden.npz.

    Args:
      values: float32 [B, L, V].
      real: bool [B, L], the tokens at which the logits are meaningful.
      limits: the margin within which the two largest logits are too close to decide between.
    """
    batch, length, vocab = values.shape
    least = limits.margin * max(1.0, values.max(), -values.min())
    logsumexp, decided = np.zeros((batch, length), np.float32), np.zeros((batch, length), bool)
    for first in range(0, batch * length, _AT_ONCE):
        chunk = slice(first, first + _AT_ONCE)
        wide = values.reshape(-1, vocab)[chunk].astype(np.float64)
        second, largest = np.partition(wide, (-2, -1))[:, -2:].T
        logsumexp.reshape(-1)[chunk] = np.log(np.exp(wide - largest[:, None]).sum(-1)) + largest
        decided.reshape(-1)[chunk] = largest - second > least
    decided &= real
    places = np.argwhere(real)
    count = min(len(places), max(4, _VALUES // vocab))
    first_to_last = np.linspace(0, len(places) - 1, count).astype(int)
    positions = places[first_to_last].astype(np.int32)
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
    """Returns texts by case and input: three batch sizes and an empty batch, with non-ASCII texts, empty ones, ones
    without a mask and ones that are too long. Rows for which the whole call would be refused are omitted."""
    texts = [text.format(*answer.fills) for text in _TEXTS]
    long = f"{answer.fills[0]} " + "a " * answer.options.sequence_length + answer.fills[1]
    first = {"0": [], "1": texts[:1], "2": [texts[1], long], "4": texts}
    cases: dict[str, list[tuple[str, ...]]] = {case: [(text,) for text in values] for case, values in first.items()}
    if len(answer.inputs) == 2:
        cases = {case: [(b[-24:], a) for a, b in zip(values, values[::-1])] for case, values in first.items()}
    if answer.options.refuse == "call":
        cases = {case: [row for row in rows if not answer.refusal(answer.row(row))] for case, rows in cases.items()}
    return {
        case: {name: [row[i] for row in rows] for i, name in enumerate(answer.inputs)} for case, rows in cases.items()
    }


def text_signatures(answer: Answer, limits: Limits) -> dict[str, dict[str, dict]]:
    """Returns {signature: {case: {"inputs", "outputs"}}} of the signatures that read texts."""

    def of_case(texts_by_name):
        inputs = {name: np.array(texts, "U") for name, texts in texts_by_name.items()}
        return {"inputs": inputs, "outputs": answer.expected(texts_by_name, limits)}

    cases = each(text_cases(answer), of_case)
    return {"serving_default": cases, **answer.more_cases(cases, limits)}


def each(cases: Mapping[str, Any], of_case: Callable[[Any], Any]) -> dict[str, Any]:
    """Returns {case: of_case(value)} of `cases`, {case: value}, and shows a progress bar."""
    results = {}
    with progress.bar(len(cases), "case", "computing golden.npz") as bar:
        for case, value in cases.items():
            results[case] = of_case(value)
            bar.update()
    return results


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
