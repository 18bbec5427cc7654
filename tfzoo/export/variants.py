"""Smaller or faster forms of an ONNX artifact's graphs, and how far their answers are from float32's.

float16   weights and activations in half; runtimes without kernels for it compute in float32
int8      weights in 8 bits, activations quantised as they come (dynamic quantisation) before each matrix product
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
from onnxruntime.quantization import QuantType, quantize_dynamic

from tfzoo.export import onnx_emit, verify

VARIANTS = ("float16", "int8")


def write(
    model: keras.Model, folder: pathlib.Path, graphs: Sequence[pathlib.Path], chosen: Sequence[str], profile: str
) -> dict[str, Any]:
    """Writes NAME_VARIANT.onnx for each of `graphs`, and measures them on the folder's golden.npz.

    Returns:
      {variant: {"bytes", "measured": {output: difference, mean, arg-maxes compared and equal}, "tolerances"}}, where
      twice the measured difference is allowed: other processors round otherwise.
    """
    cases = verify.read_golden(folder)
    anything = {
        "tokens": {name: {"of": "largest", "allowed": math.inf} for name in next(iter(cases.values()))["outputs"]}
    }
    written = {}
    for variant in chosen:
        paths = _WRITERS[variant](model, folder, profile)
        run, _ = verify.load_onnx(folder, [path.stem for path in graphs], f"_{variant}")
        measured = verify.compare_all(run, cases, anything, exact=False)
        for result in measured.values():
            del result["tolerance"]
        allowed = {
            key.removeprefix("tokens/"): {"of": "largest", "allowed": 2 * result["difference"] + 1e-6}
            for key, result in measured.items()
        }
        written[variant] = {
            "bytes": sum(path.stat().st_size for path in paths),
            "measured": measured,
            "tolerances": {"tokens": allowed},
        }
    return written


def _float16(model: keras.Model, folder: pathlib.Path, profile: str) -> list[pathlib.Path]:
    return onnx_emit.save(model, folder, "_float16", dtype="float16", profile=profile)


def _int8(model: keras.Model, folder: pathlib.Path, profile: str) -> list[pathlib.Path]:
    written = []
    for path in onnx_emit.save(model, folder, "_wide", copy_tied=True, profile=profile):
        written.append(path.with_name(path.name.replace("_wide", "_int8")))
        data = path.with_name(f"{path.name}.data")
        quantize_dynamic(
            path,
            written[-1],
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            use_external_data_format=data.exists(),
        )
        path.unlink()
        data.unlink(missing_ok=True)
    return written


_WRITERS = {"float16": _float16, "int8": _int8}
