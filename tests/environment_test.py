"""A run in surroundings that servers and containers have: no home, no temporary folder, a C locale, a clock in 1970."""

import json
import os
import subprocess
import sys
import unittest

import pytest

from tests import helpers, tiny_run

# What no folder and no system library can be asked for is replaced in the process itself.
SCRIPT = """
import sys, tempfile, time
tempfile._candidate_tempdir_list = lambda: ["/proc/none"]
start, now = time.time(), time.time
time.time = lambda: now() - start + 60  # 1970.
from tfzoo import cli, train
sys.exit(cli.run(train.main, train.define_flags))
"""


class EnvironmentTest(unittest.TestCase):
    def train(self, run_dir, *flags, check=True):
        environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "PYTHONUTF8", "LANG")}
        environment |= {"LC_ALL": "C", "XDG_CACHE_HOME": "/dev/null/none", "PYTHONPATH": str(helpers.ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *flags, f"--run_dir={run_dir}"],
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
        failed = self.train(self.folder / "other", *flags, "--cache_dir=/dev/null/x", check=False)
        self.assertEqual(failed.returncode, 2)
        self.assertRegex(
            failed.stderr, r"\nerror: /dev/null/x/[^\n]*: cannot be written \([^\n]*\n$|^error: /dev/null/x"
        )


if __name__ == "__main__":
    unittest.main()
