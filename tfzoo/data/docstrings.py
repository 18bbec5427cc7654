"""The docstrings of the packages that tfzoo depends on: real English text without a download.

The list of packages is fixed, and only the files that each distribution installed are read: other packages in the
environment have no effect, and a missing package is an error. Thus the fingerprint is determined by the versions of the
packages and of Python.

Sources are parsed, never imported, in separate processes: a pool of `multiprocessing` would either fork a process with
running TensorFlow threads, or import the main module, and with it TensorFlow, again in each worker. The result is
cached under its fingerprint.

A document consists of the docstrings of one module, in the order of the source. No sentence appears twice in the
corpus. The held-out part consists of whole packages, whose sentences are removed from the training part.
"""

import ast
import concurrent.futures
import csv
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Mapping, Set
from typing import Any

from tfzoo import files
from tfzoo.data import prose
from tfzoo.data.documents import Corpus, Document, sizes
from tfzoo.errors import UserError

NAME = "docstrings"  # The value of --corpus.
VERSION = 1  # Incremented when the result for the same docstrings changes.

# Import name -> distribution, for packages that `pip install 'tfzoo[export]'` installs.
PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "dateutil": "python-dateutil",
    "flatbuffers": "flatbuffers",
    "fontTools": "fonttools",
    "fsspec": "fsspec",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "h5py": "h5py",
    "huggingface_hub": "huggingface-hub",
    "keras": "keras",
    "markdown": "markdown",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "opt_einsum": "opt-einsum",
    "optree": "optree",
    "packaging": "packaging",
    "pygments": "pygments",
    "pyparsing": "pyparsing",
    "requests": "requests",
    "rich": "rich",
    "tensorboard": "tensorboard",
    "tensorflow": "tensorflow",
    "tensorflow_text": "tensorflow-text",
    "tqdm": "tqdm",
    "urllib3": "urllib3",
    "werkzeug": "werkzeug",
    "wrapt": "wrapt",
    "yaml": "pyyaml",
}
STANDARD_LIBRARY = "python"
ALL = PACKAGES | {STANDARD_LIBRARY: ""}
_MANY = 100  # Minimum number of files for which starting processes is worthwhile.
HELD_OUT = frozenset({"tensorboard", "onnx", "werkzeug", "asyncio", "email"})

_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test __pycache__ site-packages dist-packages _vendor vendor extern externals "
    "_bundled lib2to3 turtledemo idlelib".split()
)
_SKIPPED_FILES = re.compile(r".*_test\.py|test_.*\.py|.*_pb2(?:_grpc)?\.py|_sysconfigdata.*\.py|conftest\.py|LICENSE.*")


def _is_read(name: str) -> bool:
    """Returns whether the file with the path `name` within its package is read."""
    *folders, file = name.split("/")
    return file.endswith(".py") and not _SKIPPED_FILES.fullmatch(file) and not _SKIPPED_FOLDERS.intersection(folders)


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorts files by name; in each folder, files precede subfolders."""

    def key(name: str) -> list[tuple[bool, str]]:
        *folders, file = name.split("/")
        return [*((True, folder) for folder in folders), (False, file)]

    return sorted(names, key=key)


def _installed(package: str, distribution: str) -> tuple[str, dict[str, pathlib.Path]]:
    """Returns the version of a distribution and its files of a package: name within the package -> path.

    Raises:
      UserError: the distribution is not installed, or does not list its files.
    """
    try:
        metadata = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"--corpus={NAME}: the package {distribution}, which is part of this corpus, is not installed; run "
            f"pip install {distribution}, or specify files with --corpus"
        ) from None
    record = metadata.read_text("RECORD")
    if record is None:
        raise UserError(
            f"--corpus={NAME}: {distribution} has no list of its files (RECORD); run pip install --force-reinstall "
            f"{distribution}, or specify files with --corpus"
        )
    prefix, root = package.replace(".", "/") + "/", pathlib.Path(str(metadata.locate_file("")))
    names = (line[0] for line in csv.reader(record.splitlines()) if line and line[0].startswith(prefix))
    return metadata.version, {name.removeprefix(prefix): root / name for name in names}


def _standard_library() -> dict[str, pathlib.Path]:
    """Returns the files of the standard library: name within it -> path."""
    root, paths = pathlib.Path(sysconfig.get_path("stdlib")), {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for path in (pathlib.Path(folder, name) for name in names):
            paths[path.relative_to(root).as_posix()] = path
    return paths


def _sources(packages: Mapping[str, str]) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Returns the files to read, [(source, name within the corpus, path)], and {package: version}.

    Raises:
      UserError: a package is not installed.
    """
    sources, versions = [], {}
    for package, distribution in sorted(packages.items(), key=lambda item: (item[0] == STANDARD_LIBRARY, item)):
        if package == STANDARD_LIBRARY:
            versions[package], paths = platform.python_version(), _standard_library()
        else:
            versions[package], paths = _installed(package, distribution)
        for name in _in_order(filter(_is_read, paths)):
            source = package.rpartition(".")[2]
            if package == STANDARD_LIBRARY:
                source = name.partition("/")[0].removesuffix(".py")
                if source not in sys.stdlib_module_names and source != "pydoc_data":
                    continue
            sources.append((source, f"{package}/{name}", str(paths[name])))
    return sources, versions


def extract(source: bytes | str) -> list[str]:
    """Returns the docstrings of a module in the order of its source: those of the module, its classes and functions,
    NumPy's `add_newdoc` calls (for compiled functions) and the standard library's `topics` (the language reference).

    Raises:
      SyntaxError, ValueError, RecursionError: `source` is not valid Python.
    """
    docstrings: list[str] = []

    def strings(node: ast.AST) -> list[str]:
        constants = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
        constants.sort(key=lambda n: (n.lineno, n.col_offset))
        return [n.value for n in constants if isinstance(n.value, str)]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                docstrings.append(docstring)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = getattr(node.value.func, "id", getattr(node.value.func, "attr", ""))
            if name.startswith("add_newdoc") and node.value.args:
                docstrings.extend(text for text in strings(node.value.args[-1]) if " " in text)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if getattr(node.targets[0], "id", "") == "topics":
                docstrings.extend(text for value in node.value.values for text in strings(value))
        for block in ("body", "handlers", "orelse", "finalbody"):
            for child in getattr(node, block, None) or ():
                if isinstance(child, ast.AST):
                    visit(child)

    visit(ast.parse(source))
    return docstrings


def _clean_file(path: str) -> list[list[list[str]]] | None:
    """Returns [docstring][paragraph][sentence] of one file, or None if it cannot be parsed."""
    try:
        docstrings = extract(files.read_bytes(path))
    except (SyntaxError, ValueError, RecursionError):
        return None
    return [prose.paragraphs(docstring) for docstring in docstrings]


def _worker() -> None:
    """Runs in each process: reads paths as JSON from standard input and writes their prose to standard output."""
    warnings.simplefilter("ignore")  # Invalid escape sequences in the sources.
    json.dump([_clean_file(path) for path in json.load(sys.stdin)], sys.stdout)


def _clean(paths: list[str]) -> list[list[list[list[str]]] | None]:
    """Applies `_clean_file` to each path, in one process per core, at most 8."""
    count = max(1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8))
    root = str(pathlib.Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    }
    environment["PYTHONIOENCODING"] = "utf-8"

    def run(part: list[str]) -> list[Any]:
        command = [sys.executable, "-c", "from tfzoo.data import docstrings; docstrings._worker()"]
        done = subprocess.run(
            command, input=json.dumps(part).encode(), stdout=subprocess.PIPE, env=environment, check=True
        )
        return json.loads(done.stdout)

    if len(paths) < _MANY:
        return [_clean_file(path) for path in paths]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        parts = list(pool.map(run, [paths[i::count] for i in range(count)]))
    return [parts[i % count][i // count] for i in range(len(paths))]


def _fingerprint(sources: list[tuple[str, str, str]], versions: dict[str, str], held_out: Set[str]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, prose.VERSION, versions, sorted(held_out)]).encode())
    for _, name, path in sources:
        try:
            digest.update(f"\n{name} {files.sha256(path)}".encode())
        except UserError as error:
            problem = str(error).partition(";")[0]
            raise UserError(
                f"--corpus={NAME}: {problem}; reinstall its package, or specify files with --corpus"
            ) from None
    return digest.hexdigest()


def _key(sentence: str) -> bytes:
    """Returns a key that is equal for sentences that differ only in case, punctuation and numbers."""
    text = re.sub(r"\d+", "0", re.sub(r"[\W_]+", " ", sentence.lower()))
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _documents(
    sources: list[tuple[str, str, str]], cleaned: list[Any], seen: set[bytes]
) -> tuple[list[Document], dict[str, int]]:
    """Returns documents of all sentences whose keys are not in `seen`, and counts; adds the keys to `seen`."""
    documents = []
    counts = dict.fromkeys(("files", "files_unparsed", "docstrings", "without_prose", "duplicates", "kept"), 0)
    for (source, _, _), docstrings in zip(sources, cleaned, strict=True):
        counts["files"] += 1
        if docstrings is None:
            counts["files_unparsed"] += 1
            continue
        sentences: list[str] = []
        for paragraphs in docstrings:
            before = len(sentences)
            for sentence in (sentence for paragraph in paragraphs for sentence in paragraph):
                key = _key(sentence)
                if key not in seen:
                    seen.add(key)
                    sentences.append(sentence)
            counts["docstrings"] += 1
            kept = "kept" if len(sentences) > before else "duplicates" if paragraphs else "without_prose"
            counts[kept] += 1
        if len(sentences) > 1:
            documents.append(Document(source, sentences))
    return documents, counts


def _load(path: pathlib.Path) -> Corpus | None:
    """Reads a corpus written by `_store`; returns None if it is missing or damaged."""
    try:
        digest, _, payload = files.read_bytes(path).partition(b"\n")
    except UserError:
        return None
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        return None
    stored = json.loads(payload)
    parts = {part: [Document(*document) for document in stored.pop(part)] for part in ("train", "held_out")}
    return Corpus(stored["name"], stored["fingerprint"], parts["train"], parts["held_out"], stored["report"])


def _store(corpus: Corpus, path: pathlib.Path) -> None:
    parts = {part: [[d.source, d.sentences] for d in getattr(corpus, part)] for part in ("train", "held_out")}
    stored = {"name": corpus.name, "fingerprint": corpus.fingerprint, "report": corpus.report, **parts}
    payload = json.dumps(stored, ensure_ascii=False).encode()
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def fingerprint() -> str:
    """Returns the fingerprint of the corpus without parsing it."""
    return _fingerprint(*_sources(ALL), HELD_OUT)


def read(
    cache_dir: str | os.PathLike | None,
    packages: Mapping[str, str] = ALL,
    held_out: Set[str] = HELD_OUT,
) -> Corpus:
    """Reads the docstrings of `packages`, from the cache if it contains the same version.

    Args:
      cache_dir: the cache folder; None disables the cache.
      packages: import name -> distribution; "python" is the standard library.
      held_out: top-level names of the packages and standard modules that form the held-out part.

    Raises:
      UserError: a package is not installed, or one of the parts is empty.
    """
    sources, versions = _sources(packages)
    fingerprint = _fingerprint(sources, versions, held_out)
    cache = pathlib.Path(cache_dir, f"docstrings-{fingerprint[:16]}.json") if cache_dir is not None else None
    if cache is not None and (corpus := _load(cache)) is not None:
        return corpus
    cleaned = _clean([path for _, _, path in sources])
    seen: set[bytes] = set()
    parts: dict[str, list[Document]] = {}
    report: dict[str, Any] = {"packages": versions}
    for part in ("held_out", "train"):  # In this order: sentences in both parts stay in the held-out part.
        chosen = [i for i, (source, _, _) in enumerate(sources) if (source in held_out) == (part == "held_out")]
        parts[part], counts = _documents([sources[i] for i in chosen], [cleaned[i] for i in chosen], seen)
        report[part] = counts | sizes(parts[part])
        if not parts[part]:
            names = ", ".join(sorted(held_out if part == "held_out" else packages))
            raise UserError(
                f"--corpus={NAME}: no docstrings found in {names}; install them, or specify files with --corpus"
            )
    corpus = Corpus(NAME, fingerprint, parts["train"], parts["held_out"], report)
    if cache is not None:
        _store(corpus, cache)
    return corpus
