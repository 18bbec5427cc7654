"""The docstrings of the packages that tfzoo is installed with: real English with nothing to fetch.

The packages are a fixed list, and of each what its distribution installed is read and nothing else: what else is in an
environment changes nothing, and what is missing is an error. So the fingerprint follows from the packages' versions and
Python's.

Sources are parsed, never imported, in processes of their own: a pool of `multiprocessing` would fork a process
in which TensorFlow's threads run, or import the main module, and TensorFlow with it, once more for each worker.
What was read is cached under its fingerprint.

A document is one module, its docstrings in the order of the source. No sentence stands twice in the corpus,
and the held-out part is whole packages, whose sentences are dropped wherever else they stand.
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

NAME = "docstrings"  # What --corpus calls them.
VERSION = 1  # Counts changes of what this file makes of the same docstrings.

# Import name -> distribution, of what `pip install tfzoo` brings.
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
_MANY = 100  # Files for which starting processes pays.
HELD_OUT = frozenset({"tensorboard", "onnx", "werkzeug", "asyncio", "email"})

_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test __pycache__ site-packages dist-packages _vendor vendor extern externals "
    "_bundled lib2to3 turtledemo idlelib".split()
)
_SKIPPED_FILES = re.compile(r".*_test\.py|test_.*\.py|.*_pb2(?:_grpc)?\.py|_sysconfigdata.*\.py|conftest\.py|LICENSE.*")


def _is_read(name: str) -> bool:
    """Whether a file is read whose path within its package is `name`."""
    *folders, file = name.split("/")
    return file.endswith(".py") and not _SKIPPED_FILES.fullmatch(file) and not _SKIPPED_FOLDERS.intersection(folders)


def _in_order(names: Iterable[str]) -> list[str]:
    """The files of a folder by name, then those of its folders."""

    def key(name: str) -> list[tuple[bool, str]]:
        *folders, file = name.split("/")
        return [*((True, folder) for folder in folders), (False, file)]

    return sorted(names, key=key)


def _installed(package: str, distribution: str) -> tuple[str, dict[str, pathlib.Path]]:
    """The version of a distribution, and what it installed of a package: name within the package -> path.

    Raises:
      UserError: it is not installed, or does not say what it installed.
    """
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"--corpus={NAME}: the package {distribution}, which is part of this corpus, is not installed; run "
            f"pip install {distribution}, or specify files with --corpus"
        ) from None
    record = found.read_text("RECORD")
    if record is None:
        raise UserError(
            f"--corpus={NAME}: {distribution} has no list of its files (RECORD); run pip install --force-reinstall "
            f"{distribution}, or specify files with --corpus"
        )
    prefix, root = package.replace(".", "/") + "/", pathlib.Path(str(found.locate_file("")))
    names = (line[0] for line in csv.reader(record.splitlines()) if line and line[0].startswith(prefix))
    return found.version, {name.removeprefix(prefix): root / name for name in names}


def _standard_library() -> dict[str, pathlib.Path]:
    """Name within it -> path."""
    root, found = pathlib.Path(sysconfig.get_path("stdlib")), {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for path in (pathlib.Path(folder, name) for name in names):
            found[path.relative_to(root).as_posix()] = path
    return found


def _sources(packages: Mapping[str, str]) -> tuple[list[tuple[str, str, str]], dict[str, str]]:
    """Finds what is to be read: [(source, name within the corpus, path)] and {package: version}.

    Raises:
      UserError: a package is not installed.
    """
    found, versions = [], {}
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
            found.append((source, f"{package}/{name}", str(paths[name])))
    return found, versions


def extract(source: bytes | str) -> list[str]:
    """The docstrings of a module in the order of its source: of the module, its classes and functions, NumPy's
    `add_newdoc` calls (for compiled functions) and the standard library's `topics` (the language reference).

    Raises:
      SyntaxError, ValueError, RecursionError: `source` is not Python.
    """
    found: list[str] = []

    def strings(node: ast.AST) -> list[str]:
        constants = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
        constants.sort(key=lambda n: (n.lineno, n.col_offset))
        return [n.value for n in constants if isinstance(n.value, str)]

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                found.append(docstring)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = getattr(node.value.func, "id", getattr(node.value.func, "attr", ""))
            if name.startswith("add_newdoc") and node.value.args:
                found.extend(text for text in strings(node.value.args[-1]) if " " in text)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            if getattr(node.targets[0], "id", "") == "topics":
                found.extend(text for value in node.value.values for text in strings(value))
        for block in ("body", "handlers", "orelse", "finalbody"):
            for child in getattr(node, block, None) or ():
                if isinstance(child, ast.AST):
                    visit(child)

    visit(ast.parse(source))
    return found


def _clean_file(path: str) -> list[list[list[str]]] | None:
    """[docstring][paragraph][sentence] of one file, or None where it does not parse."""
    try:
        found = extract(pathlib.Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None
    return [prose.paragraphs(text) for text in found]


def _worker() -> None:
    """What each process runs: paths as JSON on the standard input, their prose on the output."""
    warnings.simplefilter("ignore")  # Others' invalid escapes.
    json.dump([_clean_file(path) for path in json.load(sys.stdin)], sys.stdout)


def _clean(paths: list[str]) -> list[list[list[list[str]]] | None]:
    """`_clean_file` of each path, in as many processes as there are cores."""
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
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"--corpus={NAME}: {path} cannot be read ({reason}); reinstall its package, or specify files with "
                "--corpus"
            ) from None
    return digest.hexdigest()


def _key(sentence: str) -> bytes:
    """What two sentences share that say the same, but for case, punctuation and numbers."""
    text = re.sub(r"\d+", "0", re.sub(r"[\W_]+", " ", sentence.lower()))
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def _documents(
    sources: list[tuple[str, str, str]], cleaned: list[Any], seen: set[bytes]
) -> tuple[list[Document], dict[str, int]]:
    """Makes documents of what stands in none of `seen`, to which it adds."""
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
    """Reads what `_store` wrote; None where it is not there or not whole."""
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        return None
    kept = json.loads(payload)
    parts = {part: [Document(*document) for document in kept.pop(part)] for part in ("train", "held_out")}
    return Corpus(kept["name"], kept["fingerprint"], parts["train"], parts["held_out"], kept["report"])


def _store(corpus: Corpus, path: pathlib.Path) -> None:
    parts = {part: [[d.source, d.sentences] for d in getattr(corpus, part)] for part in ("train", "held_out")}
    kept = {"name": corpus.name, "fingerprint": corpus.fingerprint, "report": corpus.report, **parts}
    payload = json.dumps(kept, ensure_ascii=False).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def fingerprint() -> str:
    """That of the corpus, without reading it."""
    return _fingerprint(*_sources(ALL), HELD_OUT)


def read(
    cache_dir: str | os.PathLike | None,
    packages: Mapping[str, str] = ALL,
    held_out: Set[str] = HELD_OUT,
) -> Corpus:
    """Reads the docstrings of `packages`, from the cache where the same was read before.

    Args:
      cache_dir: the folder of the cache; None keeps nothing.
      packages: import name -> distribution; "python" is the standard library.
      held_out: top-level names of packages and standard modules that make the held-out part.

    Raises:
      UserError: a package is not installed, or nothing is left to train on or to hold out.
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
    for part in ("held_out", "train"):  # In this order: what both have stays in the held-out part.
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
