"""Replays exported models and checks that they reproduce the answers of the model from which they were exported.

    python verify.py FOLDER...

finds every artifact under the folders and checks for each that:
  - the files are exactly those listed in manifest.json, with the SHA-256 listed there, and nothing (a link, the
    tensors of a graph, the assets of a SavedModel) refers to a place outside the folder;
  - the signatures have the names, dtypes and shapes that manifest.json declares;
  - the inputs in golden.npz produce the outputs in golden.npz: numbers within the tolerance; arg-maxes, words and
    flags equal. A decoder reads the first half of each row in one call, then some tokens one by one, then the rest; it
    also generates text greedily. A folder for onnxruntime-genai generates text with that runtime too, if installed;
  - tokenizer.json and tokenizer.onnx convert the texts in golden.npz into the ids in golden.npz. This requires the
    packages tokenizers and onnxruntime-extensions; if one is not installed, the printed line says so.

Prints one line per artifact. Exit codes: 0, every artifact passes; 4, an artifact fails; 2, wrong usage.

Requires numpy, and for ONNX onnxruntime, for a SavedModel tensorflow and tensorflow-text, for LiteRT ai-edge-litert
or tensorflow. It uses no code of the library that wrote the artifacts, so that a bug in that library cannot hide itself
by occurring on both sides of the comparison.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

FORMAT = "tfzoo-artifact-1"
MODELS = {"savedmodel": ("saved_model.pb",), "onnx": ("model.onnx", "encoder_model.onnx"), "litert": ("model.tflite",)}


class Failure(Exception):
    """An artifact does not match its manifest or does not reproduce its answers."""


def main(arguments):
    """Runs the program with command-line `arguments` and returns its exit code."""
    if arguments[:1] == ["--measure"]:  # Used by exports without the memory for a second copy of the weights.
        folder = pathlib.Path(arguments[1])
        print(json.dumps(replay(folder, read_manifest(folder))))
        return 0
    if arguments[:1] == ["--load"]:  # Used by exports for graphs that might terminate the process.
        load_graphs({path: path for path in arguments[1:]})
        return 0
    if arguments[:1] == ["--tokenizer"]:  # Used by replay_tokenizer_graph.
        return tokenizer_graph(pathlib.Path(arguments[1]))
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print("usage: python verify.py FOLDER...  (replays every artifact under the folders)", file=sys.stderr)
        return 2
    folders = []
    for argument in arguments:
        contained = artifacts(pathlib.Path(argument))
        if not contained:
            print(f"error: {argument}: contains no artifact (a folder with manifest.json)", file=sys.stderr)
            return 2
        folders += contained
    failed = 0
    for folder in folders:
        try:
            print(f"ok      {folder}: {verify(folder)}", flush=True)
        except ImportError as error:
            print(f"error: {folder}: {error}: install the package to replay this artifact", file=sys.stderr)
            return 2
        except Exception as error:  # A damaged file may raise any of a dozen types of exception.
            failed += 1
            reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            print(f"FAILED  {folder}: {' '.join(reason.split())[:500]}", flush=True)
    return 4 if failed else 0


def artifacts(folder):
    """Returns the folders at or under `folder` that are artifacts, including ones whose manifest was removed, but not
    those that an export is still writing."""
    marks = ("manifest.json", "golden.npz", *(name for names in MODELS.values() for name in names))
    candidates = {path.parent for mark in marks for path in folder.rglob(mark)}
    partial = re.compile(r".+\.\d+\.partial")
    return sorted(path for path in candidates if not any(map(partial.fullmatch, path.relative_to(folder).parts)))


def verify(folder):
    """Checks one artifact and returns a line that describes the result.

    Raises:
      Failure: a check failed. A damaged file may also raise any exception of its reader.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    if "genai_config.json" in manifest["files"] or manifest.get("profile") == "genai":
        check_genai(folder)
    measured = replay(folder, manifest)
    name = f"{manifest['kind']} {manifest['name']} version {manifest['version']}"
    numbers = {key: value for key, value in measured.items() if "difference" in value}
    if not numbers:
        raise Failure("golden.npz contains no numbers to compare")
    key = max(numbers, key=lambda key: numbers[key]["difference"] / numbers[key]["tolerance"])
    worst, count = numbers[key], sum(value["numbers"] for value in numbers.values())
    counts: dict[str, list[int]] = {}  # By signature: the number of non-numeric answers, and how many are equal.
    for where, value in measured.items():
        if value.get("compared"):
            total = counts.setdefault(where.partition("/")[0], [0, 0])
            total[:] = total[0] + value["compared"], total[1] + value["equal"]
    answers = "".join(
        f", {equal:,}{'' if equal == n else f' of {n:,}'} answers of {signature} equal"
        for signature, (n, equal) in counts.items()
    )
    skipped = "".join(f"; {key} not replayed: {x['skipped']}" for key, x in measured.items() if "skipped" in x)
    return (
        f"{name}: largest difference {worst['difference']:.1e} of {worst['tolerance']:.0e} allowed ({key}) in "
        f"{count:,} numbers{answers}{skipped}"
    )


def read_manifest(folder):
    """Returns the content of manifest.json, after checking its format and its own SHA-256."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise Failure("manifest.json is missing")
    text = path.read_bytes().decode()
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Failure(f"manifest.json is not of the format {FORMAT}, the only one that is supported")
    stated = manifest["manifest_sha256"]
    if hashlib.sha256(text.replace(stated, "").encode()).hexdigest() != stated:
        raise Failure("manifest.json: its SHA-256 differs from its manifest_sha256")
    return manifest


def check_files(folder, listed):
    """Checks that the files are those listed and that nothing refers to a place outside the folder: there are no links,
    and no tensors in files that do not belong to the artifact."""
    present = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Failure(f"{name}: is a link or a device, but an artifact may contain only regular files")
        if path.is_file() and name != "manifest.json":
            present[name] = path
    for name in sorted(listed.keys() - present.keys()):
        raise Failure(f"{name}: missing")
    for name in sorted(present.keys() - listed.keys()):
        raise Failure(f"{name}: not listed in manifest.json")
    for name, path in present.items():
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]["sha256"]:
                raise Failure(f"{name}: its SHA-256 differs from the one in manifest.json")
        if name.endswith(".onnx"):
            for place in external_data(path):
                if place not in listed:
                    raise Failure(f"{name}: stores tensors in {place!r}, which is not a file of the artifact")


# The fields of ONNX's messages that may lead to a tensor: {message: {field number: the message in it}}.
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_data(path):
    """Yields the names of the files in which a graph stores tensors, exactly as written in the graph.

    The file is parsed here because verify.py does not require the package onnx.
    """
    data = path.read_bytes()

    def places(message, begin, end):
        for number, _, first, last in fields(data, begin, end):
            inner = FIELDS[message].get(number)
            if inner == "entry":
                entry = {part: data[x:y] for part, _, x, y in fields(data, first, last)}
                if entry.get(1) == b"location":
                    yield entry.get(2, b"").decode(errors="replace")
            elif inner:
                yield from places(inner, first, last)

    try:
        yield from places("model", 0, len(data))
    except Failure as failure:
        raise Failure(f"{path.name}: {failure}") from None


def fields(data, at, end):
    """Yields for each field of a protocol buffer, data[at:end]: its number, the offset of the field, the offset of its
    content, and its end."""

    def varint(at):
        value = shift = 0
        while data[at] & 0x80:
            value, at, shift = value | (data[at] & 0x7F) << shift, at + 1, shift + 7
        return value | data[at] << shift, at + 1

    while at < end:
        begin, (key, at) = at, varint(at)
        if key >> 32:  # Other readers would use only the lower bits.
            raise Failure("is not an ONNX file")
        content, kind = at, key & 7
        if kind == 2:
            size, content = varint(at)
            at = content + size
        else:
            at = varint(at)[1] if kind == 0 else at + {1: 8, 5: 4}[kind]
        if at > end:
            raise Failure("is not an ONNX file")
        yield key >> 3, begin, content, at


def replay(folder, manifest):
    """Runs every case of golden.npz.

    Returns:
      {"SIGNATURE/OUTPUT": {"difference": the largest difference, "mean": the mean difference of the worst case,
      "tolerance": the allowed difference, "numbers": how many numbers were compared, "equal" and "compared": counts of
      non-numeric answers}}. The keys of variants are "VARIANT:SIGNATURE/OUTPUT".

    Raises:
      Failure: an answer is wrong.
    """
    kind = manifest["kind"]
    if kind not in READERS:
        raise Failure(f"manifest.json: the kind {kind!r} is not supported")
    return READERS[kind](folder, manifest) | replay_tokenizer_file(folder) | replay_tokenizer_graph(folder)


def replay_signatures(load):
    """Returns a function that replays an artifact of one model.

    load: (folder, manifest) -> (run, signatures of the model).
    """

    def replay(folder, manifest):
        run, signatures = load(folder, manifest)
        check_signatures(signatures, manifest["signatures"])
        return compare_all(run, read_golden(folder), manifest["tolerances"])

    return replay


def replay_onnx(folder, manifest):
    """Replays the graphs of an ONNX artifact, its variants, and its folder for onnxruntime-genai."""
    cases = read_golden(folder)
    measured: dict[str, dict] = {}
    shared = manifest.get("profile") == "genai"
    for variant, details in {"": manifest, **manifest.get("variants", {})}.items():
        for name in (variant or "model", *manifest["signatures"]):
            if not re.fullmatch(r"\w+", name):
                raise Failure(f"manifest.json: {name!r} is not the name of a graph")
        run, signatures = load_onnx(folder, manifest["signatures"], variant and f"_{variant}", shared)
        check_signatures(signatures, details.get("signatures", manifest["signatures"]))
        results = compare_all(run, cases, details["tolerances"], exact=not variant)
        measured |= {f"{variant}:{key}" if variant else key: result for key, result in results.items()}
    if shared and importlib.util.find_spec("onnxruntime_genai"):
        run, written = load_genai(folder, cases)
        results = compare_all(run, written, {"generate": {}})
        measured |= {f"onnxruntime-genai:{key}": result for key, result in results.items()}
    elif shared:
        measured["genai_config.json"] = {"skipped": "onnxruntime-genai is not installed"}
    return measured


def compare_all(run, cases, tolerances, exact=True):
    """Compares all cases; returns what `replay` returns.

    run: (signature, inputs) -> outputs. exact: whether arg-maxes must be equal.
    """
    if {signature for signature, _ in cases} != tolerances.keys():
        raise Failure("golden.npz does not contain the signatures that manifest.json declares")
    measured: dict[str, dict] = {}
    for (signature, case), arrays in cases.items():
        got = run(signature, arrays["inputs"])
        for name, want in arrays["outputs"].items():
            where = f"{signature}/{name}"
            limit = tolerances[signature].get(name)
            try:
                result = compare(got[name], want, limit, exact)
            except Failure as failure:
                raise Failure(f"case {case} of {where}: {failure}") from None
            total = measured.setdefault(where, {"equal": 0, "compared": 0})
            total["equal"] += result["equal"]
            total["compared"] += result["compared"]
            if limit is not None:
                total["tolerance"] = limit["allowed"]
                total["numbers"] = total.get("numbers", 0) + result["numbers"]
                for key in ("difference", "mean"):
                    total[key] = max(total.get(key, 0.0), result[key])
    return measured


def compare(got, want, limit, exact=True):
    """Compares an output with its expected value.

    Args:
      got: the output.
      want: an array, or a group of arrays that represents one: `values` with `decided`, which marks where they must be
        equal because the answer is not too close to call; `values` with `real`, which marks the rows or tokens that are
        not padding; or logits, see compare_logits.
      limit: the allowed difference of numbers, {"allowed": x, "of": "largest" or "each"}: a fraction of the largest
        number (of 1 if that is larger), or of each number. None requires equality.
      exact: whether values that are not numbers must be equal, instead of only being counted.

    Returns:
      {"difference": the largest difference, "mean": the mean difference, "numbers": how many numbers were compared,
      "equal": how many answers are equal, "compared": how many answers were compared}.

    Raises:
      Failure: the output differs by more than the limit.
    """
    if isinstance(want, dict) and "positions" in want:
        return compare_logits(got, want, limit, exact)
    group = want if isinstance(want, dict) else {"values": want}
    want = group["values"]
    decided = group.get("decided", np.ones(want.shape, bool))
    if got.shape != want.shape:
        raise Failure(f"the shape is {got.shape}, not {want.shape}")
    if "real" in group:
        if not np.isfinite(got).all():  # At padding too, since 0 times infinity is not 0.
            raise Failure("values are not finite")
        got, want = got[group["real"]], want[group["real"]]
    if limit is None:
        wrong = np.argwhere((got != want) & decided)
        if len(wrong) and exact:
            at = tuple(wrong[0])
            raise Failure(f"is {got[at]!r} at {list(map(int, at))}, not {want[at]!r}")
        # Generated tokens count up to the first one that differs.
        equal = np.logical_and.accumulate(decided & (got == want), -1)
        return {"equal": int(equal.sum()), "compared": int(decided.sum())}
    scale = max(1.0, np.abs(want).max(initial=0.0)) if limit["of"] == "largest" else np.maximum(np.abs(want), 1e-30)
    return difference(got, want, scale, limit["allowed"]) | {"equal": 0, "compared": 0}


def compare_logits(got, want, limit, exact):
    """Compares logits; see `compare`.

    Args:
      got: [B, L, V].
      want: `values` [N, V] at `positions` [N, 2] (row, position); `argmax`, `logsumexp` and `decided` [B, L]. Positions
        where `real` [B, L] is false may have any value.
      limit: see `compare`.
      exact: whether the arg-maxes must be equal where they are decided.
    """
    if got.shape[:2] != want["argmax"].shape or got.shape[2:] != want["values"].shape[1:]:
        raise Failure(f"the shape is {got.shape}, not {(*want['argmax'].shape, *want['values'].shape[1:])}")
    rows, places = want["positions"].T
    scale, allowed = max(1.0, np.abs(want["values"]).max()), limit["allowed"]
    result = difference(got[rows, places], want["values"], scale, allowed)
    for row, stated, real in zip(got.astype(np.float32), want["logsumexp"], want["real"]):  # By row to save memory.
        largest = row.max(-1).astype(np.float64)
        logsumexp = np.log(np.exp(row - largest[:, None]).sum(-1)) + largest
        sums = difference(logsumexp[real], stated[real], scale, allowed)
        result["difference"] = max(result["difference"], sums["difference"])
    decided = want["decided"]
    wrong = (got.argmax(-1) != want["argmax"]) & decided
    if exact and wrong.any():
        raise Failure(f"the arg-max differs at {int(wrong.sum())} of {wrong.size} positions")
    return result | {"equal": int((decided & ~wrong).sum()), "compared": int(decided.sum())}


def difference(got, want, scale, limit):
    """Returns the differences of numbers in units of `scale`, as `compare` does; raises Failure if one is above
    `limit`."""
    for values, where in ((got, ""), (want, " in golden.npz")):
        if not np.isfinite(values).all():
            raise Failure(f"values are not finite{where}")
    apart = np.abs(got.astype(np.float64) - want) / scale
    worst = float(apart.max(initial=0.0))
    if not worst <= limit:
        raise Failure(f"differs by {worst:.1e}, but at most {limit:.0e} is allowed")
    return {"difference": worst, "mean": float(apart.mean()) if apart.size else 0.0, "numbers": apart.size}


def replay_tokenizer_file(folder):
    """Replays the texts of golden.npz through tokenizer.json.

    Returns:
      {"tokenizer.json": the result of compare_texts}, or {} if there is no such file.
    """
    cases = read_golden(folder, tokenizer=True)
    # In a folder for onnxruntime-genai the file is next to the graph.
    paths = [path for path in (folder / "tokenizer" / "tokenizer.json", folder / "tokenizer.json") if path.is_file()]
    if not paths or not cases:
        return {}
    if not importlib.util.find_spec("tokenizers"):
        return {"tokenizer.json": {"skipped": "tokenizers is not installed"}}
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(paths[0]))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (case,) = cases.values()
    columns: dict[str, list] = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
    for texts in zip(*(values.tolist() for values in case["inputs"].values())):
        encoded = tokenizer.encode(*texts)
        for name, row in zip(columns, (encoded.ids, encoded.attention_mask, encoded.type_ids)):
            columns[name].append(row)
    return {"tokenizer.json": compare_texts("tokenizer.json", columns, case)}


def replay_tokenizer_graph(folder):
    """Replays the texts of golden.npz through tokenizer.onnx, like replay_tokenizer_file, but in a separate process:
    one that has loaded TensorFlow does not survive the import of onnxruntime_extensions."""
    if not (folder / "tokenizer.onnx").is_file():
        return {}
    if not importlib.util.find_spec("onnxruntime_extensions"):
        return {"tokenizer.onnx": {"skipped": "onnxruntime-extensions is not installed"}}
    command = [sys.executable, "-P", __file__, "--tokenizer", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure((done.stdout or done.stderr).strip() or f"tokenizer.onnx: exited with code {done.returncode}")
    return {"tokenizer.onnx": json.loads(done.stdout)}


def tokenizer_graph(folder):
    """Runs in that separate process: prints the result and returns the exit code."""
    extensions = importlib.import_module("onnxruntime_extensions")
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(extensions.get_library_path())
    session = onnxruntime.InferenceSession(str(folder / "tokenizer.onnx"), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    (case,) = read_golden(folder, tokenizer=True).values()
    try:
        values = session.run(names, {name: texts.astype(object) for name, texts in case["inputs"].items()})
        columns = {name: value.tolist() for name, value in zip(names, values)}
        print(json.dumps(compare_texts("tokenizer.onnx", columns, case)))
    except Exception as error:
        print(error if isinstance(error, Failure) else f"tokenizer.onnx: {error}")
        return 4
    return 0


def compare_texts(where, found, case):
    """Compares a tokenizer's outputs with a case of golden.npz, whose rows are padded.

    Args:
      where: the file that produced the outputs, for messages.
      found: {output: rows}; the rows may be padded or not.
      case: {"inputs": {name: texts}, "outputs": {name: padded rows}}.

    Returns:
      {"equal": number of rows, "compared": number of rows}.

    Raises:
      Failure: an output is missing or differs.
    """
    if missing := case["outputs"].keys() - found.keys():
        raise Failure(f"{where}: lacks the outputs {', '.join(sorted(missing))}")
    lengths = case["outputs"]["attention_mask"].sum(1)
    for name, rows in case["outputs"].items():
        if len(found[name]) != len(rows):
            raise Failure(f"{where}: {name} has {len(found[name])} rows, not {len(rows)}")
        for row, want, length, *texts in zip(found[name], rows.tolist(), lengths, *case["inputs"].values()):
            padded = [*row, *want[len(row) :]]
            if padded != want or len(row) < length:
                quoted = " and ".join(repr(str(text)) for text in texts)
                raise Failure(f"{where}: {name} of {quoted} is {row[:20]}, not {want[:length][:20]}")
    return {"equal": len(lengths), "compared": len(lengths)}


def read_golden(folder, tokenizer=False):
    """Returns {(signature, case): {"inputs": {name: array}, "outputs": {name: array or group of arrays}}} of
    golden.npz.

    The tokenizer's texts are stored under a signature named `tokenizer`; only these are returned if `tokenizer` is
    true, and all others if it is false.
    """
    cases: dict[tuple[str, str], dict] = {}
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            signature, case, side, name, *part = key.split("/")
            if (signature == "tokenizer") != tokenizer:
                continue
            values = cases.setdefault((signature, case), {"inputs": {}, "outputs": {}})[side]
            if part:
                values.setdefault(name, {})[part[0]] = arrays[key]
            else:
                values[name] = arrays[key]
    return cases


def check_signatures(found, stated):
    """Checks a model's signatures against those that the manifest declares.

    found: {signature: {"inputs": {name: (dtype, shape)}, ...}}, in which free axes are None or have names.
    """
    if found.keys() != stated.keys():
        raise Failure(f"the signatures are {sorted(found)}, not {sorted(stated)}")
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


def load_onnx(folder, names, suffix="", shared=False):
    """Loads the graphs `names` of the variant with `suffix`; returns (run, {name: inputs and outputs}).

    shared: see Runner.
    """
    return load_graphs({name: str(folder / f"{name}{suffix}.onnx") for name in names}, shared)


def load_graphs(graphs, shared=False):
    """Loads graphs, {name: path or bytes}; returns the same as load_onnx."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    types = {"tensor(int64)": "int64", "tensor(float)": "float32", "tensor(float16)": "float16"}

    def describe(values):
        return {value.name: (types.get(value.type, value.type), list(value.shape)) for value in values}

    def in_place(session):
        def run(outputs, inputs):
            """Runs the session with keys and values written back into the arrays from which they are read."""
            binding = session.io_binding()
            contiguous = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
            arrays = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in contiguous.items()}
            for name, value in arrays.items():
                binding.bind_ortvalue_input(name, value)
            for name in outputs:
                past = name.replace("present", "past_key_values")
                if past in arrays:
                    binding.bind_ortvalue_output(name, arrays[past])
                else:
                    binding.bind_output(name)
            session.run_with_iobinding(binding)
            return [value.numpy() for value in binding.get_outputs()]

        return run

    running, described = {}, {}
    for name, graph in graphs.items():
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        described[name] = {"inputs": describe(session.get_inputs()), "outputs": describe(session.get_outputs())}
        running[name] = in_place(session) if shared else session.run
    return Runner(running, described, shared), described


class Runner:
    """A function (signature, inputs) -> outputs that runs as many graphs and calls as necessary.

    Args:
      graphs: {name: (names of outputs, inputs) -> outputs}.
      found: {name: {"inputs": {name: (dtype, shape)}, ...}} of the graphs.
      shared: whether keys and values share one buffer, which has room for the longest text; padding is then on the
        right.
    """

    def __init__(self, graphs, found, shared=False):
        self.graphs, self.found, self.shared = graphs, found, shared

    def __call__(self, signature, inputs):
        if "encoder_model" in self.found:
            return self.encoder_decoder(signature, inputs)
        if any(name.startswith("past") for name in self.found["model"]["inputs"]):
            return self.decoder(signature, inputs)
        return self.call("model", inputs)

    def call(self, name, inputs):
        """Runs the graph `name` once and returns its outputs by name."""
        outputs = list(self.found[name]["outputs"])
        return dict(zip(outputs, self.graphs[name](outputs, inputs)))

    def empty(self, name, rows, room=0):
        """Returns empty keys and values of `room` positions for the inputs that the outputs of a step replace."""
        inputs, outputs = self.found[name]["inputs"], self.found[name]["outputs"]
        fed = {key.replace("present", "past_key_values") for key in outputs if key.startswith("present")}
        shapes = {key: inputs[key] for key in fed}
        return {key: np.zeros((rows, shape[1], room, shape[3]), dtype) for key, (dtype, shape) in shapes.items()}

    def positions(self, values):
        """Returns the input position_ids if the graph has it."""
        return {"position_ids": values} if "position_ids" in self.found["model"]["inputs"] else {}

    def piece_by_piece(self, name, ids, kept, inputs_of):
        """Reads half of the ids at once, then some tokens one by one, then the rest.

        kept: the keys and values before the first call. inputs_of: (begin, end) -> the other inputs of a call.
        """
        logits, begin = [], 0
        length = ids.shape[1]
        ends = [max(1, length // 2), *range(max(1, length // 2) + 1, length)[:4], length]
        for end in sorted(set(ends)):
            outputs = self.call(name, {"input_ids": ids[:, begin:end], **inputs_of(begin, end), **kept})
            logits.append(outputs["logits"])
            kept, begin = kept | past(outputs), end
        return {"logits": np.concatenate(logits, 1)}

    def written(self, name, ids, kept, inputs_of, count):
        """Generates `count` tokens after `ids` greedily; the other arguments are those of piece_by_piece."""
        begin = 0
        for _ in range(count):
            end = ids.shape[1]
            outputs = self.call(name, {"input_ids": ids[:, begin:], **inputs_of(begin, end), **kept})
            likeliest = outputs["logits"][:, -1].argmax(-1)
            ids, kept, begin = np.concatenate([ids, likeliest[:, None]], 1), kept | past(outputs), end
        return {"generated_ids": ids[:, -count:]}

    def decoder(self, signature, inputs):
        """Runs a decoder with a cache of keys and values."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]

        def inputs_of(begin, end):
            seen = np.ones((len(ids), end), np.int64)
            seen[:, : mask.shape[1]] = mask[:, :end]
            return {"attention_mask": seen, **self.positions(np.maximum(seen.cumsum(1) - 1, 0)[:, begin:end])}

        if signature == "generate":
            count = int(inputs["max_new_tokens"])
            caches = self.empty("model", len(ids), (ids.shape[1] + count) * self.shared)
            return self.written("model", ids, caches, inputs_of, count)
        if self.shared:
            return self.in_one_buffer(ids, np.maximum(1, mask.sum(1)))
        return self.piece_by_piece("model", ids, self.empty("model", len(ids)), inputs_of)

    def in_one_buffer(self, ids, lengths):
        """Reads half of each row at once, then some tokens one by one, then the rest row by row."""
        buffers, rows, logits = self.empty("model", *ids.shape), np.arange(len(ids)), None
        ends = np.maximum(1, lengths // 2)
        begins = np.zeros_like(ends)
        pieces = [(begins, ends)] + [
            (np.minimum(ends + i, lengths) - 1, np.minimum(ends + i, lengths)) for i in range(1, 5)
        ]

        def read(chosen, begins, ends):
            """Reads tokens begins..ends of the chosen rows; all but the longest are padded."""
            nonlocal logits
            places = begins[:, None] + np.arange((ends - begins).max())
            new = np.where(places < ends[:, None], np.take_along_axis(ids[chosen], places, 1), 0)
            mask = (np.arange(ends.max()) < ends[:, None]).astype(np.int64)
            caches = {name: np.ascontiguousarray(value[chosen]) for name, value in buffers.items()}
            feeds = {"input_ids": new, "attention_mask": mask, **self.positions(places), **caches}
            outputs = self.call("model", feeds)
            for name, value in past(outputs).items():
                buffers[name][chosen] = value
            got = outputs["logits"]
            if logits is None:
                logits = np.zeros((*ids.shape, got.shape[2]), got.dtype)
            for row, values, begin, end in zip(chosen, got, begins, ends):
                logits[row, begin:end] = values[: end - begin]

        for begins, ends in pieces:
            read(rows, begins, ends)
        for row in rows[ends < lengths]:  # Reading several tokens after others works only for one row at a time.
            read(rows[row : row + 1], ends[row : row + 1], lengths[row : row + 1])
        return {"logits": logits}

    def encoder_decoder(self, signature, inputs):
        """Runs an encoder, then its decoder with a cache of keys and values."""
        mask, ids = inputs["attention_mask"], inputs["decoder_input_ids"]
        encoded = self.call("encoder_model", {"input_ids": inputs["input_ids"], "attention_mask": mask})
        name = "decoder_with_past_model"
        caches = self.empty(name, len(ids)) | past(encoded)

        def inputs_of(begin, end):
            return {"encoder_attention_mask": mask}

        if signature == "generate":
            return self.written(name, ids, caches, inputs_of, int(inputs["max_new_tokens"]))
        return self.piece_by_piece(name, ids, caches, inputs_of)


def past(outputs):
    """Returns the keys and values among a graph's outputs under the names of its inputs for the next call."""
    return {key.replace("present", "past_key_values"): x for key, x in outputs.items() if key.startswith("present")}


GENAI = {
    "": {"model", "search"},
    "model": {"type", "vocab_size", "context_length", "bos_token_id", "eos_token_id", "pad_token_id", "decoder"},
    "decoder": {"session_options", "filename", "head_size", "hidden_size", "num_attention_heads", "num_hidden_layers",
                "num_key_value_heads", "inputs", "outputs"},
    "search": {"do_sample", "max_length", "past_present_share_buffer"},
}  # fmt: skip


def check_genai(folder):
    """Checks genai_config.json. onnxruntime-genai loads what the file names, libraries included, so it may contain only
    what an export writes, formatted as an export formats it: readers disagree on a key that occurs twice."""
    text = (folder / "genai_config.json").read_text()
    config = json.loads(text)
    if text != json.dumps(config, indent=1) + "\n":
        raise Failure("genai_config.json: is not formatted as an export formats it")
    decoder = config["model"]["decoder"]
    parts = {"": config, "model": config["model"], "decoder": decoder, "search": config["search"]}
    for name, part in parts.items():
        for key in sorted(part.keys() - GENAI[name]):
            raise Failure(f"genai_config.json: contains {name + '.' * bool(name)}{key}, which no export writes")
    if decoder["session_options"] != {"provider_options": []}:
        raise Failure(
            f"genai_config.json: contains session_options {decoder['session_options']}, which no export writes"
        )
    name = decoder["filename"]
    if pathlib.PurePath(name).name != name or not name.endswith(".onnx") or not (folder / name).is_file():
        raise Failure(f"genai_config.json: names the graph {name!r}, which is not a file of the artifact")


def load_genai(folder, cases):
    """Loads the folder with onnxruntime-genai and its genai_config.json; returns (run, the cases of `generate` adapted
    to it)."""
    genai = importlib.import_module("onnxruntime_genai")
    model = genai.Model(str(folder))
    ends = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]

    def run(_, inputs):
        ids, count = inputs["input_ids"], int(inputs["max_new_tokens"])
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(do_sample=False, batch_size=len(ids), max_length=ids.shape[1] + count)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(ids.astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        written = np.zeros((len(ids), count), np.int64)
        for i, row in enumerate(written):
            new = generator.get_sequence(i)[ids.shape[1] :]
            row[: len(new)] = new
        return {"generated_ids": written}

    def until_the_end(output):
        """Limits an output to the tokens before an end-of-text token, at which onnxruntime-genai ends a text."""
        open_still = np.logical_and.accumulate(~np.isin(output["values"], ends), 1)
        return output | {"decided": output["decided"] & open_still}

    return run, {
        key: case | {"outputs": {name: until_the_end(output) for name, output in case["outputs"].items()}}
        for key, case in cases.items()
        if key[0] == "generate"
    }


def load_savedmodel(folder, manifest):
    """Loads a SavedModel; returns (run, {signature: inputs and outputs})."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = importlib.import_module("tensorflow")
    importlib.import_module("tensorflow_text")  # The tokenizer's ops.
    check_saved_model(folder, manifest["signatures"])
    loaded = tf.saved_model.load(str(folder))

    def describe(specs):
        return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}

    def run(signature, inputs):
        if "inputs" in loaded.signatures[signature].structured_input_signature[1]:
            inputs = {"inputs": examples(inputs)}
        tensors = {
            name: tf.constant(np.char.encode(value, "utf-8") if value.dtype.kind == "U" else value)
            for name, value in inputs.items()
        }
        return {name: decoded(value.numpy()) for name, value in loaded.signatures[signature](**tensors).items()}

    def examples(features):
        """Converts texts by name into serialized tf.Examples."""
        rows = [dict(zip(features, row)) for row in zip(*features.values())]
        return np.array(
            [
                tf.train.Example(
                    features=tf.train.Features(
                        feature={
                            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                            for name, text in row.items()
                        }
                    )
                ).SerializeToString()
                for row in rows
            ],
            object,
        )

    def decoded(values):
        if values.dtype != object:
            return values
        return np.array([text.decode() for text in values.flat], "U").reshape(values.shape)

    signatures = {
        name: {
            "inputs": describe(signature.structured_input_signature[1]),
            "outputs": describe(signature.structured_outputs),
        }
        for name, signature in loaded.signatures.items()
    }
    return run, signatures  # `run` keeps `loaded` alive; its signatures hold the variables only by weak references.


# Operations that access files, call Python or other machines, or terminate the process.
REACHES_OUT = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|\w*PyFunc\w*|Print(V2)?|\w*Dataset\w*|\w*Iterator\w*|\w*Reader(V2)?|\w*Summary\w*"
    r"|Debug\w*|\w*Checkpoints?|Save|SaveSlices|DistributedSave|Restore|RestoreSlice|ImmutableConst|LoadAndRemapMatrix"
    r"|GenerateVocabRemapping|FixedUnigramCandidateSampler|EncodeProto|DecodeProto\w*|RemoteCall|\w*Rpc\w*|_?(Host)?Send"
    r"|_?(Host)?Recv|Collective\w*|Abort|InitializeTableFromTextFile(V2)?|SaveV2|RestoreV2"
)
INIT = "__saved_model_init_op"  # A signature that servers run first; it fills tables.


def check_saved_model(folder, signatures):
    """Checks what tf.saved_model.load does not look at.

    TF Serving feeds the tensors that saved_model.pb names as a signature's inputs, so these must reach the arguments of
    the same names. It calls the saver with the path of the variables; only the saver may save, or restore from the path
    that it is given. All other files that are read must be in assets/.

    A SavedModel remains a program: an operation that is unknown to this check may still do harm when it runs.
    """
    protos = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2")
    saved = protos.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for graph in saved.meta_graphs:
        for asset in graph.asset_file_def:
            path = pathlib.PurePath(asset.filename)
            if path.is_absolute() or ".." in path.parts or not (folder / "assets" / path).is_file():
                raise Failure(f"saved_model.pb: reads {asset.filename!r}, which is not a file in assets/")
        nodes = {node.name: node for node in graph.graph_def.node}
        functions = {function.signature.name: function for function in graph.graph_def.library.function}
        saver = graph.saver_def
        by_saver = {saver.save_tensor_name.partition(":")[0]: "save", saver.restore_op_name: "restore"}
        savers = {nodes[name].attr["f"].func.name: role for name, role in by_saver.items() if name in nodes}
        for of, part in [("", graph.graph_def.node), *((name, f.node_def) for name, f in functions.items())]:
            for node in part:
                role = savers.get(of)
                usual = role == "save" and node.op in ("SaveV2", "MergeV2Checkpoints")
                if role == "restore" and node.op == "RestoreV2":
                    usual = node.input[0] in (argument.name for argument in functions[of].signature.input_arg)
                if REACHES_OUT.fullmatch(node.op) and not usual:
                    raise Failure(f"saved_model.pb: {node.name} ({node.op}) accesses something other than an asset")
                for value in node.attr.values():
                    called = {value.func.name, *(f.name for f in value.list.func)}
                    if called & savers.keys() and (of or node.name not in by_saver):
                        raise Failure(f"saved_model.pb: {node.name} ({node.op}) saves or restores variables")
        if unmatched := graph.signature_def.keys() - {INIT} ^ signatures.keys():
            raise Failure(
                f"saved_model.pb: the signature {min(unmatched)} is only in one of saved_model.pb and manifest.json"
            )
        for name, signature in graph.signature_def.items():
            if name == INIT:
                continue
            outputs = {key: tensor.name.partition(":") for key, tensor in signature.outputs.items()}
            call = nodes[next(iter(outputs.values()))[0]]
            if call.name in by_saver:
                raise Failure(f"saved_model.pb: {name} saves or restores variables")
            arguments = [argument.name for argument in functions[call.attr["f"].func.name].signature.input_arg]
            fed = dict(zip(arguments, call.input))
            wrong = [key for key, tensor in signature.inputs.items() if fed.get(key) != tensor.name.removesuffix(":0")]
            # A function's outputs are sorted by name.
            wrong += [key for i, key in enumerate(sorted(outputs)) if outputs[key] != (call.name, ":", str(i))]
            if wrong:
                raise Failure(f"saved_model.pb: {name} maps {wrong[0]} to a different tensor from its function")


def load_litert(folder, _):
    """Loads a LiteRT model; returns (run, {signature: inputs and outputs})."""
    if importlib.util.find_spec("ai_edge_litert"):
        interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        interpreter = importlib.import_module("tensorflow").lite.Interpreter
    with silent():  # tf.lite prints a deprecation notice, and its delegate that it was created.
        loaded = interpreter(model_path=str(folder / "model.tflite"))
        loaded.allocate_tensors()
        runners = {name: loaded.get_signature_runner(name) for name in loaded.get_signature_list()}

    def describe(details):
        return {
            name: (np.dtype(detail["dtype"]).name, [None if n < 0 else int(n) for n in detail["shape_signature"]])
            for name, detail in details.items()
        }

    def run(signature, inputs):
        return {name: value.copy() for name, value in runners[signature](**inputs).items()}

    signatures = {
        name: {"inputs": describe(runner.get_input_details()), "outputs": describe(runner.get_output_details())}
        for name, runner in runners.items()
    }
    return run, signatures


# {kind in manifest.json: (folder, manifest) -> the result of `replay`}.
READERS = {
    "savedmodel": replay_signatures(load_savedmodel),
    "onnx": replay_onnx,
    "litert": replay_signatures(load_litert),
}


@contextlib.contextmanager
def silent():
    """Discards everything that libraries write to stderr, including native code; their exceptions say enough."""
    saved = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
