"""The folder of an index: what is read, what it contains, kills and damage; with a model that needs no TensorFlow."""

import json
import shutil
import signal
import subprocess
import sys
import unittest
from unittest import mock

import numpy as np

import tfzoo
from tests import helpers
from tests.retrieval import encoders
from tfzoo import index, json_files, query
from tfzoo.errors import CheckFailed, UserError
from tfzoo.retrieval import bm25, build, store
from tfzoo.retrieval.documents import Source

TEXTS = [f"text {i} of the corpus" + " and more" * (i % 5) for i in range(18)]


def contents(folder) -> dict[str, bytes]:
    """Returns the content of each file of an index, except the lock, which contains the writer's process ID."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def corpus(self, texts=TEXTS, name="corpus.jsonl"):
        records = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
        return self.write(name, "\n".join(records))

    def refused(self, words, program, *argv):
        code, out, err = helpers.run(program, *argv)
        self.assertEqual((code, out), (2, ""), err)
        self.assertRegex(err, rf"\Aerror: .*{words}.*\n\Z")


class SourceTest(Case):
    def read(self, name, content, **options):
        source = Source(self.write(name, content), **options)
        return [(document.where.rpartition(":")[2], document.id, document.text) for document in source], source.skipped

    def test_forms(self):
        for name, content, options, expected in (
            ("a.txt", "\ufeffone\r\n\r\n two\nthree", {}, [("1", "1", "one"), ("3", "3", " two"), ("4", "4", "three")]),
            (
                "a.jsonl",
                '{"text": "é", "n": 7}\n\n{"text": "b", "n": "x"}\r\n',
                dict(id_field="n"),
                [("1", "7", "é"), ("3", "x", "b")],
            ),
            (
                "a.csv",
                '\ufeffkey,body\r\n1,"a, ""b""\nc"\r\n\r\n2,d\r\n',
                dict(text_field="body"),
                [("2", "2", 'a, "b"\nc'), ("5", "5", "d")],
            ),
            ("a.tsv", "key\ttext\nx\ta,b\n", dict(id_field="key"), [("2", "x", "a,b")]),
        ):
            self.assertEqual(self.read(name, content, **options), (expected, 0), name)

    def test_bad_rows_are_errors_or_are_counted(self):
        for name, content, words, kept in (
            ("a.txt", b"a\n\xff\nb", "a.txt:2: byte 0xff after .* is not UTF-8", ["a", "b"]),
            ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"a.jsonl:2: has no 'text' \(did you mean txt\?\)", ["a"]),
            ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', "a.jsonl:2: 'text' is 3, not a string", ["a"]),
            ("a.jsonl", '{"text": "a"}\n{"text": " "}\n', "a.jsonl:2: 'text' is blank", ["a"]),
            ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl:2: is not JSON", ["a"]),
            ("a.jsonl", '{"text": "a"}\n["b"]\n', r"a.jsonl:2: \['b'\] is not a JSON object", ["a"]),
            ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "a.jsonl:2: 'text' contains a lone surrogate", ["a"]),
            ("a.csv", 'id,text\n"1\n",a\n2\n', "a.csv:4: has 1 columns, but the header has 2", ["a"]),
        ):
            with self.assertRaisesRegex(UserError, f"{words}.*; .* or use --bad_rows=skip"):
                self.read(name, content)
            found, skipped = self.read(name, content, bad_rows="skip")
            self.assertEqual(([text for *_, text in found], skipped), (kept, 1))

    def test_what_no_policy_reads(self):
        for name, content, options, words in (
            ("a.txt", "\n \n", {}, "--input=.*a.txt: is empty; specify a file with rows"),
            (
                "a.jsonl",
                "{}",
                dict(bad_rows="skip"),
                "contains no row that can be used .0 rows; skipped: missing_field 1",
            ),
            ("a.csv", "text", {}, "contains no row that can be used"),
            ("a.csv", "id,txt\n", {}, r"a.csv:1: the header has no column 'text' \(did you mean txt\?\)"),
            ("a.csv", "text,text\n", {}, "a.csv:1: the header has two columns 'text'"),
            ("a.csv", b"text\n\xff\n", {}, "a.csv:2: byte 0xff after .* is not UTF-8"),
            ("a.txt", "a", dict(id_field="id"), "--id_field=id: does not apply to .txt files"),
            ("a.pdf", "a", {}, "its suffix is not one of .txt, .jsonl, .csv, .tsv"),
        ):
            with self.assertRaisesRegex(UserError, words):
                self.read(name, content, **options)

    def test_several_files(self):
        one, other = self.write("a.txt", "one\n\ntwo\n"), self.write("b.jsonl", '{"text": "three"}\n{}\n')
        source = Source([one, other], bad_rows="skip")
        found = [(document.id, document.text) for document in source]
        self.assertEqual(found, [("a.txt:1", "one"), ("a.txt:3", "two"), ("b.jsonl:1", "three")])
        self.assertEqual((source.skipped, source.name), (1, f"{one},{other}"))
        (self.folder / "sub").mkdir()
        same = self.write("sub/a.txt", "four")
        self.assertEqual([document.id for document in Source([one, same])][-1], f"{same}:1")
        with self.assertRaisesRegex(UserError, "^--input: names .*a.txt twice; omit one"):
            Source([one, one])
        folder = self.folder / "index"
        code, out, err = helpers.run(index, f"--input={one},{same}", f"--output_dir={folder}")
        self.assertEqual(code, 0, err)
        self.assertIn("3 documents", out)
        same.write_text("five")
        self.refused("is not the text from which", index, f"--input={one},{same}", f"--output_dir={folder}")


class FolderTest(Case):
    def test_what_it_contains(self):
        folder, plan = self.folder / "index", encoders.plan(self.corpus())
        manifest = build.build(folder, plan, encoders.Encoder)
        opened = tfzoo.open_index(folder, encode=encoders.vectors).store
        self.assertEqual(list(opened.ids), [f"d{i}" for i in range(18)])
        self.assertEqual(list(opened.texts), TEXTS)
        np.testing.assert_array_equal(opened.vectors, build.normalized(encoders.vectors(TEXTS)))
        self.assertEqual(np.load(folder / "vectors.npy").shape, (18, 8))  # By NumPy alone.
        self.assertEqual(opened.words.lengths.tolist(), [len(bm25.words(text)) for text in TEXTS])
        self.assertEqual({*contents(folder)}, {"manifest.json", *manifest["files"]})
        self.assertEqual((manifest["documents"], manifest["methods"]), (18, ["vectors", "bm25"]))

    def test_an_index_that_is_complete_remains(self):
        folder, plan, encoder = self.folder / "index", encoders.plan(self.corpus()), encoders.Encoder()
        first = build.build(folder, plan, lambda: encoder)
        before, calls = contents(folder), encoder.calls
        self.assertEqual(build.build(folder, plan, lambda: encoder), first)
        self.assertEqual((contents(folder), encoder.calls), (before, calls))

    def test_a_kill_in_each_block(self):
        corpus, expected = self.corpus(), self.folder / "expected"
        build.build(expected, encoders.plan(corpus), encoders.Encoder)
        for block in (0, 2, 4):
            folder = self.folder / f"killed_{block}"
            argv = [sys.executable, "-m", "tests.retrieval.encoders", corpus, folder, str(block)]
            with subprocess.Popen([*map(str, argv)], cwd=helpers.ROOT, stdout=subprocess.PIPE, text=True) as process:
                self.assertEqual(process.stdout.readline(), "blocked\n")
                process.send_signal(signal.SIGKILL)
            with self.assertRaisesRegex(UserError, "is incomplete; run the same tfzoo.index command again"):
                tfzoo.open_index(folder)
            if block:  # The kill may also have happened while the next block was being written.
                with open(folder / "vectors.npy", "ab") as file:
                    file.write(b"a part of a block")
            encoder = encoders.Encoder()
            build.build(folder, encoders.plan(corpus), lambda encoder=encoder: encoder)
            self.assertEqual(encoder.calls, 5 - block)
            self.assertEqual(contents(folder), contents(expected))

    def test_an_error_in_each_stage(self):
        corpus, expected = self.corpus(), self.folder / "expected"
        build.build(expected, encoders.plan(corpus), encoders.Encoder)
        for i, (module, name) in enumerate(
            ((Source, "__iter__"), (bm25, "write"), (bm25, "_postings"), (bm25.strings, "write"), (store, "checksums"))
        ):
            folder = self.folder / f"stopped_{i}"
            with mock.patch.object(module, name, side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
                build.build(folder, encoders.plan(corpus), encoders.Encoder)
            build.build(folder, encoders.plan(corpus), encoders.Encoder)
            self.assertEqual(contents(folder), contents(expected), name)

    def test_something_else_than_what_was_begun_is_refused(self):
        corpus = self.corpus()
        for complete in (False, True):
            folder = self.folder / f"index_{complete}"
            encoder = encoders.Encoder()
            if not complete:
                encoder.documents = mock.Mock(side_effect=KeyboardInterrupt)
                with self.assertRaises(KeyboardInterrupt):
                    build.build(folder, encoders.plan(corpus), lambda encoder=encoder: encoder)
            else:
                build.build(folder, encoders.plan(corpus), encoders.Encoder)
            before = contents(folder)
            other = self.corpus(TEXTS[:-1], "other.jsonl")
            for plan, encoder, words in (
                (encoders.plan(other), encoders.Encoder(), "--input=.*other.jsonl: is not the text from which"),
                (
                    encoders.plan(corpus),
                    encoders.Encoder("e" * 64),
                    r"--model_dir: is not the model .*eee, before fff",
                ),
                (encoders.plan(corpus, dtype="float16"), None, "--dtype=float16: .* was begun with dtype=float32"),
                (encoders.plan(corpus, k1=2.0), None, "--k1=2.0: .* was begun with k1=1.2"),
                (encoders.plan(corpus, methods=("bm25",)), None, "--method=bm25: .* with method=vectors,bm25"),
                (encoders.plan(corpus), encoders.Encoder(similarity="dot"), "--similarity=dot: .* similarity=cosine"),
            ):
                with self.assertRaisesRegex(UserError, words):
                    build.build(folder, plan, lambda encoder=encoder: encoder or encoders.Encoder())
                self.assertEqual(contents(folder), before)

    def test_folders_that_are_not_written(self):
        plan = encoders.plan(self.corpus())
        folder = self.folder / "others"
        folder.mkdir()
        (folder / "notes.txt").write_text("keep")
        with self.assertRaisesRegex(UserError, "--output_dir=.*others: contains other files"):
            build.build(folder, plan, encoders.Encoder)
        with self.assertRaisesRegex(UserError, "--output_dir=.*notes.txt: is not a folder"):
            build.build(folder / "notes.txt", plan, encoders.Encoder)

    def test_equal_ids_are_refused(self):
        path = self.write("a.jsonl", '{"id": 1, "text": "a"}\n{"id": "2", "text": "b"}\n{"id": "1", "text": "c"}\n')
        with self.assertRaisesRegex(UserError, "a.jsonl:3: the id '1' is also that of .*a.jsonl:1; give each"):
            build.build(self.folder / "index", encoders.plan(path), encoders.Encoder)

    def test_vectors_that_are_not_finite(self):
        for value, dtype in ((np.nan, "float32"), (1e6, "float16")):
            encoder = encoders.Encoder(similarity="dot")
            encoder.documents = lambda texts, value=value: np.full((len(texts), 8), value, np.float32)
            with self.assertRaisesRegex(CheckFailed, f"not finite in {dtype}"):
                plan = encoders.plan(self.corpus(), dtype=dtype)
                build.build(self.folder / dtype, plan, lambda encoder=encoder: encoder)

    def test_damage_is_found(self):
        folder = self.folder / "index"
        build.build(folder, encoders.plan(self.corpus()), encoders.Encoder)
        for name in json_files.read(folder / "manifest.json")["files"]:
            damaged = self.folder / "damaged"
            shutil.copytree(folder, damaged)
            content = bytearray((damaged / name).read_bytes())
            content[-1] ^= 1
            (damaged / name).write_bytes(content)
            with self.assertRaisesRegex(UserError, rf"{name}: is damaged \(it differs from manifest.json\)"):
                tfzoo.open_index(damaged)
            if name in ("ids.npy", "texts.npy", "bm25_terms.npy", "bm25_starts.npy", "bm25_documents.npy"):
                with self.assertRaisesRegex(UserError, "is damaged .*build the index again"):  # Positions out of range.
                    tfzoo.open_index(damaged, verify=False)
            else:
                tfzoo.open_index(damaged, verify=False)
            (damaged / name).write_bytes(content[:-1])
            with self.assertRaisesRegex(UserError, f"{name}: is damaged"):
                tfzoo.open_index(damaged, verify=False)
            (damaged / name).unlink()
            with self.assertRaisesRegex(UserError, f"{name}: is missing"):
                tfzoo.open_index(damaged)
            shutil.rmtree(damaged)
        manifest = json_files.read(folder / "manifest.json")
        for change, words in (
            ({"format": 9}, "format is 9, but this version of tfzoo reads 1"),
            ({"documents": "x"}, "documents is 'x', not a whole number"),
            ({"methods": ["tfidf"]}, "methods is"),
            ({"vectors": {}}, "has no size"),
            ({"bm25": manifest["bm25"] | {"version": 0}}, "other rules for words; build the index again"),
            ({"files": {"ids.bin": 3}}, "files is"),
        ):
            (folder / "manifest.json").write_text(json.dumps(manifest | change))
            with self.assertRaisesRegex(UserError, f"manifest.json.*: .*{words}"):
                tfzoo.open_index(folder)

    def test_files_that_contradict_each_other_although_their_checksums_are_right(self):
        folder = self.folder / "index"
        build.build(folder, encoders.plan(self.corpus()), encoders.Encoder)
        manifest, kept = json_files.read(folder / "manifest.json"), self.folder / "kept"
        shutil.copytree(folder, kept)
        count = manifest["documents"]

        def array(values, dtype):
            return lambda path: np.save(path, np.array(values, dtype))

        def header(path):  # 160 GB.
            with open(path, "wb") as file:
                entry = {"descr": "<f4", "fortran_order": False, "shape": (count, 10**10 // count)}
                np.lib.format.write_array_header_1_0(file, entry)

        for name, write, words in (
            ("vectors.npy", header, "vectors.npy: is not an array .its size is"),
            ("vectors.npy", array(np.zeros((count, 9)), np.float32), "vectors.npy: is damaged"),
            ("vectors.npy", array(np.zeros((count, 8)), np.float64), "vectors.npy: is damaged"),
            ("vectors.npy", lambda path: np.savez(path.open("wb"), np.zeros(3)), "vectors.npy: is not an array"),
            ("vectors.npy", array([{}], object), "vectors.npy: is not an array"),
            ("ids.npy", array([0, 5], np.int64), "ids.npy: is damaged"),
            ("ids.npy", array(0, np.int64), "ids.npy: is damaged"),
            ("texts.npy", array([], np.int64), "texts.npy: is damaged"),
            ("bm25_lengths.npy", array(np.ones(count + 1), np.int32), "documents is 18, but its files have others"),
            ("bm25_starts.npy", array([0], np.int64), "bm25_[a-z]+.npy: is damaged"),
            ("bm25_counts.npy", array([1.5], np.float32), "bm25_[a-z]+.npy: is damaged"),
        ):
            write(folder / name)
            changed = manifest | {"files": store.checksums(folder, store.METHODS)}
            (folder / "manifest.json").write_text(json.dumps(changed))
            with self.subTest(name, words=words), self.assertRaisesRegex(UserError, words):
                tfzoo.open_index(folder)
            shutil.copy(kept / name, folder / name)
        changed = manifest | {"documents": count + 1, "vectors": manifest["vectors"]}
        (folder / "manifest.json").write_text(json.dumps(changed))
        with self.assertRaisesRegex(UserError, "vectors.npy: is damaged"):
            tfzoo.open_index(folder)


class CommandTest(Case):
    def test_without_a_model(self):
        path, folder = self.write("lines.txt", "The red fox\n\nA green dog\n"), self.folder / "index"
        code, out, err = helpers.run(index, f"--input={path}", f"--output_dir={folder}")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"index: 2 documents, BM25 with k1=1.2 and b=0.75; [0-9,]+ bytes\n\Z")
        code, out, err = helpers.run(query, f"--index_dir={folder}", "--query=Green!", "--query=a fox", "--top=9")
        self.assertEqual((code, err), (0, ""))
        first, second = map(json.loads, out.splitlines())
        self.assertEqual(first["query"], "Green!")
        score = np.log(1 + 1.5 / 1.5)  # Once in one of two documents of equal length.
        self.assertAlmostEqual(first["results"][0].pop("score"), score)
        self.assertEqual(first["results"], [{"rank": 1, "id": "3", "text": "A green dog"}])
        self.assertEqual([result["id"] for result in second["results"]], ["1", "3"])  # Equal scores.

    def test_it_imports_no_tensorflow(self):
        path, folder = self.write("lines.txt", "The red fox\n"), self.folder / "index"
        script = (
            "import sys\nfrom tfzoo import cli, index, query\n"
            f"assert not cli.run(index.main, index.define_flags, ['--input={path}', '--output_dir={folder}'])\n"
            f"assert not cli.run(query.main, query.define_flags, ['--index_dir={folder}', '--query=fox'])\n"
            "assert 'tensorflow' not in sys.modules"
        )
        self.assertIn('"rank": 1', helpers.python("-c", script).stdout)

    def test_skipped_rows_are_counted(self):
        path, folder = self.write("a.csv", "text\nred\n\x20\n"), self.folder / "index"
        argv = [f"--input={path}", f"--output_dir={folder}"]
        self.refused("a.csv:3: 'text' is blank; write a text, or use --bad_rows=skip", index, *argv)
        self.assertFalse(folder.exists())  # The corrected file is another input.
        code, out, err = helpers.run(index, f"--input={path}", f"--output_dir={folder}", "--bad_rows=skip")
        self.assertEqual(code, 0, err)
        self.assertIn("1 documents, 1 rows skipped", out)

    def test_what_is_refused_is_one_line(self):
        path, empty = self.write("lines.txt", "a\n"), self.write("empty.txt", "\n")
        target = f"--output_dir={self.folder / 'index'}"
        for words, argv in (
            ("--input is required", [target]),
            ("--output_dir is required", [f"--input={path}"]),
            ("--input=nowhere.txt: no such file; specify an existing one", ["--input=nowhere.txt", target]),
            (
                "empty.txt: is empty; specify a file with rows",
                [f"--input={empty}", f"--output_dir={self.folder / 'empty'}"],
            ),
            ("--method=bm52: must be vectors, bm25 or vectors,bm25", ["--method=bm52", f"--input={path}", target]),
            ("--method=vectors: --model_dir and the method", ["--method=vectors", f"--input={path}", target]),
            ("--method=bm25: .* omit --model_dir", ["--method=bm25", "--model_dir=x", f"--input={path}", target]),
            ("--dtype: applies only to --method=vectors", ["--dtype=float16", f"--input={path}", target]),
            ("--b=2: must be from 0.0 to 1.0", ["--b=2", f"--input={path}", target]),
        ):
            self.refused(words, index, *argv)
        self.assertFalse((self.folder / "index").exists())
        for words, where in (("no such folder", "nowhere"), ("contains no manifest.json", "")):
            self.refused(f"--index_dir=.*: {words}; specify", query, f"--index_dir={self.folder / where}", "--query=a")


if __name__ == "__main__":
    unittest.main()
