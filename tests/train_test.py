"""The training command from a user's view: rejected input, the content of a run's folder, and reproducibility.

Every run is made in this process, through `cli.run`; tests/faults_test.py kills runs in separate processes. A run takes
seconds, mostly for tracing, so tests that only read runs share them.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import time
import types
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags

from tests import helpers, tiny_run
from tfzoo import cli, files, train
from tfzoo.data import pipeline
from tfzoo.data.corpus import load_corpus
from tfzoo.data.pairs import PairRows
from tfzoo.data.tokenized import tokenize
from tfzoo.errors import UserError
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.training import TrainConfig, checkpoint, inputs, loop, optimizers, report, runs
from tfzoo.training import step as step_lib

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
# The flags of the runs whose folders the tests only read, or copy and resume.
SHARED = dict(steps=6, checkpoint_every=2, evaluate_every=3, keep_checkpoints=9)


def run(*argv):
    """Returns (exit code, stdout, stderr) of the training command."""
    return helpers.run(train, *argv)


def content(folder):
    """Returns the content of every file, by its path."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


class TrainCase(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.shared = helpers.temporary_folder(cls)
        tiny_run.write_corpus(cls.shared / "corpus.txt")

    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)
        self.run_dir = self.folder / "run"
        for number in (signal.SIGTERM, signal.SIGINT):  # The command installs its own handlers.
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.enterContext(mock.patch.object(report, "plot"))  # Plotting takes a quarter of the time of such a run.

    def flags(self, **others):
        return [*tiny_run.flags(self.shared, **(SHARED | others))]

    def assert_done(self, *argv):
        code, out, err = run(*argv)
        self.assertEqual(code, 0, out + err)
        return out

    def assert_error(self, pattern, *argv, run_dir=None):
        """Checks for exit code 2, one line on stderr, nothing on stdout, and an unchanged --run_dir."""
        run_dir = run_dir or self.run_dir
        before = content(run_dir), run_dir.exists()
        code, out, err = run(*argv, f"--run_dir={run_dir}")
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), out + err)
        self.assertRegex(err, f"^error: {pattern}")
        self.assertEqual((content(run_dir), run_dir.exists()), before)

    def cut_back(self, run_dir, step):
        """Copies the folder of a finished run, as if the run had been killed after the checkpoint of `step`."""
        shutil.copytree(run_dir, self.run_dir, symlinks=True)
        later = [path for path in (self.run_dir / "checkpoints").iterdir() if int(path.name) > step]
        self.assertNotEmpty(later)
        for path in later:
            shutil.rmtree(path)
        if not (self.run_dir / "best").exists():
            (self.run_dir / "best").unlink()


class FlagsTest(TrainCase):
    """Errors in the flags are reported in one line, before anything is written."""

    def test_a_flag_by_itself(self):
        for pattern, argument in (
            (r"--bach_size=8: no such flag \(did you mean --batch_size\?\)\n", "--bach_size=8"),
            (r"--steps=0: must be at least 1\n", "--steps=0"),
            (r"--batch_size=1.5: must be a whole number\n", "--batch_size=1.5"),
            (r"--learning_rate=-1: must be at least 0.0\n", "--learning_rate=-1"),
            (r"--learning_rate=nan: must be a finite number\n", "--learning_rate=nan"),
            (r"--mask_rate=0.95: must be from 0.01 to 0.9\n", "--mask_rate=0.95"),
            (r"--optimizer=adamv: must be one of adamw, .*, lars \(did you mean adamw\?", "--optimizer=adamv"),
            (r"--model=bert_smal: no such model \(did you mean bert_small\?\); python -m tf", "--model=bert_smal"),
            (r"--model=gpt2: --objective=masked_lm requires an encoder, such as", "--model=gpt2"),
            (r"--model=roberta_base: has no next-sentence head; add --pairs=none\n", "--model=roberta_base"),
            (r"--overrides=layers=2: unknown config field 'layers'", "--overrides=layers=2"),
            (r"--overrides=hiden_size=2: .*\(did you mean hidden_size\?\)\n", "--overrides=hiden_size=2"),
            (r"--overrides=dropout=much: dropout must be a value of type float\n", "--overrides=dropout=much"),
            (r".*dropout \(1.0\) must be at least 0 and below 1\n", "--overrides=dropout=1"),
            (r".*hidden_size \(30\) must be a multiple of num_heads \(4\)", "--overrides=hidden_size=30,num_heads=4"),
            (r"--corpus=nowhere.txt: no such file; ", "--corpus=nowhere.txt"),
            (r"--corpus=no\*.txt: no file matches this glob; ", "--corpus=no*.txt"),
            (r"nowhere.txt: ", "--vocab_file=nowhere.txt"),
            (r"--flagfile=nowhere.cfg: no such file or directory; check the path\n", "--flagfile=nowhere.cfg"),
        ):
            with self.subTest(argument=argument):
                self.assert_error(pattern, *self.flags(), argument)

    def test_run_dir_is_required(self):
        code, out, err = run(*self.flags())
        self.assertEqual((code, out, err), (2, "", "error: --run_dir is required: add --run_dir=VALUE\n"))

    def test_flags_that_do_not_go_together(self):
        vocab_file = self.folder / "vocab.txt"
        vocab_file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "\n".join("abcdefgh") + "\n")
        sizes = "hidden_size=16,num_layers=1,num_heads=2,max_positions=32"
        for pattern, flags in (
            (r"--sequence_length=64: must not exceed the model's max_positions \(32\)", dict(sequence_length=64)),
            (r"--accumulation=3: must divide --batch_size \(4\)\n", dict(accumulation=3)),
            (
                r"ByteLevelBPE: masked .* has no token for cls, sep, mask.*; use a WordPiece tokenizer\n",
                dict(tokenizer="byte_level", vocab_size=300),
            ),
            (r"--warmup_steps=7: must not exceed --steps \(6\)\n", dict(warmup_steps=7)),
            (
                r"--model=performer_small: cannot separate the documents packed into one row; add --nopack\n",
                dict(model="performer_small", pairs="none"),
            ),
            (r"--overrides=vocab_size=150: .*\(\d+\)", dict(overrides=f"{sizes},vocab_size=150")),
            # A larger value would train embeddings of tokens that do not exist in the tokenizer.
            (r"--overrides=vocab_size=999: .*\(\d+\)", dict(overrides=f"{sizes},vocab_size=999")),
            (
                r"--overrides=vocab_size=14: .*\(13\)",
                dict(overrides=f"{sizes},vocab_size=14", vocab_file=vocab_file),
            ),
        ):
            with self.subTest(**flags):
                self.assert_error(pattern, *self.flags(**flags))

    def test_flagfiles(self):
        circle = self.folder / "circle.cfg"
        circle.write_text("--flagfile=back.cfg\n")
        (self.folder / "back.cfg").write_text("--steps=3\n--flagfile=circle.cfg\n")
        for number in range(1200):
            (self.folder / f"deep{number}.cfg").write_text(f"--flagfile=deep{number + 1}.cfg\n")
        wrong = self.folder / "wrong.cfg"
        wrong.write_text("--steps=3\n\n--bach_size=8\n")
        for pattern, path in (
            (r".*back.cfg:2: --flagfile=circle.cfg: circular: .*; remove one of these lines\n", circle),
            (r".*: flagfiles are nested more than \d+ levels deep; flatten them\n", self.folder / "deep0.cfg"),
            (r".*wrong.cfg:3: --bach_size=8: no such flag \(did you mean --batch_size\?\)\n", wrong),
        ):
            with self.subTest(path=path.name):
                self.assert_error(pattern, *self.flags(), f"--flagfile={path}")

    def test_texts(self):
        for pattern, text in (
            (r".*corpus.txt:1: invalid UTF-8", b"Bad \xff byte.\n\nGood.\n"),
            (r".*corpus.txt:1: no text in the file", b""),
            (r".*corpus.txt: a single sentence cannot be split into training and held-out text", b"One sentence.\n"),
            (r".*its held-out part contains no words", "Some words。\N{ZERO WIDTH SPACE}\n".encode()),
        ):
            corpus = self.folder / "corpus.txt"
            corpus.write_bytes(text)
            with self.subTest(text=text):
                self.assert_error(pattern, *self.flags(corpus=corpus))

    def test_run_dirs(self):
        file = self.folder / "file"
        file.write_text("mine")
        self.assert_error(r"--run_dir=.*file: exists but contains no run", *self.flags(), run_dir=file)
        self.assert_error(r"--run_dir=.*file/run: ", *self.flags(), run_dir=file / "run")
        self.assertEqual(file.read_text(), "mine")
        self.run_dir.mkdir()
        (self.run_dir / "thesis.txt").write_text("mine")
        self.assert_error(r"--run_dir=.*: exists but contains no run \(no flags.cfg\); specify a new", *self.flags())


class RunTest(TrainCase):
    """A run with two evaluations, and further uses of its folder."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.done = cls.shared / "run"
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        code, out, err = run(*tiny_run.flags(cls.shared, **SHARED), f"--run_dir={cls.done}")
        for number, handler in handlers.items():
            signal.signal(number, handler)
        assert code == 0, out + err
        cls.out, cls.expected = out, tiny_run.measured(cls.done)

    def test_what_a_run_leaves_behind(self):
        self.assertEqual(
            sorted(path.name for path in self.done.iterdir()),
            ["baselines.json", "best", "checkpoints", "config.json", "corpus.json", "events", "flags.cfg", "lock"]
            + ["loss.png", "metrics.jsonl", "report.html", "tokenizer"],
        )
        self.assertEmpty(list(self.shared.rglob("*.partial")))
        records = tiny_run.records(self.done)
        trained = [record for record in records if "loss" in record]
        evaluated = [record for record in records if "masked_lm_loss" in record]
        self.assertLen(records, len(trained) + len(evaluated))
        self.assertEqual([record["step"] for record in trained], [1, 2, 3, 4, 5, 6])
        for record in trained:
            self.assertEqual(
                list(record),
                ["step", "loss", "padding_share", "learning_rate", "tokens_per_second", "model_tflops"],
            )
            self.assertGreater(record["tokens_per_second"], 0)
        # Warmup over two updates, then down to 0.
        self.assertAllClose([r["learning_rate"] for r in trained], [0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])
        self.assertEqual([record["step"] for record in evaluated], [3, 6])
        for record in evaluated:
            self.assertAllClose(record["masked_lm_perplexity"], np.exp(record["masked_lm_loss"]))
            self.assertBetween(record["masked_lm_accuracy"], 0, 1)
            self.assertBetween(record["next_sentence_accuracy"], 0, 1)
        self.assertRegex(self.out, r"held out +model +most frequent token +bigram baseline")
        for label in ("masked-token accuracy", "perplexity", "next-sentence accuracy"):
            self.assertRegex(self.out, rf"{label}( +[\d.]+%?){{3}}\n")

        corpus = json.loads((self.done / "corpus.json").read_text())
        self.assertRegex(corpus["fingerprint"], r"^[0-9a-f]{64}$")
        self.assertEqual(corpus["report"]["files"], 1)
        model = json.loads((self.done / "config.json").read_text())["models"]["main"]
        self.assertEqual((model["model"], model["config"]["hidden_size"]), ("bert_tiny", 16))
        self.assertEqual((self.done / "loss.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        steps = [int(path.name) for path in sorted((self.done / "checkpoints").iterdir())]
        best = min(evaluated, key=lambda record: record["masked_lm_loss"])["step"]
        self.assertEqual((self.done / "best").readlink(), pathlib.Path("checkpoints", f"{best:08d}"))
        self.assertContainsSubset([2, 4, 6, best], steps)

    def test_tensorboard_reads_the_events(self):
        found = {}
        for path in (self.done / "events").iterdir():
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
        for record in tiny_run.records(self.done):
            for name, value in record.items():
                if name != "step":
                    self.assertEqual(found[record["step"], name], np.float32(value), name)

    def test_the_model_that_is_loaded_is_the_one_that_was_measured(self):
        flags = dict(argument.lstrip("-").split("=", 1) for argument in tiny_run.flags(self.shared))
        for step in (3, 6):
            folder = self.done / "checkpoints" / f"{step:08d}"
            if not folder.exists():
                continue  # Not the best one, and 3 is not a multiple of 2.
            model, tokenizer = runs.load(self.done, folder)
            corpus = load_corpus(flags["corpus"], cache_dir=None)
            objective = MaskedLM(tokenizer, int(flags["sequence_length"]))
            rows = PairRows(tokenize(corpus.held_out, tokenizer), objective.row_tokens)
            parts = int(flags["accumulation"])  # Like the training step, it divides a batch into this many parts.
            count = int(flags["evaluate_batches"]) * parts
            batches = pipeline.evaluation_batches(rows, objective, batch_size=4 // parts, seed=0, num_batches=count)
            figures = step_lib.make_evaluation(tf.distribute.get_strategy(), {"main": model}, objective.evaluators())(
                batches
            )
            for name, value in figures.items():
                self.assertEqual(repr(value), self.expected[step, name], f"{name} of step {step}")

    def test_flags_cfg_repeats_the_run(self):
        text = (self.done / "flags.cfg").read_text()
        self.assertNotIn("run_dir", text)
        self.assert_done(f"--flagfile={self.done / 'flags.cfg'}", f"--run_dir={self.run_dir}")
        self.assertEqual(tiny_run.measured(self.run_dir), self.expected)
        self.assertEqual((self.run_dir / "flags.cfg").read_text(), text)

    def test_resumed_with_other_cadences_it_logs_the_same(self):
        self.cut_back(self.done, step=2)
        for name in ("flags.cfg.99.partial", "loss.png.99.partial"):  # As a killed process may leave them.
            (self.run_dir / name).write_text("half")
        others = dict(steps_per_call=3, checkpoint_every=4, evaluate_every=6, evaluate_batches=1, keep_checkpoints=1)
        out = self.assert_done(*self.flags(**others), f"--run_dir={self.run_dir}")
        self.assertIn("resuming at step 2 of 6", out)
        self.assertEqual(
            {key: value for key, value in tiny_run.measured(self.run_dir).items() if key[1] == "loss"},
            {key: value for key, value in self.expected.items() if key[1] == "loss"},
        )
        self.assertEmpty(list(self.run_dir.rglob("*.partial")))

    def test_a_finished_run_has_nothing_to_do(self):
        shutil.copytree(self.done, self.run_dir, symlinks=True)
        self.assert_done(*self.flags(), f"--run_dir={self.run_dir}")
        self.assertEqual(tiny_run.measured(self.run_dir), self.expected)

    def test_fewer_steps_than_it_has_are_refused(self):
        shutil.copytree(self.done, self.run_dir, symlinks=True)
        self.assert_error(
            r"--steps=5: the run in --run_dir=.*/run is already at step 6; request at least that many steps, "
            "or specify a new",
            *self.flags(steps=5, schedule="linear"),
        )

    @pytest.mark.faults
    def test_a_signal_does_not_wait_for_an_evaluation(self):
        make, stopped = step_lib.make_evaluation, self.folder / "stopped"

        def signalled(batches):
            for number, batch in enumerate(batches):
                if number:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        def made(*args):
            evaluate = make(*args)
            return lambda batches, **kwargs: evaluate(signalled(batches), **kwargs)

        with mock.patch.object(step_lib, "make_evaluation", made):
            code, out, err = run(*self.flags(), f"--run_dir={stopped}")
        self.assertEqual(code, cli.STOPPED, err)
        self.assertIn("stopped by SIGTERM at step 3; everything is saved", out)
        self.assertNotIn("held out    ", out)
        before = {key: value for key, value in self.expected.items() if key[0] < 3 or key == (3, "loss")}
        self.assertEqual({k: v for k, v in tiny_run.measured(stopped).items() if k in before}, before)
        self.assertNotIn((3, "masked_lm_loss"), tiny_run.measured(stopped))
        # A resumed run starts with the evaluation, even if it was logged before a kill without saving.
        self.assert_done(*self.flags(), f"--run_dir={stopped}")
        self.assertEqual(tiny_run.measured(stopped), self.expected)
        self.cut_back(stopped, step=3)
        self.assert_done(*self.flags(), f"--run_dir={self.run_dir}")
        for run_dir in (stopped, self.run_dir):
            self.assertEqual(tiny_run.measured(run_dir), self.expected)
            self.assertLen(tiny_run.records(run_dir), 8)
            self.assertEqual((run_dir / "best").readlink(), (self.done / "best").readlink())

    def test_a_call_takes_few_seconds(self):
        """As many updates as fit into CALL_SECONDS, with a clock that advances two seconds per update."""
        make, counts, clock = step_lib.make_step, [], [0.0]

        def made(*args, **kwargs):
            steps = make(*args, **kwargs)

            def timed(iterator, count):
                counts.append(int(count))
                clock[0] += 2.0 * int(count)
                return steps(iterator, count)

            return timed

        with (
            mock.patch.object(step_lib, "make_step", made),
            mock.patch.object(loop, "time", types.SimpleNamespace(monotonic=lambda: clock[0])),
        ):
            self.assert_done(
                *self.flags(log_every=6, evaluate_every=6, checkpoint_every=6), f"--run_dir={self.run_dir}"
            )
        self.assertEqual(counts, [1, 2, 2, 1])

    def test_two_at_once_are_one_too_many(self):
        shutil.copytree(self.done, self.run_dir, symlinks=True)
        lock = files.Lock(self.run_dir)
        self.assert_error(
            rf"{self.run_dir}: another process \({os.getpid()}\) is writing to this folder; wait", *self.flags()
        )
        lock.release()
        self.assert_done(*self.flags(), f"--run_dir={self.run_dir}")

    def test_a_checkpoint_that_does_not_fit(self):
        self.cut_back(self.done, step=2)
        size = (self.done / "checkpoints" / "00000006" / "variables.safetensors").stat().st_size
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, hard))
        try:
            code, _, err = run(*self.flags(), f"--run_dir={self.run_dir}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        lines = [line for line in err.splitlines() if line.startswith("error:") or "Traceback" in line]
        self.assertEqual((code, len(lines)), (2, 1), err)
        self.assertRegex(
            lines[0], "checkpoints/0000000[34]: cannot be written .file too large.; raise the file-size limit"
        )
        self.assertEqual([path.name for path in (self.run_dir / "checkpoints").iterdir()], ["00000002"])
        self.assert_done(*self.flags(), f"--run_dir={self.run_dir}")
        self.assertEqual(tiny_run.measured(self.run_dir), self.expected)

    def test_what_a_resume_refuses(self):
        shutil.copytree(self.done, self.run_dir, symlinks=True)
        begun = "--run_dir=.*/run: was started with different flags: "
        other = tiny_run.write_corpus(self.folder / "other.txt", seed=1)
        sizes = "hidden_size=32,num_layers=1,num_heads=2,intermediate_size=32,max_positions=32"
        for pattern, flags in (
            (
                begun + r"--batch_size \(4 -> 8\), --seed \(0 -> 1\); keep the original values, or specify a new",
                dict(batch_size=8, seed=1),
            ),
            (begun + r"--model \(bert_tiny -> bert_mini\); ", dict(model="bert_mini")),
            (begun + r"--overrides \(.*hidden_size=16.* -> .*hidden_size=32.*\); ", dict(overrides=sizes)),
            (begun + r"--corpus \(.*corpus.txt -> .*other.txt\); ", dict(corpus=other)),
            (begun + r"--on_nonfinite \(stop -> skip\); ", dict(on_nonfinite="skip")),
            (begun + r"--precision \(float32 -> bfloat16\); ", dict(precision="bfloat16")),
        ):
            with self.subTest(**flags):
                self.assert_error(pattern, *self.flags(**flags))
        self.assert_error("--run_dir=.*: already contains a run; specify a new folder", *self.flags(), "--noresume")

    def test_a_resume_refuses_another_text_of_the_same_name(self):
        corpus = tiny_run.write_corpus(self.folder / "corpus.txt")
        self.cut_back(self.done, step=2)
        flags = self.run_dir / "flags.cfg"
        flags.write_text(flags.read_text().replace(str(self.shared / "corpus.txt"), str(corpus)))
        with open(corpus, "a") as file:
            file.write("\nOne more.\n")
        self.assert_error(
            r"--corpus=.*corpus.txt: the text differs from the one that this run started with "
            r"\(fingerprint .*\); restore",
            *self.flags(corpus=corpus),
        )

    def test_a_run_whose_folder_lost_a_part(self):
        for names, said in (
            (["corpus.json"], "corpus.json"),
            (["tokenizer/tokenizer.json", "tokenizer/vocab.txt"], "tokenizer: contains no tokenizer"),
        ):
            with self.subTest(names):
                shutil.copytree(self.done, self.run_dir, symlinks=True)
                for name in names:
                    (self.run_dir / name).unlink()
                self.assert_error(rf".*{said}", *self.flags())
                shutil.rmtree(self.run_dir)

    def test_sigterm_before_the_first_step_ends_at_once(self):
        def asked(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            self.fail("The signal was to end it.")

        with mock.patch.object(inputs, "read_corpus", asked), self.assertRaises(SystemExit) as stopped:
            run(*self.flags(), f"--run_dir={self.run_dir}")
        self.assertEqual(stopped.exception.code, cli.STOPPED)
        self.assertFalse(self.run_dir.exists())


class InitTest(TrainCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        flags = tiny_run.flags(cls.shared, **(SHARED | dict(steps=2, evaluate_every=2)))
        with mock.patch.object(report, "plot"):
            code, out, err = run(*flags, f"--run_dir={cls.shared / 'first'}")
        for number, handler in handlers.items():
            signal.signal(number, handler)
        assert code == 0, out + err

    def test_a_model_begins_with_the_weights_and_the_tokenizer_of_a_run(self):
        first = shutil.copytree(self.shared / "first", self.folder / "first", symlinks=True)
        other = tiny_run.write_corpus(self.folder / "other.txt", documents=60, seed=1)
        flags = self.flags(steps=2, evaluate_every=2, learning_rate=0.0, corpus=other, init_from=first)
        flags = [flag for flag in flags if not flag.startswith(("--model=", "--overrides="))]  # Those of the source.
        out = self.assert_done(*flags, f"--run_dir={self.run_dir}")
        self.assertRegex(
            out, rf"initialized from {first}:\nloaded +\d+ variables\nresized +none\nnew +none\nunused +none\n"
        )
        ends = [
            checkpoint.Checkpoints(each / "checkpoints", read_only=True).read()[2] for each in (first, self.run_dir)
        ]
        for name, array in ends[0].items():
            if name.startswith("model/") and "seed" not in name:
                np.testing.assert_array_equal(ends[1][name], array, name)  # The learning rate is 0.
        self.assertEqual(runs.tokenizer_of(self.run_dir).fingerprint(), runs.tokenizer_of(first).fingerprint())
        # A resumed run is not initialized again, and does not need the source any more.
        shutil.move(first, self.folder / "gone")
        out = self.assert_done(*flags, "--steps=4", f"--run_dir={self.run_dir}")
        self.assertIn("resuming at step 2 of 4", out)
        # Unless it has no checkpoint.
        shutil.rmtree(self.run_dir / "checkpoints")
        self.assert_error(f"{first}/config.json: no such file or directory; check the path", *flags)
        # The head of another objective is unused.
        flags = self.flags(steps=2, evaluate_every=2, init_from=self.folder / "gone", pairs="none")
        out = self.assert_done(*flags, f"--run_dir={self.folder / 'third'}")
        self.assertRegex(out, r"new +none\nunused +.*next_sentence/dense/kernel")

    @pytest.mark.faults
    def test_continued_on_other_text_with_replay_of_the_old_text(self):
        first, old = self.shared / "first", self.shared / "corpus.txt"
        new = tiny_run.write_corpus(self.folder / "new.txt", documents=60, seed=1)
        flags = self.flags(
            corpus=f"{new},{old}", corpus_weights="3,1", init_from=first, steps=4, evaluate_every=2, evaluate_batches=0
        )
        out = self.assert_done(*flags, f"--run_dir={self.folder / 'whole'}")
        self.assertRegex(out, r"\n  new.txt: \d+ rows, 75.0% of the rows of a batch, [\d.]+ epochs\n  corpus.txt: ")
        self.assertRegex(
            out, r"step +0, held out[^\n]*\n  masked-token accuracy[^\n]*\n    new.txt [^\n]*\n    corpus.txt "
        )
        records = tiny_run.records(self.folder / "whole")
        evaluated = [record for record in records if "masked_lm_loss" in record]
        self.assertEqual([record["step"] for record in evaluated], [0, 2, 4])
        for record in evaluated:
            for name in ("masked_lm_loss", "masked_lm_accuracy"):
                each = [record[f"{name}/{source}"] for source in ("new.txt", "corpus.txt")]
                self.assertBetween(record[name], min(each), max(each))
        # Before the first update, the figures of the old text are those of the old run's model.
        model, tokenizer = runs.load(first)
        objective = MaskedLM(tokenizer, 16)
        rows = PairRows(tokenize(load_corpus(str(old), cache_dir=None).held_out, tokenizer), objective.row_tokens)
        batches = pipeline.evaluation_batches(rows, objective, batch_size=4, seed=0, num_batches=99)
        evaluate = step_lib.make_evaluation(tf.distribute.get_strategy(), {"main": model}, objective.evaluators())
        for name, value in evaluate(batches).items():
            self.assertAllClose(evaluated[0][f"{name}/corpus.txt"], value, 1e-5, msg=name)
        trained = [record for record in records if "loss" in record]
        corpus = json.loads((self.folder / "whole" / "corpus.json").read_text())["report"]
        self.assertEqual(list(corpus["sources"]), ["new.txt", "corpus.txt"])
        ratio = trained[-1]["epochs/new.txt"] / trained[0]["epochs/new.txt"]
        self.assertAllClose(ratio, 4)
        for step in (0, 2):
            self.cut_back(self.folder / "whole", step)
            self.assert_done(*flags, f"--run_dir={self.run_dir}")
            self.assertEqual(tiny_run.measured(self.run_dir), tiny_run.measured(self.folder / "whole"))
            shutil.rmtree(self.run_dir)
        self.assert_error(
            "--corpus_weights=3,1,2: has 3 number.s., but --corpus has 2", *flags, "--corpus_weights=3,1,2"
        )

    @pytest.mark.faults
    def test_the_first_loss_is_that_of_the_source(self):
        """With the same vocabulary, a renumbered and larger one, more positions and longer rows."""
        sizes = "hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,dropout=0,attention_dropout=0"
        plain = dict(pairs="none", accumulation=1, batch_size=32, overrides=f"{sizes},max_positions=32")
        taught = self.folder / "taught"
        out = self.assert_done(*self.flags(**plain | dict(steps=60, evaluate_every=60)), f"--run_dir={taught}")
        self.assertNotIn("initialized", out)

        def first_loss(name, **flags):
            run_dir = self.folder / name
            out = self.assert_done(*self.flags(**plain | dict(steps=1, warmup_steps=0) | flags), f"--run_dir={run_dir}")
            losses = [record["loss"] for record in tiny_run.records(run_dir) if "loss" in record]
            return losses[0], re.findall("resized .*", out)

        fresh, _ = first_loss("fresh")
        same, resized = first_loss("same", init_from=taught)
        self.assertEqual(resized, ["resized     none"])
        self.assertLess(same, fresh - 0.5)

        more = f"{sizes},max_positions=64"
        found, resized = first_loss("more", init_from=taught, overrides=more)
        self.assertEqual(
            resized, ["resized     encoder/embeddings/positions: 32 positions copied, 32 more repeat them"]
        )
        self.assertAllClose(found, same, 1e-6, 1e-6)
        found, _ = first_loss("long", init_from=taught, overrides=more, sequence_length=64, batch_size=8)
        self.assertLess(found, (fresh + same) / 2)  # Of other rows and masks.

        vocab = (taught / "tokenizer" / "vocab.txt").read_text().splitlines()
        tokens = vocab[5:]
        np.random.default_rng(0).shuffle(tokens)
        vocab_file = self.folder / "vocab.txt"
        vocab_file.write_text("\n".join([*vocab[:5], "zzz", *tokens, "abcdefgh", "##hgfedcba"]) + "\n")
        found, resized = first_loss("words", init_from=taught, vocab_file=vocab_file)
        how = f"{len(vocab)} tokens copied, 2 the mean of their old pieces, 1 the mean of all tokens"
        self.assertEqual(
            resized, [f"resized     {path}: {how}" for path in ("encoder/embeddings/tokens/embeddings", "lm/bias")]
        )
        # Where masking draws a random word, it draws another one.
        self.assertAllClose(found, same, 0, 0.1 * (fresh - same))
        record = json.loads((self.folder / "words" / "init_from.json").read_text())
        self.assertEqual(set(record["resized"]), {"encoder/embeddings/tokens/embeddings", "lm/bias"})
        # A tokenizer that is trained on the text.
        _, resized = first_loss("trained", init_from=taught, new_tokenizer="true", vocab_size=150)
        self.assertRegex(resized[0], r"\d+ tokens copied, \d+ the mean of their old pieces$")

    def test_what_does_not_fit(self):
        first = self.shared / "first"
        self.assert_error(r"--new_tokenizer: only applies with --init_from; omit it", *self.flags(new_tokenizer="true"))
        self.assert_error(
            r"--new_tokenizer: contradicts --vocab_file=v.txt; omit one of the two",
            *self.flags(new_tokenizer="true", init_from=first, vocab_file="v.txt"),
        )
        wide = "hidden_size=16,num_layers=1,num_heads=2,intermediate_size=64,max_positions=32"
        self.assert_error(
            rf"{first}: \S+ has the shape \[.*32.*\], but \[.*64.*\] in this model; use the sizes of the source model",
            *self.flags(init_from=first, overrides=wide),
        )
        self.assert_error(r".*nowhere", *self.flags(init_from=self.folder / "nowhere"))


class PythonTest(TrainCase):
    def test_the_example_of_the_docs(self):
        text = (CONFIGS.parent / "docs" / "training.md").read_text()
        code = text.split("```python\n")[1].split("```")[0]
        shutil.copyfile(self.shared / "corpus.txt", self.folder / "README.md.txt")
        self.enterContext(contextlib.chdir(self.folder))
        handler = signal.getsignal(signal.SIGINT)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            names: dict = {}
            exec(code.replace("steps=6", "cache_dir='cache', steps=6"), names)
        confidence = re.findall(r"^step (\d): ([\d.]+)$", out.getvalue(), re.MULTILINE)
        self.assertEqual([step for step, _ in confidence], ["3", "6"])
        records = [record for record in tiny_run.records(self.folder / "runs" / "api") if "confidence" in record]
        self.assertEqual([f"{record['confidence']:.3f}" for record in records], [value for _, value in confidence])
        self.assertBetween(records[0]["confidence"], 1 / 500, 1)
        self.assertIsInstance(names["model"], tf.keras.Model)
        self.assertEqual(names["trainer"].step, 6)
        self.assertEqual(signal.getsignal(signal.SIGINT), handler)  # The original handlers are restored.


class NotANumberTest(TrainCase):
    def test_it_stops_and_names_the_step(self):
        flags = dict(steps=8, accumulation=1, log_every=2, checkpoint_every=4, evaluate_every=8)
        with self.nan_at(6):
            code, _, err = run(*self.flags(**flags), f"--run_dir={self.run_dir}")
        self.assertEqual(code, 4)
        lines = [line for line in err.split("\n") if line.startswith("error:")]
        self.assertLen(lines, 1)
        self.assertRegex(
            lines[0],
            r"the loss or gradient of step 6 is not finite; nothing was saved after step 4; .*--learning_rate",
        )
        self.assertNotIn("Traceback", err)
        self.assertEqual([record["step"] for record in tiny_run.records(self.run_dir)], [2, 4])
        self.assertEqual(checkpoint.Checkpoints(self.run_dir / "checkpoints", read_only=True).steps(), [4])

    @contextlib.contextmanager
    def nan_at(self, *updates):
        """Makes the loss NaN in these updates of a process; yields the token ids of all updates so far."""
        seen: list[bytes] = []
        loss = MaskedLM.loss

        def note(token_ids):
            seen.append(token_ids.tobytes())
            return np.bool_(len(seen) in updates)

        def noted(objective, models, batch, training=True):
            value, weight = loss(objective, models, batch, training)
            return tf.where(tf.numpy_function(note, [batch["token_ids"]], tf.bool), np.nan, value), weight

        with mock.patch.object(MaskedLM, "loss", noted):
            yield seen

    def disturbed(self, *updates, stop_at=None, at_first="rollback", **flags):
        """Returns the log and the exit code of a run in which the batches with these numbers (from 1) cause NaN.

        stop_at: the run is stopped once by a SIGTERM during this call of the step, and resumed. at_first:
        --on_nonfinite until then.
        """
        flags = self.flags(steps=14, accumulation=1, evaluate_every=14, on_nonfinite="rollback", **flags)
        run_dir = self.folder / f"stopped_{stop_at}"
        make_batches, make = pipeline.training_batches, step_lib.make_step

        def batches(*args, first_step, **kwargs):
            def marked(number, batch):
                bad = tf.reduce_any(number == tf.constant(updates, tf.int64))
                return batch | {"masked_weights": tf.where(bad, np.nan, batch["masked_weights"])}

            data = make_batches(*args, first_step=first_step, **kwargs)
            return data.enumerate(first_step + 1).map(marked)

        def made(*args, **kwargs):
            steps, calls = make(*args, **kwargs), []

            def stopped(iterator, count):
                calls.append(count)
                if len(calls) == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return steps(iterator, count)

            return stopped

        with mock.patch.object(pipeline, "training_batches", batches):
            if stop_at:
                with mock.patch.object(step_lib, "make_step", made):
                    code, out, err = run(*flags, f"--on_nonfinite={at_first}", f"--run_dir={run_dir}")
                self.assertEqual(code, cli.STOPPED, out + err)
            code, _, _ = run(*flags, f"--run_dir={run_dir}")
        return code, tiny_run.measured(run_dir)

    @pytest.mark.faults
    def test_a_stop_changes_no_rollback(self):
        """Interim checkpoints change neither where the run rolls back to nor how often it may."""
        code, expected = self.disturbed(8, checkpoint_every=5)
        self.assertEqual((code, expected[14, "nonfinite"]), (0, "1"))
        for flags in (dict(), dict(keep_checkpoints=1)):  # The number of kept checkpoints does not affect the log.
            self.assertEqual(self.disturbed(8, stop_at=7, checkpoint_every=5, **flags), (code, expected))
            shutil.rmtree(self.folder / "stopped_7")
        shutil.rmtree(self.folder / "stopped_None")
        # Two failures without progress in between: the second one is at step 8 again, or earlier.
        flags = dict(checkpoint_every=5, max_nonfinite=1)
        code, expected = self.disturbed(8, 11, **flags)
        self.assertEqual(code, 4)
        self.assertEqual(self.disturbed(8, 11, stop_at=9, **flags), (code, expected))

    @pytest.mark.faults
    def test_where_nothing_but_a_stop_was_saved(self):
        """The checkpoint that the run rolled back to is kept until there is another one, and can be used again."""
        code, logged = self.disturbed(5, 7, stop_at=3, at_first="stop", checkpoint_every=10)
        self.assertEqual((code, logged[14, "nonfinite"]), (0, "2"))
        self.assertEqual([step for step, name in logged if name == "loss"], list(range(1, 15)))
        self.assertEqual(
            sorted(path.name for path in (self.folder / "stopped_3" / "checkpoints").iterdir())[-1:], ["00000014"]
        )

    @pytest.mark.faults
    def test_what_counts_as_gained(self):
        """After a failure at step 8, a later failure at step 7 does not make step 7 count as progress."""
        flags = dict(checkpoint_every=5, max_nonfinite=2)
        # From step 5: 8 fails with batch 8, 7 with batch 10, 8 with batch 13.
        self.assertEqual(self.disturbed(8, 10, 13, **flags)[0], 4)

    def weights(self, step):
        arrays = checkpoint.Checkpoints(self.run_dir / "checkpoints", read_only=True).read(
            self.run_dir / "checkpoints" / f"{step:08d}"
        )[2]
        return [array for name, array in arrays.items() if name.startswith("model/") and "seed" not in name]

    def test_skip_leaves_the_weights_as_they_are(self):
        flags = self.flags(
            steps=7, accumulation=1, checkpoint_every=1, keep_checkpoints=9, evaluate_every=7, on_nonfinite="skip"
        )
        with self.nan_at(4, 5):
            self.assert_done(*flags, f"--run_dir={self.run_dir}")
        trained = [record for record in tiny_run.records(self.run_dir) if "learning_rate" in record]
        self.assertEqual(["loss" in record for record in trained], [True, True, True, False, False, True, True])
        self.assertEqual([record.get("nonfinite", 0) for record in trained], [0, 0, 0, 1, 2, 2, 2])
        # The rate of the last update; skipped steps do not count: up in two updates, down to 0 after the seventh.
        rates = [0.005, 0.01, 0.01, 0.01, 0.01, 0.008, 0.006]
        self.assertAllClose([record["learning_rate"] for record in trained], rates)
        for step, same in ((2, False), (3, True), (4, True), (5, False)):
            pairs = zip(self.weights(step), self.weights(step + 1), strict=True)
            self.assertEqual(all(np.array_equal(one, other) for one, other in pairs), same, f"after step {step}")

    @pytest.mark.faults
    def test_too_many_in_a_row(self):
        flags = dict(steps=7, accumulation=1, on_nonfinite="skip", max_nonfinite=1)
        many = dict(
            log_every=7, checkpoint_every=7, evaluate_every=7
        )  # After the first call, several updates per call.
        for number, others in enumerate(({}, many)):
            run_dir = self.folder / str(number)
            with self.nan_at(4, 5), mock.patch.object(loop, "CALL_SECONDS", 1e9):
                code, _, err = run(*self.flags(**(flags | others)), f"--run_dir={run_dir}")
            self.assertEqual(code, 4, err)
            self.assertIn("the loss or gradient of step 5 is not finite after 1 earlier failures", err)

    @pytest.mark.faults
    def test_float16_keeps_its_scale(self):
        """With skipped updates, too; an update with a too high scale does not count as non-finite."""
        flags = self.flags(
            steps=8, accumulation=1, evaluate_every=8, precision="float16", on_nonfinite="skip", max_nonfinite=1
        )
        scales = []
        make = optimizers.make_optimizer

        def high(*args, **kwargs):
            optimizer = make(*args, **kwargs)
            optimizer.dynamic_scale.assign(2.0**40)
            scales.append(optimizer.dynamic_scale)
            return optimizer

        with mock.patch.object(optimizers, "make_optimizer", high), self.nan_at(4):
            self.assert_done(*flags, f"--run_dir={self.run_dir}")
        trained = [record for record in tiny_run.records(self.run_dir) if "learning_rate" in record]
        self.assertEqual(["loss" in record for record in trained], [True, True, True, False, True, True, True, True])
        self.assertEqual([record.get("nonfinite", 0) for record in trained], [0, 0, 0, 1, 1, 1, 1, 1])
        self.assertEqual(
            float(scales[0]), 2.0**32
        )  # Halved by each of the eight updates, because of an overflow or the NaN.
        self.assertEqual([record["learning_rate"] for record in trained], [trained[0]["learning_rate"]] * 8)

    @pytest.mark.faults
    def test_rollback_goes_on_past_the_batches_that_led_there(self):
        flags = dict(accumulation=1, checkpoint_every=4, evaluate_every=100)
        with self.nan_at() as expected:
            self.assert_done(*self.flags(steps=10, **flags), f"--run_dir={self.folder / 'ten'}")
        self.assertLen(set(expected), 10)
        with self.nan_at(6) as seen:
            self.assert_done(*self.flags(steps=8, on_nonfinite="rollback", **flags), f"--run_dir={self.run_dir}")
        # Six updates, back to the fourth, and four more with the following batches.
        self.assertEqual(seen, expected)
        records = tiny_run.records(self.run_dir)
        self.assertEqual(
            [(r["step"], r.get("nonfinite")) for r in records if "loss" in r],
            [*((step, None) for step in range(1, 5)), *((step, 1) for step in range(5, 9))],
        )
        _, state, _ = checkpoint.Checkpoints(self.run_dir / "checkpoints", read_only=True).read()
        self.assertEqual(state["passed_over"], 2)

    @pytest.mark.faults
    def test_an_absurd_learning_rate(self):
        flags = dict(steps=8, learning_rate=1e38, clip_norm=0, warmup_steps=0, checkpoint_every=8, evaluate_every=8)
        code, _, err = run(*self.flags(**flags), f"--run_dir={self.run_dir}")
        self.assertEqual(code, 4)
        found = re.search(r"the loss or gradient of step (\d) is not finite", err)
        assert found, err
        step = int(found[1])
        self.assertEqual([record["step"] for record in tiny_run.records(self.run_dir)], list(range(1, step)))


class MachineTest(TrainCase):
    """Errors that the run does not cause."""

    def test_a_row_that_cannot_be_read(self):
        row = PairRows.row

        def damaged(rows, index, numbers):
            if index % 50 == 7:
                raise UserError(f"rows.array_record: record {index} cannot be read; pack the text again")
            return row(rows, index, numbers)

        with mock.patch.object(PairRows, "row", damaged):
            code, _, err = run(*self.flags(steps=30), f"--run_dir={self.run_dir}")
            lines = [line for line in err.splitlines() if line.startswith("error:")]
            self.assertEqual((code, len(lines)), (2, 1), err)
            self.assertRegex(lines[0], r"rows.array_record: record \d+ cannot be read; pack the text again$")
            self.assertNotIn("Traceback", err)
            with self.assertLogs("absl", "WARNING") as logs:
                self.assert_done(*self.flags(steps=30, max_bad_rows=9), f"--run_dir={self.folder / 'other'}")
        self.assertRegex(logs.output[0], r"record \d+ cannot be read; pack the text again; the row is skipped")

    @pytest.mark.faults
    def test_memory_says_what_to_lower(self):
        def large(objective, models, batch, training=True):
            value, weight = MaskedLM.loss.original(objective, models, batch, training)
            size = tf.cast(weight, tf.int64) * 0 + (1 << 44)
            return value + tf.reduce_sum(tf.random.uniform([size])), weight

        large.original = MaskedLM.loss
        with mock.patch.object(MaskedLM, "loss", large):
            code, _, err = run(*self.flags(batch_size=8, accumulation=2), f"--run_dir={self.run_dir}")
        self.assertEqual(code, 2, err)
        self.assertRegex(
            err,
            r"error: out of memory for a tensor with shape\[\d+\] while processing 4 rows of 16 tokens at a time: ",
        )
        self.assertRegex(
            err, "add --accumulation=4, which computes the same with 2 rows; or start a new run in another --run_dir"
        )
        # It can be added to an existing run; an evaluation does not need more memory at a time.
        rows, metrics = set(), MaskedLM.metrics

        def noted(objective, models, batch):
            rows.add(batch["token_ids"].shape[0])
            return metrics(objective, models, batch)

        with mock.patch.object(MaskedLM, "metrics", noted), self.assertLogs("absl", "WARNING") as logs:
            self.assert_done(*self.flags(batch_size=8, accumulation=4), f"--run_dir={self.run_dir}")
        self.assertEqual(rows, {2})
        self.assertIn(
            "--accumulation changes from 2 to 4: the updates are equivalent, but dropout draws other masks",
            logs.output[0],
        )

    @pytest.mark.faults
    def test_a_clock_that_goes_back_a_day(self):
        done = self.folder / "done"
        self.assert_done(*self.flags(), f"--run_dir={done}")
        self.cut_back(done, step=4)
        now = time.time
        with mock.patch.object(time, "time", lambda: now() - 86400):
            self.assert_done(*self.flags(), f"--run_dir={self.run_dir}")
        self.assertEqual(tiny_run.measured(self.run_dir), tiny_run.measured(done))
        steps = [record["step"] for record in tiny_run.records(self.run_dir)]
        self.assertEqual(steps, sorted(steps))
        self.assertGreater(min(r["tokens_per_second"] for r in tiny_run.records(self.run_dir) if "loss" in r), 0)


class PrecisionsAndOptimizersTest(TrainCase):
    """For each of them, a run that is resumed from step 4 ends with bitwise equal results."""

    def check(self, **flags):
        done = self.folder / "done"
        flags = dict(evaluate_every=100, log_every=3) | flags  # At step 4, the mean over steps 4 to 6 has started.
        self.assert_done(*self.flags(**flags), f"--run_dir={done}")
        expected = tiny_run.measured(done)
        self.assertLen({value for (_, name), value in expected.items() if name == "loss"}, 2)
        self.cut_back(done, step=4)
        self.assert_done(*self.flags(**flags), f"--run_dir={self.run_dir}")
        self.assertEqual(tiny_run.measured(self.run_dir), expected)
        ends = [checkpoint.Checkpoints(each / "checkpoints", read_only=True) for each in (done, self.run_dir)]
        first, second = (end.read()[2] for end in ends)
        self.assertEqual(first.keys(), second.keys())
        for name in first:
            self.assertEqual(first[name].tobytes(), second[name].tobytes(), name)
        return first

    @pytest.mark.faults
    def test_bfloat16_with_lamb_on_one_device(self):
        self.check(precision="bfloat16", optimizer="lamb", strategy="one_device")

    @pytest.mark.faults
    def test_float16_with_adafactor(self):
        variables = self.check(precision="float16", optimizer="adafactor")
        # Infinite gradients have changed the loss scale, so that resuming with its initial value would be detected.
        self.assertLess(variables["optimizer/dynamic_scale"], 2.0**15)
        self.assertIn("optimizer/step_counter", variables)


class ConfigsTest(TrainCase):
    def parsed(self, *names):
        flags = absl_flags.FlagValues()
        train.define_flags(flags)
        cli.parse(flags, [*(f"--flagfile={CONFIGS / name}" for name in names), "--run_dir=unused"])
        return flags

    def test_every_recipe_is_read(self):
        names = sorted(path.name for path in CONFIGS.glob("*.cfg"))
        self.assertContainsSubset(["base.cfg", "bert.cfg", "debug.cfg", "demo.cfg", "small.cfg"], names)
        for name in names:
            with self.subTest(name=name):
                appended = name in ("debug.cfg", "demo.cfg")
                flags = self.parsed("bert.cfg", name) if appended else self.parsed(name)
                config = TrainConfig.from_flags(flags)
                # All of them include base.cfg.
                self.assertIn("gettext:" if name == "multilingual.cfg" else "docstrings", config.corpus)
                self.assertGreaterEqual(config.steps, config.warmup_steps)
        self.assertLess(self.parsed("bert.cfg", "demo.cfg").steps, self.parsed("bert.cfg").steps)

    def test_a_recipe_runs(self):
        self.check_recipes(["bert.cfg"])

    @pytest.mark.faults
    def test_every_recipe_runs(self):
        # A recipe that includes another one with the same objective and family overrides only sizes and rates.
        recipes = [
            path.name
            for path in sorted(CONFIGS.glob("*.cfg"))
            if re.search("^--(model|objective|pairs)=", path.read_text(), re.MULTILINE)
        ]
        self.assertContainsSubset(["bert.cfg", "bert_fast.cfg", "gpt.cfg", "t5.cfg", "transformer.cfg"], recipes)
        self.check_recipes(recipes)

    def check_recipes(self, recipes):
        documents = (self.shared / "corpus.txt").read_text().strip().split("\n\n")
        pairs = self.folder / "pairs.tsv"
        pairs.write_text("".join(f"{text}\t{text}\n" for text in documents))
        for recipe in recipes:
            with self.subTest(recipe=recipe):
                run_dir = self.folder / recipe
                corpus = pairs if recipe in ("multilingual.cfg", "transformer.cfg") else self.shared / "corpus.txt"
                self.assert_done(
                    f"--flagfile={CONFIGS / recipe}",
                    f"--flagfile={CONFIGS / 'debug.cfg'}",
                    f"--corpus={corpus}",
                    f"--cache_dir={self.shared / 'cache'}",
                    f"--run_dir={run_dir}",
                    "--steps=2",
                )
                self.assertEqual([record["step"] for record in tiny_run.records(run_dir)], [1, 2, 2])


if __name__ == "__main__":
    tf.test.main()
