"""Smaller or faster forms of an ONNX artifact's graphs, and how far their answers are from float32's.

float16        weights and activations in half; runtimes without kernels for it compute in float32
int8           weights in 8 bits, activations quantised as they come (dynamic quantisation) before each matrix product
int8_static    the same, but what activations may be was measured beforehand on some texts: nothing is looked for
int8_weights   weights in 8 bits, in blocks of 32 with a scale each, and activations likewise as they come
int4_weights   weights in 4 bits, activations in 8
"""

import contextlib
import logging
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tfzoo import progress
from tfzoo.errors import CheckFailed, UserError, one_line
from tfzoo.export import interface, verify
from tfzoo.export.onnx import emit as onnx_emit

# How far from float32's largest number an answer may be: beyond that a variant is of no use.
MOST = {"float16": 0.05, "int8": 1.0, "int8_static": 1.0, "int8_weights": 1.0, "int4_weights": 1.0}
VARIANTS = tuple(MOST)
_ROUNDS = 5  # Of taking turns with float32's graphs, to see which is the faster.
_BLOCK = 32  # Weights that share a scale.
_BITS = {"int8_weights": 8, "int4_weights": 4}


def write(
    model: keras.Model,
    folder: pathlib.Path,
    graphs: Sequence[pathlib.Path],
    chosen: Sequence[str],
    profile: str,
    calibration: Sequence[Mapping[str, np.ndarray]],
    tolerances: Mapping[str, dict],
    length: int | None = None,
) -> dict[str, Any]:
    """Writes NAME_VARIANT.onnx for each of `graphs`, and measures them on the folder's golden.npz.

    Args:
      calibration: for int8_static: rows as `golden.calibration` has them.
      tolerances: of float32's graphs, which those hold that are quantised, too.
      length: see onnx_emit.emit.

    Returns:
      {variant: {"bytes", "milliseconds" for the longest case, "float32" with the same of float32's graphs, "measured":
      {output: difference, mean, arg-maxes compared and equal; of a text written greedily, tokens until it parts},
      "signatures", "tolerances"}}, where twice the measured difference is allowed: other processors round otherwise.

    Raises:
      CheckFailed: one cannot be made, does not run, or is further from float32 than MOST.
    """
    cases = verify.read_golden(folder)
    options: dict[str, Any] = dict(profile=profile, length=length)
    shared, names = profile == "genai", [path.stem for path in graphs]
    plain, _ = verify.load_onnx(folder, names, shared=shared)
    longest = max((case for (of, _), case in cases.items() if of == "tokens"), key=lambda case: _size(case["inputs"]))

    def one(variant: str) -> dict[str, Any]:
        if variant == "float16":
            onnx_emit.save(model, folder, "_float16", dtype="float16", **options)
        else:
            fed = _fed(folder, names, calibration) if variant == "int8_static" else {}
            for name in names:
                _quantise(variant, folder / f"{name}_wide.onnx", folder / f"{name}_{variant}.onnx", fed.get(name))
        _check_loads([folder / f"{name}_{variant}.onnx" for name in names])
        run, found = verify.load_onnx(folder, names, f"_{variant}", shared)
        most = {name: {"of": "largest", "allowed": MOST[variant]} for name in longest["outputs"]}
        allowed = {signature: most if signature == "tokens" else {} for signature, _ in cases}
        measured = verify.compare_all(run, cases, allowed, exact=False)
        for key, result in measured.items():
            if result.pop("tolerance", None) is not None:
                most[key.removeprefix("tokens/")]["allowed"] = 2 * result["difference"] + 1e-6
        milliseconds, of_float32 = _turns(longest["inputs"], run, plain)
        return {
            "bytes": _bytes(folder, names, f"_{variant}"),
            "milliseconds": milliseconds,
            "float32": {"bytes": _bytes(folder, names, ""), "milliseconds": of_float32},
            "measured": measured,
            "signatures": {name: interface.stated(sides) for name, sides in found.items()},
            "tolerances": allowed,
        }

    written = {}
    wide = _wide(model, folder, **options) if set(chosen) - {"float16"} else contextlib.nullcontext(())
    with _without_advice(), wide as paths:
        if paths:
            run, _ = verify.load_onnx(folder, names, "_wide", shared)
            try:
                verify.compare_all(run, cases, tolerances)
            except verify.Failure as failure:
                raise CheckFailed(f"what is to be quantised does not answer as the model does: {failure}") from failure
        for variant in chosen:
            try:
                with progress.stage(f"writing and measuring {variant}"):
                    written[variant] = one(variant)
            except (UserError, OSError):
                raise
            except Exception as error:  # Quantisers and runtimes raise what they like.
                raise CheckFailed(
                    f"--onnx_variants: {variant} does not answer as float32 does: {one_line(error)}; leave it out"
                ) from error
    return written


def _check_loads(paths: Sequence[pathlib.Path]) -> None:
    """Raises CheckFailed where loading a graph ends the process, as onnxruntime 1.32 does with XLNet's in float16 and
    opset 18."""
    command = [sys.executable, "-P", verify.__file__, "--load", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode < 0:
        raise CheckFailed(f"onnxruntime ends by {signal.Signals(-done.returncode).name} when it loads {paths[0].name}")


def _size(inputs: Mapping[str, np.ndarray]) -> int:
    return inputs["input_ids"].size


def _bytes(folder: pathlib.Path, names: Sequence[str], suffix: str) -> int:
    return sum(path.stat().st_size for name in names for path in folder.glob(f"{name}{suffix}.onnx*"))


def _turns(inputs: Mapping[str, np.ndarray], *contenders) -> list[float]:
    """Milliseconds of each: medians of what they take in turns, after one turn that counts for nothing."""
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(1 + _ROUNDS):
        for run, taken in zip(contenders, times):
            begin = time.perf_counter()
            run("tokens", inputs)
            taken.append(1000 * (time.perf_counter() - begin))
    return [round(statistics.median(taken[1:]), 2) for taken in times]


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """onnxruntime's quantisers advise, by the root logger, to prepare graphs that need nothing of the kind."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _wide(model: keras.Model, folder: pathlib.Path, **options) -> Iterator[list[pathlib.Path]]:
    """NAME_wide.onnx: the graphs with a matrix of its own for each matrix product."""
    paths = onnx_emit.save(model, folder, "_wide", copy_tied=True, **options)
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink()
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)


class _Fed:
    """Inputs one after the other, as quantize_static wants them."""

    def __init__(self, inputs: Sequence[Mapping[str, np.ndarray]]):
        self._inputs = iter(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self._inputs, None)


def _fed(
    folder: pathlib.Path, names: Sequence[str], calibration: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """What each graph is given while `calibration` is read: {name: its inputs, call by call}."""
    fed: dict[str, list] = {name: [] for name in names}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3

    def recording(name):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])

        def run(outputs, inputs):
            fed[name].append(inputs)
            return session.run(outputs, inputs)

        return run

    _, found = verify.load_onnx(folder, names)
    read = verify.Runner({name: recording(name) for name in names}, found)
    for inputs in calibration:
        read("tokens", inputs)
    return fed


def _quantise(variant: str, source: pathlib.Path, target: pathlib.Path, fed: Sequence | None) -> None:
    apart = source.with_name(f"{source.name}.data").exists()
    if variant in _BITS:
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source),
            bits=_BITS[variant],
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=4,  # Activations in 8 bits, block by block: onnxruntime's fast way, for 8 bits its only one.
            op_types_to_quantize=("MatMul",),
        )
        quantizer.process()
        quantizer.model.save_model_to_file(target, apart)
        return
    options: dict[str, Any] = dict(
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        use_external_data_format=apart,
        extra_options={
            "MatMulConstBOnly": True,  # Scores and shares of attention stay as they are.
            "DefaultTensorType": onnx.TensorProto.FLOAT,  # Of what onnxruntime's own operators give.
        },
    )
    if fed is None:
        quantize_dynamic(source, target, **options)
    else:
        quantize_static(
            source,
            target,
            _Fed(fed),
            activation_type=QuantType.QUInt8,
            per_channel=True,
            **options,
        )
    graph = onnx.load(target, load_external_data=False)
    # The quantisers state all shapes on the way. Knowing them onnxruntime (1.32) joins sums and norms into its
    # SkipLayerNormalization, which takes it three times as long on a CPU: an eighth of the whole at 8 x 128.
    del graph.graph.value_info[:]
    onnx.save(graph, target)
