"""Packed folders: rows are read as they were written, damage is detected, and a killed writer leaves nothing valid.

NumPy only; the tokenizer is a fake, tests/corpus_test.py uses real ones.
"""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import unittest

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from tests.helpers import ROOT, temporary_folder
from tfzoo import files
from tfzoo.data import packed
from tfzoo.data.packed import PackedFolder
from tfzoo.errors import UserError
from tfzoo.training import inputs
from tfzoo.training.config import TrainConfig


class Tokenizer:
    vocab_size = 300

    def __init__(self, name="one"):
        self.name = name

    def fingerprint(self):
        return self.name * 20

    def save(self, folder):
        folder.mkdir()
        (folder / "vocab.txt").write_text(self.name)


class Rows:
    """Returns random rows of one to four documents."""

    padding_share = 0.25

    def __init__(self, count, seed=0, wait_at=None):
        draw = np.random.default_rng(seed)
        self.rows = []
        self.wait_at = wait_at
        for _ in range(count):
            sizes = draw.integers(1, 9, draw.integers(1, 5))
            tokens = draw.integers(0, 300, sizes.sum(), np.int32)
            self.rows.append((tokens, np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)))

    def __len__(self):
        return len(self.rows)

    def row(self, index):
        if index == self.wait_at:
            print("here", flush=True)
            time.sleep(86400)
        return self.rows[index]


TRAIN, HELD_OUT = Rows(100), Rows(7, seed=1)
IDS = np.arange(300, dtype=np.int32)


def write(folder, train=TRAIN, tokenizer=None, shard_rows=30):
    return packed.write(
        folder,
        {"train": train, "held_out": HELD_OUT},
        {"train": IDS, "held_out": IDS[:5]},
        tokenizer or Tokenizer(),
        flags={"objective": "causal", "sequence_length": 32},
        corpus={"name": "x", "fingerprint": "f", "report": {"files": 1}},
        shard_rows=shard_rows,
    )


class PackedCase(unittest.TestCase):
    def setUp(self):
        self.parent = temporary_folder(self)
        self.folder = self.parent / "packed"

    def assert_whole(self, folder):
        opened = PackedFolder.open(folder)
        opened.verify()
        self.assert_same(opened.rows("train"), TRAIN)
        self.assert_same(opened.rows("held_out"), HELD_OUT)

    def assert_same(self, stored, rows):
        self.assertEqual(len(stored), len(rows))
        for index in random.Random(0).sample(range(len(rows)), len(rows)):
            for one, two in zip(stored.row(index), rows.row(index), strict=True):
                self.assertEqual(one.dtype, np.int32)
                np.testing.assert_array_equal(one, two)


class FolderTest(PackedCase):
    def test_what_went_in_comes_out(self):
        for shard_rows, count in ((30, 4), (100, 1), (99, 2)):
            folder = self.parent / str(shard_rows)
            write(folder, shard_rows=shard_rows)
            self.assertEqual(len(list(folder.glob("train-*"))), count)
            self.assert_whole(folder)
        opened = PackedFolder.open(folder)
        self.assertEqual(opened.rows("train").padding_share, 0.25)
        np.testing.assert_array_equal(opened.token_ids("train"), IDS)
        self.assertEqual(opened.token_ids("train").dtype, np.uint16)
        self.assertEqual(len(opened.token_ids("held_out")), 5)
        self.assertEqual(opened.flags, {"objective": "causal", "sequence_length": 32})
        self.assertEqual(opened.report, {"files": 1})

    def test_a_record_is_what_the_head_of_the_file_says(self):
        rows = Rows(1)
        rows.rows = [(np.array([7, 8, 9, 5], np.int32), np.array([1, 1, 1, 2], np.int32))]
        write(self.folder, rows)
        reader = ArrayRecordReader(str(self.folder / "train-00000-of-00001.array_record"))
        self.assertEqual(reader.read(), np.array([2, 3, 1, 7, 8, 9, 5], "<i4").tobytes())

    def test_the_fingerprint_is_of_rows_and_tokenizer(self):
        found = {}
        for name, arguments in (
            ("one", {}),
            ("same", {"shard_rows": 10}),
            ("rows", {"train": Rows(100, seed=5)}),
            ("tokenizer", {"tokenizer": Tokenizer("two")}),
        ):
            write(self.parent / name, **arguments)
            found[name] = PackedFolder.open(self.parent / name).fingerprint
        self.assertEqual(found["one"], found["same"])
        self.assertEqual(len(set(found.values())), 3)
        # Writing again results in the same bytes.
        write(self.parent / "again")
        for path in (self.parent / "again").rglob("*.*"):
            self.assertEqual(
                path.read_bytes(), (self.parent / "one" / path.relative_to(self.parent / "again")).read_bytes()
            )

    def test_what_is_there_is_left_alone(self):
        self.folder.mkdir()
        (self.folder / "mine").write_text("x")
        with self.assertRaisesRegex(UserError, f"--output_dir={self.folder}: already exists"):
            write(self.folder)
        self.assertEqual([path.name for path in self.parent.rglob("*")], ["packed", "mine"])

    def test_what_is_no_packed_folder(self):
        with self.assertRaisesRegex(UserError, f"--corpus={self.parent}: is a folder without packed text"):
            PackedFolder.open(self.parent)
        write(self.folder)
        path = self.folder / packed.MANIFEST
        manifest = json.loads(path.read_text())
        manifest["version"] = 99
        manifest["sha256"] = packed._checksum(manifest)
        path.write_text(json.dumps(manifest))
        with self.assertRaisesRegex(UserError, f"{path}: has version 99, but 1 is supported"):
            PackedFolder.open(self.folder)


class DamageTest(PackedCase):
    def setUp(self):
        super().setUp()
        write(self.folder)
        self.names = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]

    def test_one_bit_in_any_file(self):
        self.assertEqual(len(self.names), 4 + 1 + 2 + 1 + 1)
        for name in self.names:
            path = self.folder / name
            whole = path.read_bytes()
            # Every byte of the manifest.
            places = range(len(whole)) if name == packed.MANIFEST else [0, len(whole) // 2, len(whole) - 1]
            for place in places:
                path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
                with self.assertRaisesRegex(UserError, f"^{path}: (is damaged|has version)[^\n]*$", msg=str(place)):
                    PackedFolder.open(self.folder).verify()
            path.write_bytes(whole)
        self.assert_whole(self.folder)

    def test_cut_short_missing_or_exchanged(self):
        one, two = (self.folder / f"train-0000{i}-of-00004.array_record" for i in range(2))
        whole = one.read_bytes()
        one.write_bytes(whole[:-1])
        with self.assertRaisesRegex(UserError, f"^{one}: has {len(whole) - 1:,} bytes, but {len(whole):,} were"):
            PackedFolder.open(self.folder).verify()
        one.unlink()
        with self.assertRaisesRegex(UserError, f"^{one}: is missing; "):
            PackedFolder.open(self.folder).verify()
        one.write_bytes(two.read_bytes())
        with self.assertRaisesRegex(UserError, f"^{one}: "):
            PackedFolder.open(self.folder).verify()
        # Without the check, at least missing rows are rejected.
        shutil.copy(self.folder / "train-00003-of-00004.array_record", one)
        with self.assertRaisesRegex(UserError, f"^{one}: does not contain the 30 rows"):
            PackedFolder.open(self.folder).rows("train")

    def test_damage_while_it_is_read(self):
        """Damage after the check, during an epoch: the record is named, and its neighbors can be read."""
        path = self.folder / "train-00001-of-00004.array_record"
        whole = path.read_bytes()
        rows, lost = PackedFolder.open(self.folder).rows("train"), []
        for place in range(100, 2000, 100):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            for index in range(30, 60):
                try:
                    np.testing.assert_array_equal(rows.row(index)[0], TRAIN.rows[index][0])
                except UserError as error:
                    self.assertRegex(str(error), f"^{path}: record {index - 30} cannot be read .*; pack ")
                    lost.append(place)
        self.assertGreater(len(lost), 5)
        self.assertEqual(len(lost), len(set(lost)), "a byte has cost more than a record")

    def test_another_tokenizer(self):
        opened = PackedFolder.open(self.folder)
        opened.check_tokenizer(Tokenizer(), "mine")
        with self.assertRaisesRegex(UserError, "^mine: is not the tokenizer .*fingerprint twotwo.*, not oneone"):
            opened.check_tokenizer(Tokenizer("two"), "mine")


class HostileTest(PackedCase):
    """Folders whose checksums are right and whose content is not."""

    def setUp(self):
        super().setUp()
        write(self.folder)
        self.path = self.folder / packed.MANIFEST

    def change(self, change):
        """Changes the manifest, and corrects its checksum."""
        manifest = json.loads(self.path.read_text())
        change(manifest)
        manifest["sha256"] = packed._checksum(manifest)
        self.path.write_text(json.dumps(manifest))

    def refused(self, function) -> str:
        with self.assertRaises(UserError) as raised:
            function()
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)

    def test_a_small_record_that_stands_for_a_large_row(self):
        name = "held_out-00000-of-00001.array_record"
        for values, problem in (
            ([1, 2**31 - 1, 7], "its lengths contradict its size"),
            ([3, 2**31 - 1, 2**31 - 1, 2**31 - 1], "its lengths contradict its size"),
            ([2**31 - 1], "its lengths contradict its size"),
            ([-1, 5], "its lengths contradict its size"),
            ([2, -1, 2, 5], "its lengths contradict its size"),
            ([], "its lengths contradict its size"),
            ([1, 2, 299, 300], "a token id is not from 0 to 299"),
            ([1, 2, 5, -1], "a token id is not from 0 to 299"),
        ):
            path = self.folder / name
            writer = ArrayRecordWriter(str(path), "group_size:1")
            writer.write(np.array(values, "<i4").tobytes() + b"x" * (not values))
            writer.close()
            rows = packed.StoredRows({path: 1}, 0.0, 300)
            tracemalloc.start()
            message = self.refused(lambda rows=rows: rows.row(0))
            self.assertLess(tracemalloc.get_traced_memory()[1], 1 << 20)
            tracemalloc.stop()
            self.assertEqual(message, f"{path}: record 0 is damaged ({problem}); pack the text again")

    def test_an_array_whose_header_claims_more_than_the_file(self):
        path = self.folder / "train_ids.npy"
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (1 << 34,)})
        self.assertRegex(self.refused(lambda: PackedFolder.open(self.folder).token_ids("train")), f"^{path}: is not an")
        np.save(path, np.arange(299, dtype=np.uint16))
        message = f"{path}: does not contain 300 ids of 300 tokens; pack the text again"
        self.assertEqual(self.refused(lambda: PackedFolder.open(self.folder).token_ids("train")), message)

    def test_files_outside_of_the_folder_and_unlisted_ones(self):
        for name in ("../secret", "/etc/passwd", "a/../../b", "a//b", "./a", ""):
            before = self.path.read_text()
            self.change(lambda manifest, name=name: manifest["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
            message = f"{self.path}: lists {name!r}, which is not a file in the folder; remove it"
            self.assertEqual(self.refused(lambda: PackedFolder.open(self.folder)), message)
            self.path.write_text(before)
        path = self.folder / "train_ids.npy"
        shutil.move(path, self.parent / "moved.npy")
        path.symlink_to(self.parent / "moved.npy")
        message = self.refused(lambda: PackedFolder.open(self.folder).verify())
        self.assertRegex(message, f"^{path}: is a link to a file outside of the folder")
        path.unlink()
        os.mkfifo(path)
        self.assertRegex(self.refused(lambda: PackedFolder.open(self.folder).verify()), f"^{path}: has 0 bytes")
        path.unlink()
        shutil.move(self.parent / "moved.npy", path)
        self.assert_whole(self.folder)
        (self.folder / "tokenizer" / "merges.txt").write_text("")
        message = self.refused(lambda: PackedFolder.open(self.folder).verify())
        self.assertRegex(message, f"^{self.folder}/tokenizer/merges.txt: is not listed in manifest.json; remove it")

    def test_a_manifest_sets_only_what_packing_decides(self):
        config = TrainConfig(run_dir="x", corpus=str(self.folder))
        found, _ = inputs.find_packed(config, {})
        self.assertEqual((found.objective, found.sequence_length), ("causal", 32))
        before, where = self.path.read_text(), re.escape(f"{self.path}: flags")
        for flags, message in (
            ({"run_dir": "/etc"}, "'run_dir' is not decided by packing; pack the text again"),
            ({"cache_dir": "/etc"}, "'cache_dir' is not decided by packing; pack the text again"),
            ({"learning_rate": 5.0}, "'learning_rate' is not decided by packing; pack the text again"),
            ({"steps": 10**9}, "'steps' is not decided by packing; pack the text again"),
            ({"objective": "x"}, "objective is 'x', not one of masked_lm, .*; correct it"),
            ({"sequence_length": "long"}, "sequence_length=long: must be a whole number; pack the text again"),
            ({"sequence_length": 10**9}, "sequence_length=1000000000: must be from 8 to 1000000; pack the text again"),
        ):
            self.change(lambda manifest, flags=flags: manifest["flags"].update(flags))
            with self.assertRaisesRegex(UserError, f"^{where}: {message}$"):
                inputs.find_packed(config, {})
            self.path.write_text(before)

    def test_fields_of_the_manifest_have_their_types(self):
        before = self.path.read_text()
        for name, value, message in (
            ("flags", [], r"flags is \[\], not an object"),
            ("corpus", {"name": "x"}, "corpus: has no report"),
            (
                "tokenizer",
                {"fingerprint": "x", "vocab_size": 10**12},
                "tokenizer: vocab_size is 1000000000000, not a whole",
            ),
            (
                "parts",
                {"train": {"rows": 1, "tokens": 1, "padding_share": 0}},
                "does not list the files of the 1 rows of train",
            ),
            ("files", {"a": {"bytes": -1, "sha256": ""}}, "'a': bytes is -1, not a whole number of at least 0"),
            ("version", {}, r"has version \{\}, but 1 is supported"),
        ):
            self.change(lambda manifest, name=name, value=value: manifest.update({name: value}))
            self.assertRegex(self.refused(lambda: PackedFolder.open(self.folder)), f"^{self.path}: ({message})")
            self.path.write_text(before)

    def test_a_manifest_without_the_files_of_all_rows(self):
        self.change(lambda manifest: manifest["files"].pop("train-00003-of-00004.array_record"))
        message = f"{self.path}: does not list the files of the 100 rows of train; pack again"
        self.assertEqual(self.refused(lambda: PackedFolder.open(self.folder)), message)
        os.remove(self.path)
        os.mkfifo(self.path)
        self.assertRegex(self.refused(lambda: PackedFolder.open(self.folder)), "cannot be read .not a regular file")


class KillTest(PackedCase):
    def test_a_kill_leaves_nothing_that_is_taken_for_whole(self):
        program = (
            "import sys, pathlib; from tests.data import packed_test as t; print('ready', flush=True); "
            "t.write(pathlib.Path(sys.argv[1]), t.Rows(100, wait_at=int(sys.argv[2])), shard_rows=7)"
        )
        draw = random.Random(0)
        killed = 0
        # While it waits to be killed, in the first, a later and the last shard; or at any time; or after its work.
        for trial, row in enumerate((3, 40, 99, 100, 100, 100)):
            folder = self.parent / f"packed{trial}"
            command = [sys.executable, "-c", program, str(folder), str(row)]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
                self.assertEqual(process.stdout.readline(), "ready\n")
                if row < 100:
                    self.assertEqual(process.stdout.readline(), "here\n")
                else:
                    time.sleep(draw.uniform(0, 0.1))
                process.send_signal(signal.SIGKILL)
            left = list(self.parent.glob(f"packed{trial}*"))
            for path in left:
                if path.name.endswith(files.PARTIAL):
                    killed += 1
                    with self.assertRaisesRegex(
                        UserError, "an incomplete folder of an interrupted command|is a folder without packed text"
                    ):
                        PackedFolder.open(path)
            if not folder.exists():
                write(folder)
            self.assert_whole(folder)
            self.assertEqual(list(self.parent.glob(f"packed{trial}*")), [folder])
        self.assertGreaterEqual(killed, 3)

    def test_only_what_the_dead_left_is_removed(self):
        dead, living, other, file = (self.parent / f"packed{name}.partial" for name in (".11", ".22", ".new.33", ".44"))
        for folder in (dead, living, other):
            folder.mkdir()
            (folder / "train-00000-of-00001.array_record").write_bytes(b"x")
        file.write_text("x")
        descriptor = os.open(living, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write(self.folder)
        self.assertEqual(sorted(self.parent.iterdir()), sorted([self.folder, living, other, file]))
        self.assert_whole(self.folder)


if __name__ == "__main__":
    unittest.main()
