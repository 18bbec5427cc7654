"""Replays exported models and checks that they reproduce the answers of the model from which they were exported.

    python verify.py [--time_limit=SECONDS] [--memory_limit=MIB] [--output_limit=MIB] FOLDER...

finds every artifact under the folders and checks for each that:
  - the files are exactly those listed in manifest.json, with the SHA-256 listed there, and nothing (a link, the
    tensors of a graph, the assets of a SavedModel) refers to a place outside the folder;
  - graphs consist of operations that only compute (OPERATIONS, DOMAINS), which is checked before a runtime loads them;
  - the signatures have the names, dtypes and shapes that manifest.json declares;
  - golden.npz has the cases that the artifact contract promises, and manifest.json no wider tolerances than it allows;
  - the inputs in golden.npz produce the outputs in golden.npz: numbers within the tolerance; arg-maxes, words and
    flags equal. A decoder reads the first half of each row in one call, then some tokens one by one, then the rest; it
    also generates text greedily. A folder for onnxruntime-genai generates text with that runtime too, if installed;
  - tokenizer.json and tokenizer.onnx convert the texts in golden.npz into the ids in golden.npz. This requires the
    packages tokenizers and onnxruntime-extensions; if one is not installed, the printed line says so.

Each artifact is checked in a process of its own, which is ended when it exceeds a limit:
  --time_limit    seconds; default 600, and 300 more for each GiB of the artifact;
  --memory_limit  MiB in addition to what the runtime itself takes (on Linux); default 4096, and 3 times the artifact;
  --output_limit  MiB that it may print, and write to any file; default 16.

Prints one line per artifact. Exit codes: 0, every artifact passes; 4, an artifact fails; 2, wrong usage, or a package
is missing.

Requires numpy, and for ONNX onnxruntime, for a SavedModel tensorflow and tensorflow-text, for LiteRT ai-edge-litert
or tensorflow. It uses no code of the library that wrote the artifacts, so that a bug in that library cannot hide itself
by occurring on both sides of the comparison.
"""

import os
import sys

if __name__ == "__main__":
    # Python looks for modules in the folder of the program and in the current one, and artifacts may contain any files.
    here = {os.getcwd(), os.path.dirname(os.path.abspath(__file__))}
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) not in here]

import contextlib
import hashlib
import importlib
import importlib.util
import json
import pathlib
import re
import signal
import struct
import subprocess
import tempfile
import zipfile

import numpy as np

FORMAT = "tfzoo-artifact-1"
MODELS = {"savedmodel": ("saved_model.pb",), "onnx": ("model.onnx", "encoder_model.onnx"), "litert": ("model.tflite",)}
LIMITS = {"time_limit": 600, "memory_limit": 4096, "output_limit": 16}  # Seconds, MiB, MiB.
MOST_JSON, MOST_GOLDEN = 2**25, 2**31  # Bytes of manifest.json, and of golden.npz once inflated.
# The widest tolerance by precision, as a fraction of an output's largest number; of `each` number, ten times that.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 8e-2}
VARIANTS = {"float16": 0.1, "int8": 2.0, "int8_static": 2.0, "int8_weights": 2.0, "int4_weights": 2.0}


class Failure(Exception):
    """An artifact does not match its manifest or does not reproduce its answers."""


def main(arguments):
    """Runs the program with command-line `arguments` and returns its exit code."""
    if arguments[:1] == ["--alone"]:  # Used by verify_alone.
        return in_limits(json.loads(arguments[1]), pathlib.Path(arguments[2]))
    if arguments[:1] == ["--load"]:  # Used by exports for graphs that might terminate the process.
        load_graphs({path: path for path in arguments[1:]})
        return 0
    if arguments[:1] == ["--tokenizer"]:  # Used by replay_tokenizer_graph.
        return tokenizer_graph(pathlib.Path(arguments[1]))
    flags = [re.fullmatch(f"--({'|'.join(LIMITS)})=([1-9][0-9]{{0,8}})", argument) for argument in arguments]
    limits = {flag[1]: int(flag[2]) for flag in flags if flag}
    places = [argument for argument, flag in zip(arguments, flags) if not flag]
    asked = {"-h", "--help"} & {*arguments}
    if asked or not places or any(place.startswith("-") for place in places):
        usage = " ".join(f"[--{name}={default}]" for name, default in LIMITS.items())
        usage = f"usage: python verify.py {usage} FOLDER...  (replays every artifact under the folders)"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    folders = []
    for place in places:
        contained = artifacts(pathlib.Path(place))
        if not contained:
            print(f"error: {printable(place)}: contains no artifact (a folder with manifest.json)", file=sys.stderr)
            return 2
        folders += contained
    code = 0
    for folder in folders:
        result = verify_alone(folder, limits)
        where = printable(str(folder))
        if "ok" in result:
            print(f"ok      {where}: {printable(result['ok'])}", flush=True)
        elif "missing" in result:
            code = code or 2
            why = f"{printable(result['missing'])}: install the package to replay this artifact"
            print(f"error: {where}: {why}", file=sys.stderr, flush=True)
        else:
            code = 4
            print(f"FAILED  {where}: {printable(result['failed'])}", flush=True)
    return code


def printable(text):
    """Returns a text on one line of at most 1,000 characters, with backslashes for characters that a terminal would not
    print as they are."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    coding = sys.stdout.encoding or "ascii"
    return text[:1000].encode(coding, "backslashreplace").decode(coding)


def verify_alone(folder, limits):
    """Runs `verify` in a process of its own and ends it when it exceeds a limit.

    limits: {name of LIMITS: value}; others have their default.

    Returns:
      {"ok": the line of `verify`, "measured": the result of `replay`}, {"failed": the reason}, or {"missing": the
      package that is not installed}.
    """
    try:
        size = sum(path.lstat().st_size for path in folder.rglob("*")) / 2**30  # GiB.
    except OSError as error:
        return {"failed": f"the folder cannot be read: {error.strerror}"}
    more = {"time_limit": int(300 * size), "memory_limit": int(3 * 1024 * size)}
    limits = {name: limits.get(name, default + more.get(name, 0)) for name, default in LIMITS.items()}
    # -P: no module is imported from the folder of this file. -B: nothing is written next to a library.
    command = [sys.executable, "-P", "-B", os.path.abspath(__file__), "--alone", json.dumps(limits), folder.absolute()]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=os.sep, start_new_session=True
        )
        try:
            code = process.wait(limits["time_limit"])
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than --time_limit={limits['time_limit']} seconds"}
        finally:
            if os.name == "posix":  # Also what it has started.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(max(0, err.seek(0, os.SEEK_END) - 2000))
        written, messages = out.read(2**20), err.read().decode(errors="replace")
    with contextlib.suppress(ValueError):
        return json.loads(written)
    if "bad_alloc" in messages or "MemoryError" in messages:
        return {"failed": f"needs more memory than --memory_limit={limits['memory_limit']} MiB"}
    ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    last = (messages.strip().splitlines() or ["without a message"])[-1]
    return {"failed": f"the process that checks it ended with {ending}: {last}"}


MEMORY = 0  # In that process, the bytes that it may take.


def in_limits(limits, folder):
    """Runs in that process: writes the result of `verify` as JSON to stdout, and to stderr everything else that a
    library prints."""
    global MEMORY
    result = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(ImportError):  # Windows does not have these limits.
        resource = importlib.import_module("resource")
        cpu = limits["time_limit"] * (os.cpu_count() or 1)  # Should the process that started this one be killed.
        for name, limit in (("CORE", 0), ("CPU", cpu), ("FSIZE", 2**20 * limits["output_limit"])):
            limit_resource(resource, f"RLIMIT_{name}", limit)
        MEMORY = 2**20 * limits["memory_limit"]
        limit_memory()
    try:
        manifest, measured = proof(folder)
        found = {"ok": line_of(manifest, measured), "measured": measured}
    except ImportError as error:
        found = {"missing": str(error)}
    except MemoryError:
        found = {"failed": f"needs more memory than --memory_limit={limits['memory_limit']} MiB"}
    except Failure as failure:
        found = {"failed": str(failure)}
    except BaseException as error:  # A damaged file may raise anything; PanicException of Rust is not an Exception.
        found = {"failed": f"{type(error).__name__}: {str(error)[:2000]}"}
        if any(word in str(error) for word in ("bad_alloc", "bad allocation", "Failed to allocate", "OOM when")):
            found = {"failed": f"needs more memory than --memory_limit={limits['memory_limit']} MiB"}
    os.write(result, json.dumps(found).encode())
    os._exit(0)  # Without the threads of a library that are still running.


def limit_resource(resource, name, limit):
    """Sets the soft limit, so that `library` can raise it, as far as the system and the hard limit allow."""
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def limit_memory():
    """Limits the memory of this process to what it has now and MEMORY more."""
    resource = importlib.import_module("resource")
    with contextlib.suppress(OSError):  # Only Linux has this file.
        (line,) = re.findall(r"VmData:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
        limit_resource(resource, "RLIMIT_DATA", 1024 * int(line) + MEMORY)


def library(name):
    """Imports a module of a runtime; what its own code takes does not count towards the limit of memory."""
    if not MEMORY:
        return importlib.import_module(name)
    resource = importlib.import_module("resource")
    limit_resource(resource, "RLIMIT_DATA", resource.RLIM_INFINITY)
    try:
        return importlib.import_module(name)
    finally:
        limit_memory()


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
    return line_of(*proof(folder))


def proof(folder):
    """Checks one artifact and returns its manifest and the result of `replay`; errors are those of `verify`."""
    manifest = read_manifest(folder)
    check_files(folder, manifest["files"])
    if "genai_config.json" in manifest["files"] or manifest.get("profile") == "genai":
        check_genai(folder)
    measured = replay(folder, manifest)
    if not any("difference" in value for value in measured.values()):
        raise Failure("golden.npz contains no numbers to compare")
    return manifest, measured


def line_of(manifest, measured):
    """Returns the line that describes the result of `proof`."""
    name = f"{manifest['kind']} {manifest['name']} version {manifest['version']}"
    numbers = {key: value for key, value in measured.items() if "difference" in value}
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
    """Returns the content of manifest.json, after checking its format, its own SHA-256, and the types of its fields."""
    path = folder / "manifest.json"
    if path.is_symlink() or not path.is_file():
        raise Failure("manifest.json is missing, or is not a regular file")
    if path.stat().st_size > MOST_JSON:
        raise Failure(f"manifest.json has more than {MOST_JSON:,} bytes")
    text = path.read_bytes().decode()
    try:
        manifest = json.loads(text)
    except RecursionError:
        raise Failure("manifest.json is nested too deeply") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Failure(f"manifest.json is not of the format {FORMAT}, the only one that is supported")
    stated = manifest.get("manifest_sha256")
    if not is_sha256(stated) or hashlib.sha256(text.replace(stated, "").encode()).hexdigest() != stated:
        raise Failure("manifest.json: its SHA-256 differs from its manifest_sha256")
    check_manifest(manifest)
    return manifest


def check_manifest(manifest):
    """Checks the fields of manifest.json that are read here: their types, and that names are names."""

    def check(holds, what):
        if not holds:
            raise Failure(f"manifest.json: {what}")

    def names(value, pattern=r"[\w.]+"):
        return isinstance(value, dict) and all(re.fullmatch(pattern, name, re.ASCII) for name in value)

    def check_signatures(signatures, where):
        check(names(signatures), f"{where} is not an object of names")
        for signature, sides in signatures.items():
            check(names(sides) and sides.keys() == {"inputs", "outputs"}, f"{where}/{signature} has other sides")
            for tensor in (tensor for tensors in sides.values() if names(tensors) for tensor in tensors.values()):
                good = names(tensor) and isinstance(tensor.get("dtype"), str) and isinstance(tensor.get("shape"), list)
                check(good, f"{where}/{signature} contains a tensor without dtype and shape")

    def check_tolerances(tolerances, most, where):
        check(names(tolerances) and all(map(names, tolerances.values())), f"{where} is not an object of names")
        for signature, outputs in tolerances.items():
            for output, limit in outputs.items():
                known: dict = limit if isinstance(limit, dict) and isinstance(limit.get("of"), str) else {"of": ""}
                widest = {"largest": most, "each": 10 * most}.get(known["of"], -1)
                good = type(known.get("allowed")) in (int, float) and 0 <= known["allowed"] <= widest + 1e-6
                check(good, f"{where}/{signature}/{output} is {limit!r}, not at most {most:.0e} of the largest number")

    kind, name, version = (manifest.get(field) for field in ("kind", "name", "version"))
    check(isinstance(kind, str), f"kind is {kind!r}")
    check(isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII), f"name is {name!r}")
    check(type(version) is int and version > 0, f"version is {version!r}")
    files = manifest.get("files")
    good = isinstance(files, dict) and all(
        isinstance(file, dict) and is_sha256(file.get("sha256")) for file in files.values()
    )
    check(good, "files does not have the SHA-256 of each file")
    options, precision = manifest.get("options", {}), manifest.get("precision", "float32")
    length = options.get("sequence_length", 1) if isinstance(options, dict) else None
    check(type(length) is int and length > 0, "options has no sequence_length")
    check(isinstance(precision, str) and precision in TOLERANCES, f"precision is {precision!r}")
    check_signatures(manifest.get("signatures"), "signatures")
    check_tolerances(manifest.get("tolerances"), TOLERANCES[precision], "tolerances")
    variants = manifest.get("variants", {})
    check(names(variants) and variants.keys() <= VARIANTS.keys(), f"variants is not an object of {', '.join(VARIANTS)}")
    for variant, details in variants.items():
        check(names(details), f"variants/{variant} is not an object of names")
        check_signatures(details.get("signatures", manifest["signatures"]), f"variants/{variant}/signatures")
        check_tolerances(details.get("tolerances"), VARIANTS[variant], f"variants/{variant}/tolerances")


def is_sha256(value):
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def check_files(folder, listed):
    """Checks that the files are those listed and that nothing refers to a place outside the folder: there are no links,
    and no tensors in files that do not belong to the artifact. Checks graphs as far as that needs no runtime."""
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
            check_onnx(path, name, listed)
        if name.endswith(".tflite"):
            check_litert(path)


# The operators that an ONNX graph may contain, by domain. Those of ONNX itself, in these domains, only compute.
ONNX = {"", "ai.onnx", "ai.onnx.ml"}
DOMAINS = {
    "com.microsoft": {"GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization"},
    "ai.onnx.contrib": {"GPT2Tokenizer", "SentencepieceTokenizer"},  # onnxruntime-extensions.
}
# The fields of ONNX's messages that lead to operators and tensors: {message: {field number: what the field contains}}.
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {1: "name", 7: "node", 10: "domain", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "name", 5: "attribute", 7: "domain"},
    "attribute": {1: "name", 4: "text", 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "name", 2: "text"},
}
MOST_NESTED = 100  # Graphs and other messages in one another.


def check_onnx(path, name, listed):
    """Checks the operators of a graph, of its functions and of the graphs inside it, and the files of its tensors."""
    operators, functions = set(), set()
    for kind, values in onnx_messages(path):
        place = tensor_file(kind, values)
        if place is not None and place not in listed:
            raise Failure(f"{name}: stores tensors in {place!r}, which is not a file of the artifact")
        operator = values.get("domain", b"").decode(errors="replace"), values.get("name", b"").decode(errors="replace")
        if kind == "node":
            operators.add(operator)
        elif kind == "function":
            functions.add(operator)
        elif kind == "attribute" and values.get("name") == b"model":  # Of SentencepieceTokenizer.
            check_sentencepiece(values.get("text", b""), name)
    for domain, operator in sorted(operators - functions):
        if domain not in ONNX and operator not in DOMAINS.get(domain, ()):
            raise Failure(f"{name}: contains the operator {domain}.{operator}, which is not one that only computes")


def external_data(path):
    """Yields the names of the files in which a graph stores tensors, exactly as written in the graph."""
    for kind, values in onnx_messages(path):
        if (place := tensor_file(kind, values)) is not None:
            yield place


def tensor_file(kind, values):
    """Returns the name of a file with tensors if one of onnx_messages names it, or None."""
    if kind == "entry" and values.get("name") == b"location":
        return values.get("text", b"").decode(errors="replace")
    return None


def onnx_messages(path):
    """Yields (message, {field: content}) for the messages of a graph that FIELDS names, with the fields that are text.

    The file is parsed here because verify.py does not require the package onnx.
    """

    def messages(message, begin, end, depth):
        values = {}
        for number, _, first, last in fields(data, begin, end):
            inner = FIELDS[message].get(number)
            if inner in FIELDS:
                if depth == MOST_NESTED:
                    raise Failure("is nested too deeply")
                yield from messages(inner, first, last, depth + 1)
            elif inner:
                values[inner] = data[first:last]  # The last one counts.
        yield message, values

    with open(path, "rb") as file:
        data = Blocks(file)
        try:
            yield from messages("model", 0, path.stat().st_size, 0)
        except Failure as failure:
            raise Failure(f"{path.name}: {failure}") from None


class Blocks:
    """The bytes of a file, which is read in blocks where they are asked for. Weights are passed over."""

    SIZE = 2**16

    def __init__(self, file):
        self.file, self.begin, self.block = file, 0, b""

    def __getitem__(self, at):
        if isinstance(at, slice):
            self.file.seek(at.start)
            return self.file.read(at.stop - at.start)
        if not 0 <= at - self.begin < len(self.block):
            self.file.seek(at)
            self.begin, self.block = at, self.file.read(self.SIZE)
        return self.block[at - self.begin]


def fields(data, at, end, what="an ONNX file"):
    """Yields for each field of a protocol buffer, data[at:end]: its number, the offset of the field, the offset of its
    content, and its end."""

    def varint(at):
        value = 0
        for i in range(10):  # Longer ones are invalid.
            if at + i >= end:
                break
            value |= (data[at + i] & 0x7F) << 7 * i
            if not data[at + i] & 0x80:
                return value, at + i + 1
        raise Failure(f"is not {what}")

    while at < end:
        begin, (key, at) = at, varint(at)
        content, kind = at, key & 7
        if key >> 32 or kind not in (0, 1, 2, 5):  # Other readers would use only the lower bits.
            raise Failure(f"is not {what}")
        if kind == 2:
            size, content = varint(at)
            at = content + size
        else:
            at = varint(at)[1] if kind == 0 else at + {1: 8, 5: 4}[kind]
        if at > end:
            raise Failure(f"is not {what}")
        yield key >> 3, begin, content, at


def check_sentencepiece(model, name):
    """Checks the normalisation tables of a SentencePiece model, which its library follows outside its memory."""
    try:
        for number, _, begin, end in fields(model, 0, len(model), "a SentencePiece model"):
            if number in (3, 5):  # normalizer_spec, denormalizer_spec
                for part, _, first, last in fields(model, begin, end, "a SentencePiece model"):
                    if part == 2 and first < last:
                        check_charsmap(model[first:last])
    except Failure as failure:
        raise Failure(f"{name}: the model of a tokenizer {failure}") from None


def check_charsmap(table):
    """Checks a precompiled_charsmap: the trie of a double array (Darts), and the texts that replace its keys."""
    size = int.from_bytes(table[:4], "little")
    if size % 4 or not 0 < size < len(table) - 4:
        raise Failure("has a damaged normalisation table")
    units, texts = np.frombuffer(table, "<u4", size // 4, 4).astype(np.int64), table[4 + size :]
    # Where the transitions of each unit begin; the unit after a byte is at that place, combined with the byte.
    begins = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    states, keys, letters = np.zeros(1, np.int64), np.zeros(1, np.int64), np.arange(256)
    for _ in range(66):  # Keys of up to 64 bytes.
        if not len(states):
            return
        if ((begins[states] | 255) >= len(units)).any() or keys.max() > 32 or len(states) > 100_000:
            break
        at, found = [], []
        for first in range(0, len(states), 4096):  # To save memory.
            children = begins[states[first : first + 4096], None] ^ letters
            parents, bytes_of = np.nonzero((units[children] & (1 << 31 | 255)) == letters)
            at.append(first + parents)
            found.append(children[parents, bytes_of])
        parents, children = np.concatenate(at), np.concatenate(found)
        ends = (units[children] >> 8 & 1) == 1  # Of keys.
        values = begins[children[ends]]
        if values.max(initial=0) >= len(units):
            break
        if any(texts.find(b"\0", begin) < 0 for begin in set((units[values] & 0x7FFFFFFF).tolist())):
            break
        states, which = np.unique(children, return_inverse=True)
        nested = np.zeros(len(states), np.int64)
        np.maximum.at(nested, which, keys[parents] + ends)
        keys = nested
    raise Failure("has a damaged normalisation table")


def check_litert(path):
    """Checks that a LiteRT model contains builtin operators only; a custom one may be any operation of TensorFlow.

    https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
    """
    data = path.read_bytes()

    def number(form, at):
        return struct.unpack_from(form, data, at)[0]

    def field(table, index):
        """Returns the offset of a field's content, or 0 if the table lacks the field."""
        layout = table - number("<i", table)
        at = 4 + 2 * index
        offset = number("<H", layout + at) if at < number("<H", layout) else 0
        return table + offset if offset else 0

    try:
        codes = field(number("<I", 0), 1)
        codes += number("<I", codes) if codes else 0
        for i in range(number("<I", codes) if codes else 0):
            at = codes + 4 + 4 * i
            if custom := field(at + number("<I", at), 1):
                begin = custom + number("<I", custom)
                operator = data[begin + 4 : begin + 4 + number("<I", begin)].decode(errors="replace")
                raise Failure(f"{path.name}: contains {operator[:80]!r}, which is not a builtin operator")
    except struct.error:
        raise Failure(f"{path.name}: is not a LiteRT model") from None


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
        cases = read_golden(folder)
        check_cases(cases, manifest)
        run, signatures = load(folder, manifest)
        check_signatures(signatures, manifest["signatures"])
        return compare_all(run, cases, manifest["tolerances"])

    return replay


def replay_onnx(folder, manifest):
    """Replays the graphs of an ONNX artifact, its variants, and its folder for onnxruntime-genai."""
    cases = read_golden(folder)
    check_cases(cases, manifest)
    measured: dict[str, dict] = {}
    shared = manifest.get("profile") == "genai"
    for variant, details in {"": manifest, **manifest.get("variants", {})}.items():
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
            if name not in got:
                raise Failure(f"{where} is not an output of the model")
            limit = tolerances[signature].get(name)
            values = want["values"] if isinstance(want, dict) else want
            if limit is not None and values.dtype.kind != "f":
                raise Failure(f"{where} has a tolerance, but its values are {values.dtype}")
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
    for where, total in measured.items():
        if total.get("numbers") == 0:
            raise Failure(f"golden.npz contains no numbers of {where} to compare")
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
    tokenizer = library("tokenizers").Tokenizer.from_file(str(paths[0]))
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
    path = folder / "golden.npz"
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist()) > MOST_GOLDEN:
            raise Failure(f"golden.npz inflates to more than {MOST_GOLDEN:,} bytes")
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+/(inputs|outputs)/[\w.-]+(/\w+)?", key, re.ASCII):
                raise Failure(f"golden.npz contains {key!r}, which is not SIGNATURE/CASE/inputs or outputs/NAME")
            signature, case, side, name, *part = key.split("/")
            if (signature == "tokenizer") != tokenizer:
                continue
            values = cases.setdefault((signature, case), {"inputs": {}, "outputs": {}})[side]
            if part:
                values.setdefault(name, {})[part[0]] = arrays[key]
            else:
                values[name] = arrays[key]
    return cases


def check_cases(cases, manifest):
    """Checks that golden.npz has the cases that the artifact contract promises.

    For ids: three batch sizes, three lengths up to the longest (fewer if the model reads few tokens or only one
    length), and padding. For texts: no text, an empty one (unless the model refuses it), one that is truncated, and
    one that is not ASCII. Every output of the model is compared.
    """
    stated, onnx = manifest["signatures"], manifest["kind"] == "onnx"
    length = manifest["options"]["sequence_length"]
    cached = any(name.startswith("past") for sides in stated.values() for name in sides["inputs"])
    required = {"tokens", "generate"} if onnx and cached else {"tokens"} if onnx else stated.keys()
    by_signature = {signature: [sides for (of, _), sides in cases.items() if of == signature] for signature in required}
    graph = "tokens" if not onnx else "decoder_with_past_model" if "encoder_model" in stated else "model"

    def check(holds, what):
        if not holds:
            raise Failure(f"golden.npz: {what}")

    check(
        {signature for signature, _ in cases} == required, f"does not have the cases of {', '.join(sorted(required))}"
    )
    for signature, found in by_signature.items():
        if signature != "generate" or not onnx:
            outputs = stated[graph if onnx else signature]["outputs"]
            outputs = {name for name in outputs if not (onnx and name.startswith("present"))}
            check(all(sides["outputs"].keys() == outputs for sides in found), f"{signature} lacks outputs of the model")
    # Ids.
    name = "input_ids" if onnx else "token_ids"
    inputs = [sides["inputs"] for sides in by_signature["tokens"]]
    check(all(name in case and case[name].ndim == 2 for case in inputs), "the cases of tokens have no ids")
    check(len({len(case[name]) for case in inputs}) >= 3, "the cases of tokens have fewer than three batch sizes")
    lengths = {case[name].shape[1] for case in inputs}
    reading = stated["encoder_model" if "encoder_model" in stated else graph]["inputs"][name]
    fixed = reading["shape"][1:] == [length]
    wanted = {length} if fixed else {max(1, length // 16), max(1, length // 4), length}
    # A decoder with a cache may be compared only up to the length at which its rotary scaling changes.
    if max(lengths) == length or not cached:
        check(max(lengths) == length, "the cases of tokens do not have the longest length")
        check(len(lengths) >= len(wanted), f"the cases of tokens have fewer than {len(wanted)} lengths")
    masks = [case[mask] for case in inputs for mask in ("attention_mask", "padding_mask") if mask in case]
    check(length < 3 or not masks or any((mask == 0).any() for mask in masks), "the cases of tokens have no padding")
    # Texts.
    texts_in = stated.get("serving_default", {"inputs": {}})["inputs"].values()
    if not texts_in or any(tensor["dtype"] != "string" for tensor in texts_in):
        return
    found = by_signature["serving_default"]
    texts = [text for sides in found for values in sides["inputs"].values() for text in values.tolist()]
    sizes = {len(values) for sides in found for values in sides["inputs"].values()}
    check(
        0 in sizes and len(sizes) >= 3, "the cases of serving_default have fewer than three numbers of texts, or not 0"
    )
    check(not all(text.isascii() for text in texts), "the cases of serving_default have only ASCII texts")
    # What reads marked entities refuses an empty text, as does what writes texts if nothing is added to the ids.
    bare = not any("id" in part for part in manifest.get("frame", []))
    refused = "markers" in manifest or ("generation" in manifest and bare)
    check("" in texts or refused, "the cases of serving_default have no empty text")
    truncated = any(sides["outputs"]["truncated"].any() for sides in found)
    refuses = manifest["options"].get("long_texts") == "refuse"
    check(truncated or refuses, "the cases of serving_default have no truncated text")


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
    onnxruntime = library("onnxruntime")
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
    genai = library("onnxruntime_genai")
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
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "true")  # Otherwise it keeps the memory of freed tensors.
    tf = library("tensorflow")
    library("tensorflow_text")  # The tokenizer's ops.
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


INIT = "__saved_model_init_op"  # A signature that servers run first; it fills tables.
# The operations of TensorFlow and TensorFlow Text that a SavedModel may contain. They compute, or keep state in memory;
# none accesses files, other processes or Python, prints, waits, or runs a program that cannot be read here (XLA's).
OPERATIONS = set(
    """
    Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproxTopK ApproximateEqual ArgMax ArgMin AsString
    Asin Asinh Assert Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp AssignVariableOp Atan Atan2
    Atanh AvgPool AvgPool3D AvgPoolGrad BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND Betainc BiasAdd
    BiasAddGrad BiasAddV1 Bincount Bitcast BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs BroadcastGradientArgs
    BroadcastTo Bucketize Case Cast Ceil Cholesky ClipByValue Complex ComplexAbs Concat ConcatOffset ConcatV2 Conj
    Const ControlTrigger Conv2D Conv2DBackpropFilter Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cos Cosh
    CropAndResize Cross Cumprod Cumsum CumulativeLogsumexp DecodeBase64 DecodeBmp DecodeGif DecodeImage DecodeJpeg
    DecodePng DecodeRaw DenseBincount DenseToDenseSetOperation DepthToSpace DepthwiseConv2dNative Dequantize Diag
    DiagPart Digamma DisableCopyOnRead Div DivNoNan DynamicPartition DynamicStitch Einsum Elu EluGrad
    EmptyTensorList EncodeBase64 EnsureShape Enter Equal Erf Erfc Erfinv EuclideanNorm Exit Exp ExpandDims Expm1
    ExtractImagePatches FFT FFT2D FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel
    Fill Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormGradV3 FusedBatchNormV2 FusedBatchNormV3 Gather
    GatherNd GatherV2 Greater GreaterEqual HashTable HashTableV2 HistogramFixedWidth IFFT IFFT2D IRFFT IRFFT2D
    Identity IdentityN If Igamma IgammaGradA Igammac Imag InTopK InTopKV2 InitializeTable InitializeTableV2
    InplaceAdd InplaceSub InplaceUpdate Inv InvGrad Invert InvertPermutation IsFinite IsInf IsNan
    IsVariableInitialized L2Loss LRN LeakyRelu LeakyReluGrad LeftShift Less LessEqual Lgamma LinSpace ListDiff Log
    Log1p LogMatrixDeterminant LogSoftmax LogicalAnd LogicalNot LogicalOr LookupTableExportV2 LookupTableFind
    LookupTableFindV2 LookupTableImport LookupTableImportV2 LookupTableInsertV2 LookupTableSize LookupTableSizeV2
    LoopCond LowerBound MatMul MatrixBandPart MatrixDeterminant MatrixDiag MatrixDiagPart MatrixDiagPartV2
    MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixInverse MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3
    MatrixSolve MatrixTriangularSolve Max MaxPool MaxPool3D MaxPoolGrad MaxPoolV2 Maximum Mean Merge Min Minimum
    MirrorPad MirrorPadGrad Mod Mul MulNoNan Multinomial MutableDenseHashTableV2 MutableHashTableV2 Neg
    NextIteration NoOp NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4
    NonMaxSuppressionV5 NotEqual NthElement OneHot OnesLike Pack Pad PadV2 ParallelConcat ParallelDynamicStitch
    ParseExample ParseExampleV2 ParseSequenceExample ParseSequenceExampleV2 ParseSingleExample PartitionedCall
    Placeholder PlaceholderWithDefault Polygamma PopulationCount Pow PreventGradient Prod Qr QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4 QuantizeV2 RFFT RFFT2D RaggedBincount RaggedGather RaggedRange
    RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant RandomGamma
    RandomPoissonV2 RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt Range Rank ReadVariableOp Real
    RealDiv Reciprocal ReciprocalGrad ReduceJoin RefEnter RefExit RefIdentity RefMerge RefNextIteration RefSelect
    RefSwitch RegexFullMatch RegexReplace Relu Relu6 Relu6Grad ReluGrad Reshape ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterMax
    ResourceScatterMin ResourceScatterMul ResourceScatterNdAdd ResourceScatterNdUpdate ResourceScatterSub
    ResourceScatterUpdate ResourceStridedSliceAssign Reverse ReverseSequence ReverseV2 RightShift Rint
    RngReadAndSkip Roll Round Rsqrt RsqrtGrad ScaleAndTranslate ScatterAdd ScatterNd ScatterNdUpdate ScatterUpdate
    SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2 SegmentSum SegmentSumV2
    Select SelectV2 SelfAdjointEigV2 Selu SeluGrad Shape ShapeN ShardedFilename Sigmoid SigmoidGrad Sign Sin Sinh
    Size Slice Snapshot Softmax SoftmaxCrossEntropyWithLogits Softplus SoftplusGrad Softsign SoftsignGrad
    SpaceToBatchND SpaceToDepth SparseAdd SparseBincount SparseConcat SparseCross SparseCrossV2 SparseDenseCwiseAdd
    SparseDenseCwiseMul SparseFillEmptyRows SparseMatMul SparseReduceMax SparseReduceSum SparseReorder SparseReshape
    SparseSegmentMean SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNWithNumSegments
    SparseSegmentSum SparseSegmentSumWithNumSegments SparseSlice SparseSoftmax SparseSoftmaxCrossEntropyWithLogits
    SparseSplit SparseTensorDenseMatMul SparseToDense Split SplitV Sqrt SqrtGrad Square SquaredDifference Squeeze
    StatefulPartitionedCall StatefulStandardNormalV2 StatefulUniform StatefulUniformFullInt StatefulUniformInt
    StatelessCase StatelessIf StatelessMultinomial StatelessRandomGetAlg StatelessRandomGetKeyCounter
    StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
    StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 StatelessRandomUniformInt
    StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessShuffle StatelessTruncatedNormal
    StatelessTruncatedNormalV2 StatelessWhile StaticRegexFullMatch StaticRegexReplace StopGradient StridedSlice
    StridedSliceGrad StringFormat StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2
    StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Sub
    Substr Sum Svd Switch Tan Tanh TanhGrad TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3
    TensorArrayReadV3 TensorArrayScatterV3 TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3 TensorArrayWriteV3
    TensorListConcat TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather
    TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack TensorListReserve TensorListResize
    TensorListScatter TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack TensorScatterAdd
    TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile TopK TopKV2
    Transpose TridiagonalSolve TruncateDiv TruncateMod TruncatedNormal UnicodeDecode UnicodeDecodeWithOffsets
    UnicodeEncode UnicodeScript UnicodeTranscode Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack
    UnravelIndex UnsortedSegmentJoin UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum
    UpperBound VarHandleOp VarIsInitializedOp Variable VariableShape VariableV2 Where While Xdivy Xlog1py Xlogy
    ZerosLike

    ConstrainedSequence FastWordpieceTokenizeWithOffsets NormalizeUTF8 NormalizeUTF8WithOffsetsMap
    RegexSplitWithOffsets SentenceFragments SentencepieceDetokenizeOp SentencepieceIdToStringOp SentencepieceOp
    SentencepieceStringToIdOp SentencepieceTokenizeOp SentencepieceTokenizeWithOffsetsOp SentencepieceVocabSizeOp
    UnicodeScriptTokenizeWithOffsets WhitespaceTokenizeWithOffsets WordpieceTokenizeWithOffsets
    """.split()
)
INITIAL = ("saved_model_main_op", "legacy_init_op")  # Collections with operations that run when a graph is loaded.
FROM_FILE = {"InitializeTableFromTextFile", "InitializeTableFromTextFileV2"}


def only_computes(node):
    """Returns whether a node's operation is one that an artifact may contain wherever it is."""
    return node.op in OPERATIONS


def check_graph(graph, folder, computes=only_computes):
    """Checks that a graph of a SavedModel, a MetaGraphDef, does nothing but compute. It is not loaded for that.

    Only the saver may access files, and tables may be read from the SavedModel's own assets. A server passes it the
    paths of the variables when it loads the SavedModel, and those of the assets when it runs the initial operation, so
    nothing else may lead to these operations: in a call of a signature, the path would be what the graph contains.

    Args:
      graph: the message.
      folder: the folder of the SavedModel, to check that its assets exist.
      computes: node -> whether its operation may be anywhere; it must be false for operations that access files.

    Raises:
      Failure: an operation does not only compute, a file would be accessed in another way, the model of a tokenizer is
        damaged, or the graph is malformed.
    """
    try:
        check_operations(graph, check_assets(graph, folder), computes)
    except (IndexError, KeyError) as error:
        raise Failure(f"saved_model.pb: is malformed ({type(error).__name__}: {error})") from None


def check_assets(graph, folder):
    """Returns the names of the nodes that are paths of assets, after checking that the assets exist."""
    assets = list(graph.asset_file_def)
    if "saved_model_assets" in graph.collection_def:  # Of TensorFlow 1.
        for packed in graph.collection_def["saved_model_assets"].any_list.value:
            assets.append(type(graph)().asset_file_def.add())
            assets[-1].MergeFromString(packed.value)
    for asset in assets:
        path = pathlib.PurePath(asset.filename)
        if path.is_absolute() or ".." in path.parts or not (folder / "assets" / path).is_file():
            raise Failure(f"saved_model.pb: reads {asset.filename!r}, which is not a file in assets/")
    return {node_of(asset.tensor_info.name) for asset in assets}


def check_operations(graph, assets, computes):
    """Checks the operations of a graph and of its functions; see check_graph."""
    nodes = {node.name: node for node in graph.graph_def.node}
    functions = {function.signature.name: function for function in graph.graph_def.library.function}
    if len(nodes) < len(graph.graph_def.node) or len(functions) < len(graph.graph_def.library.function):
        raise Failure("saved_model.pb: two nodes or functions have the same name")
    parts = [("", graph.graph_def.node), *((name, function.node_def) for name, function in functions.items())]
    variables = [shared_name(node) for _, part in parts for node in part if node.op == "VarHandleOp"]
    called_in_functions = {name for of, part in parts if of for node in part for name in called_by(node)}
    path, save, restore = map(
        node_of,
        (graph.saver_def.filename_tensor_name, graph.saver_def.save_tensor_name, graph.saver_def.restore_op_name),
    )
    saving, restoring = (
        called_by(nodes[name]) & functions.keys() if name in nodes else set() for name in (save, restore)
    )
    # What runs when variables are saved, when they are restored, in the initial operation, and in signatures.
    saved, restored = before(nodes, [save]), before(nodes, [restore])
    outputs = {name: [tensor.name for tensor in each.outputs.values()] for name, each in graph.signature_def.items()}
    collections = [graph.collection_def[key].node_list.value for key in INITIAL if key in graph.collection_def]
    first = [*outputs.pop(INIT, ()), *(name for collection in collections for name in collection)]
    initial, served = (
        before(nodes, first),
        before(nodes, [tensor for tensors in outputs.values() for tensor in tensors]),
    )

    def accesses_its_own(of, node):
        """Returns whether an operation is one that a SavedModel has for its own files; `of` is its function."""
        if node.op == "SaveV2" or node.op == "MergeV2Checkpoints":
            return of in saving - restoring if of else node.name in saved - restored - initial - served
        if node.op == "RestoreV2":
            prefix = node_of(node.input[0])
            if of:
                names = [argument.name for argument in functions[of].signature.input_arg]
                return (
                    of in restoring and prefix in names and node_of(nodes[restore].input[names.index(prefix)]) == path
                )
            for _ in range(2):
                if prefix != path and nodes[prefix].op in ("Identity", "ShardedFilename"):
                    prefix = node_of(nodes[prefix].input[0])
            return node.name in restored - initial - served and prefix == path
        return node.op in FROM_FILE and reads_asset(of, node)

    def reads_asset(of, node):
        """Returns whether a table is read from an asset whenever that happens."""
        file = node_of(node.input[1])
        if not of:
            return node.name not in saved | restored | served and is_asset(file)
        names = [argument.name for argument in functions[of].signature.input_arg]
        if file not in names or of in called_in_functions:
            return False
        at = names.index(file)
        calls = [call for call in nodes.values() if of in called_by(call)]
        if any(call.name in saved | restored | served or not is_asset(node_of(call.input[at])) for call in calls):
            return False
        objects = graph.object_graph_def
        if of not in objects.concrete_functions:
            return True
        # What tf.saved_model.load passes: the bound inputs are the last ones.
        bound = objects.concrete_functions[of].bound_inputs
        at -= len(names) - len(bound)
        return at >= 0 and objects.nodes[bound[at]].WhichOneof("kind") == "asset"

    def is_asset(name):
        """Returns whether a node is the path of an asset, or the value of a variable that can be nothing else."""
        if name in assets or nodes[name].op != "ReadVariableOp":
            return name in assets
        variable = node_of(nodes[name].input[0])
        users = [user for user in nodes.values() if variable in map(node_of, user.input)]
        return variables.count(shared_name(nodes[variable])) == 1 and all(
            user.op in ("ReadVariableOp", "VarIsInitializedOp")
            or (user.op == "AssignVariableOp" and node_of(user.input[1]) in assets)
            for user in users
        )

    for of, part in parts:
        for node in part:
            if not computes(node) and not accesses_its_own(of, node):
                raise Failure(
                    f"saved_model.pb: {node.name} ({node.op}) is not an operation that only computes, or accesses "
                    "something other than an asset"
                )
            elsewhere = {save: restored | initial | served, restore: initial | served}.get(node.name, {node.name})
            if called_by(node) & (saving | restoring) and (of or node.name in elsewhere):
                raise Failure(f"saved_model.pb: {node.name} ({node.op}) saves or restores variables")
            if node.op == "SentencepieceOp":
                check_sentencepiece(node.attr["model"].s, "saved_model.pb")


def node_of(tensor):
    """Returns the name of a tensor's node."""
    return tensor.removeprefix("^").partition(":")[0]


def shared_name(node):
    """Returns the name under which nodes share a variable."""
    return (node.attr["shared_name"].s if "shared_name" in node.attr else b"") or node.name.encode()


def called_by(node):
    """Returns the names of the functions that a node calls; TensorFlow 1 has operations with the names of functions."""
    values = node.attr.values()
    names = {name for value in values for name in (value.func.name, *(f.name for f in value.list.func)) if name}
    return {node.op} | names


def before(nodes, names):
    """Returns the names of the nodes on which the tensors or nodes `names` depend, including themselves."""
    result, left = set(), list(names)
    while left:
        name = node_of(left.pop())
        if name in nodes and name not in result:
            result.add(name)
            left += nodes[name].input
    return result


def check_saved_model(folder, signatures):
    """Checks each graph of a SavedModel with check_graph, and what tf.saved_model.load does not look at.

    TF Serving feeds the tensors that saved_model.pb names as a signature's inputs, so these must reach the arguments of
    the same names.
    """
    protos = library("tensorflow.core.protobuf.saved_model_pb2")
    saved = protos.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    for graph in saved.meta_graphs:
        check_graph(graph, folder)
        nodes = {node.name: node for node in graph.graph_def.node}
        functions = {function.signature.name: function for function in graph.graph_def.library.function}
        saver = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
        if unmatched := graph.signature_def.keys() - {INIT} ^ signatures.keys():
            raise Failure(
                f"saved_model.pb: the signature {min(unmatched)} is only in one of saved_model.pb and manifest.json"
            )
        for name, signature in graph.signature_def.items():
            if name == INIT:
                continue
            outputs = {key: tensor.name.partition(":") for key, tensor in signature.outputs.items()}
            call = nodes.get(next(iter(outputs.values()), ("",))[0])
            if call is None or call.name in saver or call.attr["f"].func.name not in functions:
                raise Failure(f"saved_model.pb: {name} does not call a function of its own")
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
        interpreter = library("ai_edge_litert.interpreter").Interpreter
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        interpreter = library("tensorflow").lite.Interpreter
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
