"""The corpus command: its vocabulary equals that of training, and packed rows train like the text itself."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tests import helpers, tiny_run
from tfzoo import cli, corpus, files, text, train
from tfzoo.data import pipeline
from tfzoo.data.corpus import load_corpus
from tfzoo.data.packed import PackedFolder
from tfzoo.data.tokenized import tokenize, train_tokenizer
from tfzoo.objectives.causal import Causal
from tfzoo.objectives.fill_in_the_middle import MARKERS, FillInTheMiddle
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.objectives.span_corruption import SpanCorruption
from tfzoo.training import TrainConfig, inputs, report


def prepare(*argv):
    return helpers.captured(lambda arguments: cli.run_subcommand(corpus.COMMANDS, corpus.__doc__, arguments), *argv)


def training(*argv):
    return helpers.run(train, *argv)


class CorpusTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.shared = helpers.temporary_folder(cls)
        cls.text = tiny_run.write_corpus(cls.shared / "corpus.txt")
        cls.common = [f"--corpus={cls.text}", f"--cache_dir={cls.shared / 'cache'}"]
        cls.packed = cls.shared / "packed"
        cls.assert_done(cls, prepare("pack", *cls.common, *cls.packing("causal"), f"--output_dir={cls.packed}"))

    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)
        for number in (signal.SIGTERM, signal.SIGINT):  # Training reinstalls these signal handlers.
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.enterContext(mock.patch.object(report, "plot"))

    @staticmethod
    def packing(objective, *others):
        kind = "sentencepiece" if objective == "span_corruption" else "wordpiece"
        return [f"--objective={objective}", "--sequence_length=16", f"--tokenizer={kind}", "--vocab_size=200", *others]

    def assert_done(self, result):
        code, out, err = result
        assert code == 0, out + err
        return out

    def assert_error(self, pattern, result):
        code, out, err = result
        self.assertEqual((code, out, err.count("\n")), (2, "", 1), out + err)
        self.assertRegex(err, f"^error: {pattern}")

    def test_subcommands(self):
        for pattern, argv in (
            ("the first argument must be a subcommand: vocabulary, pack, labels\n", []),
            ("the first argument must be a subcommand", ["--corpus=x", "pack"]),
            (r"pak: no such subcommand \(did you mean pack\?\)\n", ["pak"]),
            ("zzz: no such subcommand; the subcommands are vocabulary, pack, labels\n", ["zzz", "--help"]),
            ("--output_dir is required", ["pack", *self.common]),
            ("--steps=3: no such flag", ["pack", "--steps=3"]),
            (f"--output_dir={self.packed}: already exists", ["pack", f"--output_dir={self.packed}"]),
            (f"--output_dir={self.packed}: already exists", ["vocabulary", f"--output_dir={self.packed}"]),
            (f"--output_dir={self.text}/x: cannot be created in ", ["pack", f"--output_dir={self.text}/x"]),
            ("--corpus=nowhere.txt: no such file", ["pack", "--corpus=nowhere.txt", "--output_dir=x"]),
            (f"--corpus={self.packed} is a folder", ["pack", f"--corpus={self.packed}", "--output_dir=x"]),
            (
                f"--corpus={self.text},docstrings: several sources cannot be packed in advance",
                ["pack", f"--corpus={self.text},docstrings", "--output_dir=x"],
            ),
        ):
            with self.subTest(argv):
                self.assert_error(pattern, prepare(*argv))
        page = self.assert_done(prepare("--help"))
        self.assertIn("  vocabulary  Trains a tokenizer", page)
        for name in corpus.COMMANDS:
            page = self.assert_done(prepare(name, "--help"))
            self.assertRegex(page, rf"^python -m \S+ {name} \[--flagfile")
            self.assertIn("--output_dir=VALUE", page)

    def test_a_vocabulary_is_the_one_that_training_would_learn(self):
        sentences = [s for d in load_corpus(str(self.text), cache_dir=None).train for s in d.sentences]
        for kind in ("wordpiece", "characters"):
            output = self.folder / kind
            arguments = (f"--tokenizer={kind}", "--vocab_size=150", f"--output_dir={output}")
            self.assert_done(prepare("vocabulary", *self.common, *arguments))
            expected = train_tokenizer(kind, sentences, 150, True)
            self.assertEqual(text.load(output).fingerprint(), expected.fingerprint())
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["characters", "wordpiece"])

    def test_labelled_files_of_sources(self):
        for name in ("plays", "letters"):
            tiny_run.write_corpus(self.folder / f"{name}.txt", documents=60, seed=len(name))
        output = self.folder / "labelled"
        flags = [f"--corpus={self.folder}/*.txt", f"--cache_dir={self.folder / 'cache'}", f"--output_dir={output}"]
        self.assert_done(prepare("labels", *flags, "--rows_per_label=50"))
        rows = {}
        for part in ("train", "dev", "test"):
            lines = (output / f"{part}.tsv").read_text().splitlines()
            self.assertEqual(lines[0], "text\tlabel")
            rows[part] = [tuple(line.split("\t")) for line in lines[1:]]
        everything = [row for part in rows.values() for row in part]
        self.assertEqual(len(everything), len({text for text, _ in everything}))
        labels = [label for _, label in everything]
        self.assertEqual(sorted(map(labels.count, set(labels))), [50, 50])
        for line, label in everything:
            self.assertIn(line.split(". ")[0], " ".join(pathlib.Path(label).read_text().split()))
        self.assertGreater(len(rows["train"]), 6 * len(rows["dev"]) / 2)
        for pattern, others in (
            ("already exists; remove it, or specify a new folder", []),
            ("has a single source", [f"--corpus={self.folder}/plays.txt", f"--output_dir={self.folder / 'one'}"]),
        ):
            code, _, err = prepare("labels", *flags, *others)
            self.assertEqual(code, 2)
            self.assertIn(pattern, err)

    def test_special_tokens_of_a_new_vocabulary_serve_an_objective(self):
        vocabulary, packed = self.folder / "vocabulary", self.folder / "packed"
        special = "--special_tokens=<fim_prefix>,<fim_suffix>,<fim_middle>"
        kind = ("--tokenizer=byte_level", "--vocab_size=300")
        self.assert_done(prepare("vocabulary", *self.common, *kind, special, f"--output_dir={vocabulary}"))
        tokenizer = text.load(vocabulary)
        self.assertAllEqual([tokenizer.vocab[i] for i in tokenizer.special_ids[1:]], MARKERS[0])
        arguments = ("--objective=fill_in_the_middle", f"--output_dir={packed}")
        existing = f"--tokenizer_dir={vocabulary}"
        missing = prepare("pack", *self.common, existing, "--special_tokens=<fim_prefix>,<x>", *arguments)
        self.assert_error(
            f"--special_tokens=<fim_prefix>,<x>: the tokenizer of --tokenizer_dir={vocabulary} has no token <x>",
            missing,
        )
        self.assert_done(prepare("pack", *self.common, existing, special, *arguments))
        rows = PackedFolder.open(packed).rows("train")
        part = tokenize(load_corpus(str(self.text), cache_dir=None).train, tokenizer)
        expected = FillInTheMiddle(tokenizer, 128).rows(part)
        self.assertLen(rows, len(expected))
        self.assertAllEqual(rows.row(3)[0], expected.row(3)[0])
        kinds = (*kind, "--objective=prefix_lm", f"--output_dir={self.folder / 'other'}")
        self.assert_error("--objective=prefix_lm: rows .* cannot be packed", prepare("pack", *self.common, *kinds))

    def test_packed_rows_are_those_of_the_text(self):
        read = load_corpus(str(self.text), cache_dir=None)
        for objective, make in (
            ("masked_lm", lambda tokenizer: MaskedLM(tokenizer, 16, mask_rate=0.3, pairs="none", pack=True)),
            ("causal", lambda tokenizer: Causal(tokenizer, 16)),
            ("span_corruption", lambda tokenizer: SpanCorruption(tokenizer, 16, mask_rate=0.3)),
        ):
            output = self.folder / objective
            flags = self.packing(objective, "--mask_rate=0.3", "--shard_rows=200", f"--output_dir={output}")
            self.assert_done(prepare("pack", *self.common, *flags))
            opened = PackedFolder.open(output)
            opened.verify()
            for part, documents in (("train", read.train), ("held_out", read.held_out)):
                tokens = tokenize(documents, opened.tokenizer)
                rows, stored = make(opened.tokenizer).rows(tokens), opened.rows(part)
                self.assertEqual((len(stored), stored.padding_share), (len(rows), rows.padding_share))
                for index in range(len(rows)):
                    for one, two in zip(stored.row(index), rows.row(index), strict=True):
                        self.assertEqual((one.dtype, one.tobytes()), (two.dtype, two.tobytes()))
                self.assertAllEqual(opened.token_ids(part), tokens.token_ids)
        self.assertIn("mean_span", opened.flags)
        self.assertEqual(PackedFolder.open(self.folder / "masked_lm").flags["pairs"], "none")

    def flags(self, run_dir, **others):
        values = dict(model="gpt2", objective="causal", steps=4, log_every=4, evaluate_every=4, checkpoint_every=2)
        return [*tiny_run.flags(self.shared, **(values | {"evaluate_batches": 1} | others)), f"--run_dir={run_dir}"]

    def test_the_same_run_from_text_and_from_a_packed_folder_also_resumed(self):
        raw, from_packed = self.folder / "raw", self.folder / "packed"
        one = self.assert_done(training(*self.flags(raw)))
        whole = self.flags(from_packed, corpus=self.packed)
        # Options fixed by packing may be omitted.
        needless = ("objective", "sequence_length", "vocab_size")
        flags = [flag for flag in whole if flag.split("=")[0].lstrip("-") not in needless]
        two = self.assert_done(training(*flags))
        self.assertEqual(tiny_run.measured(raw), tiny_run.measured(from_packed))
        self.assertEqual(one.replace(str(raw), ""), two.replace(str(from_packed), ""))  # Including the baselines.

        # The logged fraction is that of the batches, in which padding belongs to no document.
        opened = PackedFolder.open(self.packed)
        self.assertIn(f" rows ({opened.rows('train').padding_share:.1%} padding), ", one)
        batches = pipeline.training_batches(
            opened.rows("train"), Causal(opened.tokenizer, 16), batch_size=4, seed=0, first_step=0, num_steps=4
        )
        share = np.mean([np.mean(batch["document_ids"] == 0) for batch in batches.as_numpy_iterator()])
        self.assertGreater(share, 0)
        (logged,) = [record for record in tiny_run.records(raw) if "loss" in record]
        self.assertAlmostEqual(logged["padding_share"], share, places=12)

        # Resume from the middle of a logging interval.
        shutil.rmtree(from_packed / "checkpoints" / f"{4:08}")
        (from_packed / "best").unlink(missing_ok=True)
        again = training(f"--flagfile={from_packed / 'flags.cfg'}", f"--run_dir={from_packed}")
        self.assertIn("resuming at step 2", self.assert_done(again))
        self.assertEqual(tiny_run.measured(raw), tiny_run.measured(from_packed))
        # Another packed folder makes another run.
        record = from_packed / "corpus.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": "f" * 64}))
        self.assert_error(
            f"--corpus={self.packed}: the text differs from the one that this run started with", training(*flags)
        )

    def test_what_contradicts_the_folder(self):
        other = self.folder / "vocabulary"
        train_tokenizer("characters", ["abc"], 100, True).save(other)
        for pattern, flags in (
            ("--sequence_length=32: .*packed with --sequence_length=16; ", dict(sequence_length=32)),
            ("--objective=masked_lm: .*packed with --objective=causal; ", dict(objective="masked_lm")),
            ("--tokenizer=characters: .*packed with --tokenizer=wordpiece; ", dict(tokenizer="characters")),
            ("--vocab_size=300: .*packed with --vocab_size=200; ", dict(vocab_size=300)),
            ("--pack=False: .*packed with --pack=True; ", dict(pack="false")),
            (f"--tokenizer_dir={other}: is not the tokenizer that {self.packed} ", dict(tokenizer_dir=other)),
            ("--corpus_weights=3,1: has 2 number.*, but --corpus has 1 source", dict(corpus_weights="3,1")),
            (f"--corpus=docstrings,{self.packed}: .* is a folder", dict(corpus=f"docstrings,{self.packed}")),
        ):
            with self.subTest(**flags):
                run_dir = self.folder / "run"
                self.assert_error(pattern, training(*self.flags(run_dir, **({"corpus": self.packed} | flags))))
                self.assertFalse(run_dir.exists())

    def test_damage_and_another_tokenizer(self):
        for name, change, pattern in (
            ("train-00000-of-00001.array_record", lambda b: b[:99] + b"\x55" + b[100:], "is damaged"),
            ("held_out-00000-of-00001.array_record", lambda b: b[:-1], "has .* bytes, but"),
            ("manifest.json", lambda b: b.replace(b'"sequence_length": 16', b'"sequence_length": 32'), "is damaged"),
            ("tokenizer/vocab.txt", lambda b: b.replace(b"[MASK]", b"[MASC]"), "is damaged or was modified"),
        ):
            folder = self.folder / f"{name[:5]}"
            shutil.copytree(self.packed, folder)
            path = folder / name
            path.write_bytes(change(path.read_bytes()))
            with self.subTest(name):
                result = training(*self.flags(self.folder / "run", corpus=folder), "--noresume")
                self.assert_error(f"{path}: {pattern}", result)
        # Another tokenizer in the folder is detected by its fingerprint.
        folder = self.folder / "swapped"
        shutil.copytree(self.packed, folder)
        other = train_tokenizer("characters", ["abc"], 100, True)
        with self.assertRaisesRegex(ValueError, "tokenizer.json: belongs to another tokenizer"):
            other.save(folder / "tokenizer")
        for name in ("tokenizer.json", "vocab.txt"):
            (folder / "tokenizer" / name).rename(folder / "tokenizer" / f"{name}.bak")
        other.save(folder / "tokenizer")
        with self.assertRaisesRegex(ValueError, "is not the tokenizer that .*swapped was packed with"):
            _ = PackedFolder.open(folder).tokenizer
        self.assertFalse((self.folder / "run").exists())

    def test_a_resumed_run_wants_the_tokenizer_it_began_with(self):
        run_dir = self.folder / "run"
        (run_dir / "tokenizer").mkdir(parents=True)
        other = train_tokenizer("characters", ["abc"], 100, True)
        other.save(run_dir / "tokenizer")
        opened = PackedFolder.open(self.packed)
        (run_dir / "corpus.json").write_text(json.dumps({"fingerprint": opened.fingerprint}))
        record = {"model": "gpt2", "heads": ["lm"], "config": {"vocab_size": other.vocab_size}}
        (run_dir / "config.json").write_text(json.dumps(record | {"tokenizer": opened.tokenizer.fingerprint()}))
        config = TrainConfig(run_dir=str(run_dir), corpus=str(self.packed), cache_dir=str(self.folder))
        with self.assertRaisesRegex(
            ValueError, "tokenizer: is not the tokenizer of this run .*restore the run's own tokenizer"
        ):
            inputs.read_corpus(config, run_dir, opened)

    def killed_while_packing(self, arguments, shards):
        """Returns whether the command was still running when this number of shards existed."""
        command = [sys.executable, "-m", "tfzoo.corpus", "pack", *arguments]
        with subprocess.Popen(command, cwd=helpers.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            while process.poll() is None and len(list(self.folder.glob("packed.*.partial/*_record"))) < shards:
                time.sleep(0.001)
            process.kill()
        self.assertIn(process.returncode, (0, -signal.SIGKILL))
        return process.returncode != 0

    @pytest.mark.faults
    def test_the_command_killed_at_any_moment(self):
        output = self.folder / "packed"
        arguments = [*self.common, *self.packing("causal"), "--shard_rows=5", f"--output_dir={output}"]
        for shards in (0, 40):  # Out of about a hundred.
            while not self.killed_while_packing(arguments, shards + 1):
                shutil.rmtree(output)  # It finished before this process checked.
            self.assertFalse(output.exists())
            (left,) = self.folder.glob("packed.*")
            self.assertTrue(left.name.endswith(files.PARTIAL))
            for folder in (left, output):
                run_dir = self.folder / "run"
                self.assertEqual(training(f"--corpus={folder}", f"--run_dir={run_dir}")[0], 2)
                self.assertFalse(run_dir.exists())
        self.assert_done(prepare("pack", *arguments))
        self.assertEqual(list(self.folder.iterdir()), [output])
        opened = PackedFolder.open(output)
        opened.verify()
        self.assertEqual(opened.fingerprint, PackedFolder.open(self.packed).fingerprint)


if __name__ == "__main__":
    tf.test.main()
