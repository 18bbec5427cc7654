"""The history of benchmarks: what is recorded, which falls are marked, what is compared. Does not need TensorFlow."""

import json
import os
import subprocess
import sys
import unittest
from unittest import mock

import numpy as np
from scipy import stats

from tests.helpers import ROOT, python, temporary_folder
from tfzoo.errors import UserError

sys.path.insert(0, str(ROOT / "benchmarks"))

import history
import side_by_side


def line(ratio: float, half: float = 0.02, **others):
    """Returns a record whose interval extends by `half` on both sides."""
    return {
        "date": "2026-01-02T03:04:05+00:00", "commit": "0123456789", "benchmark": "forward", "row": "1 x 128",
        "contender": "tfzoo", "rival": "kerashub", "ratio": ratio, "low": ratio - half, "high": ratio + half,
        "rounds": 9, "processor": "Some Processor, 2 cores", "features": ["AVX-512"], "versions": {"tfzoo": "0.1.0"},
    } | others  # fmt: skip


class IntervalTest(unittest.TestCase):
    def test_confidence_is_that_of_the_binomial_distribution(self):
        for count in range(6, 60):
            low, high = history.interval(range(count))
            self.assertEqual(low + high, count - 1)
            self.assertLessEqual(2 * stats.binom.cdf(low, count, 0.5), 0.05, count)
            self.assertGreater(2 * stats.binom.cdf(low + 1, count, 0.5), 0.05, count)  # A narrower one has too little.

    def test_few_numbers(self):
        self.assertEqual(history.interval([3.0, 1.0, 2.0]), (1.0, 3.0))

    def test_coverage(self):
        draws = np.random.default_rng(0).exponential(size=(4000, 15))
        found = np.array([history.interval(list(row)) for row in draws])
        self.assertGreater(np.mean((found[:, 0] <= np.log(2)) & (np.log(2) <= found[:, 1])), 0.955)  # Exactly 0.965.


class PageTest(unittest.TestCase):
    def marked(self, *lines) -> list[str]:
        """Returns the rows of the page that are marked."""
        page = history.page(lines)
        marked = [row for row in page.split("\n") if "**fell**" in row]
        self.assertEqual(page.count("\n- "), len(marked))  # The list at the top.
        return marked

    def test_a_fall_by_more_than_the_interval(self):
        (row,) = self.marked(line(1.2), line(1.1))
        self.assertIn("| 1.100 | 1.080 to 1.120 | -0.100 **fell** | █▁ |", row)

    def test_what_is_not_marked(self):
        self.assertFalse(self.marked(line(1.2)))
        self.assertFalse(self.marked(line(1.2), line(1.3)))
        self.assertFalse(self.marked(line(1.2), line(1.19)))  # Within both intervals.
        self.assertFalse(self.marked(line(1.2, half=0.2), line(1.1)))  # The earlier ratio was uncertain.
        self.assertFalse(self.marked(line(1.2), line(1.1, half=0.15)))  # The later one is.
        self.assertFalse(self.marked(line(1.2), line(1.1), line(1.1)))  # It did not fall since the previous record.

    def test_what_is_not_compared(self):
        for others in (
            {"features": ["AVX-512", "AMX"]}, {"processor": "Another, 2 cores"}, {"row": "8 x 128"},
            {"contender": "tfzoo-xla"}, {"rival": "garden"}, {"benchmark": "decode"},
        ):  # fmt: skip
            self.assertFalse(self.marked(line(1.2), line(1.1, **others)), others)
        (row,) = self.marked(line(1.2), line(1.15, features=["AMX"]), line(1.1))  # Beyond a record in between.
        self.assertIn("-0.100 **fell**", row)

    def test_the_page_has_every_newest_ratio(self):
        page = history.page([line(1.2), line(1.5, row="a | b"), line(0.9, features=[]), line(1.25)])
        for part in (
            "## Some Processor, 2 cores: AVX-512\n", "## Some Processor, 2 cores: neither AVX-512 nor AMX\n", "a \\| b",
            "| 1.250 | 1.230 to 1.270 | +0.050 | ▁█ | 0123456789 | 2026-01-02 |", "| 0.900 |", "\nNone.\n",
        ):  # fmt: skip
            self.assertIn(part, page)
        self.assertNotIn("| 1.200 |", page)
        self.assertIn("Nothing is recorded.", history.page([]))

    def test_pictures(self):
        self.assertEqual(history.picture([1.0, 2.0, 1.5, 2.0]), "▁█▅█")
        self.assertEqual(history.picture([1.0, 1.0]), "▅▅")
        self.assertEqual(len(history.picture(range(30))), 12)


class FileTest(unittest.TestCase):
    def setUp(self):
        self.path = temporary_folder(self) / "history.jsonl"

    def record(self, *ratios):
        with mock.patch.dict(os.environ, BENCH_HISTORY=str(self.path)):
            history.record("forward", "1 x 128", "tfzoo", "kerashub", ratios)

    def test_recorded_and_read(self):
        self.record(1.2, 1.1, 1.4)
        self.record(2.0, 2.0, 2.0)
        first, second = history.read(self.path)
        self.assertEqual([first[name] for name in ("ratio", "low", "high", "rounds")], [1.2, 1.1, 1.4, 3])
        self.assertEqual(first["features"], side_by_side.features())
        self.assertEqual(first["versions"]["tfzoo"], "0.1.0")
        self.assertRegex(first["versions"]["tensorflow"], r"^\d+\.\d+")
        self.assertEqual(second["ratio"], 2.0)
        git = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        self.assertEqual(first["commit"].removesuffix("+"), commit or "unknown")

    def test_trials_are_not_recorded(self):
        with mock.patch.dict(os.environ, BENCH_HISTORY=""):  # As if it were not set.
            history.record("forward", "1 x 128", "tfzoo", "kerashub", [1.0, 1.0, 1.0])
        self.record(1.0, 2.0)
        self.assertFalse(self.path.exists())
        self.assertEqual(history.read(self.path), [])

    def test_a_broken_line_is_named_and_loses_no_record(self):
        good = json.dumps(line(1.2))
        for broken, message in (
            ('{"date": "2026', "is not JSON"),
            ("<<<<<<< HEAD", "is not JSON"),
            ("[1]", "is not a JSON object"),
            ("", "is not JSON"),
            (json.dumps(line(1.2) | {"ratio": "1.2"}), "ratio is '1.2', not a number of at least 0"),
            (json.dumps(line(1.2) | {"low": 1.3}), "ratio is not between low and high"),
            (json.dumps({"ratio": 1.2}), "has no date"),
            (json.dumps(line(1.2) | {"speed": 1}), "'speed' is not one of"),
        ):
            self.path.write_text(f"{good}\n{broken}\n{good}")  # The last line has no end.
            before = self.path.read_bytes()
            with self.assertRaises(UserError) as caught:
                history.read(self.path)
            self.assertTrue(str(caught.exception).startswith(f"{self.path}:2: "), caught.exception)
            self.assertIn(message, str(caught.exception))
            self.record(1.0, 1.0, 1.0)
            after = self.path.read_bytes()
            self.assertTrue(after.startswith(before + b"\n{") and after.endswith(b"}\n"))
            self.assertEqual(json.loads(after.splitlines()[-1])["ratio"], 1.0)

    def test_processes_that_append_at_the_same_time(self):
        program = "import pathlib, sys; sys.path.insert(0, 'benchmarks'); import history\n"
        program += "for i in range(40): history.append(pathlib.Path(sys.argv[1]), {'i': i})"
        several = [subprocess.Popen([sys.executable, "-c", program, self.path], cwd=ROOT) for _ in range(3)]
        self.assertEqual([each.wait() for each in several], [0, 0, 0])
        found = [json.loads(text)["i"] for text in self.path.read_text().splitlines()]
        self.assertEqual(sorted(found), sorted([*range(40)] * 3))
        self.assertEqual(os.listdir(self.path.parent), [self.path.name])

    def test_the_command(self):
        page = self.path.with_name("page.md")
        command = [ROOT / "benchmarks" / "history.py", f"--history={self.path}", f"--page={page}"]
        self.path.write_text("".join(json.dumps(line(ratio)) + "\n" for ratio in (1.2, 1.1)))
        self.assertIn("by more than their interval: 1", python(*command).stdout)
        self.assertEqual(page.read_text(), history.page(history.read(self.path)))
        self.path.write_text("{\n")
        done = python(*command, check=False)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn(f"{self.path}:1: is not JSON", done.stderr)


class RepositoryTest(unittest.TestCase):
    def test_every_benchmark_of_make_bench_records(self):
        recipe = (ROOT / "Makefile").read_text().partition("\nbench: $")[2].partition("\n\n")[0]
        scripts = {word for word in recipe.split() if word.startswith("benchmarks/")} - {"benchmarks/history.py"}
        self.assertGreater(len(scripts), 12)
        for script in scripts:
            self.assertIn("history.record(", (ROOT / script).read_text(), script)

    def test_the_page_is_that_of_the_file(self):
        self.assertEqual(history.PAGE.read_text(), history.page(history.read(history.HISTORY)))


if __name__ == "__main__":
    unittest.main()
