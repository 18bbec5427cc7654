"""An artifact from a model: written beside its place, replayed by another process, only then put there."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfzoo import embeddings, files, progress
from tfzoo.errors import CheckFailed, UserError, one_line
from tfzoo.export import answers, golden, litert, manifest, publish, savedmodel, variants, verify
from tfzoo.export.answers import Options
from tfzoo.export.onnx import write as onnx_write
from tfzoo.export.precision import MOST, PRECISIONS, Limits, limits_of, with_precision

_LARGE = 2**27  # Bytes of weights of which one copy more is felt.
_LONGEST = 1024  # Tokens of a text, unless asked otherwise.


@dataclasses.dataclass(frozen=True)
class Target:
    """A format of artifacts. verify.py has a reader of each.

    title: what it is called.
    write: (model, tokenizer, folder, options, limits, **what else `export` is asked for) -> `signatures` and
      `tolerances` for manifest.json, and what else that is to say. It fills the folder, golden.npz included.
    any_precision: it computes in --precision, and not in float32 alone.
    least_rows: a call has so many.
    """

    title: str
    write: Callable[..., dict[str, Any]]
    any_precision: bool = False
    least_rows: int = 1


TARGETS = {
    "savedmodel": Target("a SavedModel", savedmodel.write, any_precision=True, least_rows=0),
    "onnx": Target("ONNX graphs", onnx_write.write),
    "litert": Target("a LiteRT model", litert.write),
}


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
    refuse: str = "call",
    pooling: str | None = None,
    prompt_name: str | None = None,
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
      text_pair, long_texts, refuse, pooling, prompt_name, max_new_tokens: see answers.Options.
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
    name = model.family if name is None else name
    _check_arguments(name, version, formats, precision, onnx_variants, keep_versions)
    longest = min(embeddings.longest(model), _LONGEST) if sequence_length is None else sequence_length
    options = Options(
        longest,
        text_pair=text_pair,
        long_texts=long_texts,
        refuse=refuse,
        pooling=pooling,
        prompt_name=prompt_name,
        max_new_tokens=max_new_tokens,
        search=answers.search_of(model, num_beams),
    )
    savedmodel.check(model, tokenizer, options)
    folders = publish.places(output_dir, name, formats, version)
    asked = dict(name=name, onnx_profile=onnx_profile, onnx_variants=onnx_variants, calibration_texts=calibration_texts)
    with publish.together(folders) as partials:
        # ONNX first: to be checked a graph is held twice, and TensorFlow does not give back what writing another takes.
        for kind, partial in sorted(partials.items(), key=lambda item: item[0] != "onnx"):
            target = TARGETS[kind]
            exported = with_precision(model, precision if target.any_precision else "float32")
            content = {"kind": kind, "name": name, "version": int(folders[kind].name)}
            with progress.stage(f"writing {target.title}"):
                _write(partial, target, content, exported, tokenizer, options, asked)
        with progress.stage("replaying in another process"):
            publish.replay(list(partials.values()))
    if keep_versions is not None:
        publish.remove_older(folders, keep_versions)
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
        raise UserError(f"--formats=: name at least one of {', '.join(TARGETS)}, each once")
    for flag, values, choices in (
        ("formats", formats, tuple(TARGETS)),
        ("precision", [precision], PRECISIONS),
        ("onnx_variants", onnx_variants, variants.VARIANTS),
    ):
        for value in values:
            if value not in choices or list(values).count(value) > 1:
                raise UserError(f"--{flag}={','.join(values)}: must be of {', '.join(choices)}, each at most once")


def _write(
    folder: pathlib.Path, target: Target, content: dict, model, tokenizer, options: Options, asked: dict[str, Any]
) -> None:
    """Makes an artifact, once more by wider limits where float32 itself is further from the truth than the usual ones
    allow."""
    failure = None
    for limits in limits_of(model, lambda: golden.token_cases(model, tokenizer, options).values()):
        for path in folder.iterdir():  # Of the first time.
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            made = content | target.write(model, tokenizer, folder, options, limits, **asked)
            made["least"] = _least(target, made["signatures"])
            _finish(folder, made, model, tokenizer, options, limits)
            return
        except CheckFailed as error:
            failure = error
    assert failure is not None
    raise failure


def _finish(folder: pathlib.Path, content: dict, model, tokenizer, options: Options, limits: Limits) -> None:
    """Adds what all artifacts have, and checks the folder here, where a failure is easiest to understand."""
    shutil.copyfile(verify.__file__, folder / "verify.py")
    content |= {
        "model": {
            "family": model.family,
            "heads": list(model.head_names),
            "parameters": model.count_params(),
            "config": dataclasses.asdict(model.config),
        },
        **({"labels": list(model.labels)} if {"classify", "tag"} & set(model.head_names) else {}),
        **_answering(model, tokenizer, options),
        "options": dataclasses.asdict(options),
        "tools": manifest.tools(),
        "float32_error": limits.float32_error,
    }
    if tokenizer is not None:
        stated = {"class": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint()}
        content["tokenizer"] = stated | content.get("tokenizer", {})
    try:
        with progress.stage("comparing its answers with the model's"):
            content["measured"] = _measured(folder, content, 4 * model.count_params())
    except Exception as error:  # A graph that is wrong may fail in any way.
        raise CheckFailed(
            f"the {content['kind']} does not answer as the model does: {type(error).__name__}: {one_line(error)}; "
            f"{_remedy(limits)}"
        ) from error
    manifest.write(folder, content)


def _least(target: Target, signatures: Mapping[str, dict]) -> dict[str, int]:
    """What the inputs' free axes must have."""
    tensors = [tensor for sides in signatures.values() for tensor in sides["inputs"].values()]
    axes = sorted({axis for tensor in tensors for axis in tensor["shape"] if isinstance(axis, str)})
    return {axis: target.least_rows if axis == "batch" else int(not axis.startswith("past")) for axis in axes}


def _remedy(limits: Limits) -> str:
    if limits.share == MOST:
        return (
            f"in float32 the model is {limits.float32_error:.0e} from itself in float64, too far to tell: shorten "
            "--sequence_length, or look after its weights"
        )
    return "name other --formats, and report the model's config: this is more than rounding does"


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
    return {} if answer is None else answer.facts()
