import bz2
import gzip
import json
import lzma
import os
import pathlib
import random
import re
import unittest

from tests import helpers
from tfzoo.data import files
from tfzoo.data.corpus import load_corpus
from tfzoo.errors import UserError


class FilesTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, name, data):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = data.encode() if isinstance(data, str) else data
        path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
        return str(path)

    def read(self, spec, **kwargs):
        return load_corpus(str(spec), cache_dir=None, **kwargs)

    def texts(self, spec, **kwargs):
        """Returns the sets of sentences of the documents that are read: order and parts do not matter here."""
        read = self.read(spec, **kwargs)
        return {tuple(document.sentences) for document in read.train + read.held_out}

    def refused(self, message, spec, **kwargs):
        """Checks that reading raises a one-line error that contains `message`, without the name of the folder."""
        with self.assertRaises(UserError) as caught:
            self.read(spec, **kwargs)
        text = str(caught.exception).replace(f"{self.folder}/", "")
        self.assertIn(message, text)
        self.assertNotIn("\n", text)


class FormatsTest(FilesTest):
    def test_txt(self):
        path = self.write("a.txt", "One here. Two here.\r\nThree\r\n\r\n \nFour here.\n\n\n五。六。")
        self.assertEqual(self.texts(path), {("One here.", "Two here.", "Three"), ("Four here.",), ("五。", "六。")})

    def test_txt_with_a_byte_order_mark(self):
        path = self.write("a.txt", "\ufeffOne here.\n\nTwo here.")
        self.assertEqual(self.texts(path), {("One here.",), ("Two here.",)})

    def test_txt_without_blank_lines_is_one_document_whose_end_is_held_out(self):
        path = self.write("a.txt", "".join(f"It is line {i}.\n" for i in range(200)))
        read = self.read(path)
        self.assertEqual([len(d.sentences) for d in read.train + read.held_out], [196, 4])
        self.assertEqual(read.held_out[0].sentences[0], "It is line 196.")

    def test_jsonl(self):
        lines = [{"text": "One here. Two here.\nThree"}, {"text": "", "n": 1}, {"id": 1, "text": "Vier ü."}]
        path = self.write("a.jsonl", "\n".join(json.dumps(line) for line in lines) + "\n\n")
        self.assertEqual(self.texts(path), {("One here.", "Two here.", "Three"), ("Vier ü.",)})

    def test_jsonl_text_field(self):
        path = self.write("a.jsonl", '{"body": "One here."}\n{"body": "Two here.", "text": 3}\n')
        self.assertEqual(self.texts(path, text_field="body"), {("One here.",), ("Two here.",)})

    def test_gzip_reads_the_same(self):
        for name, text in (
            ("a.txt", "One here.\n\nTwo here."),
            ("a.jsonl", '{"text": "One."}\n{"text": "Two."}'),
        ):
            plain, packed = self.read(self.write(name, text)), self.read(self.write(f"{name}.gz", text))
            self.assertEqual(packed.fingerprint, plain.fingerprint)
            self.assertEqual([d.sentences for d in packed.train], [d.sentences for d in plain.train])

    def test_gzip_of_several_members(self):
        path = self.folder / "a.txt.gz"
        path.write_bytes(gzip.compress(b"One here.\n\nTw") + gzip.compress(b"o here.\n"))
        self.assertEqual(self.texts(path), {("One here.",), ("Two here.",)})

    def test_glob(self):
        self.write("b/one.txt", "One here.")
        self.write("b/deep/two.txt", "Two here.")
        self.write("b/three.jsonl", '{"text": "Three here."}')
        self.assertEqual(self.texts(f"{self.folder}/b/**/*.txt"), {("One here.",), ("Two here.",)})
        self.assertEqual(len(self.texts(f"{self.folder}/**/*.*")), 3)

    def test_a_name_that_looks_like_a_glob(self):
        path = self.write("a[1].txt", "One here.\n\nTwo here.")
        self.assertEqual(len(self.texts(path)), 2)


class PartsTest(FilesTest):
    def documents(self, start, end):
        return "\n\n".join(f"It is document {i}." for i in range(start, end))

    def test_about_a_fiftieth_is_held_out_and_stays_so(self):
        path = self.write("a.txt", self.documents(0, 2000))
        read = self.read(path)
        self.assertEqual(len(read.train) + len(read.held_out), 2000)
        self.assertTrue(20 <= len(read.held_out) <= 60, len(read.held_out))
        more = self.read(self.write("b.txt", self.documents(0, 2100)))
        held_out = {d.sentences[0] for d in more.held_out}
        self.assertLessEqual({d.sentences[0] for d in read.held_out}, held_out)
        self.assertFalse(held_out & {d.sentences[0] for d in more.train})

    def test_the_share_is_as_asked(self):
        path = self.write("a.txt", self.documents(0, 2000))
        few, many = (self.read(path, held_out=share).held_out for share in (0.1, 0.5))
        self.assertTrue(140 <= len(few) <= 260, len(few))  # 4.5 standard deviations.
        self.assertTrue(900 <= len(many) <= 1100, len(many))
        self.assertLessEqual({d.sentences[0] for d in few}, {d.sentences[0] for d in many})
        one = self.read(self.write("b.txt", "".join(f"It is line {i}.\n" for i in range(200))), held_out=0.1)
        self.assertEqual([len(d.sentences) for d in one.train + one.held_out], [180, 20])

    def test_at_least_one_is_held_out(self):
        for count in range(2, 12):
            read = self.read(self.write("a.txt", self.documents(0, count)))
            self.assertGreaterEqual(len(read.held_out), 1)
            self.assertGreaterEqual(len(read.train), 1)

    def test_duplicates_stand_once(self):
        self.write("a.txt", self.documents(0, 10) + "\n\n" + self.documents(0, 10))
        self.write("b.txt", self.documents(5, 15))
        read = self.read(f"{self.folder}/*.txt")
        self.assertEqual(len(read.train) + len(read.held_out), 15)
        self.assertEqual(read.report["duplicates"], 15)

    def test_report(self):
        read = self.read(self.write("a.txt", "One is here.\n\nZwei ü."))
        self.assertEqual((read.report["files"], read.report["lines"], read.report["bytes_read"]), (1, 3, 22))
        self.assertEqual(read.report["problems"], {})
        self.assertEqual(read.report["train"]["documents"], 1)
        json.dumps(read.report)

    def test_fingerprint(self):
        path = self.write("a.txt", self.documents(0, 5))
        first = self.read(path).fingerprint
        self.assertRegex(first, "^[0-9a-f]{64}$")
        os.rename(path, f"{self.folder}/b.txt")
        self.assertEqual(self.read(f"{self.folder}/*.txt").fingerprint, first)
        self.assertNotEqual(self.read(f"{self.folder}/b.txt", policy="skip").fingerprint, first)
        self.assertNotEqual(self.read(self.write("a.txt", self.documents(0, 6))).fingerprint, first)
        self.assertNotEqual(self.read(self.write("a.txt", self.documents(0, 5) + " ")).fingerprint, first)


class RawTest(FilesTest):
    TEXT = "First:\r\n  One,  two.\n\n\n  Drei ü, 四。\n" * 5

    def joined(self, documents):
        self.assertEqual({document.separator for document in documents}, {""})
        return ["".join(document.sentences) for document in documents]

    def test_a_file_as_it_stands_and_its_end_held_out(self):
        for name in ("a.txt", "a.txt.gz"):
            read = self.read(self.write(name, self.TEXT), raw=True, held_out=0.1)
            cut = int(len(self.TEXT) * 0.9)
            self.assertEqual(self.joined(read.train), [self.TEXT[:cut]])
            self.assertEqual(self.joined(read.held_out), [self.TEXT[cut:]])
            self.assertNotIn(self.TEXT[cut - 1], "\n")  # Inside a line.

    def test_files_follow_one_another(self):
        for name, text in (("a.txt", "a" * 50), ("b.txt", "b" * 30), ("c.txt", "c" * 20)):
            self.write(name, text)
        read = self.read(f"{self.folder}/*.txt", raw=True, held_out=0.4)
        self.assertEqual(self.joined(read.train), ["a" * 50, "b" * 10])
        self.assertEqual(self.joined(read.held_out), ["b" * 20, "c" * 20])
        self.assertEqual([len(d.sentences) for d in read.train], [1, 1])

    def test_policies_hold(self):
        path = self.write("a.txt", b"Good.\n\nBa\xffd.\nGood.\n" * 3)
        self.refused("a.txt:3: invalid UTF-8", path, raw=True)
        skipped = self.read(path, raw=True, policy="skip")
        self.assertEqual("".join(self.joined(skipped.train + skipped.held_out)), "Good.\n\nGood.\n" * 3)

    def test_what_cannot_be_read_raw(self):
        self.refused("a.jsonl: --raw_text reads only .txt files", self.write("a.jsonl", '{"text": "A."}'), raw=True)
        self.refused("no text in the file", self.write("a.txt", "\n \n"), raw=True)
        self.refused("1 characters cannot be split into training and held-out text", self.write("b.txt", "A"), raw=True)
        self.refused("--raw_text: the docstrings corpus does not consist of text files", "docstrings", raw=True)

    def test_another_fingerprint(self):
        path = self.write("a.txt", self.TEXT)
        kinds = [dict(), dict(raw=True), dict(held_out=0.1), dict(raw=True, held_out=0.1)]
        self.assertEqual(len({self.read(path, **kind).fingerprint for kind in kinds}), 4)


class PolicyTest(FilesTest):
    def check(self, name, data, message, kind, replace, skip, count=1, **kwargs):
        """Checks that a problem in `data` causes `message`, or is counted as `kind` and read as specified."""
        path = self.write(name, data) if isinstance(data, str | bytes) else str(data)
        self.refused(message, path, **kwargs)
        self.refused("or use --bad_text=replace or skip", path, **kwargs)
        for policy, expected in (("replace", replace), ("skip", skip)):
            with self.subTest(policy):
                read = self.read(path, policy=policy, **kwargs)
                self.assertEqual(read.report["problems"], {kind: count})
                found = {" ".join(document.sentences) for document in read.train + read.held_out}
                self.assertEqual(found, set(expected))

    def test_invalid_utf8(self):
        self.check(
            "a.txt",
            b"One.\n\nTw\xffo.\nStill.\n\nThree.",
            "a.txt:3: invalid UTF-8 (byte 0xff at 2); convert the file to UTF-8",
            "invalid_utf8",
            ["One.", "Tw\ufffdo. Still.", "Three."],
            ["One.", "Still.", "Three."],
        )

    def test_invalid_utf8_in_jsonl(self):
        self.check(
            "a.jsonl.gz",
            b'{"text": "A."}\n{"text": "B\xc3."}\n{"text": "C."}',
            "a.jsonl.gz:2: invalid UTF-8",
            "invalid_utf8",
            ["A.", "B\ufffd.", "C."],
            ["A.", "C."],
        )

    def test_nul(self):
        self.check(
            "a.txt",
            "One.\n\nTw\0o.\n\nThree.",
            "a.txt:3: NUL character; remove it",
            "nul",
            ["One.", "Tw\ufffdo.", "Three."],
            ["One.", "Three."],
        )

    def test_nul_written_as_json(self):
        self.check(
            "a.jsonl",
            '{"text": "A."}\n{"text": "B\\u0000."}\n{"text": "C."}',
            "a.jsonl:2: NUL character",
            "nul",
            ["A.", "B\ufffd.", "C."],
            ["A.", "C."],
        )

    def test_lone_surrogate(self):
        self.check(
            "a.jsonl",
            '{"text": "A."}\n{"text": "B\\ud800."}\n{"text": "\\ud83d\\ude00."}',
            "a.jsonl:2: lone surrogate",
            "lone_surrogates",
            ["A.", "B\ufffd.", "😀."],
            ["A.", "😀."],
        )

    def test_long_lines(self):
        self.check(
            "a.txt",
            "One.\n\n" + "abcd efgh " * 5 + "\n\n" + "é" * 16 + "\n\n0123456789abcdef\n",
            "a.txt:3: line longer than max_line_bytes=16; raise the limit or break the line",
            "long_lines",
            ["One.", " ".join(["abcd efgh"] * 5), "éééééééé éééééééé", "0123456789abcdef"],
            ["One.", "0123456789abcdef"],
            count=2,
            max_line_bytes=16,
        )

    def test_long_lines_of_jsonl_go(self):
        self.check(
            "a.jsonl",
            '{"text": "A."}\n' + json.dumps({"text": "B" * 99}) + '\n{"text": "C."}',
            "a.jsonl:2: line longer than max_line_bytes=50",
            "long_lines",
            ["A.", "C."],
            ["A.", "C."],
            max_line_bytes=50,
        )

    def test_splitting_a_long_line_loses_nothing(self):
        words = random.Random(0)
        text = "".join(words.choice("abé中😀 ") for _ in range(3000))
        path = self.write("a.txt", "Other.\n\n" + text)
        [found] = {s for s in self.texts(path, policy="replace", max_line_bytes=64) if s != ("Other.",)}
        self.assertEqual("".join(found).replace(" ", ""), text.replace(" ", ""))
        self.assertLessEqual(max(len(piece.encode()) for piece in found), 64)

    def test_invalid_json(self):
        cases = {
            "{": "is not JSON (Expecting",
            '{"text": NaN}': "NaN is not JSON;",
            '{"text": "B.", "n": -Infinity}': "-Infinity is not JSON;",
            '{"text": "B.", "n": 1e999}': "the number 1e999 is too large;",
            '{"text": "B.", "text": "D."}': "the key 'text' appears twice",
            '{"text": "B.", "n": ' + "[" * 100_000 + "]" * 100_000 + "}": "is nested too deeply",
            '{"text": "B.", "n": ' + "1" * 5000 + "}": "is not valid JSON (",
            '{"text": "B."} {"text": "D."}': "is not JSON (Extra data",
        }
        for line, message in cases.items():
            with self.subTest(line[:30]):
                data = '{"text": "A."}\n' + line + '\n{"text": "C."}'
                self.check("a.jsonl", data, f"a.jsonl:2: {message}", "invalid_json", ["A.", "C."], ["A.", "C."])

    def test_wrong_json(self):
        cases = {
            '["B."]': ("a JSON list, not an object; write one JSON object per line", "not_an_object"),
            '{"body": "B.", "id": 1}': (
                "no field 'text' (fields: body, id); specify the field with --text_field",
                "no_text_field",
            ),
            "{}": ("no field 'text' (fields: none)", "no_text_field"),
            '{"text": null}': ("field 'text' is null, not a string; write a string", "text_not_a_string"),
            '{"text": ["B."]}': ("field 'text' is [\"B.\"], not a string", "text_not_a_string"),
        }
        for line, (message, kind) in cases.items():
            with self.subTest(line):
                data = '{"text": "A."}\n' + line + '\n{"text": "C."}'
                self.check("a.jsonl", data, f"a.jsonl:2: {message}", kind, ["A.", "C."], ["A.", "C."])

    def test_file_without_text(self):
        self.write("b.txt", "One.\n\nTwo.")
        for data in ("", "\n \n"):
            with self.subTest(data):
                self.write("a.txt", data)
                self.check(
                    "c.txt",
                    pathlib.Path(f"{self.folder}/[ab].txt"),
                    "a.txt:1: no text in the file; add text or omit the file",
                    "files_without_text",
                    ["One.", "Two."],
                    ["One.", "Two."],
                )

    def test_truncated_gzip(self):
        rows = [f"It is {random.Random(i).random()}." for i in range(500)]
        whole = gzip.compress("\n\n".join(rows).encode())
        (self.folder / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
        self.write("b.txt", "One.\n\nTwo.")
        spec = f"{self.folder}/*.*"
        self.refused("gzip stream damaged or truncated (Compressed file ended", spec)
        self.assertRegex(self.message(spec), r"a\.txt\.gz:\d+: gzip")
        self.assertEqual(self.texts(spec, policy="skip"), {("One.",), ("Two.",)})
        replaced = self.read(spec, policy="replace")
        self.assertEqual(replaced.report["problems"], {"damaged_gzip": 1})
        self.assertGreater(len(replaced.train), 100)

    def message(self, spec):
        with self.assertRaises(UserError) as caught:
            self.read(spec)
        return str(caught.exception)

    def test_damaged_gzip(self):
        whole = bytearray(gzip.compress(b"One.\n\nTwo.\n"))
        whole[-6] ^= 1  # The checksum.
        (self.folder / "a.txt.gz").write_bytes(whole)
        self.refused("gzip stream damaged or truncated (CRC check failed", self.folder / "a.txt.gz")
        (self.folder / "b.txt.gz").write_bytes(b"One.\n\nTwo.\n")
        self.refused("b.txt.gz:1: gzip stream damaged or truncated (Not a gzipped file", self.folder / "b.txt.gz")
        self.refused("no text in 1 file(s)", self.folder / "b.txt.gz", policy="skip")

    def test_compressed_files_where_text_should_be(self):
        text = b"One.\n\nTwo.\n"
        compressed = {
            "gzip": gzip.compress(text),
            "xz": lzma.compress(text),
            "bzip2": bz2.compress(text),
            "zstd": b"\x28\xb5\x2f\xfd\x04\x00\x59\x00",
            "zip": b"PK\x03\x04\x14\x00\x00\x00",
        }
        self.write("z.txt", "Three.\n\nFour.")
        for kind, data in compressed.items():
            for name, words in (
                ("a.txt.gz", f"a {kind} file inside the gzip file; decompress it once more, or use --bad_text"),
                ("a.jsonl", f"a {kind} file, not text; decompress it, or use --bad_text=replace or skip"),
            ):
                with self.subTest(f"{kind} in {name}"):
                    path = self.write(name, data)
                    self.refused(f"{name}:1: {words}", path)
                    for policy in ("replace", "skip"):
                        read = self.read(f"{self.folder}/[az].*", policy=policy)
                        self.assertEqual(read.report["problems"]["compressed"], 1)
                        self.assertEqual(len(read.train) + len(read.held_out), 2)
                    os.remove(path)
        # Text that starts with printable parts of magic numbers is text.
        path = self.write("a.txt", "PK was here.\n\nBZh too.")
        self.assertEqual(self.texts(path), {("PK was here.",), ("BZh too.",)})


class LimitsTest(FilesTest):
    def test_decompression_bomb_under_every_policy(self):
        path = self.write("a.txt.gz", b"x" * (1 << 22))
        for policy in ("strict", "replace", "skip"):
            with self.subTest(policy):
                self.refused("like a decompression bomb", path, policy=policy, max_line_bytes=1 << 23)

    def test_bomb_of_short_lines(self):
        path = self.write("a.txt.gz", (b"x" * 63 + b"\n") * (1 << 15))
        self.refused("compressed bytes expand to", path)

    def test_long_lines_of_a_bomb_are_not_kept(self):
        path = self.write("a.jsonl.gz", b"[" * (1 << 22))
        self.refused("decompression bomb", path, policy="skip", max_line_bytes=1000)

    def test_well_compressed_text_is_no_bomb(self):
        rows = random.Random(0)
        path = self.write("a.txt.gz", "".join(f"{rows.getrandbits(64)} {'word ' * 200}.\n\n" for _ in range(2000)))
        self.assertEqual(self.read(path).report["problems"], {})

    def test_max_bytes_in_all(self):
        self.write("a.txt", "One is here.\n\n" * 3)
        self.write("b.txt", "Two is here.\n\n" * 3)
        self.assertEqual(len(self.texts(f"{self.folder}/*.txt", max_bytes=84, max_line_bytes=20)), 2)
        for policy in ("strict", "replace", "skip"):
            self.refused(
                "b.txt: exceeds max_bytes=83 in total; read fewer files or raise the limit",
                f"{self.folder}/*.txt",
                policy=policy,
                max_bytes=83,
                max_line_bytes=20,
            )


class NothingToReadTest(FilesTest):
    def test_no_file(self):
        self.refused("a.txt: no such file; specify docstrings, or an existing path or glob", self.folder / "a.txt")
        self.refused("--corpus=docstring: no such file", "docstring")
        self.refused("--corpus is empty", "")

    def test_glob_without_a_match(self):
        self.refused("*.txt: no file matches this glob; correct it", self.folder / "*.txt")
        (self.folder / "b.txt").mkdir()
        self.refused("*.txt: no file matches this glob", self.folder / "*.txt")

    def test_folder(self):
        self.refused(f"--corpus={self.folder} is a folder; specify its files, as in", self.folder)

    def test_other_suffix(self):
        self.refused("a.csv: its suffix is not one of .txt, .txt.gz, .jsonl, .jsonl.gz", self.write("a.csv", "a"))
        self.refused("a.csv: its suffix is not one of", self.folder / "*")

    def test_no_regular_file(self):
        os.mkfifo(self.folder / "a.txt")
        self.refused("a.txt: is not a regular file; specify a file", self.folder / "a.txt")
        (self.folder / "b.txt").symlink_to("nowhere")
        self.refused("b.txt: is not a regular file", self.folder / "b.txt")

    @unittest.skipIf(os.geteuid() == 0, "root may read everything")
    def test_no_permission(self):
        path = self.write("a.txt", "One.")
        os.chmod(path, 0)
        self.refused("a.txt: cannot be read (Permission denied)", path)

    def test_no_text_at_all(self):
        self.refused("no text in 1 file(s)", self.write("a.txt", "\n"), policy="skip")
        self.refused("a single sentence cannot be split into training and held-out text", self.write("b.txt", "One."))

    def test_arguments(self):
        path = self.write("a.txt", "One.\n\nTwo.")
        self.refused("unknown; use one of strict, replace, skip", path, policy="ignore")
        self.refused("max_line_bytes=0", path, max_line_bytes=0)
        self.refused("need 16 <= max_line_bytes <= max_bytes", path, max_line_bytes=100, max_bytes=99)


class TableTest(unittest.TestCase):
    def test_every_suffix_is_named_in_the_head(self):
        for suffix in files.SUFFIXES:
            self.assertIn(re.sub(r"\.gz$", "", suffix), files.__doc__)
