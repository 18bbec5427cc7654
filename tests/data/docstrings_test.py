import importlib
import importlib.metadata
import json
import platform
import re
import sys
import textwrap
import tomllib
import unittest
from unittest import mock

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import helpers
from tfzoo.data import docstrings, documents
from tfzoo.errors import UserError

MODULE = '''
"""The module does the first thing. It does the second thing as well."""

raise RuntimeError("this module must not be imported")

class Thing:
    """A thing of the first kind is held."""

    if True:
        async def run(self):
            """Runs the thing to the end of it."""

def later():
    """Comes after the others in the source."""

add_newdoc("a.b", "compiled", ("compiled", """Does what compiled functions do."""))
'''


class ExtractTest(unittest.TestCase):
    def test_source_order(self):
        self.assertEqual(
            docstrings.extract(MODULE),
            [
                "The module does the first thing. It does the second thing as well.",
                "A thing of the first kind is held.",
                "Runs the thing to the end of it.",
                "Comes after the others in the source.",
                "Does what compiled functions do.",
            ],
        )

    def test_topics(self):
        source = "topics = {'a': 'One text ' 'in two.', 'b': 'Another text.'}\nother = {'c': 'No text.'}"
        self.assertEqual(docstrings.extract(source), ["One text in two.", "Another text."])


class ReadTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.enterContext(mock.patch.object(sys, "path", [str(self.folder)]))
        self.write("apkg", "__init__.py", MODULE)
        self.write("apkg", "sub/more.py", '"""It says more of the same. It says so at length."""')
        self.write("apkg", "tests/a.py", '"""Tests are not read at all. They are left out."""')
        self.write("apkg", "a_test.py", '"""Tests are not read at all. They are left out."""')
        self.write(
            "heldpkg",
            "__init__.py",
            '"""This is held out from the training. It is not the same.\n\nIt DOES the 2nd thing."""',
        )
        self.packages = {"apkg": "apkg", "heldpkg": "heldpkg"}
        self.held_out = frozenset({"heldpkg"})

    def write(self, package, name, text):
        """Writes a file of a package and lists it as installed by its distribution."""
        self.add(package, name, text)
        installed = self.folder / f"{package}-1.0.dist-info"
        installed.mkdir(exist_ok=True)
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        with open(installed / "RECORD", "a") as record:
            record.write(f"{package}/{name},sha256=x,1\n")

    def add(self, package, name, text):
        path = self.folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()

    def read(self, cache=None, **kwargs):
        return docstrings.read(cache, kwargs.pop("packages", self.packages), kwargs.pop("held_out", self.held_out))

    def test_documents_are_modules_in_order(self):
        read = self.read()
        self.assertEqual(
            read.train,
            [
                documents.Document(
                    "apkg",
                    [
                        "The module does the first thing.",
                        "It does the second thing as well.",
                        "A thing of the first kind is held.",
                        "Runs the thing to the end of it.",
                        "Comes after the others in the source.",
                        "Does what compiled functions do.",
                    ],
                ),
                documents.Document("apkg", ["It says more of the same.", "It says so at length."]),
            ],
        )
        self.assertEqual([d.source for d in read.held_out], ["heldpkg"])
        self.assertEqual(read.name, "docstrings")
        self.assertEqual(read.report["train"]["docstrings"], 6)
        self.assertEqual(read.report["train"]["documents"], 2)
        self.assertEqual(read.report["train"]["sentences"], 8)
        json.dumps(read.report)

    def test_what_is_held_out_stands_nowhere_else(self):
        self.write(
            "apkg",
            "copy.py",
            '"""This is held out,  from the TRAINING. This is not held out at all.\n\nAnd a third is here."""',
        )
        read = self.read()
        self.assertEqual(read.train[1].sentences, ["This is not held out at all.", "And a third is here."])

    def test_duplicates_stand_once(self):
        self.write("apkg", "zcopy.py", 'def f():\n    """It says more of the same.\n    It says so at length."""\n')
        read = self.read()
        self.assertEqual(len(read.train), 2)
        self.assertEqual(read.report["train"]["duplicates"], 1)

    def test_fingerprint_tells_sources_packages_and_parts(self):
        first = self.read().fingerprint
        self.assertEqual(self.read().fingerprint, first)
        self.assertRegex(first, "^[0-9a-f]{64}$")
        self.write("other", "__init__.py", '"""There is one more. It is held out."""')
        more = {**self.packages, "other": "other"}
        self.assertNotEqual(self.read(packages=more).fingerprint, first)
        self.assertNotEqual(
            self.read(packages=more, held_out={"other"}).fingerprint, self.read(packages=more).fingerprint
        )
        self.write("apkg", "sub/more.py", '"""It says more of the same. It says it at length."""')
        self.assertNotEqual(self.read().fingerprint, first)

    def test_fingerprint_tells_the_cleaning(self):
        first = self.read().fingerprint
        with mock.patch.object(docstrings.prose, "VERSION", -1):
            self.assertNotEqual(self.read().fingerprint, first)

    def test_cache(self):
        cache = self.folder / "cache" / "deep"
        first = self.read(cache)
        with mock.patch.object(docstrings, "_clean", side_effect=AssertionError("read again")):
            self.assertEqual(self.read(cache), first)
        [file] = cache.iterdir()
        whole = file.read_bytes()
        for damaged in (whole[:-9], whole.replace(b"length", b"lenght"), b""):
            file.write_bytes(damaged)
            self.assertEqual(self.read(cache), first)
            self.assertEqual(file.read_bytes(), whole)

    def test_files_that_do_not_parse_are_counted(self):
        self.write("apkg", "broken.py", "def f(:")
        self.write("apkg", "nul.py", "\0")
        self.assertEqual(self.read().report["train"]["files_unparsed"], 2)

    def test_what_a_package_did_not_install_is_not_read(self):
        first = self.read()
        self.add("apkg", "plugin.py", '"""Another package has put this there. It is not of the corpus."""')
        self.write("unknown", "__init__.py", '"""A package beside them that nobody asked for. It is not read."""')
        self.assertEqual(self.read(), first)

    def test_what_is_missing_is_an_error(self):
        with self.assertRaisesRegex(
            UserError,
            r"^--corpus=docstrings: the package gone-pkg, which is part of this corpus, is not installed; "
            "run pip install gone-pkg",
        ):
            self.read(packages={**self.packages, "gone": "gone-pkg"})
        (self.folder / "apkg" / "sub" / "more.py").unlink()
        with self.assertRaisesRegex(UserError, "apkg/sub/more.py: no such file .*reinstall its package"):
            self.read()
        (self.folder / "apkg-1.0.dist-info" / "RECORD").unlink()
        with self.assertRaisesRegex(UserError, r"apkg has no list of its files \(RECORD\); run pip install"):
            self.read()

    def test_nothing_to_hold_out_or_to_train_on(self):
        with self.assertRaisesRegex(UserError, "no docstrings found in nowhere; install"):
            self.read(held_out={"nowhere"})
        with self.assertRaisesRegex(UserError, "no docstrings found in heldpkg"):
            self.read(packages={"heldpkg": "heldpkg"})

    def test_processes_agree_with_one(self):
        for i in range(120):
            self.write(
                "apkg",
                f"many/m{i:03}.py",
                f'"""It is module {chr(97 + i % 26)}{i}x of them. All é of it is here {i}."""',
            )
        paths = [path for _, _, path in docstrings._sources(self.packages)[0]]
        self.assertGreater(len(paths), docstrings._MANY)
        self.assertEqual(docstrings._clean(paths), [docstrings._clean_file(path) for path in paths])


class PackagesTest(unittest.TestCase):
    def requirements(self, names):
        """Returns these requirements and their transitive requirements, from the metadata of installed packages."""
        found, asked = set(), [Requirement(name) for name in names]
        while asked:
            requirement = asked.pop()
            name = canonicalize_name(requirement.name)
            if name not in found:
                found.add(name)
                for line in importlib.metadata.requires(name) or ():
                    needed = Requirement(line)
                    extras = requirement.extras or {""}
                    if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                        asked.append(needed)
        return found

    def test_all_are_installed_with_the_extra_for_exporting(self):
        project = tomllib.loads((helpers.ROOT / "pyproject.toml").read_text())["project"]
        installed = self.requirements([*project["dependencies"], *project["optional-dependencies"]["export"]])
        self.assertLessEqual({canonicalize_name(name) for name in docstrings.PACKAGES.values()}, installed)

    def test_results_were_measured_on_this_text(self):
        stated = re.search(
            r"fingerprint `([0-9a-f]{64})`\s+with\s+Python (\S+) and\s+`requirements/dev.txt`",
            (helpers.ROOT / "docs" / "results.md").read_text(),
        )
        self.assertIsNotNone(stated, "docs/results.md does not name the text that it was measured on")
        pinned = {}
        for line in (helpers.ROOT / "requirements" / "dev.txt").read_text().splitlines():
            if line[:1].isalpha():
                requirement = Requirement(line.rstrip(" \\"))
                if requirement.marker is None or requirement.marker.evaluate():
                    pinned[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
        for name in docstrings.PACKAGES.values():
            version, wanted = importlib.metadata.version(name), pinned[canonicalize_name(name)]
            if version != wanted:
                self.skipTest(f"{name} is {version}, and requirements/dev.txt has {wanted}")
        if platform.python_version() != stated[2]:
            self.skipTest(f"this is Python {platform.python_version()}, and docs/results.md has {stated[2]}")
        found = docstrings.fingerprint()
        self.assertEqual(found, stated[1], "the corpus changed: measure again what docs/results.md says, and name it")


class StandardLibraryTest(unittest.TestCase):
    def test_is_found_without_tests_and_other_packages(self):
        sources, versions = docstrings._sources({"python": ""})
        names = {source for source, _, _ in sources}
        self.assertLessEqual({"email", "asyncio", "argparse", "pydoc_data"}, names)
        self.assertFalse(names & {"test", "site-packages", "numpy", "pip"})
        self.assertFalse(
            [path for _, path, _ in sources if "/test" in path and "testmock" not in path and "/tests/" in path]
        )
        self.assertEqual(list(versions), ["python"])

    def test_imports_no_tensorflow(self):
        code = textwrap.dedent("""
            import sys
            from tfzoo.data import corpus, docstrings, documents, files, prose, sentences
            assert not {"tensorflow", "keras", "numpy"} & set(sys.modules), sorted(sys.modules)
        """)
        helpers.python("-c", code)
