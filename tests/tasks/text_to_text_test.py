"""Tasks that write texts: rows, loss and decoding; and whole runs with evaluation, resume and replicas."""

import json
import pathlib
import random
import tempfile
import types
import unittest

import numpy as np
import pytest
import sacrebleu
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tests.stopped_command import command, stopping  # noqa: F401  (`command` is called by tests.worlds)
from tests.tasks.fakes import rows_of
from tests.worlds import Worlds
from tfzoo import convert, evaluate, train
from tfzoo.data.labelled import Row
from tfzoo.errors import UserError
from tfzoo.export import __main__ as export
from tfzoo.export import answers
from tfzoo.generation.texts import encode_prompts, generate_text
from tfzoo.models import bart, t5, transformer
from tfzoo.models.record import FolderRecord
from tfzoo.objectives.seq2seq import Seq2Seq
from tfzoo.tasks.summarise import Summarise
from tfzoo.tasks.text_to_text import TextToText
from tfzoo.tasks.translate import Translate, bleu_tokenizer
from tfzoo.text.wordpiece import WordPiece

SIZES = "hidden_size=32,num_layers=1,num_heads=2,intermediate_size=64,max_positions=32,initializer_range=0.1"
folder: pathlib.Path


class Words(WordPiece):
    """A tokenizer of whole words with the special tokens of T5."""

    pad_id, eos_id, cls_id, sep_id = 0, 1, None, None

    def __init__(self):
        super().__init__(["[PAD]", "</s>", "[UNK]", *"abcdefgh", "to", "german", ":", "[CLS]", "[SEP]", "[MASK]"])


def task(kind=TextToText, length=8, page=t5, **options):
    return kind(Words(), length, page=page, **options)


def row(source, target):
    return Row("file:1", (source, target), None)


class TextToTextTest(tf.test.TestCase):
    def test_the_example(self):
        made = task(prefix="to german: ", target_length=8, length=16)
        rows = rows_of(made, row("a b", "c d e"), row("c", "a"))
        batch = made.batch(rows, np.array([0, 1]), (8, 5))
        text = [[Words().vocab[i] for i in ids] for ids in batch["token_ids"]]
        self.assertEqual(text[0], ["to", "german", ":", "a", "b", "</s>", "[PAD]", "[PAD]"])
        self.assertEqual(text[1][:5], ["to", "german", ":", "c", "</s>"])
        self.assertAllEqual(batch["padding_mask"].sum(1), [6, 5])
        self.assertAllEqual(batch["decoder_token_ids"], [[0, 5, 6, 7, 0], [0, 3, 0, 0, 0]])
        self.assertAllEqual(batch["targets"], [[5, 6, 7, 1, 0], [3, 1, 0, 0, 0]])
        self.assertAllEqual(batch["target_weights"], [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
        self.assertEqual({*batch}, {*made.SIGNATURE})
        self.assertAllEqual(made.sides(rows), [[6, 4], [5, 2]])
        self.assertEqual(made.record()["prefix"], "to german:")

    def test_long_texts_are_cut_on_both_sides(self):
        made = task(length=9, target_length=8)
        rows = rows_of(made, row("a " * 8, "b " * 7), row("a " * 9, "b"), row("a", "b " * 8))
        self.assertEqual(made.truncated(rows), 2)
        self.assertAllEqual(made.sides(rows), [[9, 8], [9, 2], [2, 8]])
        batch = made.batch(rows, np.arange(3), 9)
        self.assertAllEqual(batch["token_ids"][1], [3] * 8 + [1])
        self.assertAllEqual(batch["targets"][2], [4] * 7 + [1, 0])

    def test_rows_are_those_of_the_objective(self):
        """A pre-trained model continues: the framing is that of seq2seq, for T5's and for BART's tokenizers."""
        byte = helpers.byte_tokenizer(["<s>", "<pad>", "</s>"], cls="<s>", sep="</s>", pad="<pad>", eos="</s>")
        for tokenizer, page in ((Words(), t5), (byte, bart)):
            made = TextToText(tokenizer, 12, page=page)
            batch = made.batch(rows_of(made, row("a b", "c d e")), np.array([0]), 12)
            source, target = (tokenizer.tokenize([text])[0] for text in ("a b", "c d e"))
            example = dict(first=source, second=target)
            example |= {f"{name}_documents": tf.ones_like(ids) for name, ids in example.items()}
            wanted = Seq2Seq(tokenizer, 12, pack=False).prepare(example)
            for name, values in wanted.items():
                self.assertAllEqual(batch[name][0], values, name)

    def test_the_loss_by_the_formula(self):
        draw = np.random.default_rng(0)
        logits = draw.normal(size=(2, 3, 14))
        log_chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets, weights = np.array([[3, 4, 1], [5, 1, 0]]), np.array([[1, 1, 1], [1, 1, 0.0]])
        batch = {"targets": tf.constant(targets), "target_weights": tf.constant(weights, tf.float32)}
        models = {"main": types.SimpleNamespace(INPUTS=())}
        for kind, options, smoothing in (
            (TextToText, {}, 0.0),
            (Translate, {}, 0.1),
            (Summarise, {"label_smoothing": 0.3}, 0.3),
        ):
            made = task(kind, **options)
            made.logits = lambda models, batch, training: tf.constant(logits, tf.float32)
            total, count = made.loss(models, batch)
            wanted = np.eye(14)[targets] * (1 - smoothing) + smoothing / 14
            self.assertAllClose(total, -((wanted * log_chances).sum(-1) * weights).sum(), rtol=1e-6)
            self.assertAllClose(count, 5.0)

    def test_decoding_options(self):
        ids = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
        self.assertEqual(task().decoding, ids | {"num_beams": 1, "max_new_tokens": 8})
        self.assertEqual(
            task(Translate, target_length=8, length=9).decoding, ids | {"num_beams": 4, "max_new_tokens": 8}
        )
        config = {"num_beams": 3, "max_length": 7, "length_penalty": 2.0, "no_repeat_ngram_size": 2}
        source = FolderRecord({}, config | {"do_sample": True, "top_k": 5, "bad_words_ids": [[3]]})
        of_source = {"max_new_tokens": 6, "no_repeat_ngram_size": 2}
        self.assertEqual(
            task(Translate, record=source).decoding, ids | {"num_beams": 3, "length_penalty": 2.0} | of_source
        )
        self.assertEqual(task(record=source, num_beams=1).decoding, ids | {"num_beams": 1} | of_source)
        self.assertEqual(task(record=source, max_new_tokens=4, length_penalty=1.5).decoding["length_penalty"], 1.5)
        with self.assertRaisesRegex(UserError, "--length_penalty=2.0: applies to beam search; add --num_beams"):
            task(length_penalty=2.0)

    def test_which_rows_are_decoded(self):
        file = types.SimpleNamespace(rows=lambda: (row("a", "b") for _ in range(10)))
        for count, whole, wanted in (
            (4, False, [0, 3, 5, 8]),
            (4, True, range(10)),
            (0, False, range(10)),
            (20, False, range(10)),
        ):
            made = task(decoded_rows=count)
            made.prepare_evaluation(file, whole=whole)
            self.assertEqual(np.flatnonzero(made._decoded).tolist(), [*wanted], count)

    def test_scores(self):
        hypotheses, references = ["the dog sees a cat", "a b"], ["the dog saw a cat", "a c"]
        found = Translate.score_texts(hypotheses, references, Translate.Options())()
        self.assertAlmostEqual(found["bleu"], sacrebleu.corpus_bleu(hypotheses, [references]).score)
        self.assertAlmostEqual(found["chrf"], sacrebleu.corpus_chrf(hypotheses, [references]).score)
        self.assertEqual(
            [*Summarise.score_texts(hypotheses, references, Summarise.Options())()], ["rouge_1", "rouge_2", "rouge_l"]
        )
        self.assertEqual([*TextToText.score_texts(hypotheses, references, None)()], ["exact_match", "token_f1", "chrf"])
        made = task(Translate)
        made._texts_of_rows = [("x", "我今天很高興"), ("y", "他走了")]
        details = made.details({"number": np.array([1, 0]), "text": np.array(["他走", "我今天"], object)})
        self.assertIn("tok:zh", details["signature"])
        self.assertEqual(bleu_tokenizer(["a"], Translate.Options(bleu_tokenizer="char")), "char")

    def test_what_is_wrong(self):
        with self.assertRaisesRegex(UserError, "--target_length=9: exceeds --sequence_length=8"):
            task(target_length=9)
        with self.assertRaisesRegex(UserError, "requires a tokenizer with pad and eos or sep tokens, but .* for pad"):
            TextToText(helpers.byte_tokenizer(["</s>"], eos="</s>"), 8, page=t5)
        with self.assertRaisesRegex(UserError, "--model=x: its texts begin without a cls token"):
            TextToText(WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]), 8, page=transformer).check_model(
                "x", transformer
            )
        with self.assertRaisesRegex(
            UserError, "--pair_column=x: does not apply to --task=translate; use --label_column"
        ):
            Translate.open_file(Translate.Options(pair_column="x"), "file", "train_file", "strict")


def write_rows(path, count, seed=0):
    """Writes a .tsv of made-up words and their translations."""
    draw = random.Random(5)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    sources, targets = ("".join(draw.choices(syllables, k=2)) for _ in range(12)), [*syllables[:12]]
    words = dict(zip(sources, targets))
    draw = random.Random(seed)
    lines = ["source\ttarget"]
    for _ in range(count):
        chosen = draw.choices([*words], k=draw.randint(1, 5))
        lines.append(f"{' '.join(chosen)}\t{' '.join(words[word] for word in chosen)}")
    path.write_text("\n".join(lines) + "\n")


def arguments(run_dir, **others):
    values = dict(
        task="translate",
        train_file=folder / "train.tsv",
        validation_file=folder / "dev.tsv",
        run_dir=run_dir,
        cache_dir=folder / "cache",
        model="transformer_base",
        overrides=f"{SIZES},dropout=0,attention_dropout=0",
        prefix="say:",
        tokenizer="sentencepiece",
        vocab_size=180,
        sequence_length=24,
        target_length=16,
        batch_size=16,
        steps=40,
        warmup_steps=1,
        learning_rate=0.01,
        num_beams=2,
        decoded_rows=5,
        log_every=1,
        evaluate_every=40,
        checkpoint_every=20,
    )
    return [f"--{name}={value}" for name, value in (values | others).items()]


def setUpModule():
    global folder
    folder = pathlib.Path(unittest.enterModuleContext(tempfile.TemporaryDirectory())).resolve()
    write_rows(folder / "train.tsv", 200)
    write_rows(folder / "dev.tsv", 20, seed=1)


class RunTest(unittest.TestCase):
    def train(self, run_dir, code=0, **others):
        result = helpers.run(train, *arguments(run_dir, **others))
        self.assertEqual(result[0], code, result[2][-2000:])
        return result[1] + result[2]

    def test_train_and_evaluate(self):
        whole = folder / "whole"
        printed = self.train(whole)
        self.assertIn("translation memory", printed)
        self.check_evaluation(whole)

    @pytest.mark.faults
    def test_a_resumed_run_is_the_same(self):
        whole, parts = folder / "undisturbed", folder / "parts"
        self.train(whole)
        with stopping(25):
            self.train(parts, code=3)
        self.train(parts)
        self.assertEqual(tiny_run.measured(parts), tiny_run.measured(whole))

    @pytest.mark.faults
    def test_two_devices_resume(self):
        """A run of one device that two devices resume is the same run but for rounding; so are the written texts."""
        whole, parts = folder / "one", folder / "two"
        self.train(whole)
        with stopping(25):
            self.train(parts, code=3)
        argv = [*arguments(parts), "--strategy=mirrored", "--num_devices=2"]
        worlds = Worlds("tests.tasks.text_to_text_test")
        ((result,),) = worlds.run("mirrored2", [["command", {"argv": argv, "stop_at": None}]], begun=False)
        self.assertEqual(result["code"], 0, result)
        one, two = ({key: float(value) for key, value in tiny_run.measured(each).items()} for each in (whole, parts))
        self.assertEqual(one.keys(), two.keys())
        self.assertIn((40, "bleu"), one)
        for key, value in one.items():
            self.assertLessEqual(abs(two[key] - value), 2e-6 * max(1.0, abs(value)), key)

    def check_evaluation(self, run_dir):
        """tfzoo.evaluate writes the texts of all rows; they are those of tfzoo.generate."""
        record = json.loads((run_dir / "evaluation.json").read_text())
        self.assertEqual((record["rows"], record["best_metric"]), (5, "bleu"))
        self.assertIn("tok:13a", record["signature"])
        decoding = json.loads((run_dir / "generation_config.json").read_text())
        self.assertEqual((decoding["num_beams"], decoding["max_new_tokens"]), (2, 16))
        code, out, err = helpers.run(evaluate, f"--model_dir={run_dir}", f"--test_file={folder / 'dev.tsv'}")
        self.assertEqual(code, 0, err)
        self.assertIn(f"sacreBLEU's signature: {record['signature']}", out)
        found = json.loads((run_dir / "evaluation-dev.json").read_text())
        self.assertEqual(found["rows"], 20)
        pairs = [line.split("\t") for line in (folder / "dev.tsv").read_text().splitlines()[1:]]
        model, tokenizer = tfzoo.load(run_dir)
        texts = generate_text(model, [f"say: {source}" for source, _ in pairs], tokenizer)
        wanted = sacrebleu.corpus_chrf(texts, [[target for _, target in pairs]]).score
        self.assertGreater(wanted, 1)
        self.assertAlmostEqual(found["scores"]["chrf"]["value"], wanted, places=6)
        for mistake in found["mistakes"]:
            place = [source for source, _ in pairs].index(mistake["text"])
            self.assertEqual((mistake["gold"], mistake["predicted"]), (pairs[place][1], texts[place]))
        self.check_predictions(run_dir, model, tokenizer, [source for source, _ in pairs], texts)

    def check_predictions(self, run_dir, model, tokenizer, sources, texts):
        """Predictions and exports write the same texts, with the prefix and the decoding options of the run."""
        records = tfzoo.pipeline(run_dir)(sources)
        self.assertEqual(records, [{"generated_text": text} for text in texts])
        decoding = dict(search=answers.search_of(model), max_new_tokens=answers.new_tokens_of(model, 24))
        self.assertEqual(decoding, {"search": {"num_beams": 2}, "max_new_tokens": 16})
        answer = answers.find(model, tokenizer, answers.Options(24, prompt="say: ", **decoding))
        self.assertEqual(answer.facts()["prompt"], "say: ")
        row = answer.row(sources[:1])  # As golden.npz is computed.
        self.assertEqual(row.ids, encode_prompts(model, tokenizer, [f"say: {sources[0]}"])[0])

    @pytest.mark.faults
    def test_export(self):
        """The artifacts are replayed, and the SavedModel writes the same texts as the run."""
        run_dir, exports = folder / "exported", folder / "exports"
        self.train(run_dir)
        code, _, err = helpers.run(export, f"--model_dir={run_dir}", f"--output_dir={exports}")
        self.assertEqual(code, 0, err)
        sources = [line.split("\t")[0] for line in (folder / "dev.tsv").read_text().splitlines()[1:]]
        artifact = exports / "savedmodel" / "transformer" / "1"
        self.assertIn("translation", (artifact / "README.md").read_text())
        self.assertEqual(tfzoo.pipeline(artifact)(sources), tfzoo.pipeline(run_dir)(sources))
        self.assertEqual(helpers.run(convert, f"--from={run_dir}", f"--to={folder / 'saved'}")[0], 0)
        name = "generation_config.json"
        self.assertEqual(json.loads((folder / "saved" / name).read_text()), json.loads((run_dir / name).read_text()))


def import_all():
    """Imports what the runs need, once; see tests.worlds."""
    from tfzoo.training import loop, step, task_inputs

    assert all((loop, step, task_inputs))


if __name__ == "__main__":
    tf.test.main()
