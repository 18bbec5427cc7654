"""Error messages, help texts and documentation contain no phrases from a list of unidiomatic ones.

Texts are read from syntax trees and Markdown files, without TensorFlow. `IDIOMS` lists the phrases.
"""

import ast
import collections
import dataclasses
import importlib
import pathlib
import re
import unittest
from collections.abc import Iterator

from absl import flags as absl_flags

from tests import helpers

MESSAGE, HELP, PAGE = "message", "help", "page"
ANY = (MESSAGE, HELP, PAGE)


@dataclasses.dataclass(frozen=True)
class Idiom:
    """A phrase to avoid: a regular expression in which a space matches any white space."""

    pattern: str
    suggestion: str
    kinds: tuple[str, ...] = ANY

    def search(self, text: str) -> Iterator[re.Match]:
        return re.finditer(self.pattern.replace(" ", r"\s+"), text, re.IGNORECASE)


IDIOMS = (
    Idiom(r"(?<!\bthere\s)\bis no\b(?! longer| better| worse| more than| less than| later than)", "is not a"),
    Idiom(r"\bbugs? of ours\b", "internal error"),
    Idiom(r"(?<!\bbug\s)(?<!\bbugs\s)\bof (ours|theirs)\b", "tfzoo's, or name the library"),
    Idiom(r"\bnot built here\b", "is not supported"),
    Idiom(r"\b(has|have) no exact form\b", "cannot be reproduced exactly"),
    Idiom(r"\botherwise than\b", "differently from"),
    Idiom(r"\bwords right\b", "masked-token accuracy"),
    Idiom(r"\bsentences? right\b", "next-sentence accuracy"),
    Idiom(r"\bwhat (part|share) of\b", "fraction of"),
    Idiom(r"\ba share of\b", "a fraction of"),
    Idiom(r"\b(steps|updates|batches|times|of them) in a row\b", "consecutive", (HELP,)),
    Idiom(r"\b(is|are) there already\b", "already exists"),
    Idiom(r"\b(is|are) there twice\b", "appears twice"),
    Idiom(r"\bmend(s|ed|ing)?\b", "fix"),
    Idiom(r"\boutsiders?\b", "independent program"),
    Idiom(r"\btaken for\b", "treated as"),
    Idiom(r"\bwhat is not given\b", "unspecified options"),
    Idiom(r"\bwhole or not there\b", "written atomically"),
    Idiom(r"\bstands? in\b", "is in"),
    Idiom(r"(\bstands? )?\bbeside\b", "(is) next to, (is) compared with"),
    Idiom(r"\bwants\b", "requires"),
    Idiom(r"\bthe last word\b", "takes precedence"),
    Idiom(r"\banew\b", "again"),
    Idiom(r"\btill\b", "until"),
    Idiom(r"\bwherein\b", "in which"),
    Idiom(r"\bthereof\b", "of it"),
)
ERRORS = {"UserError", "CheckFailed", "WorkerLost", "BadRow"}
CHECKS = {"_require", "require", "_require_multiple"}  # Functions that raise a UserError with their last argument.


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that users read."""

    kind: str
    path: pathlib.Path
    line: int
    text: str


def name_of(function: ast.expr) -> str:
    """Returns the last part of a called function's name."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of the strings below a node; {} replaces each expression of an f-string."""
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        yield node.lineno, "".join(map(str, parts))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from strings(part.value)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.lineno, node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from strings(child)


def messages(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that contain error messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) in ERRORS | CHECKS:
            yield node


def help_texts(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that contain help texts: fields' options, definitions of flags, and assignments to `help`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.value, ast.Call):
                    yield field.value
        elif isinstance(node, ast.FunctionDef) and node.name == "define_flags":
            yield from node.body
        elif isinstance(node, ast.Call) and name_of(node.func).startswith("DEFINE_"):
            yield node
        elif isinstance(node, ast.Assign) and any(name_of(target) == "help" for target in node.targets):
            yield node.value


def texts_of(path: pathlib.Path, source: str) -> set[Text]:
    """Returns the texts of a module or a Markdown page."""
    if path.suffix == ".md":
        return {Text(PAGE, path, 1, source)}
    tree = ast.parse(source)
    return {
        Text(kind, path, line, text)
        for kind, nodes in ((MESSAGE, messages(tree)), (HELP, help_texts(tree)))
        for node in nodes
        for line, text in strings(node)
    }


def all_texts() -> list[Text]:
    """Returns the texts of all modules and of the pages for users and contributors."""
    root = helpers.ROOT
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), root / "export" / "README.md", root / "serving" / "README.md"]
    paths = [*sorted(pages), *sorted(root.glob("tfzoo/**/*.py"))]
    texts = {text for path in paths for text in texts_of(path.relative_to(root), path.read_text())}
    return sorted(texts, key=lambda text: (text.path, text.line, text.text))


def offences(texts: list[Text]) -> list[str]:
    """Returns a line for each phrase to avoid: its place, the phrase, and what to write instead."""
    lines = []
    for text in texts:
        for idiom in IDIOMS:
            for match in idiom.search(text.text) if text.kind in idiom.kinds else ():
                line = text.line + (text.text.count("\n", 0, match.start()) if text.kind == PAGE else 0)
                start, end = max(0, match.start() - 30), match.end() + 30
                excerpt = " ".join(text.text[start:end].split())
                phrase = " ".join(match[0].split())
                lines.append(f"{text.path}:{line}: {phrase!r} in {excerpt!r}; write {idiom.suggestion!r}")
    return lines


class EnglishTest(unittest.TestCase):
    def test_no_text_contains_a_phrase_to_avoid(self) -> None:
        found = offences(all_texts())
        if found:
            self.fail(f"{len(found)} phrases to avoid:\n" + "\n".join(found))


class CollectorTest(unittest.TestCase):
    SOURCE = '''
class Options(Checked):
    """A docstring."""

    rate: float = option(0.15, "Fraction to mask.", low=0.01)
    beams: int = _decoding(f"Beams, {LOW} or more.", GROUP)

def define_flags(flags):
    def string(name, text):
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)

    for name, text in (("from", "the folder to read"),):
        string(name, text)

def add(flags):
    absl_flags.DEFINE_integer("workers", None, "Workers to start.", flag_values=flags)
    flags["corpus"].help = "A glob."

def check(path, error):
    print("Printed.")
    self._require(error, "size", "must be even")
    raise UserError(f"{path}: is no folder; name " "another" if error else errors.UserError("Bad."))
'''

    def texts(self, source: str) -> dict[str, set[str]]:
        result = collections.defaultdict(set)
        for text in texts_of(pathlib.Path("module.py"), source):
            result[text.kind].add(text.text)
        return result

    def test_texts_of_a_module(self) -> None:
        texts = self.texts(self.SOURCE)
        self.assertEqual(texts[MESSAGE], {"size", "must be even", "{}: is no folder; name another", "Bad."})
        expected = {"Fraction to mask.", "Beams, {} or more.", "the folder to read", "Workers to start.", "A glob."}
        self.assertLessEqual(expected, texts[HELP])
        self.assertFalse({"A docstring.", "Printed."} & (texts[HELP] | texts[MESSAGE]))

    def test_offences_have_a_place_and_a_suggestion(self) -> None:
        (line,) = offences(list(texts_of(pathlib.Path("module.py"), self.SOURCE)))
        self.assertEqual(line, "module.py:22: 'is no' in '{}: is no folder; name another'; write 'is not a'")
        page = "Fine.\n\nThere is no folder, it is no longer read;\nit is\nno folder.\n"
        (line,) = offences(list(texts_of(pathlib.Path("page.md"), page)))
        self.assertRegex(line, "^page.md:4: 'is no' in ")

    def test_phrases_and_their_exceptions(self) -> None:
        def count(text: str, kind: str = HELP) -> int:
            return len(offences([Text(kind, pathlib.Path("x.py"), 1, text)]))

        for phrase in (
            "It is no file.",
            "a bug of ours",
            "a file of theirs",
            "stands beside it",
            "Most of them in a row.",
        ):
            self.assertEqual(count(phrase), 1, phrase)
        for phrase in ("There is no file.", "It is no longer there.", "Tokens in a row.", "besides the best"):
            self.assertEqual(count(phrase), 0, phrase)
        self.assertEqual(count("Two updates in a row failed.", MESSAGE), 0)

    def test_messages_are_found(self) -> None:
        texts = [text for text in all_texts() if text.kind == MESSAGE]
        self.assertGreater(len(texts), 500)
        known = "model {} has no tokenizer; load it from a folder that holds one"
        self.assertIn((pathlib.Path("tfzoo/preprocess.py"), known), [(text.path, text.text) for text in texts])

    def test_the_help_of_every_flag_is_found(self) -> None:
        texts = [text.text for text in all_texts() if text.kind == HELP]
        patterns = {".*".join(map(re.escape, text.split("{}"))) for text in texts if text.strip("{}")}
        for name in ("convert", "describe", "export.__main__", "generate", "launch", "predict", "score", "train"):
            flags = absl_flags.FlagValues()
            importlib.import_module(f"tfzoo.{name}").define_flags(flags)
            self.assertGreater(len(list(flags)), 1, name)
            for flag in flags:
                # An objective's name precedes its options' texts, and absl adds a note to repeated flags.
                shown = re.sub(r";\s+repeat this option.*", "", flags[flag].help, flags=re.DOTALL)
                matches = any(re.fullmatch(f"([^:]*: )?{pattern}", shown, re.DOTALL) for pattern in patterns)
                self.assertTrue(matches, f"--{flag} of {name}: {shown}")

    def test_pages_are_found(self) -> None:
        pages = {text.path for text in all_texts() if text.kind == PAGE}
        self.assertIn(pathlib.Path("README.md"), pages)
        self.assertGreater(len(pages), 3)


if __name__ == "__main__":
    unittest.main()
