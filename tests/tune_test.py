"""python -m tfzoo.tune: its options, trials, failures and restarts, mostly with the runs of tests/quick_train.py."""

import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import unittest
from unittest import mock

import pytest

from tests import helpers, tiny_run
from tfzoo import tune
from tfzoo.errors import UserError
from tfzoo.training.config import TrainConfig
from tfzoo.tuning import space, trials
from tfzoo.tuning.space import Dimension
from tfzoo.tuning.trials import DONE, FAILED, PRUNED, RUNNING, Trial

QUICK = str(helpers.ROOT / "tests" / "quick_train.py")
RATE, BATCH = "--search=learning_rate=1e-5..1e-1:log", "--search=batch_size=8,16,32,64"


class TuneCase(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.tune_dir = self.folder / "tune"

    def start(self, *argv, held="", seconds=0.0, command=(QUICK, "tune"), folder=None):
        return subprocess.Popen(
            [sys.executable, *command, f"--tune_dir={folder or self.tune_dir}", *argv],
            cwd=helpers.ROOT,
            env=os.environ | {"TFZOO_TEST_HELD": held, "TFZOO_TEST_SECONDS": str(seconds)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process, code=0):
        """Returns (stdout, stderr) of a search, whose exit code is checked."""
        out, err = process.communicate(timeout=helpers.PATIENCE)
        self.assertEqual(process.returncode, code, out + err)
        return out, err

    def search(self, *argv, code=0, **options):
        return self.finish(self.start(*argv, **options), code)

    def records(self, folder=None):
        return [
            json.loads(line) for line in (folder or self.tune_dir).joinpath("trials.jsonl").read_text().splitlines()
        ]

    def starts(self, number):
        return len((self.tune_dir / f"trial_{number}.starts").read_text())

    def wait_for(self, happened):
        deadline = time.monotonic() + helpers.PATIENCE
        while not happened():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)


class OptionsTest(TuneCase):
    def test_what_is_wrong(self):
        for pattern, *argv in (
            (r"--search is required: add --search=FLAG=LOW..HIGH or --search=FLAG=A,B,C",),
            (r"--search=learning_rate: must have the form FLAG=LOW..HIGH, .*", "--search=learning_rate"),
            (r"--search=rate=1..2: rate is not a flag of tfzoo.train that can vary.*", "--search=rate=1..2"),
            (r"--search=bach_size=1,2: .* \(did you mean batch_size\?\)", "--search=bach_size=1,2"),
            (r"--search=run_dir=a,b: run_dir is not a flag of tfzoo.train that can vary.*", "--search=run_dir=a,b"),
            (r"--search=steps=3..2: 3 is not below 2; write the lower bound first", "--search=steps=3..2"),
            (r"--search=steps=3..3: 3 is not below 3; write the lower bound first", "--search=steps=3..3"),
            (r"--search=steps=1.5..2: 1.5 and 2 must be whole numbers", "--search=steps=1.5..2"),
            (r"--search=beta_1=a..1: a and 1 must be finite numbers", "--search=beta_1=a..1"),
            (r"--search=beta_1=0..inf: 0 and inf must be finite numbers", "--search=beta_1=0..inf"),
            (r"--search=beta_1=0..1:log: a logarithmic range must begin above 0.*", "--search=beta_1=0..1:log"),
            (r"--search=beta_1=0..2: --beta_1=2.0: must be from 0.0 to 0.9999", "--search=beta_1=0..2"),
            (r"--search=steps=0,2: --steps=0: must be at least 1", "--search=steps=0,2"),
            (r"--search=steps=2: must have at least two values, all of them different", "--search=steps=2"),
            (r"--search=steps=2,3,2: must have at least two values, all of .*", "--search=steps=2,3,2"),
            (r"--search=optimizer=a..b: optimizer is not a number, so it has no range; .*", "--search=optimizer=a..b"),
            (r"--search=optimizer=sgd,lam: --optimizer=lam: must be one of .*", "--search=optimizer=sgd,lam"),
            (r"--search=freeze=layers:1,layr:2: --freeze=layr:2: layr:2 is not.*", "--search=freeze=layers:1,layr:2"),
            (r"--search=steps=4,5: steps appears twice; omit one of them", "--search=steps=2,3", "--search=steps=4,5"),
            (r"--search=overrides.dropot=0..1: --overrides=dropot=0: unknown.*", "--search=overrides.dropot=0..1"),
            (r"--search=overrides.num_layers=a,b: --overrides=num_layers=a: .*", "--search=overrides.num_layers=a,b"),
            (r"--search=overrides=num_heads=2,num_head=4: .*'num_head'.*", "--search=overrides=num_heads=2,num_head=4"),
            (r"--metric=accuracy: is not a held-out figure of this run.*; it has masked_lm_loss, masked_lm_accuracy.*",
             RATE, "--metric=accuracy"),
            (r"--metric=causal_los: is not .* \(did you mean causal_loss\?\); it has .*",
             RATE, "--objective=causal", "--metric=causal_los"),
            (r"--trials=5: the search has only 4 combinations; use at most 4", BATCH, "--trials=5"),
            (r"--run_dir=x: no such flag.*", RATE, "--run_dir=x"),
            (r"--bach_size=8: no such flag \(did you mean --batch_size\?\)", RATE, "--bach_size=8"),
            (r"--mask_rate=2: must be from 0.01 to 0.9", RATE, "--mask_rate=2"),
            (r"--noresume: does not apply to tfzoo.tune, which resumes its trials; omit it", RATE, "--noresume"),
            (r"--strategy=multi_worker: tfzoo.tune starts a single process; omit it", RATE, "--strategy=multi_worker"),
        ):  # fmt: skip
            with self.subTest(argv=argv):
                code, out, err = helpers.run(tune, f"--tune_dir={self.tune_dir}", *argv)
                self.assertEqual((code, out), (2, ""), err)
                self.assertRegex(err, rf"\Aerror: {pattern}\n\Z")
                self.assertFalse(self.tune_dir.exists())

    def test_folders(self):
        (self.folder / "file").write_text("")
        for path, message in (
            (self.folder, "exists but contains no tune.json; specify a new folder"),
            (self.folder / "file", "exists but contains no tune.json; specify a new folder"),
            (self.folder / "file" / "below", f"cannot be created in {self.folder / 'file'}; specify a writable folder"),
        ):
            code, _, err = helpers.run(tune, f"--tune_dir={path}", RATE)
            self.assertEqual((code, err), (2, f"error: --tune_dir={path}: {message}\n"))

    def test_without_optuna(self):
        with mock.patch.dict(sys.modules, {"optuna": None}):
            code, _, err = helpers.run(tune, f"--tune_dir={self.tune_dir}", RATE)
        self.assertEqual((code, err), (2, "error: the package optuna is not installed; pip install 'tfzoo[tasks]'\n"))
        self.assertFalse(self.tune_dir.exists())

    def test_dimensions(self):
        def parsed(*specs):
            return space.parse(specs, tune._kinds(), lambda _: None)

        self.assertEqual(
            parsed(
                "learning_rate=1e-5..1e-3:log", "steps=2..8", "beta_1=0..1", "batch_size=16,32",
                "stages=3:batch_size=2,sequence_length=8 4:batch_size=2", "overrides.num_layers=2..4",
                "overrides.dropout=0..0.3", "overrides=num_heads=2,num_heads=4", "overrides.num_features=8..16:log",
            ),
            [
                Dimension("learning_rate", 1e-5, 1e-3, log=True),
                Dimension("steps", 2, 8, whole=True),
                Dimension("beta_1", 0.0, 1.0),
                Dimension("batch_size", choices=("16", "32")),
                Dimension("stages", choices=("3:batch_size=2,sequence_length=8", "4:batch_size=2")),
                Dimension("overrides.num_layers", 2, 4, whole=True),
                Dimension("overrides.dropout", 0.0, 0.3),
                Dimension("overrides", choices=("num_heads=2", "num_heads=4")),
                Dimension("overrides.num_features", 8, 16, whole=True, log=True),
            ],
        )  # fmt: skip
        one, two = parsed("overrides.dropout=0..0.3", "learning_rate=1e-5..1e-3:log")
        self.assertEqual(
            space.arguments([one, two], {one.name: 0.1, two.name: 2.5e-05}),
            ["--overrides=dropout=0.1", "--learning_rate=2.5e-05"],
        )
        self.assertEqual(two.rounded(0.000123456789), 0.0001235)
        self.assertEqual(two.rounded(1.00000001e-5), 1e-5)
        self.assertEqual(Dimension("x", 0.123406, 1.0).rounded(0.12341), 0.123406)  # Not below the bound.


class ProposalTest(unittest.TestCase):
    RANGE, CHOICES = Dimension("rate", 1e-5, 1e-1, log=True), Dimension("batch", choices=("8", "16", "32"))

    def proposed(self, dimensions, count, value=lambda values: 0.0, seed=0):
        found: list[Trial] = []
        for number in range(count):
            values = trials.propose(dimensions, found, "min", seed)
            found.append(Trial(number, DONE, values, value=value(values), step=1))
        return [trial.values for trial in found]

    def test_a_proposal_is_a_function_of_the_trials_and_the_seed(self):
        one = self.proposed([self.RANGE, self.CHOICES], 12)
        self.assertEqual(self.proposed([self.RANGE, self.CHOICES], 12), one)
        self.assertNotEqual(self.proposed([self.RANGE, self.CHOICES], 1, seed=1), one[:1])
        self.assertEqual(len({values["rate"] for values in one}), 12)
        for values in one:
            self.assertTrue(1e-5 <= values["rate"] <= 1e-1 and values["batch"] in self.CHOICES.choices)
        # The median of a range with a logarithm that is uniformly distributed is its geometric mean.
        self.assertTrue(1e-4 < statistics.median(v["rate"] for v in self.proposed([self.RANGE], 40)) < 1e-2)

    def test_good_values_attract(self):
        found = self.proposed([Dimension("x", 0.0, 1.0)], 30, lambda values: abs(values["x"] - 0.2))
        late = [abs(values["x"] - 0.2) for values in found[15:]]
        self.assertLess(statistics.median(late), statistics.median(abs(v["x"] - 0.2) for v in found[:10]) / 2)

    def test_no_values_come_twice(self):
        whole = Dimension("layers", 2, 4, whole=True)
        found = self.proposed([whole, self.CHOICES], 9, lambda values: values["layers"])
        self.assertEqual(len({tuple(values.items()) for values in found}), 9)
        done = [Trial(number, DONE, values, value=1.0) for number, values in enumerate(found)]
        with self.assertRaisesRegex(UserError, "^--trials: all 9 combinations have been tried"):
            trials.propose([whole, self.CHOICES], done, "min", 0)

    def test_failed_trials_count_as_tried(self):
        failed = [Trial(i, FAILED, {"batch": batch}) for i, batch in enumerate(("8", "32"))]
        self.assertEqual(trials.propose([self.CHOICES], failed, "min", 0), {"batch": "16"})

    def test_pruning(self):
        def done(*values, state=DONE):
            return Trial(0, state, {}, value=values[-1], evaluations=[[i + 1, v] for i, v in enumerate(values)])

        others = [done(5, 4, 3), done(6, 5, 4), done(7, 6, 5), done(8, 7, 6), done(9, 1, 0)]
        for values, expected in (
            ([7], 0),  # The median is not worse than itself.
            ([7.5], 1),
            ([6, 5.1], 2),  # The median of the second evaluation is 5.
            ([4.9, 9, 9], 0),  # The best value so far counts.
            ([7, 5, 9], 0),  # After the last evaluation, nothing is saved.
            ([], 0),
        ):
            evaluations = [[i + 1, v] for i, v in enumerate(values)]
            self.assertEqual(trials.should_be_pruned(evaluations, others, "min"), expected, values)
            negative = [[step, -value] for step, value in evaluations]
            mirrored = [done(*(-v for _, v in trial.evaluations)) for trial in others]
            self.assertEqual(trials.should_be_pruned(negative, mirrored, "max"), expected, values)
        self.assertEqual(trials.should_be_pruned([[1, 99]], others[:4], "min"), 0)  # Too few to compare with.
        running = [*others[:4], done(9, state=RUNNING), done(9, state=PRUNED)]
        self.assertEqual(trials.should_be_pruned([[1, 99]], running, "min"), 0)

    def test_order(self):
        found = [Trial(0, FAILED, {}), Trial(1, DONE, {}, 2.0), Trial(2, PRUNED, {}, 0.5), Trial(3, DONE, {}, 1.0)]
        self.assertEqual([trial.trial for trial in trials.ranked(found, "min")], [3, 1, 2, 0])
        self.assertEqual([trial.trial for trial in trials.ranked(found, "max")], [1, 3, 2, 0])


class SearchTest(TuneCase):
    def test_a_search(self):
        flags = [
            RATE,
            BATCH,
            "--overrides=num_layers=2,num_heads=2",
            "--batch_size=4",
            "--nolowercase",
            "--text_field=a b",
        ]
        out, err = self.search(*flags, "--trials=5")
        self.assertEqual(err, "")
        records = self.records()
        self.assertEqual([record["trial"] for record in records], [0, 1, 2, 3, 4])
        for record in records:
            flags_of_run = json.loads((self.tune_dir / f"trial_{record['trial']}" / "flags.cfg").read_text())
            self.assertEqual(float(flags_of_run["learning_rate"]), record["values"]["learning_rate"])
            self.assertEqual(flags_of_run["batch_size"], record["values"]["batch_size"])
            # The best evaluation, not the last one.
            self.assertEqual((record["state"], record["step"]), (DONE, 4))
            self.assertEqual(record["value"], record["figures"]["masked_lm_loss"])
            self.assertEqual(record["value"], dict(record["evaluations"])[4])
            self.assertAlmostEqual(dict(record["evaluations"])[6], record["value"] + 0.5 + 1 / 6 - 1 / 4)
            self.assertEqual(self.starts(record["trial"]), 1)
        best = min(records, key=lambda record: record["value"])
        table = (self.tune_dir / "trials.md").read_text()
        self.assertIn(table, out)
        header, rule, first, *_ = table.splitlines()
        self.assertEqual(
            [cell.strip() for cell in header.strip("|").split("|")],
            ["trial", "learning_rate", "batch_size", "masked_lm_loss", "step", "state"],
        )
        self.assertEqual(rule.count("|"), 7)
        self.assertEqual(
            [cell.strip() for cell in first.strip("|").split("|")],
            [str(best["trial"]), str(best["values"]["learning_rate"]), best["values"]["batch_size"],
             f"{best['value']:.4f}", "4", "done"],
        )  # fmt: skip
        self.assertTrue((self.tune_dir / "tune.png").read_bytes().startswith(b"\x89PNG"))
        # The command trains the best one again.
        command = shlex.split(out.splitlines()[-1])
        self.assertEqual(command[:3], ["python", "-m", "tfzoo.train"])
        self.assertNotIn("--batch_size=4", command)
        config = tune._train_config([argument for argument in command[3:] if not argument.startswith("--run_dir")])
        self.assertEqual(
            config,
            TrainConfig(
                run_dir="run", learning_rate=best["values"]["learning_rate"],
                batch_size=int(best["values"]["batch_size"]), overrides=("num_layers=2,num_heads=2",),
                lowercase=False, text_field="a b",
            ),
        )  # fmt: skip

        # The same command again trains nothing; more trials are those of a longer search.
        again, _ = self.search(*flags, "--trials=5")
        self.assertEqual((again.partition("\n\n")[2], self.records()), (out.partition("\n\n")[2], records))
        self.search(*flags, "--trials=7")
        self.search(*flags, "--trials=7", folder=self.folder / "other")
        self.assertEqual(self.records(), self.records(self.folder / "other"))
        self.assertEqual([self.starts(number) for number in range(7)], [1] * 7)

        for changed, message in (
            ([*flags, "--steps=8"], "flags (none), not --steps=8"),
            ([*flags[:-1], "--nopack"], "flags '--text_field=a b', not --nopack"),
            ([BATCH, *flags[2:]], f"search {RATE[9:]}, not (none)"),
            ([*flags, "--metric=masked_lm_accuracy"], "metric masked_lm_loss, not masked_lm_accuracy"),
            ([*flags, "--direction=max"], "direction min, not max"),
            ([*flags, "--search_seed=3"], "search_seed 0, not 3"),
        ):
            _, err = self.search(*changed, "--trials=4", code=2)
            message = f"error: --tune_dir={self.tune_dir}: was started with {message}; keep the original flags, or "
            self.assertEqual(err, message + "specify a new folder\n")

    @pytest.mark.faults
    def test_another_metric(self):
        out, _ = self.search(RATE, "--trials=3", "--metric=masked_lm_accuracy")
        values = [record["value"] for record in self.records()]
        self.assertEqual(values, [record["figures"]["masked_lm_accuracy"] for record in self.records()])
        self.assertIn(f"{max(values):.2%}", (self.tune_dir / "trials.md").read_text().splitlines()[2])
        self.search(RATE, "--trials=3", "--metric=masked_lm_accuracy", "--direction=min", folder=self.folder / "other")
        table = (self.folder / "other" / "trials.md").read_text()
        self.assertIn(f"{min(values):.2%}", table.splitlines()[2])

    @pytest.mark.faults
    def test_killed_and_restarted(self):
        flags = [RATE, BATCH, "--trials=4"]
        self.search(*flags, folder=self.folder / "undisturbed")
        process = self.start(*flags, held="trial_2:3")
        self.wait_for(lambda: len(tiny_run.records(self.tune_dir / "trial_2")) == 3)
        process.kill()
        process.communicate()
        self.assertEqual([record["state"] for record in self.records()], [DONE, DONE, RUNNING])
        self.search(*flags)
        self.assertEqual(self.records(), self.records(self.folder / "undisturbed"))
        self.assertEqual([self.starts(number) for number in range(4)], [1, 1, 2, 1])
        steps = [(line["step"], "loss" in line) for line in tiny_run.records(self.tune_dir / "trial_2")]
        self.assertEqual(len(steps), len(set(steps)))  # It went on where it was.

    def test_stopped_by_a_signal(self):
        flags = [RATE, "--trials=2"]
        process = self.start(*flags, held="trial_0:2")
        self.wait_for(lambda: tiny_run.records(self.tune_dir / "trial_0"))
        # Another search in the same folder.
        _, err = self.search(*flags, code=2)
        self.assertRegex(err, rf"^error: {self.tune_dir}: another process \({process.pid}\) is writing to this folder")
        process.send_signal(signal.SIGTERM)
        out, _ = self.finish(process, 3)
        self.assertIn("stopped by a signal; everything is saved, and the same command continues from there\n", out)
        self.assertEqual([record["state"] for record in self.records()], [RUNNING])
        self.search(*flags)
        self.assertEqual((self.starts(0), self.starts(1)), (2, 1))

    @pytest.mark.faults
    def test_failures(self):
        flags = ["--search=batch_size=13,32", "--search=learning_rate=1e-3,1e-2", "--trials=4"]
        out, _ = self.search(*flags)
        records = self.records()
        self.assertEqual({record["values"]["batch_size"] for record in records if record["state"] == FAILED}, {"13"})
        self.assertEqual(sum(record["state"] == DONE for record in records), 2)
        message = "error: --batch_size=13: brings bad luck; use another"
        self.assertEqual({record["error"] for record in records}, {message, ""})
        self.assertEqual(out.count(f"| failed: {message} |"), 2)

        flags = [RATE, "--batch_size=13", "--trials=9"]
        other = self.folder / "other"
        _, err = self.search(*flags, code=4, folder=other)
        self.assertEqual(
            err,
            "error: all 3 trials failed, the last one with: --batch_size=13: brings bad luck; use another "
            f"(its output is in {other / 'trial_2.log'})\n",
        )
        self.assertEqual((other / "trial_2.log").read_text().count("loading"), 1)
        before = self.records(other)
        self.search(*flags, code=4, folder=other)  # They are tried again.
        self.assertEqual(self.records(other), before)
        self.assertEqual((other / "trial_2.log").read_text().count("loading"), 2)

    @pytest.mark.faults
    def test_pruned_trials(self):
        flags = [RATE, BATCH, "--trials=9", "--prune"]
        out, _ = self.search(*flags, seconds=1)
        records = self.records()
        pruned = [record for record in records if record["state"] == PRUNED]
        self.assertTrue(pruned)
        for record in pruned:
            self.assertLess(record["evaluations"][-1][0], 6)
            others = [Trial(**other) for other in records[: record["trial"]]]
            found = trials.should_be_pruned(record["evaluations"], others, "min")
            self.assertEqual(found, record["evaluations"][-1][0])
            self.assertGreater(record["trial"], 4)
        self.assertEqual(out.count(" (pruned)\n"), len(pruned))

    @pytest.mark.faults
    def test_a_damaged_record(self):
        self.search(BATCH, "--trials=2")
        path = self.tune_dir / "trials.jsonl"
        text = path.read_text()
        for damaged, message in (
            (text[:-20], r"trials.jsonl:2: is not JSON \(.*\); restore the file"),
            (text.splitlines()[1] + "\n", r"trials.jsonl:1: does not fit to this search; restore the file.*"),
            (text.replace('"done"', '"finished"', 1), r"trials.jsonl:1: state is 'finished', not one of running, .*"),
        ):
            path.write_text(damaged)
            _, err = self.search(BATCH, "--trials=2", code=2)
            self.assertRegex(err, rf"\Aerror: {self.tune_dir}/{message}\n\Z")


@pytest.mark.faults
class RealRunTest(TuneCase):
    def test_a_real_search_killed_and_restarted(self):
        rest = tiny_run.flags(self.folder, evaluate_every=4, checkpoint_every=2, steps=8)
        flags = [*rest, RATE, "--search=overrides.num_layers=1,2", "--trials=3"]
        command = ("-m", "tfzoo.tune")
        self.search(*flags, command=command, folder=self.folder / "undisturbed")
        process = self.start(*flags, command=command)
        saved = self.tune_dir / "trial_1" / "checkpoints" / f"{2:08d}"
        self.wait_for(lambda: saved.exists() or process.poll() is not None)
        process.kill()
        process.communicate()
        self.search(*flags, command=command)
        one, two = self.records(), self.records(self.folder / "undisturbed")
        self.assertEqual(one, two)
        for record in one:
            name = f"trial_{record['trial']}"
            self.assertEqual(
                tiny_run.measured(self.tune_dir / name), tiny_run.measured(self.folder / "undisturbed" / name)
            )


if __name__ == "__main__":
    unittest.main()
