"""A run in surroundings that servers and containers have: no home, a C locale, a clock in 1970."""

import json
import os
import subprocess
import sys
import unittest

import pytest

from tests import helpers, tiny_run

# What a test cannot ask of the system is replaced in the process itself.
NO_TEMPORARY_FOLDER = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc/none"]
"""
SCRIPT = """
import sys, time
start, now = time.time(), time.time
time.time = lambda: now() - start + 60  # 1970.
from tfzoo import cli, train
sys.exit(cli.run(train.main, train.define_flags))
"""

_FULL = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
_PACKED = ("--corpus", "--cache_dir", "--vocab_size", "--sequence_length")


class EnvironmentTest(unittest.TestCase):
    def train(self, run_dir, *flags, check=True, before=""):
        environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYTHONUTF8", "LANG")}
        environment |= {"LC_ALL": "C", "XDG_CACHE_HOME": "/dev/null/none", "PYTHONPATH": str(helpers.ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", before + SCRIPT, *flags, f"--run_dir={run_dir}"],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        self.assertNotIn("Traceback", done.stderr)
        if check:
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return done

    @pytest.mark.faults
    def test_a_run_is_trained_and_resumed(self):
        self.folder = helpers.temporary_folder(self)
        run_dir = self.folder / "a b\n\u00e9\u8a9e '$x' \x1b[1m"
        flags = tiny_run.flags(self.folder)
        self.train(run_dir, *flags, "--steps=2")
        self.assertIn("resuming at step 2 of 4", self.train(run_dir, *flags, "--steps=4").stdout)
        self.assertEqual({json.loads(line)["step"] for line in open(run_dir / "metrics.jsonl")}, {1, 2, 3, 4})

    @pytest.mark.faults
    def test_what_cannot_be_done_without_is_one_line(self):
        self.folder = helpers.temporary_folder(self)
        flags = tiny_run.flags(self.folder)
        for before, further, line in (
            (NO_TEMPORARY_FOLDER, [], "no temporary folder can be written; set TMPDIR to a folder that can"),
            ("", ["--cache_dir=/dev/null/x"], r"/dev/null/x/[^\n]*: cannot be written \([^\n]*"),
        ):
            done = self.train(self.folder / "run", *flags, *further, check=False, before=before)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, rf"(^|\n)error: {line}\n$")

    @pytest.mark.faults
    def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(self):
        """Files may have at most a number of bytes. The arrays of the text, in the cache, have more; then, the rows."""
        self.folder = helpers.temporary_folder(self)
        cache, output = self.folder / "cache", self.folder / "packed"
        flags = tiny_run.flags(self.folder)
        pack = ["pack", *(flag for flag in flags if flag.split("=")[0] in _PACKED), f"--output_dir={output}"]

        def refused(done, path):
            self.assertEqual(done.returncode, 2, done.stderr[-2000:])
            self.assertRegex(done.stderr, rf"(^|\n)error: [^\n]*{path}[^\n]*: cannot be written \([^\n]*\n$")
            self.assertEqual(list(self.folder.rglob("*.partial")), [])

        for number in range(2):
            done = self.train(self.folder / "run", *flags, check=False, before=_FULL) if number else self.pack(pack)
            refused(done, cache / "tokenized-")
            self.assertEqual({path.name.partition("-")[0] for path in cache.iterdir()}, {"tokenizer"})
            self.assertFalse((self.folder / "run").exists() or output.exists())
        self.train(self.folder / "run", *flags)
        refused(self.pack(pack), output)
        self.assertFalse(output.exists())

    def pack(self, arguments):
        script = f"{_FULL}import sys\nfrom tfzoo import cli, corpus\n"
        script += "sys.exit(cli.run_subcommand(corpus.COMMANDS, corpus.__doc__, sys.argv[1:]))"
        done = helpers.python("-c", script, *arguments, check=False)
        self.assertNotIn("Traceback", done.stderr)
        return done


if __name__ == "__main__":
    unittest.main()
