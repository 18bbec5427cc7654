"""tfzoo.train --seeds: runs one after the other, mostly with those of tests/quick_train.py."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import unittest

import pytest

from tests import helpers, quick_train, tiny_run
from tfzoo import train
from tfzoo.training import outcomes, processes, seeds
from tfzoo.training.config import TrainConfig

QUICK = str(helpers.ROOT / "tests" / "quick_train.py")


class SeedsCase(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.run_dir = self.folder / "runs"

    def start(self, *argv, held="", command=(QUICK, "train")):
        return subprocess.Popen(
            [sys.executable, *command, f"--run_dir={self.run_dir}", *argv],
            cwd=helpers.ROOT,
            env=os.environ | {"TFZOO_TEST_HELD": held},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, *argv, code=0, **options):
        process = self.start(*argv, **options)
        out, err = process.communicate(timeout=helpers.PATIENCE)
        self.assertEqual(process.returncode, code, out + err)
        return out, err

    def record(self):
        return json.loads((self.run_dir / "seeds.json").read_text())

    def starts(self):
        return {path.stem: len(path.read_text()) for path in sorted(self.run_dir.glob("*.starts"))}

    def wait_for_step(self, name, step):
        run_dir, deadline = self.run_dir / name, time.monotonic() + helpers.PATIENCE
        while step not in [record["step"] for record in tiny_run.records(run_dir)]:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)


class SeedsTest(SeedsCase):
    def test_mean_and_deviation(self):
        flags = ["--seeds=3", "--learning_rate=1e-2"]
        out, _ = self.train(*flags)
        record = self.record()
        losses = [
            quick_train.loss(dict(learning_rate="1e-2", batch_size="32", steps="6", seed=str(seed)), 4)
            for seed in range(3)
        ]
        for seed, (entry, loss) in enumerate(zip(record["seeds"], losses, strict=True)):
            self.assertEqual((entry["seed"], entry["run_dir"], entry["step"]), (seed, f"seed_{seed}", 4))
            self.assertEqual(entry["figures"], {"masked_lm_loss": loss, "masked_lm_accuracy": 1 / loss})
            flags_of_run = json.loads((self.run_dir / f"seed_{seed}" / "flags.cfg").read_text())
            self.assertEqual(flags_of_run["seed"], str(seed))
            self.assertNotIn("seeds", flags_of_run)
        for name, column in (("masked_lm_loss", losses), ("masked_lm_accuracy", [1 / loss for loss in losses])):
            mean = sum(column) / 3
            self.assertAlmostEqual(record["mean"][name], mean, places=12)
            deviation = (sum((value - mean) ** 2 for value in column) / 2) ** 0.5
            self.assertAlmostEqual(record["deviation"][name], deviation, places=12)
        lines = out.splitlines()
        header = next(line for line in lines if line.startswith("held out"))
        self.assertEqual(header.split()[2:], ["seed", "0", "seed", "1", "seed", "2", "mean", "deviation"])
        accuracy = next(line for line in lines if line.startswith("masked-token accuracy"))
        numbers = [1 / loss for loss in losses]
        shown = [*numbers, statistics.fmean(numbers), statistics.stdev(numbers)]
        self.assertEqual(accuracy.split()[2:], [f"{number:.2%}" for number in shown])

        # The same command trains nothing; one more seed trains one more; other flags are those of other runs.
        again, _ = self.train(*flags)
        self.assertEqual(again.count("finished before"), 3)
        self.assertEqual(self.record(), record)
        self.train("--seeds=4", "--learning_rate=1e-2")
        self.assertEqual(self.starts(), {f"seed_{seed}": 1 for seed in range(4)})
        self.assertEqual(self.record()["seeds"][:3], record["seeds"])
        self.train("--seeds=2", "--seed=7", "--learning_rate=1e-2")
        self.assertEqual([entry["seed"] for entry in self.record()["seeds"]], [7, 8])
        out, err = self.train("--seeds=2", "--seed=7", "--learning_rate=1e-3", code=2)
        self.assertRegex(err, "seed_7: was started with different flags")
        self.assertIn("seed 7 ended with exit code 2\n", out)

    def test_stopped_and_killed(self):
        flags = ["--seeds=2"]
        for number, step, code in ((signal.SIGTERM, 2, 3), (signal.SIGKILL, 4, -9)):
            process = self.start(*flags, held=f"seed_0:{step}")
            self.wait_for_step("seed_0", step - 1)
            process.send_signal(number)
            out, err = process.communicate()
            self.assertEqual(process.returncode, code, out + err)
        self.train(*flags)
        self.assertEqual(self.starts()["seed_1"], 1)
        steps = [(line["step"], "loss" in line) for line in tiny_run.records(self.run_dir / "seed_0")]
        self.assertEqual(len(steps), 9)
        self.assertEqual(len(set(steps)), 9)
        self.assertEqual(self.record()["seeds"][0]["figures"]["masked_lm_loss"], 1 + 1 / 4)

    def test_what_is_wrong(self):
        (self.folder / "run").mkdir()
        (self.folder / "run" / "flags.cfg").write_text("")
        for pattern, *argv in (
            ("--seeds=0: must be at least 1", "--seeds=0", f"--run_dir={self.run_dir}"),
            (r"--run_dir=.*/run: exists but contains no seeds.json; specify a new folder",
             "--seeds=2", f"--run_dir={self.folder / 'run'}"),
            ("--seeds=2: does not apply to --strategy=multi_worker; start a run for each seed",
             "--seeds=2", f"--run_dir={self.run_dir}", "--strategy=multi_worker"),
        ):  # fmt: skip
            code, out, err = helpers.run(train, *argv)
            self.assertEqual((code, out), (2, ""))
            self.assertRegex(err, rf"\Aerror: {pattern}\n\Z")
        self.train("--seeds=1")
        self.assertEqual(self.record()["deviation"], {"masked_lm_loss": None, "masked_lm_accuracy": None})
        _, err = self.train("--seeds=1", "--noresume", code=2)
        self.assertRegex(err, "already contains runs; specify a new folder, or omit --noresume")

    def test_waiting_for_a_run_that_is_still_saving(self):
        run_dir = self.folder / "run"
        run_dir.mkdir()
        code = "import sys; from tfzoo import files; lock = files.Lock(sys.argv[1]); print(); sys.stdin.read()"
        owner = subprocess.Popen(
            [sys.executable, "-c", code, run_dir], cwd=helpers.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert owner.stdout and owner.stdin
        owner.stdout.readline()
        with processes.Signals() as signals:
            waiting = threading.Thread(target=processes.wait_until_free, args=(run_dir, signals))
            waiting.start()
            waiting.join(1.5)
            self.assertTrue(waiting.is_alive())
            os.kill(os.getpid(), signal.SIGTERM)  # A signal ends the waiting.
            waiting.join(helpers.PATIENCE)
            self.assertFalse(waiting.is_alive())
        with processes.Signals() as signals:
            waiting = threading.Thread(target=processes.wait_until_free, args=(run_dir, signals))
            waiting.start()
            owner.communicate()
            waiting.join(helpers.PATIENCE)
            self.assertFalse(waiting.is_alive())

    def test_outcome(self):
        run_dir = self.folder / "run"
        run_dir.mkdir()
        self.assertEqual(outcomes.outcome(run_dir), (0, {}))
        lines = [
            {"step": 2, "loss": 3.0, "learning_rate": 0.1},
            {"step": 2, "sequence_length": 8, "batch_size": 4, "x_loss": 2.0, "x_loss/a": 1.0},
            {"step": 4, "nonfinite": 2, "learning_rate": 0.1},  # All updates since the last line were skipped.
            {"step": 4, "sequence_length": 8, "batch_size": 4, "x_loss": 2.5, "x_loss/a": 1.5},
        ]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.assertEqual(outcomes.outcome(run_dir), (4, {"x_loss": 2.5, "x_loss/a": 1.5}))
        (run_dir / "best").symlink_to("checkpoints/00000002")
        self.assertEqual(outcomes.outcome(run_dir), (2, {"x_loss": 2.0, "x_loss/a": 1.0}))

    def test_table_without_labels(self):
        entries = [{"seed": 0, "figures": {"f1": 0.5, "only": 1.0}}, {"seed": 1, "figures": {"f1": 1.0}}]
        self.assertEqual(
            seeds.table(entries, {}),
            "held out   seed 0   seed 1     mean   deviation\n"
            "f1         0.5000   1.0000   0.7500      0.3536",
        )  # fmt: skip


@pytest.mark.faults
class RealRunTest(SeedsCase):
    def test_real_runs(self):
        flags = [*tiny_run.flags(self.folder, evaluate_every=3), "--seeds=2"]
        self.train(*flags, command=("-m", "tfzoo.train"))
        for seed in range(2):
            run_dir = self.run_dir / f"seed_{seed}"
            config = TrainConfig.read(run_dir / "flags.cfg", str(run_dir))
            self.assertEqual(config.seed, seed)
            self.assertNotIn("seeds", (run_dir / "flags.cfg").read_text())
            self.assertEqual(self.record()["seeds"][seed]["figures"], outcomes.outcome(run_dir)[1])


if __name__ == "__main__":
    unittest.main()
