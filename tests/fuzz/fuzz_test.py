"""Damaged files of users are refused in one line, or read as another reader reads them; and the fuzzer notices what is
neither.

The cases run in processes of their own: one that imports TensorFlow and computes nothing, and its children.
"""

import json
import pathlib
import random
import subprocess
import sys
import unittest

import pytest

from tests import helpers
from tests.fuzz import numbers
from tests.fuzz.harness import ACCEPTED, REFUSED

# Arguments: the kind of tests/fuzz/numbers.py, the number of cases, the folder, seconds of silence.
SCRIPT = """
import pathlib, sys
from tests.fuzz import harness, numbers
kind, cases, folder, silence = sys.argv[1:]
harness.CPU_SECONDS, harness.SILENCE = 1, int(silence)
fuzzer = harness.Fuzzer({kind: numbers.KINDS[kind]}, 3, pathlib.Path(folder))
fuzzer.run(int(cases))
print(fuzzer.table())
"""


class FuzzTest(unittest.TestCase):
    def fuzz(self, seed: int, cases: int, *others: str) -> str:
        folder = helpers.temporary_folder(self)
        command = ["-m", "tests.fuzz", f"--seed={seed}", f"--cases={cases}", f"--folder={folder}", *others]
        done = helpers.python(*command, check=False, TF_CPP_MIN_LOG_LEVEL="2")
        self.assertEqual(done.returncode, 0, f"{done.stdout[-8000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def test_a_hundred_cases(self):
        self.assertRegex(self.fuzz(0, 100, "--fast"), r"\nall +100 +\d+ +\d+ +0\b")

    @pytest.mark.faults
    def test_many(self):
        seed = random.randrange(1 << 32)
        print(f"make fuzz SEED={seed} CASES=2000\n{self.fuzz(seed, 2000)}")


class HarnessTest(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "3.jsonl").read_text().splitlines()]

    def test_faults_of_every_kind_are_noticed(self):
        printed = helpers.python("-c", SCRIPT, "numbers", 50, self.folder, 600).stdout
        expected = dict.fromkeys(range(numbers.LARGEST + 1), ACCEPTED) | numbers.FAULTS | {numbers.REFUSED: REFUSED}
        drawn = set()
        for record in self.records():
            if record["result"] in (ACCEPTED, REFUSED):
                continue
            damage, *_, place = record["detail"].splitlines()
            number = int(damage.removeprefix("number: "))
            drawn.add(number)
            self.assertEqual(record["result"], expected[number], record)
            self.assertEqual(pathlib.Path(place.removeprefix("input: "), "number").read_text(), str(number))
            self.assertIn(f"numbers, case {record['index']}, seed 3: {record['result']}", printed)
        self.assertEqual(drawn, set(numbers.FAULTS))
        self.assertRegex(
            printed,
            rf"\nnumbers +50 +\d+ +\d+ +{sum(r['result'] in numbers.FAULTS.values() for r in self.records())}\n",
        )
        self.assertIn("MemoryError", printed)

    def test_a_killed_run_continues(self):
        command = [sys.executable, "-c", SCRIPT, "harmless", "5000", self.folder, "600"]
        process = subprocess.Popen(command, cwd=helpers.ROOT)
        record = self.folder / "3.jsonl"
        while process.poll() is None and (not record.exists() or record.read_bytes().count(b"\n") < 20):
            pass
        process.kill()
        process.wait()
        before = self.records()
        with open(record, "a") as file:
            file.write('{"kind": "numbers", "ind')  # As a kill leaves it in the middle of a write.
        cases = len(before) + 20
        helpers.python("-c", SCRIPT, "harmless", cases, self.folder, 600)
        after = self.records()
        self.assertEqual(after[: len(before)], before)
        self.assertEqual([each["index"] for each in after], list(range(cases)))

    @pytest.mark.faults
    def test_a_reader_that_waits_forever_is_noticed(self):
        helpers.python("-c", SCRIPT, "hanging", 2, self.folder, 10)
        self.assertEqual([each["result"] for each in self.records()], ["silent for 10 s"] * 2)


if __name__ == "__main__":
    unittest.main()
