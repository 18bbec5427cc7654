"""A model, its SavedModel and its ONNX graph give the same answers, from Python and from the command line."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers
from tests.export import small
from tests.prediction.harness import TEXTS, Case, OnnxCase
from tests.text.varied import CODE, SENTENCES
from tfzoo import predict
from tfzoo.errors import UserError
from tfzoo.export import answers as heads
from tfzoo.export import artifact, publish
from tfzoo.generation.texts import generate_text
from tfzoo.models.record import FolderRecord
from tfzoo.prediction import folders
from tfzoo.prediction.models import ModelPredictor
from tfzoo.prediction.predictor import TASKS
from tfzoo.prediction.savedmodels import SavedModelPredictor
from tfzoo.serve.loading import Loader
from tfzoo.serve.metrics import Metrics
from tfzoo.text import training
from tfzoo.text.byte_level import ByteLevelBPE

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tagger(**options):
    model = small.model("bert", heads=("tag",), num_labels=5, **options)
    model.labels = TAGS
    return model


class DecodingTest(OnnxCase):
    """Every head: what is read and computed in numpy equals the answers in TensorFlow."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        vocab, merges = training.train_byte_level([*SENTENCES, *CODE], 400)[:2]
        cls.bpe = ByteLevelBPE([*SPECIAL, *vocab], merges, special_tokens=SPECIAL)

    def test_labels(self):
        for family, tokenizer in (("bert", small.tokenizer()), ("roberta", self.bpe), ("bart", self.bpe)):
            model = small.model(family, heads=("classify",), vocab_size=tokenizer.vocab_size)
            records = self.check(model, tokenizer)
            self.assertEqual({*records[0]}, {"label", "score", "scores"})
        pairs = [(text, other) for text in TEXTS for other in TEXTS]
        model = small.model("bert", heads=("classify",))
        self.check(model, small.tokenizer(), pairs, text_pair=True)
        model.record = FolderRecord({"problem_type": "multi_label_classification"})
        self.assertEqual({*self.check(model, small.tokenizer())[0]}, {"labels", "scores"})
        self.assertEqual(
            {*self.check(small.model("bert", heads=("classify",), num_labels=1), small.tokenizer())[0]}, {"value"}
        )

    def test_entities(self):
        self.check(tagger(), small.tokenizer())
        model = small.model("roberta", heads=("tag",), num_labels=5, vocab_size=self.bpe.vocab_size)
        model.labels = TAGS
        self.assertTrue(any(record["entities"] for record in self.check(model, self.bpe)))

    def test_spans(self):
        for family, tokenizer in (("bert", small.tokenizer()), ("roberta", self.bpe)):
            model = small.model(family, heads=("span",), vocab_size=tokenizer.vocab_size)
            self.check(model, tokenizer, [("the x", text) for text in TEXTS])

    def test_words(self):
        for family, tokenizer, masks in (
            ("bert", small.tokenizer(), (4, "[MASK]")),
            ("roberta", self.bpe, (4, "<mask>")),
        ):
            records = self.check(small.model(family, heads=("lm",), vocab_size=tokenizer.vocab_size), tokenizer)
            self.assertEqual(len(records[masks[0]]["words"]), TEXTS[masks[0]].count(masks[1]))

    def test_embeddings(self):
        self.check(small.model("bert", heads=("embed",)), small.tokenizer())
        for pooling in ("mean", "first", "last", "pooled"):
            self.check(small.model("bert", heads=()), small.tokenizer(), pooling=pooling)

    def test_tasks_are_those_of_exports(self):
        self.assertEqual(list(TASKS), list(heads.HEADS))

    def test_encoder_decoders_write_texts(self):
        self.check_written("t5")

    @pytest.mark.faults
    def test_bart_writes_texts(self):
        self.check_written("bart")

    def check_written(self, *families):
        for family in families:
            model = small.model(family, heads=("lm",))
            ids = {"eos_token_id": 3, "pad_token_id": 0, "decoder_start_token_id": 3}
            model.record = FolderRecord({}, ids | {"num_beams": 2, "max_length": 6})
            predictor = ModelPredictor(lambda model=model: (model, small.tokenizer()), prompt="the ")
            found = predictor.answer([("cat sat",), ("dog",)])
            wanted = generate_text(model, ["the cat sat", "the dog"], small.tokenizer())
            self.assertEqual(found, [{"generated_text": text} for text in wanted], family)
            self.assertEqual(heads.new_tokens_of(model, 6), 5)
        decoder = small.model("gpt2", heads=("lm",))
        decoder.record = FolderRecord({}, {"max_new_tokens": 5})
        found = {length: heads.new_tokens_of(decoder, length) for length in (1, 64, 512)}
        self.assertEqual(found, {1: 1, 64: 32, 512: 64})

    def test_models_without_answers(self):
        for family, head, words in (
            ("gpt2", "lm", "python -m tfzoo.generate"),
            ("electra", "discriminate", "no head that"),
        ):
            model = small.model(family, heads=(head,))
            with self.assertRaisesRegex(UserError, words):
                ModelPredictor(lambda model=model: (model, small.tokenizer()))
        with self.assertRaisesRegex(UserError, "has no tokenizer"):
            ModelPredictor(lambda: (tagger(), None))
        with self.assertRaisesRegex(UserError, "--sequence_length=33: must be from 1 to 32"):
            ModelPredictor(lambda: (tagger(), small.tokenizer()), sequence_length=33)


class WindowsTest(Case):
    def test_windows_give_the_answers_of_the_whole_text(self):
        """For a model whose answer for a token depends on that token alone."""
        models = []
        for length in (32, 2048):
            keras.utils.set_random_seed(0)
            model = small.model("bert", heads=("tag",), num_labels=3, max_positions=length)
            model.labels = ("O", "B-PER", "B-LOC")  # Each word is an entity by itself.
            for weight in model.weights:
                if "position" in weight.path or "attention/output" in weight.path:
                    weight.assign(tf.zeros_like(weight))
            models.append(model)
        short, long = models
        for one, other in zip(short.weights, long.weights):
            if one.shape == other.shape:
                other.assign(one)
        generator = np.random.default_rng(0)
        words = ["the", "of", "function", ".", "東京", "ω", "a", "bcd", "x", "no"]
        texts = [" ".join(generator.choice(words, size)) for size in (5, 40, 90, 400)] + ["東京" * 200, "ab" * 40]
        with mock.patch.object(
            folders, "open_folder", lambda _, model: ModelPredictor(lambda: (model, small.tokenizer()))
        ):
            whole = tfzoo.pipeline("", model=long)(texts)
            read = tfzoo.pipeline("", model=short)(texts)
        self.assertGreater(sum(len(record["entities"]) for record in whole), 100)
        self.assert_near(whole[:5], read[:5])
        for text, record in zip(texts, read):
            self.assertNotIn("truncated", record)
            for entity in record["entities"]:
                self.assertEqual(text[entity["start"] : entity["end"]], entity["text"])

    def test_averages_of_windows(self):
        model = small.model("bert", heads=("classify",))
        predictor = ModelPredictor(lambda: (model, small.tokenizer()))
        with mock.patch.object(folders, "open_folder", lambda _: predictor):
            truncated, average = (tfzoo.pipeline("", long_texts=how) for how in ("truncate", "average"))
        text = "the x " * 30  # 60 tokens, of which 30 fit.
        self.assertEqual(truncated(text), predictor.answer([(text,)])[0])
        self.assertIs(truncated(text)["truncated"], True)
        self.assertEqual(truncated("the x"), average("the x"))
        found = average(text)
        self.assertNotIn("truncated", found)
        self.assertNotEqual(found["scores"], truncated(text)["scores"])
        self.assertAlmostEqual(sum(found["scores"].values()), 1, places=5)


class CommandTest(Case):
    """One tagger and a classifier from the command line; the tagger also as a SavedModel and an ONNX graph."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = helpers.temporary_folder(cls)
        model = tagger()
        tfzoo.save(model, cls.folder / "tagger", small.tokenizer())
        tfzoo.save(small.model("bert", heads=("classify",)), cls.folder / "classifier", small.tokenizer())
        with mock.patch.object(publish, "replay"):
            cls.artifacts = artifact.export(model, small.tokenizer(), cls.folder / "exports", "tagger")
        generator = np.random.default_rng(0)
        words = ["the", "of", "function", ".", "東京", "ω", "a", "bcd", "x", "no"]
        cls.rows = [
            {"id": i, "text": " ".join(generator.choice(words, generator.integers(1, 40))), "label": i % 2}
            for i in range(600)
        ]
        cls.input = cls.folder / "in.jsonl"
        cls.input.write_text("".join(json.dumps(row) + "\n" for row in cls.rows))

    def run_main(self, model, *argv, source=None):
        return helpers.run(predict, f"--model_dir={self.folder / model}", f"--input={source or self.input}", *argv)

    def answers(self, model, *argv, name="out.jsonl", **options):
        output = helpers.temporary_folder(self) / name
        code, out, err = self.run_main(model, f"--output={output}", *argv, **options)
        self.assertEqual((code, out), (0, ""), err)
        return [json.loads(line) for line in output.read_text().splitlines()], err

    def test_the_server_gives_the_same_outputs_from_both_formats(self):
        served = [Loader(Metrics())("tagger", 1, self.artifacts[kind]) for kind in ("savedmodel", "onnx")]
        first, second = (model.signatures["serving_default"] for model in served)
        self.assertEqual(first.inputs.keys(), second.inputs.keys())
        for name, spec in first.outputs.items():
            other = second.outputs[name]
            self.assertEqual((spec.dtype, spec.shape), (other.dtype, other.shape), name)
        for rows in (self.rows[:50], self.rows[:1], []):
            texts = np.array([row["text"].encode() for row in rows], object)
            values, others = (model.run("serving_default", {"text": texts}) for model in served)
            self.assertEqual(values.keys(), others.keys())
            for name, value in values.items():
                self.assertEqual(value.shape, others[name].shape, name)
                if value.dtype.kind == "f":
                    np.testing.assert_allclose(value, others[name], atol=2e-5, rtol=0)
                else:
                    self.assertEqual(value.tolist(), others[name].tolist(), name)

    def test_model_savedmodel_and_onnx(self):
        expected, err = self.answers("tagger")
        self.assertEqual([record["id"] for record in expected], list(range(len(self.rows))))
        self.assertEqual([record["text"] for record in expected], [row["text"] for row in self.rows])
        self.assertEqual([record["input_label"] for record in expected], [row["label"] for row in self.rows])
        self.assertIn("out.jsonl: 600 rows", err)
        for record in expected:
            for entity in record["entities"]:
                self.assertEqual(record["text"][entity["start"] : entity["end"]], entity["text"])
        for kind in ("savedmodel", "onnx"):
            found, _ = self.answers(self.artifacts[kind], "--batch_size=8", "--block_rows=100")
            self.assert_near(expected, found)
        python = tfzoo.pipeline(self.folder / "tagger")([row["text"] for row in self.rows])
        self.assert_near([record["entities"] for record in expected], [record["entities"] for record in python])

    @pytest.mark.faults
    def test_several_devices(self):
        alone = helpers.temporary_folder(self) / "alone.jsonl"
        self.assertEqual(self.run_main("tagger", f"--output={alone}")[0], 0)
        several = alone.with_name("several.jsonl")
        argv = [f"--model_dir={self.folder / 'tagger'}", f"--input={self.input}", f"--output={several}"]
        helpers.python("-m", "tfzoo.predict", *argv, "--num_devices=2")
        self.assertEqual(alone.read_bytes(), several.read_bytes())
        onnx, _ = self.answers(self.artifacts["onnx"], "--num_devices=2")
        self.assert_near([json.loads(line) for line in alone.read_text().splitlines()], onnx)

    @pytest.mark.faults
    def test_a_killed_program_continues(self):
        source = helpers.temporary_folder(self) / "in.jsonl"
        source.write_text(self.input.read_text() * 6)
        options = ["--batch_size=4", "--block_rows=64"]
        whole, output = source.with_name("whole.jsonl"), source.with_name("out.jsonl")
        onnx = self.artifacts["onnx"]
        self.assertEqual(self.run_main(onnx, f"--output={whole}", *options, source=source)[0], 0)
        partial = pathlib.Path(f"{output}.partial")
        argv = [f"--model_dir={onnx}", f"--input={source}", f"--output={output}", *options]
        process = subprocess.Popen([sys.executable, "-m", "tfzoo.predict", *argv], cwd=helpers.ROOT)
        deadline = time.monotonic() + helpers.PATIENCE
        while not (partial.exists() and partial.stat().st_size):
            self.assertIsNone(process.poll(), "ended before it was killed")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.assertFalse(output.exists())
        written = partial.read_bytes()
        self.assertLess(len(written), whole.stat().st_size)
        # The kill might also have come in the middle of a line, or of a block.
        lines = written[: written.rindex(b"\n") + 1].splitlines(keepends=True)
        partial.write_bytes(b"".join(lines[:-10]) + lines[-10][:20])
        self.assertEqual(self.run_main(onnx, f"--output={output}", *options[:1], source=source)[0], 2)
        code, _, err = self.run_main(onnx, f"--output={output}", *options, source=source)
        self.assertEqual(code, 0, err)
        self.assertIn(f"continuing after {len(lines) - 10:,} rows", err)
        self.assertEqual(output.read_bytes(), whole.read_bytes())
        self.assertEqual(sorted(os.listdir(source.parent)), ["in.jsonl", "out.jsonl", "whole.jsonl"])

    def test_a_manifest_that_does_not_fit_the_signatures(self):
        folder = self.artifacts["savedmodel"]
        stated = json.loads((folder / "manifest.json").read_text())
        for changes, message in (
            ({"signatures": {}}, "reads token ids, not texts"),
            ({"texts": ["other"]}, "texts does not name the inputs of serving_default"),
        ):
            with self.assertRaisesRegex(UserError, message):
                SavedModelPredictor(folder, stated | changes)

    def test_another_model_does_not_continue(self):
        output = helpers.temporary_folder(self) / "out.jsonl"
        with mock.patch("tfzoo.prediction.output.Output.finish", side_effect=KeyboardInterrupt):
            code, _, err = self.run_main("tagger", f"--output={output}")
        self.assertEqual(code, 3)
        self.assertIn("stopped; the first 600 rows are in", err)
        code, _, err = self.run_main("classifier", f"--output={output}")
        self.assertEqual(code, 2)
        self.assertRegex(err, r"\Aerror: .*out.jsonl.partial: was written with another model; .*--noresume.*\n\Z")
        code, _, err = self.run_main("tagger", f"--output={output}")
        self.assertEqual(code, 0)
        self.assertIn("continuing after 600 rows", err)
        code, _, err = self.run_main("classifier", f"--output={output}", "--noresume")
        self.assertEqual(code, 0, err)
        self.assertIn("were truncated to 32 tokens; --long_texts=average reads them whole", err)
        self.assertIn("label", json.loads(output.read_text().splitlines()[0]))

    def test_bad_rows(self):
        source = helpers.temporary_folder(self) / "bad.jsonl"
        source.write_text('{"text": "the x"}\n{"id": 1}\n{"text": "a"}\n')
        code, _, err = self.run_main("tagger", f"--output={source}.out", source=source)
        self.assertEqual(code, 2)
        self.assertRegex(err, r"\Aerror: .*bad.jsonl:2: has no 'text'.*--bad_rows=skip\n\Z")
        records, err = self.answers("tagger", "--bad_rows=skip", "--nokeep_texts", source=source)
        self.assertIn("3 rows", err)
        self.assertIn("1 of them errors", err)
        self.assertEqual([{*record} for record in records], [{"entities"}, {"id", "error"}, {"entities"}])

    def test_stdin_and_stdout(self):
        stdin = io.TextIOWrapper(io.BytesIO("the x\n東京 of\n".encode()))
        out = io.StringIO()
        with mock.patch.object(sys, "stdin", stdin), mock.patch.object(sys, "stdout", out):
            from tfzoo import cli

            argv = [f"--model_dir={self.folder / 'classifier'}", "--input=-"]
            self.assertEqual(cli.run(predict.main, predict.define_flags, argv), 0)
        records = [json.loads(line) for line in out.getvalue().splitlines()]
        self.assertEqual([record["text"] for record in records], ["the x", "東京 of"])
        self.assertEqual(records[0]["score"], max(records[0]["scores"].values()))

    def test_pairs(self):
        source = helpers.temporary_folder(self) / "pairs.tsv"
        source.write_text("one\ttwo\nthe x\tof\na\tb\n")
        columns = ["--text_column=one", "--pair_column=two"]
        records, _ = self.answers("classifier", *columns, source=source)
        expected = tfzoo.pipeline(self.folder / "classifier")([("the x", "of"), ("a", "b"), "a"])
        self.assert_near([record["scores"] for record in records], [record["scores"] for record in expected[:2]])
        self.assertNotEqual(expected[1], expected[2])

    def test_what_is_refused_is_one_line(self):
        missing, folder = self.folder / "nowhere.jsonl", helpers.temporary_folder(self)
        for model, argv, words in (
            ("tagger", [f"--input={missing}"], "no such file"),
            ("tagger", [f"--output={self.input}"], "is the input"),
            ("tagger", ["--output=/nowhere/out.jsonl"], "folder does not exist"),
            ("tagger", ["--long_texts=average"], "applies to classifiers of single texts"),
            ("tagger", ["--pair_column=x"], "reads single texts"),
            ("tagger", ["--text_column=x"], "in.jsonl:1: has no 'x'"),
            (
                "exports",
                [],
                "contains artifacts, but is not one itself; specify the folder of one, such as .*savedmodel/tagger/1",
            ),
            (self.artifacts["onnx"], ["--weights=int8"], "--weights=int8: does not apply to an exported artifact"),
            (self.artifacts["onnx"], ["--sequence_length=8"], "--sequence_length=8: does not apply"),
            (folder, [], "contains no config.json"),
        ):
            code, out, err = self.run_main(model, f"--output={folder / 'out.jsonl'}", *argv)
            self.assertEqual((code, out), (2, ""), err)
            self.assertRegex(err, rf"\Aerror: .*{words}.*\n\Z")
        pipe = tfzoo.pipeline(self.folder / "tagger")
        for texts, words in (([3], r"texts\[0\]: is"), ([("a", "b")], r"reads text; pass strings")):
            with self.assertRaisesRegex(UserError, words):
                pipe(texts)

    def test_a_damaged_artifact(self):
        folder = helpers.temporary_folder(self) / "1"
        folder.mkdir()
        for path in self.artifacts["onnx"].rglob("*"):
            if path.is_file():
                target = folder / path.relative_to(self.artifacts["onnx"])
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(path.read_bytes()[:-1] if path.name == "model.onnx" else path.read_bytes())
        code, _, err = self.run_main(folder)
        self.assertEqual(code, 2)
        self.assertRegex(err, r"\Aerror: .*is damaged \(model.onnx: its SHA-256 differs.*export the model again\n\Z")


if __name__ == "__main__":
    unittest.main()
