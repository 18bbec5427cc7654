"""Checkpoints: round trips, damage and kills are tested with arrays; TensorFlow is used only for Keras variables."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import struct
import threading
import time
from unittest import mock

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import temporary_folder
from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.training import checkpoint
from tfzoo.training.checkpoint import Checkpoints, model_variables
from tfzoo.weights import safetensors_files, tensors


def arrays(step=0, size=8):
    """Returns arrays whose content depends on the step."""
    return {
        "model/kernel": np.full([size, 3], step + 0.1, np.float32),
        "model/half": np.array([step, np.nan, -0.0, 3e38], ml_dtypes.bfloat16),
        "model/seed": np.array([step, 2**32 - 1], np.uint32),
        "optimizer/iteration": np.array(step + 2**40, np.int64),
        "optimizer/finite": np.array(step % 2 == 0),
        "optimizer/empty": np.zeros([0, 2], np.float16),
    }


class CheckpointsCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.run_dir = temporary_folder(self) / "run"
        self.folder = self.run_dir / "checkpoints"
        self.random = random.Random(7)

    def saved(self, *steps, keep=2):
        checkpoints = Checkpoints(self.folder, keep)
        for step in steps:
            checkpoints.save(step, arrays(step), {"epoch": step, "names": ["ä", None], "loss": 0.1})
        return checkpoints

    def restored(self):
        """Restores a checkpoint, checks that it is complete, and returns its step."""
        variables = {name: np.zeros_like(array) for name, array in arrays().items()}
        found = Checkpoints(self.folder).restore(variables)
        assert found is not None
        step, state = found
        self.assertEqual(state, {"epoch": step, "names": ["ä", None], "loss": 0.1})
        self.assert_same_bits(variables, arrays(step))
        return step

    def assert_same_bits(self, left, right):
        self.assertEqual(list(left), list(right))
        for name in left:
            self.assertEqual(left[name].dtype, right[name].dtype, name)
            self.assertEqual(left[name].shape, right[name].shape, name)
            self.assertEqual(left[name].tobytes(), right[name].tobytes(), name)

    def names(self, folder=None):
        return sorted(os.listdir(folder or self.folder))


class SaveTest(CheckpointsCase):
    def test_round_trip_is_bit_for_bit(self):
        self.saved(1200)
        self.assertEqual(self.names(), ["00001200"])
        self.assertEqual(self.names(self.folder / "00001200"), ["checkpoint.json", "variables.safetensors"])
        self.assertEqual(self.restored(), 1200)

    def test_nothing_there(self):
        variables = arrays(5)
        self.assertIsNone(Checkpoints(self.folder).restore(variables))
        self.assert_same_bits(variables, arrays(5))
        with self.assertRaisesRegex(UserError, "contains no checkpoint"):
            Checkpoints(self.folder).read()

    def test_keeps_the_newest_and_the_best(self):
        checkpoints = self.saved(1, 2, 3)
        self.assertEqual(checkpoints.steps(), [2, 3])
        checkpoints.mark_best(2)
        self.saved(4, 5, 100_000_000)
        self.assertEqual(checkpoints.steps(), [2, 5, 100_000_000])
        self.assertEqual(os.readlink(self.run_dir / "best"), "checkpoints/00000002")
        checkpoints.mark_best(5)
        self.saved(100_000_001, keep=1)
        self.assertEqual((checkpoints.steps(), checkpoints.best_step()), ([5, 100_000_001], 5))
        self.assertEqual(self.names(self.run_dir), ["best", "checkpoints"])
        with self.assertRaises(ValueError):
            checkpoints.mark_best(6)

    def test_best_survives_moving_the_run(self):
        self.saved(1).mark_best(1)
        moved = self.run_dir.with_name(self.run_dir.name + "_moved")
        self.run_dir.rename(moved)
        self.assertEqual(Checkpoints(moved / "checkpoints").read(moved / "best")[0], 1)

    def test_saving_a_step_again_replaces_nothing(self):
        checkpoints = self.saved(1)
        before = os.stat(self.folder / "00000001" / "checkpoint.json")
        checkpoints.save(1, {"other": np.zeros(2)}, {})
        self.assertEqual(os.stat(self.folder / "00000001" / "checkpoint.json"), before)
        self.assertEqual(self.restored(), 1)

    def test_interim_ones(self):
        """An interim checkpoint is restored like any other, not used for rollback, and removed by the next save."""
        checkpoints = self.saved(5, 10)
        checkpoints.save(12, arrays(12), {"epoch": 12}, interim=True)
        self.assertEqual(checkpoints.steps(), [10, 12])  # It counts as one of the two that are kept,
        checkpoints.save(13, arrays(13), {"epoch": 13}, interim=True)
        self.assertEqual(checkpoints.steps(), [10, 13])  # but never replaces the last regular one.
        variables = arrays()
        self.assertEqual(checkpoints.restore(variables), (13, {"epoch": 13}))
        self.assert_same_bits(variables, arrays(13))
        step, _ = checkpoints.restore(variables, interim=False)
        self.assertEqual(step, 10)
        self.assert_same_bits(variables, arrays(10))
        checkpoints.save(15, arrays(15), {"epoch": 15})
        self.assertEqual(checkpoints.steps(), [10, 15])
        # An interim checkpoint can become regular in place, with the same variables.
        checkpoints.save(20, arrays(20), {"epoch": "stopped"}, interim=True)
        before = (checkpoints.path(20) / checkpoint.VARIABLES).stat()
        checkpoints.save(20, arrays(20), {"epoch": 20}, best=True)
        self.assertEqual((checkpoints.path(20) / checkpoint.VARIABLES).stat(), before)
        self.assertEqual(checkpoints.restore(variables, interim=False), (20, {"epoch": 20}))
        self.assert_same_bits(variables, arrays(20))
        # A regular checkpoint does not change.
        checkpoints.save(20, arrays(20), {}, interim=True)
        checkpoints.save(21, arrays(21), {}, interim=True)
        self.assertEqual((checkpoints.steps()[-2:], checkpoints.steps(interim=False)[-1]), ([20, 21], 20))
        checkpoints.remove_after(20)
        self.assertEqual((checkpoints.steps()[-1], checkpoints.best_step()), (20, 20))
        self.assertEqual(self.names(checkpoints.path(20)), ["checkpoint.json", "variables.safetensors"])

    def test_an_interim_one_alone_is_gone_back_to(self):
        checkpoints = Checkpoints(self.folder, keep=1)
        checkpoints.save(3, arrays(3), {}, interim=True)
        self.assertEqual(checkpoints.restore(arrays(), interim=False), (3, {}))
        checkpoints.remove_after(3)
        self.assertEqual(checkpoints.steps(), [3])
        checkpoints.save(4, arrays(4), {}, best=True)
        checkpoints.remove_after(3)
        self.assertEqual((checkpoints.steps(), checkpoints.best_step()), ([], None))

    def test_an_interim_one_stands_in_for_a_damaged_one(self):
        checkpoints = self.saved(5)
        checkpoints.save(7, arrays(7), {}, interim=True)
        (checkpoints.path(5) / checkpoint.VARIABLES).write_bytes(b"")
        with self.assertLogs("absl", "WARNING"):
            self.assertEqual(checkpoints.restore(arrays(), interim=False), (7, {}))

    def test_a_state_that_json_cannot_hold_leaves_nothing(self):
        checkpoints = self.saved(1)
        with self.assertRaises(TypeError):
            checkpoints.save(2, arrays(2), {"x": object()})
        self.assertEqual(self.names(), ["00000001"])

    def test_numbers_as_keys_and_what_is_no_number(self):
        checkpoints = Checkpoints(self.folder)
        checkpoints.save(0, {}, {"x": {1: 2, 10: (3,)}, "best": float("inf")})
        self.assertEqual(checkpoints.read()[:2], (0, {"x": {"1": 2, "10": [3]}, "best": float("inf")}))

    def test_a_reader_leaves_the_writers_files_alone(self):
        self.saved(1)
        (self.folder / "00000002.1.partial").mkdir()
        reader = Checkpoints(self.folder, read_only=True)
        self.assertEqual(reader.read()[0], 1)
        self.assertIn("00000002.1.partial", self.names())
        with self.assertRaises(ValueError):
            reader.save(2, {}, {})
        with self.assertRaises(ValueError):
            reader.mark_best(1)


class MismatchTest(CheckpointsCase):
    def test_names_both_sides_and_assigns_nothing(self):
        self.saved(1)
        variables = arrays(9)
        variables["model/bias"] = variables.pop("model/kernel")
        variables["model/half"] = variables["model/half"].astype(np.float32)
        variables["model/seed"] = np.zeros(3, np.uint32)
        before = {name: array.copy() for name, array in variables.items()}
        with self.assertRaises(UserError) as caught:
            Checkpoints(self.folder).restore(variables)
        self.assertEqual(
            str(caught.exception),
            f"{self.folder}/00000001: does not match this model and optimizer; "
            "missing from the checkpoint: model/bias; only in the checkpoint: model/kernel; "
            "different dtype or shape: model/half (model float32 [4], checkpoint bfloat16 [4]), "
            "model/seed (model uint32 [3], checkpoint uint32 [2]); "
            "use the flags that it was created with, or another folder",
        )
        self.assert_same_bits(variables, before)

    def test_many_names_stay_one_line(self):
        self.saved(1)
        with self.assertRaisesRegex(UserError, r"missing from the checkpoint: x0, x1, x10, x11, x12 and 15 more;"):
            Checkpoints(self.folder).restore({f"x{i}": np.zeros(1) for i in range(20)})

    def test_another_format_is_no_damage(self):
        self.saved(1)
        with mock.patch("tfzoo.training.checkpoint.FORMAT", 2):
            with self.assertRaisesRegex(UserError, "has format 1, but this tfzoo reads 2"):
                Checkpoints(self.folder).restore(arrays())


class DamageTest(CheckpointsCase):
    def assert_falls_back(self, words=""):
        with self.assertLogs("absl", "WARNING") as logs:
            self.assertEqual(self.restored(), 1)
        self.assertLen(logs.output, 1)
        self.assertIn("00000002/", logs.output[0])
        self.assertIn(words, logs.output[0])
        self.assertNotIn("\n", logs.output[0])

    def damage(self, name):
        """Creates two checkpoints, and returns the path of a file of the newer one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.saved(1, 2)
        return self.folder / "00000002" / name

    def test_every_flipped_byte_is_found(self):
        """1,000 of 1,000 bit flips are detected."""
        for name in ("variables.safetensors", "checkpoint.json"):
            path = self.damage(name)
            intact = path.read_bytes()
            for _ in range(500):
                flipped = bytearray(intact)
                flipped[self.random.randrange(len(flipped))] ^= self.random.randrange(1, 256)
                path.write_bytes(flipped)
                self.assert_falls_back(name)
            path.write_bytes(intact)
            self.assertEqual(self.restored(), 2)

    def test_white_space_counts(self):
        path = self.damage("checkpoint.json")
        for data in (path.read_bytes() + b" ", path.read_bytes().replace(b"\n", b" ")):
            path.write_bytes(data)
            self.assert_falls_back("checkpoint.json: is corrupted: its content does not match its checksum")

    def test_truncated_emptied_lengthened_deleted(self):
        for name in ("variables.safetensors", "checkpoint.json"):
            intact = self.damage(name).read_bytes()
            for data in (b"", intact[:7], intact[: len(intact) // 2], intact[:-1], intact + b"\0"):
                self.damage(name).write_bytes(data)
                self.assert_falls_back(name)
            self.damage(name).unlink()
            self.assert_falls_back(f"{name}: no such file or directory")
            path = self.damage(name)
            path.unlink()
            path.mkdir()
            self.assert_falls_back(name)

    def test_garbled_json(self):
        for text in ("{", "[]", "null", "3", "{}", '{"checksum": ""}', "[" * 100_000, '"\\ud800"', "\xff"):
            self.damage("checkpoint.json").write_bytes(text.encode("latin-1"))
            self.assert_falls_back("checkpoint.json: is corrupted: its content does not match its checksum")

    def rewrite(self, data):
        """Replaces the variables with `data`, and adapts the record to it."""
        path = self.damage("variables.safetensors")
        path.write_bytes(data)
        record_path = path.with_name("checkpoint.json")
        record = json.loads(record_path.read_bytes())
        del record["checksum"]
        record["bytes"], record["sha256"] = len(data), files.sha256(path)
        record_path.write_bytes(checkpoint._encode(record))

    def test_a_header_that_lies_under_a_good_checksum(self):
        data = self.damage("variables.safetensors").read_bytes()
        for length in (2**44, 2**63, 2**64 - 1, len(data), 0):
            self.rewrite(struct.pack("<Q", length) + data[8:])
            self.assert_falls_back("variables.safetensors")
        self.rewrite(data.replace(b"model/half", b"model/calf"))
        self.assert_falls_back("variables.safetensors: its variables differ from those listed in checkpoint.json")
        self.rewrite(data)
        self.assertEqual(self.restored(), 2)

    def test_a_renamed_checkpoint(self):
        self.damage("")
        (self.folder / "00000002").rename(self.folder / "00000020")
        with self.assertLogs("absl", "WARNING") as logs:
            self.assertEqual(self.restored(), 1)
        self.assertIn("belongs to step 2, not 00000020", logs.output[0])

    def test_none_readable_is_an_error_and_not_step_0(self):
        for step in (1, 2):
            (self.saved(1, 2).path(step) / "checkpoint.json").write_bytes(b"")
        for call in (lambda: Checkpoints(self.folder).restore(arrays()), Checkpoints(self.folder).read):
            with self.assertLogs("absl", "WARNING"):
                with self.assertRaisesRegex(UserError, r"none of its 2 checkpoints can be read \(.*00000002"):
                    call()

    def test_a_checkpoint_that_is_asked_for_never_falls_back(self):
        self.damage("variables.safetensors").write_bytes(b"")
        with self.assertRaisesRegex(UserError, "0 bytes, .* were written; choose another"):
            Checkpoints(self.folder).read(self.folder / "00000002")
        self.assertEqual(Checkpoints(self.folder).read(self.folder / "00000001")[0], 1)
        with self.assertRaisesRegex(UserError, "00000003/checkpoint.json: no such file"):
            Checkpoints(self.folder).read(self.folder / "00000003")

    def test_a_record_with_a_good_checksum_and_fields_of_other_types(self):
        path = self.damage("checkpoint.json")
        intact = json.loads(path.read_bytes())
        del intact["checksum"]
        for name in sorted(intact):
            for value in (None, [], {}, "x", -1, 1.5, True, {"a": [1]}):
                record = {key: item for key, item in intact.items() if key != name}
                record |= {} if value is None else {name: value}
                if record == intact | {name: value} and type(value) is type(intact[name]):
                    continue
                path.write_bytes(checkpoint._encode(record))
                try:
                    Checkpoints(self.folder).read(path.parent)
                except UserError as error:
                    self.assertNotIn("\n", str(error))

    def test_going_on_after_a_fall_replaces_the_damaged_one(self):
        self.damage("variables.safetensors").write_bytes(b"")
        checkpoints = Checkpoints(self.folder)
        with self.assertLogs("absl", "WARNING"):
            checkpoints.restore(arrays())
        checkpoints.save(2, arrays(2), {"epoch": 2, "names": ["ä", None], "loss": 0.1})
        self.assertEqual(self.restored(), 2)
        self.assertEqual(self.names(), ["00000001", "00000002"])

    def test_a_damaged_one_does_not_take_an_intact_ones_place(self):
        self.damage("variables.safetensors").write_bytes(b"")
        checkpoints = Checkpoints(self.folder)
        with self.assertLogs("absl", "WARNING"):
            checkpoints.restore(arrays())
        checkpoints.save(3, arrays(3), {})
        self.assertEqual(checkpoints.steps(), [1, 3])


class ForeignTest(CheckpointsCase):
    """A checkpoint of another run is refused, and links are not followed."""

    def of_run(self, run_id, **options):
        return Checkpoints(self.folder, run_id=run_id, **options)

    def test_a_checkpoint_of_another_run(self):
        self.of_run("mine").save(1, arrays(1), {})
        self.assertEqual(self.of_run("mine").read()[0], 1)
        other = self.run_dir.with_name("other") / "checkpoints"
        for run_id in ("theirs", None):  # None: of a run that an earlier version began.
            Checkpoints(other, run_id=run_id).save(2, arrays(2), {})
            shutil.copytree(other / "00000002", self.folder / "00000002")
            before = arrays(7)
            for call in (
                lambda before=before: self.of_run("mine").restore(before),
                self.of_run("mine").read,
                lambda: self.of_run("mine").read(other / "00000002"),
            ):
                message = (
                    rf"00000002: was saved by another run \(id {run_id}, not mine\); .* with --init_from, or remove"
                )
                with self.assertRaisesRegex(UserError, message):
                    call()
            self.assert_same_bits(before, arrays(7))
            shutil.rmtree(self.folder / "00000002")
            shutil.rmtree(other)
        self.assertEqual(self.of_run(None).read()[0], 1)  # A config.json without an id.

    def test_an_interim_checkpoint_keeps_its_run(self):
        checkpoints = self.of_run("mine")
        checkpoints.save(1, arrays(1), {}, interim=True)
        checkpoints.save(1, arrays(1), {})
        self.assertEqual(self.of_run("mine").read()[0], 1)

    def test_links(self):
        self.saved(1, 2)
        elsewhere = self.run_dir.with_name("elsewhere")
        self.folder.rename(elsewhere)
        self.folder.symlink_to(elsewhere)
        with self.assertRaisesRegex(UserError, "checkpoints: is a symbolic link, which is not followed here; replace"):
            Checkpoints(self.folder)
        self.folder.unlink()
        elsewhere.rename(self.folder)
        for name in ("00000002", "00000002/checkpoint.json", "00000002/variables.safetensors"):
            path = self.folder / name
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
            with self.assertLogs("absl", "WARNING") as logs:
                self.assertEqual(self.restored(), 1)
            self.assertRegex(logs.output[0], f"{name}: (is a symbolic link|cannot be read .too many levels of symb)")
            path.unlink()
            elsewhere.rename(path)
        self.assertEqual(self.restored(), 2)

    def test_a_link_of_a_step_is_not_pruned_through(self):
        self.saved(1, 2)
        other = self.run_dir.with_name("other")
        shutil.copytree(self.folder / "00000001", other)
        shutil.rmtree(self.folder / "00000001")
        (self.folder / "00000001").symlink_to(other)
        with self.assertRaisesRegex(UserError, "00000001: is a symbolic link, which is not followed here"):
            self.saved(3)
        self.assertEqual(self.names(other), ["checkpoint.json", "variables.safetensors"])

    def test_best_that_is_something_else(self):
        best, checkpoints = self.run_dir / "best", self.saved(1, 2)
        for make in (
            lambda: best.symlink_to(self.folder / "00000001"),
            lambda: best.symlink_to("../other/00000001"),
            lambda: best.symlink_to("checkpoints/x"),
            lambda: shutil.copytree(self.folder / "00000001", best),
        ):
            make()
            with self.assertRaisesRegex(UserError, "best: is not a link to one of this run's checkpoints; remove it$"):
                checkpoints.selected(None)
            shutil.rmtree(best) if not best.is_symlink() else best.unlink()
        self.assertIsNone(checkpoints.selected(None))
        checkpoints.mark_best(1)
        self.assertEqual(checkpoints.selected(None), self.folder / "00000001")


class MeanwhileTest(CheckpointsCase):
    def test_what_is_written_is_what_was_there_when_save_was_called(self):
        variables, state = arrays(5), {"losses": [0.5]}
        written = threading.Event()
        checkpoints = Checkpoints(self.folder)
        write_file = safetensors_files.write_file
        with mock.patch.object(safetensors_files, "write_file", lambda *a: (written.wait(), write_file(*a))):
            checkpoints.save(5, variables, state, best=True, wait=False)
            self.assertEqual(checkpoints.steps(), [])
            variables["model/kernel"][...] = -1.0
            state["losses"].append(9.0)
            written.set()
            checkpoints.wait()
        step, state, found = Checkpoints(self.folder).read()
        self.assertEqual((step, state), (5, {"losses": [0.5]}))
        self.assert_same_bits(found, {name: found[name] for name in found} | arrays(5))
        self.assertEqual(checkpoints.best_step(), 5)

    def test_the_next_save_waits_and_says_what_went_wrong(self):
        for last in ("save", "wait"):
            checkpoints = self.saved(1)
            with mock.patch.object(safetensors_files, "write_file", side_effect=OSError(errno.ENOSPC, "full")):
                checkpoints.save(2, arrays(2), {}, wait=False)
                with self.assertRaisesRegex(UserError, "00000002: cannot be written .no space left on device.; free"):
                    checkpoints.save(3, arrays(3), {}, wait=False) if last == "save" else checkpoints.wait()
            self.assertEqual(self.names(), ["00000001"])
            self.assertEqual(self.restored(), 1)
            checkpoints.save(4, arrays(4), {})  # There is free space again.
            self.assertEqual(checkpoints.steps(), [1, 4])
            shutil.rmtree(self.run_dir)


class KillTest(CheckpointsCase):
    """Child processes that save in a loop are killed: afterwards, everything is complete, and nothing is left over."""

    SIZE = 30_000

    def kills(self, save, newest, most, count):
        """Kills `count` child processes while they save, and more of them until one was killed during a write.

        Args:
          save: save(number) writes `arrays(number)` after those with lower numbers.
          newest: verifies the newest and returns its number; 0 if there is none.
          most: the maximum number of them on the disk at any time.
        """
        found, litter, largest = 0, 0, 0
        one = sum(array.nbytes for array in arrays(0, self.SIZE).values()) + 10_000  # Names, sizes, checksums.
        done = 0
        while done < count or (not litter and done < 100 * count):
            done += 1
            read, write = os.pipe()
            child = os.fork()
            if not child:
                try:  # TensorFlow does not work in a forked process, and is not needed.
                    for number in itertools.count(found + 1):
                        save(number)
                        os.write(write, b".")
                finally:
                    os._exit(1)
            os.close(write)
            self.assertEqual(os.read(read, 1), b".", "the child has ended")  # It has saved once.
            time.sleep(self.random.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            os.close(read)
            self.assertEqual(os.WTERMSIG(status), signal.SIGKILL)
            litter += any(
                files.PARTIAL in name for _, folders, names in os.walk(self.run_dir) for name in folders + names
            )
            size = sum(path.lstat().st_size for path in self.run_dir.rglob("*") if path.is_file())
            largest = max(largest, size)
            self.assertLessEqual(size, most * one)
            before, found = found, newest()
            self.assertGreater(found, before)
        print(f"{done} kills, {litter} in the middle of writing, 0 unreadable; at most {largest / one:.1f} copies")
        self.assertGreater(litter, 0, "no kill hit a writer in the middle: this test tests nothing")

    def kill_checkpoints(self, count):
        def save(step):
            checkpoints = Checkpoints(self.folder)
            checkpoints.save(step, arrays(step, self.SIZE), {"step": step})
            checkpoints.mark_best(step)

        def newest():
            checkpoints = Checkpoints(self.folder)
            self.assertEqual([name for name in self.names() if len(name) != 8], [])
            self.assertEqual(self.names(self.run_dir), ["best", "checkpoints"])
            with self.assertNoLogs("absl", "WARNING"):
                step, state, variables = checkpoints.read()
            for other in checkpoints.steps():
                self.assertEqual(checkpoints.read(checkpoints.path(other))[0], other)
            self.assertEqual(step, max(checkpoints.steps()))
            self.assertEqual(state, {"step": step})
            self.assert_same_bits(dict(sorted(variables.items())), dict(sorted(arrays(step, self.SIZE).items())))
            self.assertEqual(checkpoints.read(self.run_dir / "best")[0], checkpoints.best_step())
            return step

        self.kills(save, newest, 3, count)  # The two kept ones, including the best, and a new one.

    def kill_folders(self, count):
        """Exported weights: several files, in a folder that must not exist."""
        folder = self.run_dir / "model"

        def content(number):  # Non-finite values are rejected when they are read.
            return {name: array for name, array in arrays(number, self.SIZE).items() if name != "model/half"}

        def save(number):
            if folder.exists():
                files.remove_folder(folder)
            sources = [
                (name, array.shape, tensors.NAMES[array.dtype], lambda array=array: array)
                for name, array in content(number).items()
            ]
            with files.atomic_folder(folder) as partial:
                safetensors_files.write_folder(partial, sources, max_shard_bytes=100)

        last = 0

        def newest():
            nonlocal last
            last += 1  # If it is killed between removing the old folder and renaming the new one, there is none.
            if not folder.exists():
                return last
            with safetensors_files.open_folder(folder) as opened:
                number = int(opened.read("model/seed")[0])
                self.assertCountEqual(opened.names, content(number))
                for name, array in content(number).items():
                    self.assertEqual(opened.read(name).tobytes(), array.tobytes())
            last = max(last, number)
            return last

        self.kills(save, newest, 2, count)

    def kill_files(self, count):
        path = self.run_dir / "metrics.jsonl"

        def save(number):
            path.parent.mkdir(exist_ok=True)
            files.atomic_write(path, f"{number:08d}\n" * 40_000)

        def newest():
            lines = path.read_text().splitlines()
            self.assertLen(lines, 40_000)
            self.assertLen(set(lines), 1)
            return int(lines[0])

        self.kills(save, newest, 2, count)

    def test_a_few_kills_while_checkpoints_are_saved(self):
        self.kill_checkpoints(12)

    def test_a_few_kills_while_weights_are_saved(self):
        self.kill_folders(12)

    def test_a_few_kills_while_a_file_is_written(self):
        self.kill_files(12)

    @pytest.mark.faults
    def test_a_hundred_kills_of_each(self):
        for kill in (self.kill_checkpoints, self.kill_folders, self.kill_files):
            shutil.rmtree(self.run_dir, ignore_errors=True)
            kill(100)


class Part(keras.layers.Layer):
    """Layers in lists and dicts, which keras and tf.train have been observed to lose."""

    def __init__(self, **options):
        super().__init__(**options)
        self.listed = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(4)]
        self.named = {"norm": keras.layers.LayerNormalization(name="norm"), "drop": keras.layers.Dropout(0.5)}
        self.generator = keras.random.SeedGenerator(5)

    def call(self, x, training=False):
        for layer in self.listed:
            x = layer(x, training=training) if isinstance(layer, keras.layers.Dropout) else layer(x)
        x = self.named["drop"](self.named["norm"](x), training=training)
        return keras.random.dropout(x, 0.5, seed=self.generator) if training else x


class Model(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.parts = [Part(name="layer_0"), Part(name="layer_1")]
        self.out = keras.layers.Dense(2, dtype="bfloat16")

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        return self.out(x)


def build(optimizer=None):
    model = Model()
    model(np.zeros([2, 4], np.float32))
    optimizer = optimizer or keras.optimizers.AdamW(0.01)
    optimizer.build(model.trainable_variables)
    return model, optimizer


def train(model, optimizer, steps):
    """Returns the losses of a few steps with dropout."""
    losses = []
    for step in range(steps):
        with tf.GradientTape() as tape:
            x = tf.random.stateless_uniform([2, 4], [1, step])
            loss = tf.reduce_mean(tf.square(tf.cast(model(x, training=True), tf.float32) - 1))
        variables = [variable.value for variable in model.trainable_variables]
        optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)
        losses.append(float(loss))
    return losses


class ModelVariablesTest(CheckpointsCase):
    def test_complete_and_named_alike_in_any_process(self):
        model, optimizer = build()
        first = model_variables(model, optimizer)
        for built, options in ((model.variables, "model/"), (optimizer.variables, "optimizer/")):
            ours = [id(variable) for name, variable in first.items() if name.startswith(options)]
            self.assertCountEqual(ours, [id(variable) for variable in built])
        self.assertEqual(sum("seed_generator" in name for name in first), 6)
        self.assertContainsSubset(
            [
                "model/model/layer_1/dense_1/kernel",
                "model/model/layer_1/norm/gamma",
                "model/model/dense/bias",
                "model/seed_generator_5/seed_generator_state",
                "optimizer/iteration",
                "optimizer/model/layer_1/dense_1/kernel/momentum",
                "optimizer/model/layer_1/norm/gamma/velocity",
            ],
            first,
        )
        self.assertEqual(list(model_variables(*build())), list(first))
        self.assertNotEqual(model.out.path, build()[0].out.path)  # The counters in question exist.

    def test_optimizers_inside_optimizers_and_slots_of_their_own(self):
        for make in (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
            lambda: keras.optimizers.Adafactor(),
            lambda: keras.optimizers.AdamW(use_ema=True, gradient_accumulation_steps=2),
        ):
            model, optimizer = build(make())
            names = list(model_variables(model, optimizer))
            self.assertLen(names, len(model.variables) + len(optimizer.variables))
            self.assertEqual(list(model_variables(*build(make()))), names)

    def test_layers_of_one_name(self):
        model = keras.Sequential([keras.Sequential([keras.layers.Dense(4, name="same")]) for _ in range(2)])
        model.build([1, 4])
        self.assertLen(model_variables(model), 4)

    def test_not_built_yet(self):
        model, _ = build()
        for wrong in ((Model(), None), (model, keras.optimizers.AdamW())):
            with self.assertRaisesRegex(ValueError, "build the model and the optimizer"):
                model_variables(*wrong)

    def test_a_restored_model_goes_on_with_the_same_losses(self):
        model, optimizer = build()
        train(model, optimizer, 3)
        Checkpoints(self.folder).save(3, model_variables(model, optimizer), {})
        expected = train(model, optimizer, 4)

        model, optimizer = build()
        variables = model_variables(model, optimizer)
        self.assertEqual(Checkpoints(self.folder).restore(variables), (3, {}))
        self.assertEqual(int(optimizer.iterations), 3)
        self.assertEqual(train(model, optimizer, 4), expected)

        # The comparison would fail if the state of one seed were omitted.
        Checkpoints(self.folder).restore(variables)
        variables["model/seed_generator/seed_generator_state"].assign([0, 0])
        self.assertNotEqual(train(model, optimizer, 4), expected)

    def test_variables_of_tensorflow_and_of_a_strategy(self):
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            variables = {
                "keras": keras.Variable(np.arange(3), dtype="bfloat16", name="keras"),
                "tensorflow": tf.Variable([1, 2], dtype=tf.uint32),
                "scalar": keras.Variable(7, dtype="int64", name="scalar"),
            }
        checkpoints = Checkpoints(self.folder)
        checkpoints.save(1, variables, {})
        for variable in variables.values():
            variable.assign(tf.zeros_like(variable))
        checkpoints.restore(variables)
        self.assertAllEqual(variables["keras"].value, np.arange(3).astype(ml_dtypes.bfloat16))
        self.assertAllEqual(variables["tensorflow"], [1, 2])
        self.assertEqual(variables["scalar"].numpy(), 7)


if __name__ == "__main__":
    tf.test.main()
