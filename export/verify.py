"""Replays exported models and says whether they answer as the model they came from did.

    python verify.py FOLDER...

finds every artifact under the folders and checks, for each:
  - every file is there, none is there unlisted, and each has the SHA-256 that manifest.json lists;
  - the signatures have the names, dtypes and shapes that manifest.json states;
  - the inputs in golden.npz give the outputs in golden.npz: numbers within the tolerance; arg-max, words and
    flags equal.

Prints one line an artifact. Exit code 0: all is as it should be. 4: something is not. 2: wrong use.

Needs numpy, and for ONNX onnxruntime, for a SavedModel tensorflow and tensorflow-text. Nothing of the library
that wrote the artifacts is used, so that what it got wrong is not got wrong here again, and agrees.
"""

import hashlib
import importlib
import json
import os
import pathlib
import sys

import numpy as np

FORMAT = "tfzoo-artifact-1"
MODELS = {"savedmodel": "saved_model.pb", "onnx": "model.onnx"}


class Failure(Exception):
    """An artifact is not what it says it is."""


def main(arguments):
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print("usage: python verify.py FOLDER...  (replays every artifact under the folders)", file=sys.stderr)
        return 2
    folders = []
    for argument in arguments:
        found = artifacts(pathlib.Path(argument))
        if not found:
            print(f"error: {argument}: no artifact (a folder with manifest.json) in there", file=sys.stderr)
            return 2
        folders += found
    failed = 0
    for folder in folders:
        try:
            print(f"ok      {folder}: {verify(folder)}", flush=True)
        except ImportError as error:
            print(f"error: {folder}: {error}: install the package to replay this", file=sys.stderr)
            return 2
        except Exception as error:  # Damage shows itself in any of a dozen types of error.
            failed += 1
            reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            print(f"FAILED  {folder}: {' '.join(reason.split())[:500]}", flush=True)
    return 4 if failed else 0


def artifacts(folder):
    """The folders at or under `folder` that are an artifact, or were one until its manifest went."""
    marks = ("manifest.json", "golden.npz", *MODELS.values())
    return sorted({path.parent for mark in marks for path in folder.rglob(mark)})


def verify(folder):
    """Checks one artifact and describes it in a line.

    Raises Failure, or what a damaged file made its reader raise.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    measured = replay(folder, manifest)
    name = f"{manifest['kind']} {manifest['name']} version {manifest['version']}"
    numbers = {key: value for key, value in measured.items() if "difference" in value}
    if not numbers:
        raise Failure("golden.npz holds no numbers to compare")
    key = max(numbers, key=lambda key: numbers[key]["difference"] / numbers[key]["tolerance"])
    worst = numbers[key]
    equal = sum(value.get("equal", 0) for value in measured.values())
    return (
        f"{name}: largest difference {worst['difference']:.1e} of {worst['tolerance']:.0e} allowed ({key}), "
        f"{equal} answers equal"
    )


def read_manifest(folder):
    path = folder / "manifest.json"
    if not path.is_file():
        raise Failure("manifest.json is missing")
    text = path.read_bytes().decode()
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Failure(f"manifest.json is not of the format {FORMAT}, which is the one known here")
    stated = manifest["manifest_sha256"]
    if hashlib.sha256(text.replace(stated, "").encode()).hexdigest() != stated:
        raise Failure("manifest.json: its own sha256 is another")
    return manifest


def check_files(folder, listed):
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    del found["manifest.json"]
    for name in sorted(listed.keys() - found.keys()):
        raise Failure(f"{name}: missing")
    for name in sorted(found.keys() - listed.keys()):
        raise Failure(f"{name}: not listed in manifest.json")
    for name, path in found.items():
        if path.is_symlink():
            raise Failure(f"{name}: a link, where a file is listed")
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]["sha256"]:
                raise Failure(f"{name}: its sha256 is not the one listed")


def replay(folder, manifest):
    """Runs every case of golden.npz.

    Returns {"SIGNATURE/OUTPUT": {"difference": the largest, "tolerance": what is allowed, "equal": how many
    answers were compared for equality}}. Raises Failure where an answer is not as it should be.
    """
    run, found = {"savedmodel": load_savedmodel, "onnx": load_onnx}[manifest["kind"]](folder)
    check_signatures(found, manifest["signatures"])
    cases = read_golden(folder)
    if {signature for signature, _ in cases} != manifest["signatures"].keys():
        raise Failure("golden.npz does not hold the signatures that manifest.json states")
    measured: dict[str, dict] = {}
    for (signature, case), arrays in cases.items():
        got = run(signature, arrays["inputs"])
        for name in manifest["signatures"][signature]["outputs"]:
            where = f"{signature}/{name}"
            limit = manifest["tolerances"][signature].get(name)
            try:
                result = compare(got[name], arrays["outputs"][name], limit)
            except Failure as failure:
                raise Failure(f"case {case} of {where}: {failure}") from None
            total = measured.setdefault(where, {"equal": 0})
            total["equal"] += result["equal"]
            if limit is not None:
                total["tolerance"] = limit
                total["difference"] = max(total.get("difference", 0.0), result["difference"])
    return measured


def compare(got, want, limit):
    """got: an output. want: an array, or a group of arrays that stands for one.

    A group is values with `decided`, where they must be equal, the others being too close to call; or it is
    logits, see compare_logits. limit: of the difference, relative; None asks for equality.
    """
    if isinstance(want, dict) and "positions" in want:
        return compare_logits(got, want, limit)
    if isinstance(want, dict):
        want, decided = want["values"], want["decided"]
    else:
        decided = np.ones(want.shape, bool)
    if got.shape != want.shape:
        raise Failure(f"shape {got.shape}, not {want.shape}")
    if limit is None:
        wrong = np.argwhere((got != want) & decided)
        if len(wrong):
            at = tuple(wrong[0])
            raise Failure(f"{got[at]!r} at {list(map(int, at))}, not {want[at]!r}")
        return {"equal": int(decided.sum())}
    return {"difference": difference(got, want, np.maximum(np.abs(want), 1e-30), limit), "equal": 0}


def compare_logits(got, want, limit):
    """got [B, L, V]. want: `values` [N, V] at `positions` [N, 2] (row, place); `argmax`, `logsumexp` and
    `decided` [B, L]. The limit is relative to the largest value, or to 1 where that is less.
    """
    if got.shape[:2] != want["argmax"].shape or got.shape[2:] != want["values"].shape[1:]:
        raise Failure(f"shape {got.shape}, not {(*want['argmax'].shape, *want['values'].shape[1:])}")
    rows, places = want["positions"].T
    scale = max(1.0, np.abs(want["values"]).max())
    worst = difference(got[rows, places], want["values"], scale, limit)
    for row, stated in zip(got.astype(np.float32), want["logsumexp"]):  # Row by row, to save memory.
        largest = row.max(-1).astype(np.float64)
        logsumexp = np.log(np.exp(row - largest[:, None]).sum(-1)) + largest
        worst = max(worst, difference(logsumexp, stated, scale, limit))
    wrong = (got.argmax(-1) != want["argmax"]) & want["decided"]
    if wrong.any():
        raise Failure(f"the arg-max is another at {int(wrong.sum())} of {wrong.size} positions")
    return {"difference": worst, "equal": int(want["decided"].sum())}


def difference(got, want, scale, limit):
    if not np.isfinite(got).all():
        raise Failure("not finite")
    worst = float((np.abs(got.astype(np.float64) - want) / scale).max(initial=0.0))
    if worst > limit:
        raise Failure(f"differs by {worst:.1e}, and {limit:.0e} is allowed")
    return worst


def read_golden(folder):
    """{(signature, case): {"inputs": {name: array}, "outputs": {name: array or group of arrays}}}."""
    cases: dict[tuple[str, str], dict] = {}
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            signature, case, side, name, *part = key.split("/")
            values = cases.setdefault((signature, case), {"inputs": {}, "outputs": {}})[side]
            if part:
                values.setdefault(name, {})[part[0]] = arrays[key]
            else:
                values[name] = arrays[key]
    return cases


def check_signatures(found, stated):
    """found: {signature: {"inputs": {name: (dtype, shape)}, ...}}; free axes are None, or have names."""
    if found.keys() != stated.keys():
        raise Failure(f"signatures {sorted(found)}, not {sorted(stated)}")
    for signature, sides in stated.items():
        for side, tensors in sides.items():
            got = found[signature][side]
            if got.keys() != tensors.keys():
                raise Failure(f"{signature} has the {side} {sorted(got)}, not {sorted(tensors)}")
            for name, tensor in tensors.items():
                dtype, shape = got[name]
                same = len(shape) == len(tensor["shape"]) and all(
                    a == b or (a is None and isinstance(b, str)) for a, b in zip(shape, tensor["shape"])
                )
                if dtype != tensor["dtype"] or not same:
                    raise Failure(f"{signature}/{name} is {dtype} {shape}, not {tensor['dtype']} {tensor['shape']}")


def load_onnx(folder):
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = {"tensor(int64)": "int64", "tensor(float)": "float32"}

    def describe(values):
        return {value.name: (names.get(value.type, value.type), list(value.shape)) for value in values}

    outputs = [value.name for value in session.get_outputs()]
    found = {"tokens": {"inputs": describe(session.get_inputs()), "outputs": describe(session.get_outputs())}}
    return lambda _, inputs: dict(zip(outputs, session.run(outputs, inputs))), found


def load_savedmodel(folder):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = importlib.import_module("tensorflow")
    importlib.import_module("tensorflow_text")  # The tokenizer's ops.
    loaded = tf.saved_model.load(str(folder))

    def describe(specs):
        return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}

    def run(signature, inputs):
        tensors = {
            name: tf.constant(np.char.encode(value, "utf-8") if value.dtype.kind == "U" else value)
            for name, value in inputs.items()
        }
        return {name: decoded(value.numpy()) for name, value in loaded.signatures[signature](**tensors).items()}

    def decoded(values):
        if values.dtype != object:
            return values
        return np.array([text.decode() for text in values.flat], "U").reshape(values.shape)

    found = {
        name: {
            "inputs": describe(signature.structured_input_signature[1]),
            "outputs": describe(signature.structured_outputs),
        }
        for name, signature in loaded.signatures.items()
    }
    return run, found  # `run` keeps `loaded`, whose signatures hold the variables by weak references only.


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
