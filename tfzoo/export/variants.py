"""Smaller or faster variants of an ONNX artifact's graphs, and the difference of their answers from those of float32.

float16        weights and activations in half precision; runtimes without kernels for it compute in float32
int8           weights in 8 bits; activations are quantised dynamically before each matrix product
int8_static    the same, but with ranges of activations that were calibrated on some texts beforehand
int8_weights   weights in 8 bits, in blocks of 32 with a scale each; activations are quantised dynamically in blocks
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

# Maximum difference from float32, as a fraction of its largest number. A variant beyond it is useless.
MOST = {"float16": 0.05, "int8": 1.0, "int8_static": 1.0, "int8_weights": 1.0, "int4_weights": 1.0}
VARIANTS = tuple(MOST)
_ROUNDS = 5  # Timed runs, alternating with the float32 graphs.
_BLOCK = 32  # Number of weights that share a scale.
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
    """Writes NAME_VARIANT.onnx for each of `graphs` and measures it on the folder's golden.npz.

    Args:
      model: the exported model.
      folder: the artifact's folder.
      graphs: the float32 graphs in it.
      chosen: names of VARIANTS.
      profile: one of onnx.graph.PROFILES.
      calibration: rows for int8_static, as `golden.calibration` returns them.
      tolerances: those of the float32 graphs. The graphs from which variants are quantised must meet them as well.
      length: see onnx_emit.emit.

    Returns:
      {variant: {"bytes", "milliseconds" of the longest case, "float32" with the same two of the float32 graphs,
      "measured": {output: difference, mean, arg-maxes compared and equal; for text generated greedily, the number of
      tokens before it diverges}, "signatures", "tolerances"}}. The tolerances are twice the measured difference, since
      other processors round differently.

    Raises:
      CheckFailed: a variant cannot be written, does not run, or is further from float32 than MOST.
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
        run, described = verify.load_onnx(folder, names, f"_{variant}", shared)
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
            "signatures": {name: interface.stated(sides) for name, sides in described.items()},
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
                raise CheckFailed(
                    f"the graphs to quantise do not reproduce the model's answers: {failure}"
                ) from failure
        for variant in chosen:
            try:
                with progress.stage(f"writing and measuring {variant}"):
                    written[variant] = one(variant)
            except (UserError, OSError):
                raise
            except Exception as error:  # Quantisers and runtimes may raise any exception.
                raise CheckFailed(
                    f"--onnx_variants: {variant} does not reproduce the float32 answers: {one_line(error)}; omit it"
                ) from error
    return written


def _check_loads(paths: Sequence[pathlib.Path]) -> None:
    """Checks in a separate process that loading a graph does not terminate the process, as onnxruntime 1.32 does for
    XLNet's graph in float16 and opset 18.

    Raises:
      CheckFailed: loading a graph terminates the process.
    """
    command = [sys.executable, "-P", verify.__file__, "--load", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise CheckFailed(f"onnxruntime is terminated by {name} when it loads {paths[0].name}")


def _size(inputs: Mapping[str, np.ndarray]) -> int:
    return inputs["input_ids"].size


def _bytes(folder: pathlib.Path, names: Sequence[str], suffix: str) -> int:
    return sum(path.stat().st_size for name in names for path in folder.glob(f"{name}{suffix}.onnx*"))


def _turns(inputs: Mapping[str, np.ndarray], *contenders) -> list[float]:
    """Returns the median milliseconds of each contender; they run alternately, after one untimed round."""
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(1 + _ROUNDS):
        for run, taken in zip(contenders, times):
            begin = time.perf_counter()
            run("tokens", inputs)
            taken.append(1000 * (time.perf_counter() - begin))
    return [round(statistics.median(taken[1:]), 2) for taken in times]


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences onnxruntime's quantisers, which advise through the root logger to preprocess graphs that do not need
    it."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _wide(model: keras.Model, folder: pathlib.Path, **options) -> Iterator[list[pathlib.Path]]:
    """Writes NAME_wide.onnx, the graphs with a separate matrix for each matrix product, and removes them at the end."""
    paths = onnx_emit.save(model, folder, "_wide", copy_tied=True, **options)
    try:
        yield paths
    finally:
        for path in paths:
            path.unlink()
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)


class _Fed:
    """Yields inputs one at a time, in the form that quantize_static requires."""

    def __init__(self, inputs: Sequence[Mapping[str, np.ndarray]]):
        self._inputs = iter(inputs)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        return next(self._inputs, None)


def _fed(
    folder: pathlib.Path, names: Sequence[str], calibration: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """Returns the inputs that each graph receives while `calibration` is read: {name: inputs of each call}."""
    fed: dict[str, list] = {name: [] for name in names}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3

    def recording(name):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])

        def run(outputs, inputs):
            fed[name].append(inputs)
            return session.run(outputs, inputs)

        return run

    _, described = verify.load_onnx(folder, names)
    read = verify.Runner({name: recording(name) for name in names}, described)
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
            accuracy_level=4,  # Activations in 8 bits, per block: onnxruntime's fastest level; int8 has no other.
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
            "MatMulConstBOnly": True,  # The products within attention are not quantised.
            "DefaultTensorType": onnx.TensorProto.FLOAT,  # The type of the outputs of onnxruntime's own operators.
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
    # The quantisers record the shapes of all intermediate tensors. With these onnxruntime (1.32) fuses sums and norms
    # into its SkipLayerNormalization, which takes three times as long on a CPU: an eighth of the total at 8 x 128.
    del graph.graph.value_info[:]
    onnx.save(graph, target)
