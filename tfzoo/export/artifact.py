"""An artifact from a model: written beside its place, replayed by another process, only then put there."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfzoo import files, nn
from tfzoo.errors import CheckFailed, UserError, one_line
from tfzoo.export import (
    answers,
    genai,
    golden,
    litert,
    manifest,
    savedmodel,
    tokenizer_files,
    tokenizer_graph,
    variants,
    verify,
    warmup,
)
from tfzoo.export.answers import Options
from tfzoo.export.onnx import check as onnx_check
from tfzoo.export.onnx import emit as onnx_emit
from tfzoo.export.onnx import graph as onnx_graph

FORMATS = ("savedmodel", "onnx", "litert")
PRECISIONS = ("float32", "bfloat16", "float16")
_LARGE = 2**27  # Bytes of weights of which one copy more is felt.
_LONGEST = 1024  # Tokens of a text, unless asked otherwise.


def export(
    model: keras.Model,
    tokenizer: Any,
    output_dir: str | os.PathLike,
    name: str | None = None,
    version: int | None = None,
    formats: Sequence[str] = ("savedmodel", "onnx"),
    *,
    sequence_length: int | None = None,
    text_pair: bool = False,
    long_texts: str = "truncate",
    pooling: str = "mean",
    max_new_tokens: int = 64,
    num_beams: int | None = None,
    precision: str = "float32",
    onnx_profile: str = "standard",
    onnx_variants: Sequence[str] = (),
    calibration_texts: Sequence[str] = (),
    keep_versions: int | None = None,
) -> dict[str, pathlib.Path]:
    """Writes OUTPUT_DIR/FORMAT/NAME/VERSION/ for each format. None appears before all have been replayed.

    Args:
      tokenizer: of tfzoo.text; None exports a model that reads ids alone.
      name: the family's where it is None.
      version: the next free one where it is None.
      sequence_length: of the longest text; None takes what the model can read, up to 1024.
      text_pair, long_texts, pooling, max_new_tokens: see answers.Options.
      num_beams: of the search for the likeliest text; None takes the model's folder's, else there are none.
      precision: what the SavedModel computes in; ONNX is float32, with variants, and LiteRT is float32.
      onnx_profile: one of onnx_graph.PROFILES.
      onnx_variants: of variants.VARIANTS, written beside the float32 graphs.
      calibration_texts: what int8_static is calibrated on; golden.npz's texts where there are none.
      keep_versions: afterwards, older versions than the newest so many are removed, but never this one.

    Returns:
      format -> folder.

    Raises:
      UserError: a model, name, version or format that cannot be exported.
      CheckFailed: an artifact does not answer as the model does. Nothing is left behind.
    """
    family = model.family
    name = family if name is None else name
    _check_arguments(name, version, formats, precision, onnx_variants, keep_versions)
    longest = min(model.config.max_positions, _LONGEST) if sequence_length is None else sequence_length
    search = answers.search_of(model, num_beams)
    options = Options(longest, text_pair, long_texts, pooling, max_new_tokens, search)
    savedmodel.check(model, tokenizer, options)
    output_dir = pathlib.Path(output_dir)
    if not output_dir.exists():
        files.check_can_be_made(output_dir, "output_dir")
    parents = {kind: pathlib.Path(output_dir, kind, name) for kind in formats}
    for path in (output_dir, *(above for parent in parents.values() for above in (parent.parent, parent))):
        if path.exists() and not path.is_dir():
            raise UserError(f"--output_dir={output_dir}: {path} is no folder; name another")
    if version is None:
        version = 1 + max((v for parent in parents.values() for v, _ in _versions(parent)), default=0)
    folders = {kind: parent / str(version) for kind, parent in parents.items()}
    for folder in folders.values():
        if folder.exists():
            raise UserError(f"--version={version}: {folder} exists already; choose another, or leave the flag out")

    makers = {
        "savedmodel": lambda folder: _write_savedmodel(
            with_precision(model, precision), tokenizer, folder, options, name
        ),
        "onnx": lambda folder: _write_onnx(
            with_precision(model, "float32"), tokenizer, folder, options, onnx_profile, onnx_variants, calibration_texts
        ),
        "litert": lambda folder: _write_litert(with_precision(model, "float32"), tokenizer, folder, options),
    }
    try:
        with contextlib.ExitStack() as stack:
            # What is entered first ends last: a folder that cannot be named takes back those that were, and then the
            # folders above them.
            for parent in parents.values():
                stack.enter_context(_new_parents(parent))
            written = stack.enter_context(_all_or_none())
            partials = {}
            for kind, folder in folders.items():
                partials[kind] = stack.enter_context(files.atomic_folder(folder))
                written[folder] = _identity(partials[kind])
            # ONNX first: to be checked a graph is held twice, and TensorFlow does not give back what writing another
            # takes.
            for kind, partial in sorted(partials.items(), key=lambda item: item[0] != "onnx"):
                content = {"kind": kind, "name": name, "version": version, **makers[kind](partial)}
                _finish(partial, content, model, tokenizer, options)
            _replay_elsewhere(list(partials.values()))
    except FileExistsError as error:  # Another export was quicker.
        raise UserError(f"--version={version}: {error}; choose another, or leave the flag out") from None
    if keep_versions is not None:
        for parent in parents.values():
            for number, old in sorted(_versions(parent))[:-keep_versions]:
                if number != version:
                    files.remove_folder(old)
    return folders


def _check_arguments(name, version, formats, precision, onnx_variants, keep_versions) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.endswith(files.PARTIAL):
        raise UserError(
            f"--name={name}: must be of letters, digits, _, . and -, begin with one of the first two, and not end with "
            f"{files.PARTIAL}"
        )
    for flag, value in (("version", version), ("keep_versions", keep_versions)):
        if value is not None and value < 1:
            raise UserError(f"--{flag}={value}: must be at least 1")
    if not formats:
        raise UserError(f"--formats=: name at least one of {', '.join(FORMATS)}, each once")
    for flag, values, choices in (
        ("formats", formats, FORMATS),
        ("precision", [precision], PRECISIONS),
        ("onnx_variants", onnx_variants, variants.VARIANTS),
    ):
        for value in values:
            if value not in choices or list(values).count(value) > 1:
                raise UserError(f"--{flag}={','.join(values)}: must be of {', '.join(choices)}, each at most once")


def _versions(parent: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    return [(int(path.name), path) for path in parent.glob("*") if path.name.isdecimal()]


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    """What a folder keeps when it is renamed."""
    stated = folder.stat()
    return stated.st_dev, stated.st_ino


def with_precision(model: keras.Model, precision: str) -> keras.Model:
    """The model computing in another precision; its weights are float32 under every policy."""
    if model.compute_dtype == precision:
        return model
    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    with nn.zero_initializers():
        twin = type(model)(
            model.config,
            heads=model.head_names,
            labels=model.labels,
            pool=model.pool,
            dtype=policy,
            name=model.name,
        )
    for variable, value in zip(twin.weights, model.weights, strict=True):
        variable.assign(value)
    twin.record = model.record  # How texts are written, and which tokens end them.
    return twin


@contextlib.contextmanager
def _all_or_none() -> Iterator[dict[pathlib.Path, tuple[int, int]]]:
    """Yields a dict for folders and their `_identity`; if the block fails, removes those that are still the same."""
    written: dict[pathlib.Path, tuple[int, int]] = {}
    try:
        yield written
    except BaseException:
        for folder, identity in written.items():
            if folder.exists() and _identity(folder) == identity:
                files.remove_folder(folder)
        raise


@contextlib.contextmanager
def _new_parents(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and those it stands in; takes the new ones away again if the block fails."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):  # Something else has been put in there.
                path.rmdir()
        raise


def _finish(folder: pathlib.Path, content: dict, model, tokenizer, options: Options) -> None:
    """Adds what all artifacts have, and checks the folder here, where a failure is easiest to understand."""
    shutil.copyfile(verify.__file__, folder / "verify.py")
    content |= {
        "model": {
            "family": model.family,
            "heads": list(model.head_names),
            "parameters": model.count_params(),
            "config": dataclasses.asdict(model.config),
        },
        **({"labels": answers.labels_of(model)} if {"classify", "tag"} & set(model.head_names) else {}),
        **_answering(model, tokenizer, options),
        "options": dataclasses.asdict(options),
        "tools": manifest.tools(),
    }
    if tokenizer is not None:
        stated = {"class": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint()}
        content["tokenizer"] = stated | content.get("tokenizer", {})
    try:
        content["measured"] = _measured(folder, content, 4 * model.count_params())
    except Exception as error:  # A graph that is wrong may fail in any way.
        raise CheckFailed(
            f"the {content['kind']} does not answer as the model does: {type(error).__name__}: {one_line(error)}"
        ) from error
    manifest.write(folder, content)


def _measured(folder: pathlib.Path, content: dict, weights: int) -> dict:
    """verify.replay, of a large model in another process: a runtime holds its weights twice while it loads them."""
    if weights < _LARGE:
        return verify.replay(folder, content)
    manifest.write(folder, content)
    command = [sys.executable, "-P", verify.__file__, "--measure", os.fspath(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed((done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def _answering(model, tokenizer, options: Options) -> dict:
    """What whoever runs the graph has to know to answer as the text signature does, by Hugging Face's names."""
    if tokenizer is None:
        return {}
    try:
        answer = answers.find(model, tokenizer, dataclasses.replace(options, max_new_tokens=1))
    except UserError:  # Nothing says how it reads texts, and ids are all it needs.
        return {}
    if answer is None:
        return {}
    known: dict[str, Any] = {"texts": list(answer.inputs)}
    if isinstance(answer, answers.Continuations):
        known["generation"] = answer.ids
    if isinstance(answer, answers.Labels):
        known |= {"problem_type": answer.problem_type, "labels": answer.labels}
    return known


def _write_savedmodel(model, tokenizer, folder, options: Options, name: str) -> dict:
    savedmodel.save(model, tokenizer, folder, options)
    stated = savedmodel.signatures(model, tokenizer, options)
    arrays: dict[str, dict] = {
        "tokens": {
            case: {"inputs": inputs, "outputs": golden.outputs(model, inputs)}
            for case, inputs in golden.token_cases(model, tokenizer, options).items()
        }
    }
    answer = None if tokenizer is None else answers.find(model, tokenizer, options)
    if answer is None:
        case, least = min(arrays["tokens"].items(), key=lambda item: item[1]["inputs"]["token_ids"].size)
        arrays["serving_default"] = {case: least}
    else:
        arrays["serving_default"] = {
            case: {
                "inputs": {name: np.array(texts, "U") for name, texts in given.items()},
                "outputs": golden.text_outputs(answer, given),
            }
            for case, given in golden.text_cases(answer).items()
        }
        if isinstance(answer, answers.Continuations):
            given = golden.text_cases(answer)["4"]
            arrays["generate"] = {"4": golden.generate_case(answer, given)}
        for signature in stated.keys() - arrays.keys():
            arrays[signature] = {
                case: {"inputs": sides["inputs"], "outputs": golden.example_outputs(signature, sides["outputs"])}
                for case, sides in arrays["serving_default"].items()
            }
    golden.write(folder / "golden.npz", arrays)
    warmup.write(folder, name, arrays)
    tolerances = {signature: golden.tolerances(model, list(sides["outputs"])) for signature, sides in stated.items()}
    return {"signatures": stated, "precision": model.compute_dtype, "tolerances": tolerances}


def _write_onnx(
    model, tokenizer, folder, options: Options, profile: str, chosen: Sequence[str], texts: Sequence[str]
) -> dict:
    onnx_check.check_twin(model, profile)
    graphs = onnx_emit.save(model, folder, profile=profile, length=options.sequence_length)
    for path in graphs:
        onnx_check.check(path)
    stated = {path.stem: onnx_emit.signature(path) for path in graphs}
    arrays: dict[str, dict] = {"tokens": {}}
    cached = "past_key_values" in str(stated)
    for case, inputs in golden.token_cases(model, tokenizer, options).items():
        arrays["tokens"][case] = golden.onnx_case(model, inputs, cached, right=profile == "genai")
    tolerances = {"tokens": golden.tolerances(model, list(next(iter(arrays["tokens"].values()))["outputs"]))}
    if cached:
        arrays["generate"], tolerances["generate"] = golden.written_cases(model, tokenizer, options), {}
    lines = None if tokenizer is None else tokenizer_graph.case(model, tokenizer, options)
    golden.write(folder / "golden.npz", arrays | ({} if lines is None else {"tokenizer": {"lines": lines}}))
    if profile == "genai":
        genai.write(model, tokenizer, folder, graphs[0].name)
    if tokenizer is not None:
        # For whoever has texts; onnxruntime-genai looks for it beside its config.
        place = folder if profile == "genai" else folder / "tokenizer"
        tokenizer_files.write(tokenizer, model.family, place)
    refused = None if tokenizer is None else tokenizer_graph.write(model, tokenizer, options, folder)
    content = {
        **({} if refused is None else {"tokenizer": {"no_graph": refused}}),
        "signatures": stated,
        "profile": profile,
        "opset": {opset.domain or "ai.onnx": opset.version for opset in onnx_graph.read_header(graphs[0]).opset_import},
        "tolerances": tolerances,
    }
    if chosen:
        rows = golden.calibration(model, tokenizer, options, texts) if "int8_static" in chosen else []
        length = options.sequence_length
        content["variants"] = variants.write(model, folder, graphs, chosen, profile, rows, tolerances, length)
    return content


def _write_litert(model, tokenizer, folder, options: Options) -> dict:
    litert.save(model, folder, options)
    stated = {"tokens": savedmodel.signatures(model, None, options)["tokens"]}
    cases = {
        case: {"inputs": inputs, "outputs": golden.outputs(model, inputs)}
        for case, inputs in golden.token_cases(model, tokenizer, options).items()
    }
    lines = None if tokenizer is None else tokenizer_graph.case(model, tokenizer, options)
    golden.write(folder / "golden.npz", {"tokens": cases} | ({} if lines is None else {"tokenizer": {"lines": lines}}))
    if tokenizer is not None:
        tokenizer_files.write(tokenizer, model.family, folder / "tokenizer")
    tolerances = {"tokens": golden.tolerances(model, list(stated["tokens"]["outputs"]))}
    return {"signatures": stated, "precision": "float32", "tolerances": tolerances}


def _replay_elsewhere(folders: Sequence[pathlib.Path]) -> None:
    """Runs export/verify.py, of which each artifact has a copy, in a process that has nothing of this one.

    Raises:
      CheckFailed: an artifact fails, or cannot be replayed.
    """
    # -P: what stands beside verify.py is ours, and is not to be imported.
    command = [sys.executable, "-P", verify.__file__, *map(os.fspath, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("FAILED", "error:"))]
        why = "; ".join(lines) or (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckFailed(f"nothing published: verify.py ended with code {done.returncode}: {why}")
