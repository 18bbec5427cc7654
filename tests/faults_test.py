"""A run killed at random and resumed logs what one left alone logs, bit for bit, dropout and accumulation on.

TensorFlow takes long to import, and does not survive a fork once it has computed anything. So this file, run as a
program, is a process that imports it and computes nothing: for every trial it forks a child, which runs the training
command. The tests here import no TensorFlow and do the killing.

A kill proves something only where it costs something: the tests count the steps that had to be run again, and show
that with the state of a single dropout seed left out of the checkpoints the losses do differ.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import unittest

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # As a program, this file finds only what stands beside it.

from tests import helpers, tiny_run  # noqa: E402
from tfzoo.training import checkpoint  # noqa: E402  (imports no TensorFlow)

STOPPED = 3
SEEDS = 4  # Of a model of one layer: dropout after the embeddings, in the attention, after it and after the MLP.


class Forks:
    """Trials of the training command, each in a child of a process that has imported TensorFlow."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self):
        self._process.communicate()

    def start(self, argv, output, leave_out_seed=None, held_saves=False) -> int:
        """The child's process id."""
        return self._ask(start=argv, output=str(output), leave_out_seed=leave_out_seed, held_saves=held_saves)

    def exit_code(self, child, wait=True) -> int | None:
        """The signal that ended it comes as a negative number; None where it has not ended."""
        return self._ask(child=child, wait=wait)

    def _ask(self, **order):
        orders, answers = self._process.stdin, self._process.stdout
        assert orders and answers
        orders.write(json.dumps(order) + "\n")
        orders.flush()
        answer = answers.readline()
        assert answer, "the process that forks has ended"
        return json.loads(answer)


class Run:
    """One --run_dir, started as often as it takes."""

    def __init__(self, forks, folder, argv, **options):
        folder.mkdir()
        self.run_dir, self._output = folder / "run", folder / "output"
        self._argv, self._forks, self._options = [*argv, f"--run_dir={self.run_dir}"], forks, options

    def start(self):
        self._old_log, self._code = self._log(), None
        self._child = self._forks.start(self._argv, self._output, **self._options)

    def finish(self) -> int:
        if self._code is None:
            self._code = self._forks.exit_code(self._child)
        return self._code

    def wait_for(self, happened) -> bool:
        """False if the child ended first."""
        while True:
            self._code = self._forks.exit_code(self._child, wait=False)
            if self._code is not None:
                return False
            for _ in range(50):  # Saving takes milliseconds.
                if happened():
                    return True
                time.sleep(0.002)

    def send(self, number) -> int:
        """The exit code. After wait_for() said True the child may have ended, but its number is still its own."""
        os.kill(self._child, number)
        return self.finish()

    def has_begun(self) -> bool:
        """Whether this start's own log is there: a resumed run replaces the old one."""
        return self._log() not in (None, self._old_log)

    def is_saving(self) -> bool:
        folder = self.run_dir / "checkpoints"
        return folder.is_dir() and any(name.endswith(".partial") for name in os.listdir(folder))

    def is_half_saved(self) -> bool:
        """With held_saves, between the two files of a checkpoint, until it is let go."""
        return self._output.with_suffix(".held").exists()

    def let_go(self):
        self._output.with_suffix(".go").touch()

    def lines(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def saved_step(self) -> int:
        folder = self.run_dir / "checkpoints"
        return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0) if folder.exists() else 0

    def logged_step(self) -> int:
        return max((step for step, _ in tiny_run.measured(self.run_dir)), default=0)

    def output(self) -> str:
        return self._output.read_text()

    def _log(self):
        path = self.run_dir / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None


class KillTest(unittest.TestCase):
    forks: Forks
    shared: pathlib.Path
    undisturbed: dict[tuple, tuple] = {}  # By steps and precision: a run to compare with is needed more than once.
    precision = "float32"

    @classmethod
    def setUpClass(cls):
        cls.shared = helpers.temporary_folder(cls)
        cls.forks = Forks()
        cls.addClassCleanup(cls.forks.close)

    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.random = random.Random(5)

    def new_run(self, name, steps, **others):
        return Run(self.forks, self.folder / name, self.flags(steps), **others)

    def flags(self, steps):
        return tiny_run.flags(
            self.shared,
            steps=steps,
            steps_per_call=3,
            checkpoint_every=5,
            evaluate_every=40,
            evaluate_batches=1,
            precision=self.precision,
        )

    def left_alone(self, steps):
        """What a run logs that nobody disturbs, and the seconds to its first step and from step to step."""
        if (steps, self.precision) not in self.undisturbed:
            run = self.new_run("left_alone", steps)
            began = time.monotonic()
            run.start()
            times = [began]
            while run.wait_for(lambda: run.lines() >= len(times)):
                times.append(time.monotonic())
            self.assertEqual(run.finish(), 0, run.output())
            expected = tiny_run.measured(run.run_dir)
            self.assertEqual([step for step, name in expected if name == "loss"], list(range(1, steps + 1)))
            start_time, *step_times = (after - before for before, after in itertools.pairwise(times))
            self.undisturbed[steps, self.precision] = expected, start_time, statistics.median(step_times)
        return self.undisturbed[steps, self.precision]

    def compare(self, run, expected):
        """(figures compared, those that differ)."""
        found = tiny_run.measured(run.run_dir)
        differing = [key for key, figure in found.items() if figure != expected.get(key)]
        return len(found), differing

    def interrupt_at_random(self, steps, rounds):
        """Each round kills a run three times and stops it once by SIGTERM; then it runs to its end.

        Without rounds, it is killed twice.

        Returns how often it was killed, and how many steps that cost.
        """
        expected, start_time, step_time = self.left_alone(steps)
        plan = ["stepping", "saving", "starting", "stopped"] * rounds or ["stepping", "saving"]
        run, runs = self.new_run("killed_0", steps), 1
        done, compared, replayed, litter = 0, 0, 0, 0
        while True:
            run.start()
            moment = plan[done] if done < len(plan) else "never"
            in_time = moment != "never"
            if moment == "starting":
                until = time.monotonic() + self.random.uniform(0, start_time)
                in_time = run.wait_for(lambda: run.has_begun() or time.monotonic() > until)  # noqa: B023
            elif moment != "never":
                more = self.random.randint(1, 7)
                in_time = run.wait_for(run.has_begun)
                begun = run.lines()
                in_time = in_time and run.wait_for(lambda: run.lines() >= begun + more)  # noqa: B023
                if moment == "saving":
                    in_time = in_time and run.wait_for(run.is_saving)
                elif in_time:
                    time.sleep(self.random.uniform(0, 3 * step_time))
            how = signal.SIGTERM if moment == "stopped" else signal.SIGKILL
            code = run.send(how) if in_time else run.finish()
            number, differing = self.compare(run, expected)
            compared += number
            self.assertEqual(differing, [], f"after {done} interruptions: {run.output()}")
            if code == 0:
                self.assertEqual(tiny_run.measured(run.run_dir), expected)
                self.check_folder(run, steps)
                if done == len(plan):
                    break
                # It was faster than the one who was to kill it: what is left of the plan goes to another run.
                run, runs = self.new_run(f"killed_{runs}", steps), runs + 1
                continue
            if moment == "stopped":
                self.assertEqual(code, STOPPED, run.output())
                self.assertEqual(run.saved_step(), run.logged_step())
                self.assertIn(f"stopped by SIGTERM at step {run.saved_step()};", run.output())
            else:
                self.assertEqual(code, -signal.SIGKILL, run.output())
                replayed += max(0, run.logged_step() - run.saved_step())
                litter += len(list(run.run_dir.rglob("*.partial")))
            done += 1
        kills = done - plan.count("stopped")
        print(
            f"{kills} kills and {done - kills} stops of {runs} runs of {steps} steps: {litter} files or folders left "
            f"half-written, {replayed} steps run again, {compared} figures compared, 0 differ; "
            f"{start_time:.1f} s to start, {1000 * step_time:.0f} ms a step"
        )
        self.assertGreater(replayed, 0, "the kills cost nothing, so this test shows nothing")
        return kills, replayed

    def check_folder(self, run, steps):
        """The run's folder holds what it should, whatever was killed in it."""
        self.assertEqual(list(run.run_dir.rglob("*.partial")), [])
        kept = sorted(int(path.name) for path in (run.run_dir / "checkpoints").iterdir())
        best = int((run.run_dir / "best").resolve().name)
        self.assertEqual(kept[-1], steps)
        self.assertLessEqual(len(set(kept) - {best}), 2)

    def losses_without_seed(self, seed, steps=40):
        """The steps whose losses differ once a run has been killed and resumed without one dropout seed's state."""
        expected, *_ = self.left_alone(steps)
        run = self.new_run(f"without_{seed}", steps, leave_out_seed=seed)
        run.start()
        self.assertTrue(run.wait_for(lambda: 0 < run.saved_step() < run.logged_step()), run.output())
        run.send(signal.SIGKILL)
        saved = run.saved_step()
        self.assertGreater(saved, 0)
        self.assertEqual(self.compare(run, expected)[1], [])  # Until it is resumed nothing is missing.
        run.start()
        self.assertEqual(run.finish(), 0, run.output())
        differing = [step for step, name in self.compare(run, expected)[1] if name == "loss"]
        self.assertTrue(all(step > saved for step in differing), differing)
        print(f"without the state of seed {seed}: {len(differing)} of {steps - saved} losses differ")
        return differing

    def test_two_kills(self):
        kills, _ = self.interrupt_at_random(steps=40, rounds=0)
        self.assertEqual(kills, 2)

    @pytest.mark.faults
    def test_a_seed_left_out_is_noticed(self):
        self.assertNotEqual(self.losses_without_seed(SEEDS - 1), [])

    @pytest.mark.faults
    def test_a_disk_that_fills_up(self):
        """A disk of its own, filled by somebody else in the middle of a run, with more or less left."""
        expected, *_ = self.left_alone(40)
        disk = self.mounted("-t", "tmpfs", "-o", "size=8m", "tmpfs")
        messages, saved = [], []
        for left in (0, 1 << 12, 1 << 14, 1 << 15, 1 << 16):  # A checkpoint has about 2 ** 16 bytes.
            run = Run(self.forks, disk / f"left_{left}", self.flags(40))
            run.start()
            self.assertTrue(run.wait_for(lambda: run.saved_step() >= 5), run.output())  # noqa: B023
            with open(disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(1 << 12))
            os.truncate(disk / "ballast", (disk / "ballast").stat().st_size - left)
            messages.append(self.refused(run))
            self.assertRegex(
                messages[-1], r"cannot be written \(.*[Nn]o space left on device.*\); free some disk space"
            )
            saved.append(self.intact(run))
            (disk / "ballast").unlink()
            self.goes_on(run, expected)
            shutil.rmtree(run.run_dir.parent)
        print(f"a disk filled {len(messages)} times; saved {saved}; it said", *sorted(set(messages)), sep="\n  ")
        self.assertIn("checkpoints", " ".join(messages))

    @pytest.mark.faults
    def test_a_folder_that_becomes_read_only(self):
        """Between the two files of a checkpoint."""
        expected, *_ = self.left_alone(40)
        for number in range(2):
            run = self.new_run(f"run_{number}", 40, held_saves=True)
            run.start()
            self.assertTrue(run.wait_for(run.is_half_saved))
            folder = self.mounted("--bind", run.run_dir / "checkpoints", folder=run.run_dir / "checkpoints")
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
            run.let_go()
            message = self.refused(run)
            self.assertRegex(message, r"cannot be written \(read-only file system\); specify a writable folder")
            self.assertTrue(run.is_saving())  # It could not even remove what it had begun.
            saved = self.intact(run)
            subprocess.run(["umount", folder], check=True)
            self.goes_on(run, expected)
            print(f"became read-only after step {saved}: {message}")

    @pytest.mark.faults
    def test_a_folder_that_is_taken_away(self):
        """In the middle of a save: the checkpoints' folder makes way for a file, then the run's folder goes."""
        expected, *_ = self.left_alone(40)
        for taken in ("checkpoints", ""):
            run = self.new_run(f"taken_{taken}", 40, held_saves=True)
            run.start()
            self.assertTrue(run.wait_for(run.is_half_saved))
            folder = run.run_dir / taken if taken else run.run_dir
            elsewhere = folder.with_name("elsewhere")
            folder.rename(elsewhere)
            if taken:
                folder.write_text("mine")
            run.let_go()
            message = self.refused(run)
            self.assertRegex(message, "restore it")
            if taken:
                self.assertEqual(folder.read_text(), "mine")
                folder.unlink()
            self.assertFalse(folder.exists(), list(run.run_dir.parent.rglob("*")))
            elsewhere.rename(folder)
            saved = self.intact(run)
            self.goes_on(run, expected)
            print(f"{taken or 'the run'} taken away after step {saved}: {message}")

    def mounted(self, *arguments, folder=None):
        """A folder with something mounted on it, if this machine lets us."""
        folder = folder or self.folder / "disk"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *map(str, arguments), str(folder)], capture_output=True, text=True)
        if done.returncode:
            self.skipTest(f"mount needs rights that this machine does not give ({done.stderr.strip()})")
        self.addCleanup(subprocess.run, ["umount", "--lazy", str(folder)], stderr=subprocess.DEVNULL)
        return folder

    def refused(self, run):
        """The one line of an error that a run must end with."""
        code, output = run.finish(), run.output()
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        self.assertEqual((code, len(lines)), (2, 1), output)
        self.assertNotIn("Traceback", output)
        return lines[0].removeprefix("error: ").replace(str(run.run_dir), "RUN").strip()

    def intact(self, run) -> int:
        """The step that the newest checkpoint is of, which must not be damaged."""
        with self.assertNoLogs("absl", "WARNING"):
            step, _, _ = checkpoint.Checkpoints(run.run_dir / "checkpoints", read_only=True).read()
        self.assertGreaterEqual(step, 5)
        return step

    def goes_on(self, run, expected):
        """Once the machine is well again the same command logs what the run left alone did."""
        run.start()
        self.assertEqual(run.finish(), 0, run.output())
        found = tiny_run.measured(run.run_dir)
        losses = {key: figure for key, figure in expected.items() if key[1] == "loss"}
        self.assertEqual({key: figure for key, figure in found.items() if key[1] == "loss"}, losses)
        self.assertEqual(list(run.run_dir.rglob("*.partial")), [])

    @pytest.mark.faults
    def test_a_hundred_kills_in_mixed_precision(self):
        self.precision = "float16"  # With the state of its loss scale.
        kills, replayed = self.interrupt_at_random(steps=120, rounds=34)
        self.assertGreaterEqual(kills, 100)
        self.assertGreaterEqual(replayed, 50)

    @pytest.mark.faults
    def test_each_seed_left_out_is_noticed(self):
        for seed in range(SEEDS):
            differing = self.losses_without_seed(seed)
            with self.subTest(seed=seed):
                self.assertNotEqual(differing, [])


def serve_forks():
    """Imports what the training command imports, then forks children as stdin asks for them."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import tensorflow as tf
    import tqdm

    from tfzoo import cli, files, train
    from tfzoo.data import pipeline
    from tfzoo.models import bert
    from tfzoo.objectives import baselines, masked_lm
    from tfzoo.training import distribution, optimizers, runs

    imported = (matplotlib, tqdm, distribution, optimizers, runs, pipeline, bert, baselines, masked_lm, tf)
    assert all(imported)

    def run(order):
        if order["held_saves"]:
            sha256 = files.sha256_of_written  # Which comes between a checkpoint's two files.
            saves, output = itertools.count(), pathlib.Path(order["output"])

            def held(path):
                if files.PARTIAL in str(path) and next(saves):  # The first goes through.
                    output.with_suffix(".held").touch()
                    while not output.with_suffix(".go").exists() and output.exists():  # The folder goes with its test.
                        time.sleep(0.01)
                return sha256(path)

            files.sha256_of_written = held
        if order["leave_out_seed"] is not None:
            every = checkpoint.model_variables

            def all_but_one(*args):
                variables = every(*args)
                seeds = sorted(name for name in variables if "seed" in name)
                assert len(seeds) == SEEDS, seeds
                del variables[seeds[order["leave_out_seed"]]]
                return variables

            checkpoint.model_variables = all_but_one
        return cli.run(train.main, train.define_flags, order["start"])

    for line in sys.stdin:
        order = json.loads(line)
        answer = None
        if "start" in order:
            sys.stdout.flush()
            answer = os.fork()
            if not answer:
                code: object = 1
                try:
                    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    os.dup2(output, 1)
                    os.dup2(output, 2)
                    code = run(order)
                except SystemExit as stop:
                    code = stop.code
                finally:
                    os._exit(code if isinstance(code, int) else 1)
        else:
            child, status = os.waitpid(order["child"], 0 if order["wait"] else os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if child else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve_forks()
