"""Every regular expression of a module takes time proportional to the length of a text, whatever the text.

Texts are made of the characters that a pattern distinguishes, repeated many times. A child process with little
processor time searches them; a quadratic pattern would need many times as much.
"""

import importlib
import itertools
import pathlib
import random
import re
import re._constants as kinds  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import resource
import sys
import unittest
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # As a program, this file could otherwise import only its own folder.

from tests import helpers  # noqa: E402

LENGTH = 300_000
SECONDS = 5  # Of processor time for one text and method; most take milliseconds.
METHODS = ("search", "match", "fullmatch", "sub", "findall", "finditer")
# Callers limit the length of what these read.
LENGTHS = {"tfzoo.data.prose": 2000}


def patterns() -> Iterator[tuple[str, re.Pattern, set[str]]]:
    """Yields (name, pattern, the methods that are called) for each pattern in a variable of a module of tfzoo."""

    def inside(value) -> Iterator[re.Pattern]:
        if isinstance(value, re.Pattern):
            yield value
        elif isinstance(value, list | tuple | dict):
            for item in value.values() if isinstance(value, dict) else value:
                yield from inside(item)

    for path in sorted(ROOT.glob("tfzoo/**/*.py")):
        source = path.read_text()
        if "re.compile(" in source:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for name, value in vars(importlib.import_module(module)).items():
                called = {m for m in METHODS if re.search(rf"\b{name}(\[\w+\])?\.{m}\(", source)}
                for pattern in inside(value):
                    yield f"{module}.{name}", pattern, called or {"sub"}


def characters(parsed) -> Iterator[str]:
    """Yields a character for each literal and class in a parsed pattern."""
    categories = {kinds.CATEGORY_SPACE: " ", kinds.CATEGORY_DIGIT: "0", kinds.CATEGORY_WORD: "a"}
    for kind, value in parsed:
        if kind is kinds.LITERAL:
            yield chr(value)
        elif kind is kinds.RANGE:
            yield chr(value[0])
        elif kind is kinds.CATEGORY:
            yield categories.get(value, "-")
        elif kind is kinds.IN:
            yield from characters(value)
        elif kind is kinds.BRANCH:
            for branch in value[1]:
                yield from characters(branch)
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            yield from characters(value[2])
        elif kind in (kinds.ASSERT, kinds.ASSERT_NOT):
            yield from characters(value[1])
        elif kind is kinds.SUBPATTERN:
            yield from characters(value[3])
        elif kind is kinds.ATOMIC_GROUP:
            yield from characters(value)


def beginnings(parsed) -> Iterator[str]:
    """Yields texts with which each sequence in a parsed pattern can begin, such as "%(" for %\\([^)]*\\)."""
    nodes = list(parsed)
    firsts = [next(characters([node]), "") for node in nodes]
    yield from ("".join(firsts[:length]) for length in range(2, min(len(firsts), 5) + 1))
    for kind, value in nodes:
        if kind is kinds.BRANCH:
            for branch in value[1]:
                yield from beginnings(branch)
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            yield from beginnings(value[2])
        elif kind is kinds.SUBPATTERN:
            yield from beginnings(value[3])


def texts(pattern: re.Pattern, length: int, most: int) -> Iterator[str | bytes]:
    """Yields at most `most` texts of a few characters, repeated, and of a character that ends a match."""
    is_text = isinstance(pattern.pattern, str)
    source = pattern.pattern if is_text else pattern.pattern.decode("latin-1")
    flags = pattern.flags if is_text else pattern.flags & ~re.LOCALE
    parsed = parser.parse(source, flags)
    alphabet = sorted({*characters(parsed), " ", "a", "0", ".", "\n"})
    pairs = ["".join(pair) for pair in itertools.permutations(alphabet, 2)]
    draw = random.Random(ascii(source))
    likely = sorted({*alphabet, *beginnings(parsed)} - {""})
    units = [*draw.sample(likely, len(likely)), *draw.sample(pairs, len(pairs))]
    for unit in units[:most]:
        text = draw.choice(alphabet) + unit * (length // len(unit)) + draw.choice("\0\ue000" if is_text else "\0")
        yield text if is_text else text.encode("latin-1", "replace")


def run(most: int) -> None:
    """Applies each pattern to its texts. Prints which pattern is next, so that the last line names a slow one."""
    every = list(patterns())
    for name, pattern, called in every:
        print(name, ascii(pattern.pattern)[:200], flush=True)
        length = LENGTHS.get(name.rpartition(".")[0], LENGTH)
        for text in texts(pattern, length, most):
            for method in sorted(called):
                used = resource.getrusage(resource.RUSAGE_SELF)
                limit = int(used.ru_utime + used.ru_stime) + SECONDS
                resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
                if method == "sub":
                    pattern.sub("" if isinstance(text, str) else b"", text)
                elif method == "finditer":
                    sum(1 for _ in pattern.finditer(text))
                else:
                    getattr(pattern, method)(text)
    print(len(every), "patterns")


class PatternsTest(unittest.TestCase):
    def check(self, most: int) -> None:
        done = helpers.python(__file__, most, check=False, TF_CPP_MIN_LOG_LEVEL="2")
        self.assertEqual(done.returncode, 0, f"not linear: {done.stdout.splitlines()[-1:]}\n{done.stderr[-2000:]}")
        self.assertGreater(int(done.stdout.splitlines()[-1].split()[0]), 90)

    def test_time_is_linear(self):
        self.check(4)

    @pytest.mark.faults
    def test_time_is_linear_for_all_pairs_of_characters(self):
        self.check(1000)

    def test_quadratic_and_exponential_patterns_would_be_noticed(self):
        for pattern in (r"\d+\.?\d*x", r"(a+)+b", r"%(\([^)]*\))?d"):
            script = (
                "import re, resource; from tests import patterns_test\n"
                "resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\n"
                f"for text in patterns_test.texts(p := re.compile({pattern!r}), 400_000, 60): p.search(text)"
            )
            self.assertLess(helpers.python("-c", script, check=False).returncode, 0, pattern)


if __name__ == "__main__":
    run(int(sys.argv[1]))
