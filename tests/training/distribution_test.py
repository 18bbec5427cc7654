"""Two devices, two workers and three workers reproduce the run of one device up to float32 rounding.

The functions below the tests run in the processes of tests/worlds.py; the tests compare their results.
"""

import hashlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import pytest

from tests import helpers, tiny_run
from tests.worlds import ROOT, Worlds
from tfzoo import launch

STEPS, BATCH = 20, 18  # Three workers, three parts: 2 rows each.
MANY = ("mirrored2", "workers2", "workers3")
NO_CLIPPING: dict[str, float] = {}
EACH, NORM = {"clip_each": 0.05}, {"clip_norm": 0.1}  # Values that take effect, as a test checks.
# Each choice occurs in one of these cases, and each combination of ALL in `make faults`.
PLAIN = dict(optimizer="sgd", clip=NO_CLIPPING, parts=1, average=0.0)
MIRRORED = [
    dict(optimizer="adamw", clip=NO_CLIPPING, parts=3, average=0.8),
    dict(optimizer="sgd", clip=EACH, parts=3, average=0.0, decay=0.7),
    dict(optimizer="sgd", clip=NORM, parts=1, average=0.8),
]
# With a decay; not in ALL.
DECAYED = [dict(optimizer="adamw", clip=EACH, parts=1, average=0.8, decay=0.7)]
ALL = [
    dict(optimizer=optimizer, clip=clip, parts=parts, average=average)
    for optimizer, clip, parts, average in itertools.product(
        ("sgd", "adamw"), (NO_CLIPPING, EACH, NORM), (1, 3), (0.0, 0.8)
    )
]
MODELS = [
    dict(model=model, optimizer=optimizer, clip=NORM, parts=parts, average=average, decay=0.9)
    for model, optimizer, parts, average in (
        ("bert", "adamw", 1, 0.8),
        ("gpt2", "sgd", 3, 0.8),
        ("t5", "adamw", 3, 0.0),
        ("bert", "lamb", 3, 0.0),
        ("gpt2", "adafactor", 1, 0.0),
        ("t5", "lars", 1, 0.0),
        ("bert", "muon", 1, 0.0),
    )
]


worlds = Worlds("tests.training.distribution_test")


class DistributionCase(unittest.TestCase):
    def compare(self, cases, names=MANY):
        """Trains each case in each world; returns the largest difference relative to the tolerance."""
        calls = [["losses", case] for case in cases]
        ((*expected,),) = worlds.run("one", calls)
        for name in names:
            worst, ranks = 0.0, worlds.run(name, calls)
            for i, (case, one) in enumerate(zip(cases, expected, strict=True)):
                self.assertEqual(len(one["losses"]), STEPS)
                self.assertLess(one["losses"][-1], one["losses"][0] - 0.01, case)
                digests = {digest for rank in ranks for digest in rank[i]["digests"]}
                self.assertEqual(len(digests), 1, f"{name} {case}: weights differ between replicas")
                self.assertEqual(sum(len(rank[i]["digests"]) for rank in ranks), int(name[-1]))
                for rank in ranks:
                    self.assertEqual(rank[i]["losses"], ranks[0][i]["losses"])
                    # The last evaluation uses the averaged weights.
                    found, wanted = ([*x["losses"], x["averaged"]] for x in (rank[i], one))
                    for step, (a, b) in enumerate(zip(found, wanted, strict=True)):
                        worst = max(worst, abs(a - b) / (1e-6 * max(1.0, abs(b))))
                        self.assertLessEqual(abs(a - b), 1e-6 * max(1.0, abs(b)), f"{name} {case} step {step}: {a} {b}")
            print(f"{name}: {len(cases)} cases, at most {worst:.2f} of the difference allowed", flush=True)
        return expected


class EqualityTest(DistributionCase):
    def test_many_are_one(self):
        _, each, norm = self.compare(MIRRORED, ["mirrored2"])
        (plain,) = self.compare([PLAIN], ["workers2"])
        # Clipping has an effect, and the average differs from the last weights.
        for clipped in (each, norm):
            self.assertGreater(abs(clipped["losses"][-1] - plain["losses"][-1]), 1e-2)
        self.assertGreater(abs(norm["averaged"] - norm["last"]), 1e-3)
        self.assertEqual(plain["averaged"], plain["last"])
        # Keras's own optimizer reduces a second time, so that the comparison can fail.
        ((wrong,),) = worlds.run("mirrored2", [["losses", MIRRORED[2] | {"stock": True}]])
        self.assertGreater(max(abs(a - b) for a, b in zip(wrong["losses"], norm["losses"], strict=True)), 1e-3)

    @pytest.mark.faults
    def test_many_are_one_in_every_combination(self):
        self.compare([*ALL, *DECAYED])

    @pytest.mark.faults
    def test_many_are_one_for_real_models(self):
        expected = self.compare(MODELS)
        # On one device, the order of a batch's rows only affects rounding; a larger effect would invalidate the test.
        ((*backwards,),) = worlds.run("one", [["losses", case | {"backwards": True}] for case in MODELS])
        for case, one, other in zip(MODELS, expected, backwards, strict=True):
            pairs = zip(other["losses"], one["losses"], strict=True)
            rounding = max(abs(a - b) / (1e-6 * max(1.0, abs(b))) for a, b in pairs)
            print(f"{case['model']}, {case['optimizer']}: rows backwards, {rounding:.2f} of the difference allowed")
            self.assertLess(rounding, 0.5)


class ReplicasTest(DistributionCase):
    def test_what_replicas_do_alone_and_together(self):
        """An overflow on the last replica, and different masks on each replica."""
        self.check_replicas("mirrored2")

    @pytest.mark.faults
    def test_what_workers_do_alone_and_together(self):
        self.check_replicas("workers2")

    def check_replicas(self, name):
        calls = [["overflow", {}], ["masks", {}], ["evaluation", {}], ["totals", {}]]
        ((alone,),) = worlds.run("one", [["evaluation", {}]])
        ranks = worlds.run(name, calls)
        for overflow, _, evaluation, totals in ranks:
            self.assertEqual(totals, [[1, 10], [3, 20]][len(ranks) - 1])
            self.assertEqual(overflow["changed"], [False, True], name)
            self.assertEqual(overflow["scales"], [[2.0**9] * (2 // len(ranks))] * 2)
            self.assertTrue(all(map(math.isfinite, overflow["losses"])))
            for figure, value in alone.items():
                self.assertLessEqual(abs(evaluation[figure] - value), 1e-6 * max(1.0, abs(value)), figure)
        first, second, again = ([mask for rank in ranks for mask in rank[1][i]] for i in range(3))
        self.assertEqual(len({*first, *second}), 4, f"{name}: replicas draw the same")
        self.assertEqual(first, again)

    def test_the_order_is_one(self):
        ((found,),) = worlds.run("one", [["order", {}]])
        whole = found["1 from 0"]
        self.assertEqual(len(found), 12)
        for key, rows in found.items():
            first = int(key.split()[-1])
            self.assertEqual(rows, whole[first * BATCH :], key)
        for epoch in range(2):
            self.assertEqual(sorted(whole[epoch * 120 : (epoch + 1) * 120]), list(range(120)))
        self.assertNotEqual(whole[:120], whole[120:240])


class CommandTest(DistributionCase):
    PLAIN = dict(
        overrides="hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,max_positions=32,dropout=0,"
        "attention_dropout=0"
    )
    CAUSAL = PLAIN | dict(model="gpt2", objective="causal", steps=5, evaluate_every=5, evaluate_batches=1)

    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def train(self, world, run_dir, stop_after=0, nan_at=0, fail_after=0, die_after=0, **others):
        """Returns exit code, stdout and stderr of each worker; worker 1 is killed after `die_after` calls."""
        flags = [*tiny_run.flags(self.folder, **(dict(batch_size=12, schedule="constant") | others))]
        if world != "one":
            flags.append("--strategy=mirrored" if world.startswith("mirrored") else "--strategy=multi_worker")
            flags += ["--num_devices=2"] * world.startswith("mirrored")
        argv = [*flags, f"--run_dir={run_dir}"]
        how = dict(stop_after=stop_after, nan_at=nan_at, fail_after=fail_after, die_after=die_after)
        codes = [-signal.SIGKILL, 0] if die_after else []
        ranks = worlds.run(world, [["command", how | {"argv": argv}]], begun=False, codes=codes)
        return [rank[0] for rank in ranks]

    def losses(self, run_dir, name="loss"):
        return [record[name] for record in tiny_run.records(run_dir) if "loss" in record]

    def test_two_workers(self):
        """Together they log the same as one device."""
        self.compare_workers()

    @pytest.mark.faults
    def test_two_workers_stop_and_go_on(self):
        """One worker receives a signal: both stop at the same step. With dropout, bit for bit:
        test_a_stopped_a_killed_and_a_resumed_worker."""
        ranks = self.train("workers2", self.folder / "two", stop_after=2, **self.CAUSAL)
        self.assertEqual([rank["code"] for rank in ranks], [3, 3], ranks)
        self.assertIn("stopped by another worker's signal at step 2;", ranks[0]["out"])
        self.assertIn("resuming at step 2 of 5", self.compare_workers())

    def compare_workers(self) -> str:
        """Compares a run of two workers with one on one device; returns what the chief printed."""
        (alone,) = self.train("one", self.folder / "one", **self.CAUSAL)
        self.assertEqual(alone["code"], 0, alone)
        ranks = self.train("workers2", self.folder / "two", **self.CAUSAL)
        # A worker may wait for the first one, and prints nothing else.
        printed = [re.sub(r"(?m)^waiting for worker .*\n", "", rank["out"]) for rank in ranks]
        self.assertEqual([rank["code"] for rank in ranks], [0, 0], ranks)
        self.assertEqual([text != "" for text in printed], [True, False], ranks)
        self.assertIn("held out", ranks[0]["out"])
        one, two = (tiny_run.records(self.folder / name) for name in ("one", "two"))
        for a, b in zip(one, two, strict=True):
            self.assertEqual(list(a), list(b))
            for name in set(a) - {"tokens_per_second", "model_tflops", "causal_perplexity"}:
                allowed = 0.0 if name == "padding_share" else 1e-6 * max(1.0, abs(a[name]))
                self.assertLessEqual(abs(a[name] - b[name]), allowed, f"{name} of step {a['step']}")
        return ranks[0]["out"]

    @pytest.mark.faults
    def test_two_devices_change_the_stage(self):
        flags = self.PLAIN | dict(steps=4, evaluate_every=4, evaluate_batches=1, schedule="constant")
        flags |= dict(stages="2:sequence_length=24,batch_size=8")
        for world in ("one", "mirrored2"):
            for rank in self.train(world, self.folder / world, **flags):
                self.assertEqual(rank["code"], 0, rank)
        one, two = (tiny_run.records(self.folder / world) for world in ("one", "mirrored2"))
        self.assertEqual([record["batch_size"] for record in two], [12, 12, 12, 8, 8, 8])
        for a, b in zip(one, two, strict=True):
            self.assertEqual(list(a), list(b))
            for name in ("loss", "masked_lm_loss"):
                if name in a:
                    self.assertLessEqual(abs(a[name] - b[name]), 1e-6 * max(1.0, abs(a[name])), f"step {a['step']}")

    def test_what_is_refused(self):
        for flags, message in (
            (
                dict(stages="3:batch_size=7"),
                "--stages: from step 3 on: --batch_size=7: must be a multiple of the number of devices (2)",
            ),
            (dict(batch_size=7, accumulation=1), "--batch_size=7: must be a multiple of the number of devices (2)"),
            (dict(accumulation=5), "--accumulation=5: must divide --batch_size (12, divided among 2 devices)"),
        ):
            (rank,) = self.train("mirrored2", self.folder / "run", **flags)
            self.assertEqual((rank["code"], rank["err"]), (2, f"error: {message}\n"))

    @pytest.mark.faults
    def test_parameter_servers_lose_a_worker(self):
        found = self.parameter_servers(steps=10, kill_after=2)
        self.assertLess(sum(found[-3:]), sum(found[:3]))

    def parameter_servers(self, kill_after, **flags):
        """Returns the losses of a run that loses one of two workers after some calls."""
        argv = tiny_run.flags(self.folder, **flags, batch_size=12, steps_per_call=5, checkpoint_every=20)
        argv += ["--strategy=parameter_server", f"--run_dir={self.folder / 'run'}"]
        ((rank,),) = worlds.run("servers", [["command", {"argv": argv, "kill_after": kill_after}]], begun=False)
        self.assertEqual(rank["code"], 0, rank)
        self.assertIn("held out", rank["out"])
        found = self.losses(self.folder / "run")
        self.assertEqual(len(found), flags["steps"])
        return found

    def test_a_port_that_is_taken(self):
        for (said,) in worlds.run("workers2", [["taken", {}]], begun=False):
            self.assertRegex(
                said, r"^TF_CONFIG: cannot listen on 127.0.0.1:\d+ \(.*\); stop the process that uses this port, or"
            )

    @pytest.mark.faults
    def test_a_killed_and_a_failing_worker(self):
        """The other worker ends by itself, and both can resume."""
        flags = self.PLAIN | dict(steps=8, evaluate_every=8, evaluate_batches=1, checkpoint_every=2)
        run_dir = self.folder / "run"
        # A failing worker prints its error and ends with the code of an internal error; waiting workers end as well.
        ranks = self.train("workers2", run_dir, fail_after=3, **flags)
        self.assertEqual([rank["code"] for rank in ranks], [5, 1], ranks)
        self.assertIn("another worker of this run was lost; restart all workers", ranks[0]["err"])
        # A worker that is killed between two steps prints nothing.
        (rank,) = self.train("workers2", run_dir, die_after=2, **flags)
        self.assertEqual(rank["code"], 5, rank)
        self.assertIn("another worker of this run was lost; restart all workers", rank["err"])
        self.assertIn("resuming at step 2 of 8", rank["out"])

    @pytest.mark.faults
    def test_a_worker_that_is_lost_before_the_first_step(self):
        """While they wait for each other: the third one never starts, and the first one is killed."""
        workers = self.started(self.folder / "run", 2, of=3, worker_timeout=60)
        time.sleep(15)  # Importing takes less time; otherwise, the worker is only killed earlier.
        workers[0].kill()
        self.assertEqual(workers[1].wait(helpers.PATIENCE), 5, self.output())
        self.assertRegex(self.output(), r"worker 0 \(.*\): did not start within 60 s; start all workers, or raise")
        self.assertNotIn("Traceback", self.output())

    @pytest.mark.faults
    def test_parameter_servers_learn_and_lose_a_worker(self):
        found = self.parameter_servers(steps=40, kill_after=3)
        self.assertLess(sum(found[-5:]), sum(found[:5]) - 0.5)
        # If one device resumes the run, the schedule continues.
        (rank,) = self.train(
            "one", self.folder / "run", steps=44, batch_size=12, schedule="linear", checkpoint_every=20
        )
        self.assertIn("resuming at step 40 of 44", rank["out"])

    @pytest.mark.faults
    def test_a_stopped_a_killed_and_a_resumed_worker(self):
        """Processes started as in a cluster, interrupted during their steps, with dropout."""
        flags = dict(steps=300, evaluate_every=300, checkpoint_every=10)
        whole, run_dir = self.folder / "whole", self.folder / "run"
        ranks = self.train("workers2", whole, **flags)
        self.assertEqual([rank["code"] for rank in ranks], [0, 0], ranks)

        def logged():
            return len(self.losses(run_dir))

        def saved():
            return max(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal())

        # SIGTERM for one worker: both save and stop, and nothing is lost.
        workers = self.interrupt(run_dir, signal.SIGTERM, logged, **flags)
        self.assertEqual([worker.returncode for worker in workers], [3, 3], self.output())
        self.assertEqual(saved(), logged())
        before = logged()
        self.assertGreater(before, 0)
        # kill -9 of one worker: the other one does not wait forever.
        began = time.monotonic()
        workers = self.interrupt(run_dir, signal.SIGKILL, logged, **flags)
        seconds = time.monotonic() - began
        self.assertEqual([worker.returncode for worker in workers], [5, -signal.SIGKILL], self.output())
        self.assertIn("another worker of this run was lost; restart all workers", self.output())
        self.assertGreater(logged(), before)
        replayed = logged() - saved()
        ranks = self.train("workers2", run_dir, **flags)
        self.assertEqual([rank["code"] for rank in ranks], [0, 0], ranks)
        self.assertEqual(tiny_run.measured(run_dir), tiny_run.measured(whole))
        print(f"stopped at step {before}; killed later, {seconds:.0f} s to its end, {replayed} steps run again")

    def output(self):
        return "\n".join((self.folder / f"{rank}.out").read_text()[-3000:] for rank in range(2))

    def started(self, run_dir, count, of, **flags):
        """Starts this number of workers of a cluster of size `of`."""
        argv = [*tiny_run.flags(self.folder, **(dict(batch_size=12, schedule="constant") | flags))]
        command = [sys.executable, "-m", "tfzoo.train", *argv, "--strategy=multi_worker", f"--run_dir={run_dir}"]
        addresses = [f"127.0.0.1:{port}" for port in launch.free_ports(of)]
        workers = []
        for rank in range(count):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            environment = os.environ | {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "-1"}
            with open(self.folder / f"{rank}.out", "w") as output:
                workers.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=ROOT))
            self.addCleanup(workers[-1].wait)
            self.addCleanup(workers[-1].kill)
        return workers

    def interrupt(self, run_dir, number, logged, **flags):
        """Starts two workers, sends worker 1 the signal after some steps, and returns both when they have ended."""
        workers = self.started(run_dir, 2, of=2, **flags)
        first, more = logged(), random.Random(5).randint(20, 40)
        while logged() < first + more and None in (worker.poll() for worker in workers):
            time.sleep(0.005)
        workers[1].send_signal(number)
        for worker in workers:
            worker.wait(helpers.PATIENCE)
        return workers

    @pytest.mark.faults
    def test_two_workers_roll_back_together(self):
        flags = self.PLAIN | dict(steps=8, checkpoint_every=3, on_nonfinite="rollback", evaluate_every=8)
        for world in ("one", "workers2"):
            for rank in self.train(world, self.folder / world, nan_at=5, **flags):
                self.assertEqual(rank["code"], 0, rank)
        one, two = (tiny_run.records(self.folder / world) for world in ("one", "workers2"))
        trained = [(record["step"], record.get("nonfinite")) for record in two if "loss" in record]
        # Back to step 3, whose checkpoint has been written in the meantime, and on.
        self.assertEqual(trained, [*((step, None) for step in range(1, 4)), *((step, 1) for step in range(4, 9))])
        for a, b in zip(one, two, strict=True):
            self.assertEqual(a["step"], b["step"])
            if "loss" in a:
                self.assertEqual(a["padding_share"], b["padding_share"])
                self.assertLessEqual(abs(a["loss"] - b["loss"]), 1e-6 * max(1.0, abs(a["loss"])))

    @pytest.mark.faults
    def test_the_number_of_workers_may_change(self):
        plain = self.PLAIN
        self.train("one", self.folder / "one", steps=12, **plain)
        expected = self.losses(self.folder / "one")
        for first, second in (
            ("workers2", "one"),
            ("workers2", "workers3"),
            ("one", "mirrored2"),
            ("workers3", "workers2"),
        ):
            run_dir = self.folder / f"{first}_{second}"
            self.train(first, run_dir, steps=6, **plain)
            ranks = self.train(second, run_dir, steps=12, **plain)
            self.assertEqual([rank["code"] for rank in ranks], [0] * len(ranks), ranks)
            found = self.losses(run_dir)
            self.assertEqual(len(found), 12)
            for a, b in zip(found, expected, strict=True):
                self.assertLessEqual(abs(a - b), 1e-6 * max(1.0, abs(b)), (first, second))
            shares = [self.losses(run_dir, "padding_share") for run_dir in (run_dir, self.folder / "one")]
            self.assertEqual(shares[0], shares[1])  # Over the rows of all workers.


# ---------------------------------------------------------------- Functions that run in the worlds
def import_all():
    """Imports the modules that the functions below need, once."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import tqdm

    from tests.training import small_bert
    from tfzoo.data import packing, pairs, pipeline, tokenized
    from tfzoo.models import bert, gpt2, t5
    from tfzoo.objectives import baselines, causal, masked_lm, shared
    from tfzoo.training import checkpoint, loop, optimizers, runs

    assert all((matplotlib, tqdm, small_bert, checkpoint, optimizers, runs, loop, packing, pairs, pipeline, tokenized))
    assert all((bert, gpt2, t5, baselines, causal, masked_lm, shared))


class Table:
    """Rows from a dict of arrays, and the objective's `prepare` that looks them up."""

    FEATURES = {"index": 0}

    def __init__(self, features):
        self.features = features

    def __len__(self):
        return len(next(iter(self.features.values())))

    def row(self, index, numbers):
        return [index]

    def prepare(self, example):
        import tensorflow as tf

        return {name: tf.gather(values, example["index"]) for name, values in self.features.items()}


def batches(world, table, steps=STEPS, first=0, backwards=False):
    """Returns an iterator over a world's batches from the real pipeline; `backwards` reverses the rows of each."""
    from tfzoo.data import pipeline

    def make(context):
        data = pipeline.training_batches(
            table, table, batch_size=BATCH, seed=3, first_step=first, num_steps=steps, context=context
        )
        return data.map(lambda batch: {name: x[::-1] for name, x in batch.items()}) if backwards else data

    return iter(world.strategy.distribute_datasets_from_function(make))


def token_rows(count=120, length=6, words=20, seed=0):
    """Returns tokens, their successors as targets, and weights, most of them 1 or 0."""
    import numpy as np

    random = np.random.default_rng(seed)
    ids = random.integers(1, words, [count, length + 1]).astype(np.int32)
    weights = random.choice([0.0, 1.0, 1.0, 0.5], [count, length]).astype(np.float32)
    return {"token_ids": ids[:, :-1], "targets": ids[:, 1:], "target_weights": weights}


def made(model):
    """Returns (model, objective, rows) of a name."""
    import keras
    import numpy as np

    import tfzoo
    from tests.nn.formulas import randomize
    from tests.training import small_bert
    from tfzoo.objectives.shared import TokenTargets

    class Targets(TokenTargets):
        name = PREFIX = "test"
        best_metric = ("test_loss", "min")

    keras.utils.set_random_seed(1)
    sizes = dict(vocab_size=20, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, max_positions=8)
    sizes |= dict(dropout=0.0, attention_dropout=0.0)
    rows = token_rows()
    if model == "bert":
        return small_bert.model(), small_bert.objective(), small_bert.features(120)
    if model == "t5":
        # With the 64 numbers a head that t5_small has, scores, which T5 does not scale, have deviations of 9 here. The
        # order of a batch's rows alone, on one device, then changes losses by 100 times what is allowed; with 4 by a
        # tenth of it.
        net = tfzoo.build("t5_small", **sizes, num_decoder_layers=1, head_dim=4)
        decoder = np.roll(rows["targets"], 1, axis=1)
        rows |= {"decoder_token_ids": decoder, "padding_mask": rows["token_ids"] != 3}
    elif model == "gpt2":
        net = tfzoo.build("gpt2", **sizes)
    else:
        net = Small()
    randomize(net)
    return net, Targets(None, 0), rows


def Small(dtype=None):
    """An embedding, whose gradient is sparse, a norm and a matrix: all critical parts of a step, quickly traced."""
    import keras

    from tfzoo import nn

    class SmallModel(keras.Model):
        INPUTS = ("token_ids",)

        def __init__(self):
            super().__init__(dtype=dtype, name="small")
            self.table = keras.layers.Embedding(20, 8, dtype=self.dtype_policy, name="table")
            self.norm = nn.LayerNorm(1e-6, dtype=self.dtype_policy, name="norm")
            self.words = nn.Dense(20, dtype=self.dtype_policy, name="words")
            self.table.build([None])
            self.norm.build((None, 8))
            self.words.build((None, 8))
            self.built = True

        def call(self, inputs, training=False):
            import tensorflow as tf

            return {"logits": tf.cast(self.words(self.norm(self.table(inputs["token_ids"]))), tf.float32)}

    return SmallModel()


def losses(
    world,
    model="small",
    optimizer="sgd",
    clip=NO_CLIPPING,
    parts=1,
    average=0.0,
    decay=1.0,
    stock=False,
    backwards=False,
):
    """Returns the results of STEPS steps, and whether the replicas agree. `decay` is that of the learning rate from one
    variable to the next of every three."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo.training import optimizers
    from tfzoo.training import step as step_lib

    kept = optimizers._AlreadyReduced._all_reduce_sum_gradients
    if stock:
        reduce = keras.optimizers.SGD._all_reduce_sum_gradients
        optimizers._AlreadyReduced._all_reduce_sum_gradients = lambda self, pairs: reduce(self, pairs)
    with world.strategy.scope():
        net, objective, rows = made(model)
        # Adam makes rounding large where a gradient is almost 0, as some of real models are. LARS steps matrices by a
        # thousandth of the rate, but norms by all of it: at 20 the order of rows alone, on one device, changes
        # T5's losses by half of what is allowed, at 2 by a seventh.
        rate = {"sgd": 0.5, "lars": 2.0}.get(optimizer, 0.02 if model == "small" else 0.005)
        trained = net.trainable_variables
        updater = optimizers.make_optimizer(
            optimizer,
            rate,
            trained,
            weight_decay=0.1,
            epsilon=1e-6,
            ema_decay=average,
            rate_factors=[decay ** (i % 3) for i in range(len(trained))],
        )
    run = step_lib.make_step(world.strategy, {"main": net}, updater, objective, num_parts=parts, **clip)
    iterator = batches(world, Table(rows), backwards=backwards)
    found = [loss for _ in range(2) for loss in run(iterator, tf.constant(STEPS // 2)).numpy().tolist()]
    optimizers._AlreadyReduced._all_reduce_sum_gradients = kept

    def measured():
        total, weight = objective.loss(
            {"main": net}, {name: tf.constant(x[:60]) for name, x in rows.items()}, training=False
        )
        return float(total / weight)

    last = measured()
    with optimizers.averaged(updater):
        averaged = measured()
    assert measured() == last
    copies = [world.strategy.experimental_local_results(v.value) for v in [*net.variables, *updater.variables]]
    digests = []
    for replica in range(len(copies[0])):
        digest = hashlib.sha256()
        for variable in copies:
            digest.update(np.asarray(variable[replica].numpy()).tobytes())
        digests.append(digest.hexdigest())
    assert all(map(math.isfinite, found))
    return {"losses": found, "last": last, "averaged": averaged, "digests": digests}


def overflow(world):
    """Makes two steps in float16; in the first one, only the gradient of the last replica is infinite."""
    import numpy as np
    import tensorflow as tf

    from tfzoo.data import order
    from tfzoo.objectives.shared import TokenTargets
    from tfzoo.training import optimizers
    from tfzoo.training import step as step_lib

    class Stretched(TokenTargets):
        """Returns the loss unchanged, and multiplies its gradient by the largest `stretch` of the replica's rows."""

        name = PREFIX = "test"
        best_metric = ("test_loss", "min")

        def loss(self, models, batch, training=True):
            total, weight = super().loss(models, batch, training)
            more = total * (tf.reduce_max(batch["stretch"]) - 1.0)
            return total + (more - tf.stop_gradient(more)), weight

    count = world.strategy.num_replicas_in_sync
    rows = token_rows()
    stretch = np.ones([len(rows["token_ids"])], np.float32)
    for position in range(BATCH - BATCH // count, BATCH):
        stretch[int(order.epoch_and_index(position, len(stretch), 3)[1])] = 1e30
    with world.strategy.scope():
        net = Small("mixed_float16")
        updater = optimizers.make_optimizer("adamw", 0.01, net.trainable_variables, weight_decay=0.1, loss_scaling=True)
    updater.dynamic_scale.assign(2.0**10)
    run = step_lib.make_step(world.strategy, {"main": net}, updater, Stretched(None, 0), clip_norm=0.5)
    data = batches(world, Table(rows | {"stretch": stretch}))
    every = [*net.trainable_variables, *updater.inner_optimizer.variables]
    found: dict[str, list] = {"losses": [], "changed": [], "scales": []}
    for _ in range(2):
        before = [v.value.numpy() for v in every]
        found["losses"] += run(data, tf.constant(1)).numpy().tolist()
        found["changed"].append(any(np.any(a != v.value.numpy()) for a, v in zip(before, every, strict=True)))
        copies = world.strategy.experimental_local_results(updater.dynamic_scale.value)
        found["scales"].append([float(copy.numpy()) for copy in copies])
    return found


def masks(world):
    """Returns the masks of this process's replicas, twice, and once more from the initial state."""
    import tensorflow as tf

    from tfzoo import nn
    from tfzoo.training import checkpoint

    with world.strategy.scope():
        dropout = nn.Dropout(0.5, seed=1)
        dropout.build(None)

    @tf.function
    def draw():
        return world.strategy.run(lambda: dropout(tf.ones([64]), training=True))

    def drawn():
        return ["".join(str(int(x > 0)) for x in mask) for mask in map(as_list, local(draw()))]

    def local(value):
        return world.strategy.experimental_local_results(value)

    def as_list(mask):
        return mask.numpy().tolist()

    with tempfile.TemporaryDirectory() as folder:
        store = checkpoint.Checkpoints(pathlib.Path(folder) / "checkpoints")
        variables = {"seeds": dropout.seed_generator.state}
        store.save(1, variables, {})
        first, second = drawn(), drawn()
        store.restore(variables)
        return [first, second, drawn()]


def totals(world):
    """Returns the results of exchanging numbers: worker 0 has (1, 10), worker 1 has (2, 10)."""
    from tfzoo.training import distribution

    return distribution.Workers(world.strategy).totals(world.rank + 1, 10)


def evaluation(world):
    """Returns BERT's metrics over 40 rows, with an incomplete last batch, and an evaluator's input for each row."""
    from tfzoo.data import pipeline
    from tfzoo.evaluation.evaluator import Evaluator
    from tfzoo.training import step as step_lib

    with world.strategy.scope():
        net, objective, rows = made("bert")
    table = Table({name: values[:40] for name, values in rows.items()})

    class EachRow(Evaluator):
        def predict(self, models, batch):
            logits = models["main"]({name: batch[name] for name in models["main"].INPUTS if name in batch})["logits"]
            return {"id": batch["token_ids"][:, 1], "logits": logits[:, 0]}

        def figures(self, predictions):
            assert predictions["id"].tolist() == table.features["token_ids"][:, 1].tolist()  # Each row once, in order.
            return {f"logit {i}": float(x) for i, x in enumerate(predictions["logits"][:, 3])}

    def make(context):
        return pipeline.evaluation_batches(table, table, batch_size=BATCH, seed=3, num_batches=9, context=context)

    evaluate = step_lib.make_evaluation(world.strategy, {"main": net}, [*objective.evaluators(), EachRow()])
    return evaluate(world.strategy.distribute_datasets_from_function(make))


def order(world):
    """Returns the rows that a number of workers with some devices each take together, from a step on."""
    import numpy as np
    import tensorflow as tf

    from tfzoo.data import pipeline

    table, found = Table({"index": np.arange(120)}), {}
    for workers, devices, first in itertools.product((1, 2, 3), (1, 3), (0, 4)):
        iterators = []
        for worker in range(workers):
            context = tf.distribute.InputContext(workers, worker, workers * devices)
            data = pipeline.training_batches(
                table, table, batch_size=BATCH, seed=3, first_step=first, num_steps=14, context=context
            )
            iterators.append(iter(data))
        rows = [
            next(iterator)["index"].numpy().tolist()
            for _ in range(first, 14)
            for iterator in iterators
            for _ in range(devices)
        ]
        found[f"{workers}{' x 3' * (devices > 1)} from {first}"] = sum(rows, [])
    return found


def taken(world):
    """Returns the error of a worker whose port is used by another process."""
    import socket

    from tfzoo import errors
    from tfzoo.training import distribution

    cluster = distribution.read_cluster("multi_worker")
    host, _, port = cluster.addresses["worker"][cluster.index].partition(":")
    with socket.create_server((host, int(port))):
        try:
            distribution.make_strategy("multi_worker")
        except errors.UserError as error:
            return str(error)


def command(world, argv, stop_after=0, kill_after=0, nan_at=0, fail_after=0, die_after=0):
    """Runs tfzoo.train in this process. After some calls of the step, only worker 1 receives a SIGTERM, an exception
    or a SIGKILL, worker 0 a SIGKILL (kill_after), or a call returns NaN losses."""
    from tfzoo import train
    from tfzoo.training import step as step_lib

    if kill_after or nan_at or ((stop_after or fail_after or die_after) and world.rank == 1):
        make_step = step_lib.make_step

        def made(*args, **kwargs):
            run, calls = make_step(*args, **kwargs), itertools.count(1)

            def and_stop(*args):
                losses = run(*args)
                number = next(calls)
                if number == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                if number == fail_after:
                    raise RuntimeError("on purpose")
                if number == die_after:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number == kill_after:
                    os.kill(int((world.folder / "worker0.pid").read_text()), signal.SIGKILL)
                return losses * math.nan if number == nan_at else losses

            return and_stop

        step_lib.make_step = made
    return dict(zip(("code", "out", "err"), helpers.run(train, *argv)))


if __name__ == "__main__":
    unittest.main()
