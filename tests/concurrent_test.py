"""Two commands at the same time in one cache, output or run folder: both succeed with equal results, or the second is
refused in one line.

The commands meet before each folder that they write, so that both always write it.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

import pytest

from tests import helpers, tiny_run
from tests.tasks import small
from tfzoo import files
from tfzoo.data.packed import PackedFolder

# Arguments: where the commands meet, the folder whose new folders are waited for, the program, its arguments.
SCRIPT = """
import contextlib, os, pathlib, sys, time
meeting, folder, *argv = sys.argv[1:]
meeting = pathlib.Path(meeting)
from tfzoo import cli, files
write = files.atomic_folder

@contextlib.contextmanager
def together(path):
    if str(path).startswith(folder):
        (meeting / f"{pathlib.Path(path).name}.{os.getpid()}").touch()
        while len(list(meeting.glob(f"{pathlib.Path(path).name}.*"))) < 2:
            time.sleep(0.01)
    with write(path) as partial:
        yield partial

files.atomic_folder = together
if argv[0] == "pack":
    from tfzoo import corpus
    sys.exit(cli.run_subcommand(corpus.COMMANDS, corpus.__doc__, argv))
from tfzoo import train
sys.exit(cli.run(train.main, train.define_flags, argv))
"""


@pytest.mark.faults
class ConcurrentTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.meeting = self.folder / "meeting"
        self.meeting.mkdir()

    def start(self, within: pathlib.Path, *argv) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, self.meeting, within, *map(str, argv)],
            cwd=helpers.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        )  # fmt: skip
        self.addCleanup(process.kill)
        return process

    def finish(self, process: subprocess.Popen) -> tuple[int, str]:
        """Returns the exit code and the lines of errors."""
        _, err = process.communicate(timeout=helpers.PATIENCE)
        self.assertNotIn("Traceback", err)
        return process.returncode, "\n".join(line for line in err.splitlines() if line.startswith("error: "))

    def test_one_cache(self):
        """Texts and labelled files, from a cold cache, and once more from the one that was written."""
        cache = self.folder / "cache"
        for name, flags in (("text", tiny_run.flags(self.folder)), ("rows", small.flags(self.folder))):
            runs = [self.folder / f"{name}_{number}" for number in range(3)]
            both = [self.start(cache, *flags, f"--run_dir={run}") for run in runs[:2]]
            self.assertEqual([self.finish(process) for process in both], [(0, "")] * 2)
            met = {path.stem for path in self.meeting.iterdir()}
            written = {path.name: path.stat().st_ino for path in cache.iterdir()}
            self.assertEqual(met, set(written))
            self.assertEqual(self.finish(self.start(cache, *flags, f"--run_dir={runs[2]}")), (0, ""))
            self.assertEqual(written, {path.name: path.stat().st_ino for path in cache.iterdir()})
            first, *others = map(tiny_run.measured, runs)
            self.assertGreater(len(first), 6)
            self.assertEqual(others, [first, first])

    def test_one_output_folder(self):
        text = tiny_run.write_corpus(self.folder / "corpus.txt")
        output = self.folder / "packed"
        flags = ["pack", f"--corpus={text}", f"--cache_dir={self.folder / 'cache'}", "--vocab_size=200"]
        both = [self.start(output, *flags, "--sequence_length=16", f"--output_dir={output}") for _ in range(2)]
        ends = sorted(self.finish(process) for process in both)
        error = f"error: --output_dir={output}: already exists; remove it, or specify a new folder"
        self.assertEqual(ends, [(0, ""), (2, error)])
        PackedFolder.open(output).verify()
        self.assertEqual(list(self.folder.glob(f"*{files.PARTIAL}")), [])

    def test_one_run_folder(self):
        """The first is stopped as soon as it has the folder's lock, and continues after the second was refused."""
        run_dir = self.folder / "run"
        flags = [*tiny_run.flags(self.folder), f"--run_dir={run_dir}"]
        first = self.start(self.meeting, *flags)
        while not (run_dir / files.LOCK).exists() or not (run_dir / files.LOCK).read_text():
            self.assertIsNone(first.poll())
            time.sleep(0.001)
        first.send_signal(signal.SIGSTOP)
        message = f"error: {run_dir}: another process ({first.pid}) is writing to this folder; wait until it ends, or"
        code, error = self.finish(self.start(self.meeting, *flags))
        self.assertEqual((code, error[: len(message)]), (2, message))
        first.send_signal(signal.SIGCONT)
        self.assertEqual(self.finish(first), (0, ""))
        self.assertEqual({step for step, _ in tiny_run.measured(run_dir)}, set(range(1, 7)))


if __name__ == "__main__":
    unittest.main()
