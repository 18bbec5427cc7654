"""Exports a model as artifacts: written to a temporary folder, replayed in a separate process, and only then renamed
to their final place."""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

import tfzoo
from tfzoo import embeddings, files, progress
from tfzoo.errors import CheckFailed, UserError, one_line
from tfzoo.export import answers, golden, litert, manifest, memory, publish, savedmodel, variants, verify
from tfzoo.export.answers import Options
from tfzoo.export.onnx import write as onnx_write
from tfzoo.export.precision import MOST, PRECISIONS, Limits, limits_of, measured_error, with_precision
from tfzoo.weights import model_card

_LARGE = 2**27  # Bytes of weights from which on a second copy in memory matters.
_LONGEST = 1024  # Default maximum of tokens in a text.


@dataclasses.dataclass(frozen=True)
class Target:
    """An artifact format. verify.py has a reader for each.

    Attributes:
      title: the name of the format in messages.
      write: (model, tokenizer, folder, options, limits, **other arguments of `export`) -> the fields of manifest.json,
        `signatures` and `tolerances` among them. It writes all files of the artifact, including golden.npz.
      any_precision: whether the format supports --precision; otherwise it computes in float32.
      least_rows: the minimum number of rows in a call.
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
    prompt: str = "",
    messages: bool = False,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    precision: str = "float32",
    onnx_profile: str = "standard",
    onnx_variants: Sequence[str] = (),
    calibration_texts: Sequence[str] = (),
    keep_versions: int | None = None,
    origin: model_card.Origin | None = None,
) -> dict[str, pathlib.Path]:
    """Writes OUTPUT_DIR/FORMAT/NAME/VERSION/ for each format. No folder appears before all have been replayed.

    Args:
      model: the model to export.
      tokenizer: a tokenizer of tfzoo.text; None exports a model that reads only token ids.
      output_dir: the folder in which the artifacts are created.
      name: the name of the served model; None means the name of its family.
      version: the version number; None means the next free one.
      formats: names of TARGETS.
      sequence_length: the maximum number of tokens in a text; None means the model's maximum, at most 1024.
      text_pair, long_texts, refuse, pooling, prompt_name, prompt, messages: see answers.Options.
      max_new_tokens: the maximum number of tokens that a language model generates; None means that of an
        encoder-decoder's folder, or else 64, of a decoder at most half of sequence_length.
      num_beams: the number of beams in the search for the likeliest text; None means that of the model's folder, or a
        greedy search if the folder specifies none.
      precision: the precision in which the SavedModel computes, one of PRECISIONS; with bfloat16 its weights are stored
        in that type as well. ONNX (apart from its variants) and LiteRT compute in float32.
      onnx_profile: one of onnx.graph.PROFILES.
      onnx_variants: names of variants.VARIANTS to write in addition to the float32 graphs.
      calibration_texts: texts for calibrating int8_static; if empty, the texts of golden.npz are used.
      keep_versions: the number of newest versions to keep once the export has succeeded. The version just written is
        never removed. None keeps all.
      origin: where the model comes from, for the model card (README.md); None if unknown.

    Returns:
      A dict from format to folder.

    Raises:
      UserError: a model, name, version or format cannot be exported.
      CheckFailed: an artifact does not reproduce the model's answers. Nothing is left behind.
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
        prompt=prompt,
        messages=messages,
        max_new_tokens=_new_tokens(model, longest) if max_new_tokens is None else max_new_tokens,
        search=answers.search_of(model, num_beams),
    )
    answers.check(model, tokenizer, options)
    folders = publish.places(output_dir, name, formats, version)
    origin = origin or model_card.Origin()
    extra = dict(name=name, onnx_profile=onnx_profile, onnx_variants=onnx_variants, calibration_texts=calibration_texts)
    errors: dict[str, float | None] = {}

    def error_of(exported: keras.Model) -> float | None:
        """Returns `measured_error`, which is the same for all formats in float32."""
        if "float32" not in errors:
            errors["float32"] = measured_error(exported, golden.token_cases(model, tokenizer, options).values())
        return errors["float32"]

    with publish.together(folders) as partials, golden.once(model):
        # ONNX goes first: checking a graph holds it in memory twice, and TensorFlow does not release the memory that
        # it needs for writing another format.
        for kind, partial in sorted(partials.items(), key=lambda item: item[0] != "onnx"):
            target = TARGETS[kind]
            exported = with_precision(model, precision if target.any_precision else "float32")
            content = {"kind": kind, "name": name, "version": int(folders[kind].name)}
            with progress.stage(f"writing {target.title}"):
                card = model_card.text(model, origin, kind, name=name, tokenizer=tokenizer, text_pair=text_pair)
                attempts = limits_of(exported, functools.partial(error_of, exported))
                _write(partial, target, content, exported, tokenizer, options, extra, card, attempts)
        with progress.stage("replaying in a separate process"):
            finish = publish.check_files if _is_large(model) else publish.replay  # Large ones were replayed already.
            finish(list(partials.values()))
    if keep_versions is not None:
        publish.remove_older(folders, keep_versions)
    return folders


def _new_tokens(model: keras.Model, longest: int) -> int:
    return answers.new_tokens_of(model, longest) if model.can_generate else Options.max_new_tokens


def _check_arguments(name, version, formats, precision, onnx_variants, keep_versions) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name.endswith(files.PARTIAL):
        raise UserError(
            f"--name={name}: must consist of letters, digits, _, . and -, start with a letter or digit, and not end "
            f"with {files.PARTIAL}"
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
                raise UserError(f"--{flag}={','.join(values)}: choose from {', '.join(choices)}, each at most once")


def _write(
    folder: pathlib.Path,
    target: Target,
    content: dict,
    model,
    tokenizer,
    options: Options,
    extra: dict[str, Any],
    card: str,
    attempts: Iterable[Limits],
) -> None:
    """Writes an artifact; if the usual limits are narrower than the model's own error in float32, writes it again with
    wider ones."""
    failure = None
    for limits in attempts:
        for path in folder.iterdir():  # Left by the first attempt.
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            made = content | target.write(model, tokenizer, folder, options, limits, **extra)
            made["least"] = _least(target, made["signatures"])
            (folder / model_card.NAME).write_text(card, encoding="utf-8")
            _finish(folder, made, model, tokenizer, options, limits)
            return
        except CheckFailed as error:
            failure = error
    assert failure is not None
    raise failure


def _finish(folder: pathlib.Path, content: dict, model, tokenizer, options: Options, limits: Limits) -> None:
    """Adds the files and manifest fields that all artifacts have, and replays the artifact: in this process, where a
    failure is easiest to understand, or for a large model in the separate process in which all artifacts are replayed,
    because a runtime holds the weights several times while it loads them."""
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
        "tools": _tools(),
        "float32_error": limits.float32_error,
    }
    if tokenizer is not None:
        stated = {"class": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint()}
        content["tokenizer"] = stated | content.get("tokenizer", {})
    known: dict[str, Any] = {}
    memory.trim()
    try:
        with progress.stage("comparing the artifact's answers with the model's"):
            if _is_large(model):
                known["listed"] = manifest.write(folder, content)
                content["measured"] = publish.replay_large(folder)
            else:
                content["measured"] = verify.replay(folder, content)
    except Exception as error:  # A wrong graph may fail in any way.
        raise CheckFailed(
            f"the {content['kind']} artifact does not reproduce the model's answers: {type(error).__name__}: "
            f"{one_line(error)}; {_remedy(limits)}"
        ) from error
    manifest.write(folder, content, **known)


def _is_large(model: keras.Model) -> bool:
    return 4 * model.count_params() >= _LARGE


def _tools() -> dict[str, str]:
    """Returns the versions of tfzoo, Python and the packages that write artifacts."""
    packages = ("tensorflow", "tensorflow-text", "keras", "numpy", "onnx", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"tfzoo": tfzoo.__version__, "python": platform.python_version(), **versions}


def _least(target: Target, signatures: Mapping[str, dict]) -> dict[str, int]:
    """Returns the minimum size of each free axis of the inputs."""
    tensors = [tensor for sides in signatures.values() for tensor in sides["inputs"].values()]
    axes = sorted({axis for tensor in tensors for axis in tensor["shape"] if isinstance(axis, str)})
    return {axis: target.least_rows if axis == "batch" else int(not axis.startswith("past")) for axis in axes}


def _remedy(limits: Limits) -> str:
    if limits.share == MOST:
        return (
            f"the model's float32 outputs differ from its float64 outputs by {limits.float32_error:.0e}, too much for "
            "a comparison: shorten --sequence_length, or check the model's weights"
        )
    return "choose other --formats and report the model's config: the difference is larger than rounding errors"


def _answering(model, tokenizer, options: Options) -> dict:
    """Returns the facts that a program needs to compute the text signature's answers from the bare graph, under Hugging
    Face's names."""
    if tokenizer is None:
        return {}
    try:
        answer = answers.find(model, tokenizer, dataclasses.replace(options, max_new_tokens=1))
    except UserError:  # The model cannot read texts, but an artifact that reads ids does not need to.
        return {}
    return {} if answer is None else answer.facts()
