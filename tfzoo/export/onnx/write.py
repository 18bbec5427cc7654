"""Writes an ONNX artifact: the graphs of the model and the tokenizer, variants, and golden answers."""

import pathlib
from collections.abc import Sequence
from typing import Any

from tfzoo import progress
from tfzoo.export import genai, golden, interface, tokenizer_files, tokenizer_graph, variants
from tfzoo.export.answers import Options
from tfzoo.export.onnx import check, emit
from tfzoo.export.onnx import graph as onnx_graph
from tfzoo.export.onnx.bodies import body_of
from tfzoo.export.precision import Limits


def write(
    model,
    tokenizer,
    folder: pathlib.Path,
    options: Options,
    limits: Limits,
    *,
    onnx_profile: str,
    onnx_variants: Sequence[str],
    calibration_texts: Sequence[str],
    **_,
) -> dict[str, Any]:
    """Writes an ONNX artifact; see artifact.Target."""
    with progress.stage("running a small model in the ONNX reference implementation"):
        check.check_twin(model, onnx_profile)
    graphs = emit.save(model, folder, profile=onnx_profile, length=options.sequence_length)
    for path in graphs:
        check.check(path)
    headers = {path.stem: onnx_graph.read_header(path) for path in graphs}
    signatures = {name: interface.stated(onnx_graph.describe(header)) for name, header in headers.items()}
    cached = "past_key_values" in str(signatures)
    traced = body_of(model) is None  # Traced graphs have a fixed length.
    arrays: dict[str, dict] = {
        "tokens": golden.each(
            golden.token_cases(model, tokenizer, options, traced or None),
            lambda inputs: golden.onnx_case(model, inputs, limits, cached, right=onnx_profile == "genai"),
        )
    }
    tolerances = {"tokens": limits.of(next(iter(arrays["tokens"].values()))["outputs"])}
    if cached:
        arrays["generate"], tolerances["generate"] = golden.written_cases(model, tokenizer, options, limits), {}
    arrays |= tokenizer_graph.arrays(model, tokenizer, options)
    golden.write(folder / "golden.npz", arrays)
    if onnx_profile == "genai":
        genai.write(model, tokenizer, folder, graphs[0].name)
    refused = None
    if tokenizer is not None:
        # For programs that start from texts. onnxruntime-genai looks for these files next to its configuration.
        tokenizer_files.write(tokenizer, model.LAYOUT, folder if onnx_profile == "genai" else folder / "tokenizer")
        refused = tokenizer_graph.write(model, tokenizer, options, folder)
    content = {
        **({} if refused is None else {"tokenizer": {"no_graph": refused}}),
        "signatures": signatures,
        "profile": onnx_profile,
        "opset": {opset.domain or "ai.onnx": opset.version for opset in headers[graphs[0].stem].opset_import},
        "tolerances": tolerances,
    }
    if onnx_variants:
        rows: list = []
        if "int8_static" in onnx_variants:
            rows = golden.calibration(model, tokenizer, options, calibration_texts)
        content["variants"] = variants.write(
            model, folder, graphs, onnx_variants, onnx_profile, rows, tolerances, options.sequence_length
        )
    return content
