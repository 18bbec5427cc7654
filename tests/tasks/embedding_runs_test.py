"""Whole runs of similarity, embed and rerank: files, evaluation, resume, initialization, saved folders, user errors."""

import json
import pathlib
import random
import unittest

import numpy as np
import pytest

import tfzoo
from tests import helpers, tiny_run
from tests.stopped_command import stop_after
from tests.tasks import small
from tfzoo import convert, evaluate, train
from tfzoo.errors import UserError
from tfzoo.evaluation import scores
from tfzoo.tasks.rerank import Rerank
from tfzoo.training import TrainConfig, Trainer, runs

GOLDEN = pathlib.Path(__file__).parents[1] / "assets" / "golden_sentence"


def sentence(draw, label):
    words = draw.choices(small.NEUTRAL, k=draw.randint(1, 4)) + draw.choices(small.WORDS[label], k=2)
    draw.shuffle(words)
    return " ".join(words)


def write(path, header, row, count, seed=0):
    """Writes a .tsv of `count` rows, which `row` draws."""
    draw = random.Random(seed)
    path.write_text("\n".join("\t".join(cells) for cells in [header, *(row(draw) for _ in range(count))]) + "\n")
    return path


def pair(draw):
    """Two texts, and how many of them are good."""
    labels = draw.choices(("good", "bad"), k=2)
    return sentence(draw, labels[0]), sentence(draw, labels[1]), str(5 * (labels[0] == labels[1]))


def triple(draw):
    """A text, one of the same kind, and one of the other."""
    label, other = draw.sample(("good", "bad"), 2)
    return sentence(draw, label), sentence(draw, label), sentence(draw, other)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def write(self, name, header, row, count=48, seed=0):
        return write(self.folder / name, header, row, count, seed)

    def train(self, name, **flags):
        """Trains a run in a folder, and returns the folder and what was printed."""
        values = {"validation_file": None} | flags
        code, out, err = helpers.run(train, *small.flags(self.folder, **values), f"--run_dir={self.folder / name}")
        self.assertEqual(code, 0, err[-2000:])
        return self.folder / name, out + err

    def evaluate(self, run, file, **flags):
        """Returns the record that tfzoo.evaluate writes, and what it printed."""
        argv = [f"--model_dir={run}", f"--test_file={file}", *(f"--{name}={value}" for name, value in flags.items())]
        code, out, err = helpers.run(evaluate, *argv)
        self.assertEqual(code, 0, err[-2000:])
        return json.loads((run / f"evaluation-{file.stem}.json").read_text()), out

    def error(self, **flags):
        argv = [*small.flags(self.folder, **{"validation_file": None} | flags), f"--run_dir={self.folder / 'refused'}"]
        code, _, err = helpers.run(train, *argv)
        self.assertEqual(code, 2, err[-2000:])
        return err.strip().splitlines()[-1]


class SimilarityRunTest(Case):
    def test_from_a_sentence_transformers_folder_and_back(self):
        """Prompts that are not pooled, several poolings, no normalization: all of that goes from folder to folder."""
        header = ("sentence1", "sentence2", "score")
        short = self.write("train.tsv", header, lambda draw: [text[:14].strip() for text in pair(draw)])
        file = self.write("test.tsv", header, lambda draw: [text[:14].strip() for text in pair(draw)], 11, seed=5)
        flags = dict(task="similarity", train_file=short, validation_file=file, init_from=GOLDEN / "roberta")
        flags |= dict(model=None, overrides="dropout=0,attention_dropout=0", vocab_size=None, sequence_length=38)
        run, printed = self.train("run", **flags)
        self.assertIn("Pearson correlation", printed)
        self.assertIn("TF-IDF cosine", printed)
        entry = json.loads((run / "config.json").read_text())["models"]["main"]
        self.assertEqual(entry["embed"]["pooling"], ["weighted_mean", "first", "max", "last"])
        self.assertEqual((entry["embed"]["layers"], entry["embed"]["include_prompt"]), ([], False))
        self.assertEqual((entry["sentence"]["max_length"], entry["sentence"]["default_prompt_name"]), (38, "query"))

        # The answers of an evaluation are those of the vectors that embed_texts returns.
        record, out = self.evaluate(run, file)
        self.assertEqual(
            (record["task"], record["rows"], list(record["baselines"])), ("similarity", 11, ["tfidf", "linear"])
        )
        model, tokenizer = tfzoo.load(run)
        rows = [line.split("\t") for line in file.read_text().splitlines()[1:]]

        def cosines(model, tokenizer):
            first, second = (tfzoo.embed_texts(model, [row[i] for row in rows], tokenizer) for i in range(2))
            return np.sum(first * second, 1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)

        wanted = scores.regression([float(row[2]) for row in rows], cosines(model, tokenizer))
        self.assertAlmostEqual(record["scores"]["pearson"]["value"], wanted["pearson"], places=5)
        worst = record["mistakes"][0]
        self.assertIn([worst["text"], worst["text_pair"]], [row[:2] for row in rows])
        self.assertIn(f"{worst['gold']}, but predicted {worst['predicted']}", out)

        saved = self.folder / "saved"
        self.assertEqual(helpers.run(convert, f"--from={run}", f"--to={saved}")[0], 0)
        pooling = json.loads((saved / "1_Pooling" / "config.json").read_text())
        self.assertEqual(pooling["pooling_mode"], ["weightedmean", "cls", "max", "lasttoken"])
        again, its_tokenizer = tfzoo.load(saved)
        np.testing.assert_allclose(cosines(again, its_tokenizer), cosines(model, tokenizer), atol=1e-6)
        self.assertEqual(again.record.sentence.max_length, 38)
        self.assertEqual(dict(again.record.sentence.prompts), dict(model.record.sentence.prompts))

    @pytest.mark.faults
    def test_dense_layers_after_the_pooling_are_loaded_from_a_folder_and_from_a_run(self):
        header = ("sentence1", "sentence2", "score")
        short = self.write("train.tsv", header, lambda draw: [text[:14].strip() for text in pair(draw)])
        flags = dict(task="similarity", train_file=short, model=None, overrides="dropout=0,attention_dropout=0")
        flags |= dict(vocab_size=None, init_from=GOLDEN / "bert", sequence_length=22, steps=1)
        flags |= dict(similarity_loss="mse", score_range="0,5")
        run, printed = self.train("dense", **flags)
        self.assertRegex(printed, r"new +none\n")
        _, printed = self.train("again", **flags | {"init_from": run})
        self.assertRegex(printed, r"new +none\nunused +none\n")

    def test_user_errors(self):
        header, flags = ("sentence1", "sentence2", "score"), dict(task="similarity")
        file = self.write("train.tsv", header, pair)
        message = self.error(**flags, train_file=file, similarity_loss="mse", score_range="1,4")
        self.assertIn("--score_range=1,4: the scores of --train_file are from 0 to 5; widen", message)
        equal = self.write("equal.tsv", header, lambda draw: [*pair(draw)[:2], "3"])
        message = self.error(**flags, train_file=equal)
        self.assertIn("all scores are 3; provide pairs with different scores", message)
        file = self.write("triples.tsv", ("a", "b", "c", "score"), lambda draw: [*triple(draw), "1"])
        message = self.error(**flags, train_file=file, text_column="a", pair_column="b,c")
        self.assertIn("has 3 texts in a row; specify one --pair_column", message)


class EmbedRunTest(Case):
    def config(self, name, **values):
        file = self.folder / "train.tsv"
        if not file.exists():
            self.write("train.tsv", ("query", "positive", "negative"), triple, 90)
        # The default of --warmup_steps depends on the number of rows.
        options = dict(accumulation=2, symmetric=True, matryoshka_sizes="4", query_prompt='"Q "', warmup_steps=None)
        flags = small.flags(self.folder, task="embed", validation_file=None, train_file=file, **options, **values)
        named = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        path = self.folder / f"{name}.cfg"
        path.write_text("\n".join(f"--{flag}={value}" for flag, value in named.items()) + "\n")
        return TrainConfig.read(path, str(self.folder / name))

    def run_to(self, name, stop_at=0):
        trainer = Trainer(self.config(name), callbacks=[stop_after(stop_at)])
        code, out, _ = helpers.captured(lambda _: trainer.run())
        self.assertEqual(code, 3 if stop_at else 0)
        return trainer, out

    @pytest.mark.faults
    def test_a_stopped_run_resumes_as_the_same_run_and_search_finds_the_positives(self):
        _, printed = self.run_to("whole")
        self.run_to("parts", stop_at=4)
        self.run_to("parts")
        whole, parts = (tiny_run.measured(self.folder / name) for name in ("whole", "parts"))
        self.assertEqual(whole, parts)
        self.assertIn((6, "ndcg_10/4"), whole)
        for text in ("nDCG@10", "BM25", "recall@10"):
            self.assertIn(text, printed)
        run = self.folder / "whole"
        sentence = json.loads((run / "config.json").read_text())["models"]["main"]["sentence"]
        self.assertEqual(sentence["prompts"], {"query": "Q "})

        # The ranking of an evaluation, from vectors of embed_texts. This file has no negatives.
        file = self.write("test.tsv", ("query", "positive"), lambda draw: triple(draw)[:2], 9, seed=7)
        record, _ = self.evaluate(run, file)
        self.assertEqual((record["rows"], list(record["baselines"])), (9, ["bm25"]))
        queries, documents = zip(*(line.split("\t") for line in file.read_text().splitlines()[1:]), strict=True)
        model, tokenizer = tfzoo.load(run)
        first = tfzoo.embed_texts(model, queries, tokenizer, prompt_name="query")
        second = tfzoo.embed_texts(model, documents, tokenizer, prompt_name="document")
        ranks = [int(np.sum(row > row[i])) + 1 for i, row in enumerate(first @ second.T)]
        self.assertAlmostEqual(record["scores"]["mrr"]["value"], float(np.mean([1 / rank for rank in ranks])), places=6)
        for mistake in record["mistakes"]:
            self.assertIn(mistake["text"], queries)
            self.assertEqual(mistake["gold"], documents[queries.index(mistake["text"])])
            self.assertIn(mistake["predicted"], documents)
            self.assertNotIn("text_pair", mistake)

    def test_sizes_must_be_smaller_than_the_vector(self):
        file = self.write("train.tsv", ("query", "positive"), lambda draw: triple(draw)[:2])
        message = self.error(task="embed", train_file=file, matryoshka_sizes="4,16")
        self.assertIn("--matryoshka_sizes=4,16: 16 is not smaller than a vector (16); omit it", message)


class RerankRunTest(Case):
    def test_triples_train_and_labelled_pairs_test(self):
        file = self.write("train.tsv", ("query", "positive", "negative"), triple, 60)
        run, printed = self.train("run", task="rerank", train_file=file)
        self.assertIn("nDCG@10", printed)
        entry = json.loads((run / "config.json").read_text())
        self.assertEqual((entry["task"]["problem_type"], entry["models"]["main"]["num_labels"]), ("regression", 1))
        test = self.folder / "test.tsv"
        lines = [line.split("\t") for line in file.read_text().splitlines()[1:9]]
        pairs = [(query, text, str(int(i == 0))) for query, *texts in lines for i, text in enumerate(texts)]
        test.write_text("".join("\t".join(cells) + "\n" for cells in [("query", "passage", "label"), *pairs]))
        record, _ = self.evaluate(run, test)
        self.assertEqual((record["rows"], record["baselines"]["majority"]), (16, {"accuracy": 0.5}))

        # The same rows as triples have the same scores.
        triples = self.folder / "triples.tsv"
        triples.write_text("\n".join(file.read_text().splitlines()[:9]) + "\n")
        other, _ = self.evaluate(run, triples)
        self.assertEqual((other["rows"], other["scores"]), (8, record["scores"]))
        for mistake in other["mistakes"]:
            row = next(line for line in lines if line[0] == mistake["text"])
            self.assertEqual(mistake["text_pair"], row[1 if mistake["gold"] == "relevant" else 2])
        model, tokenizer = runs.load(run)
        self.assertEqual((model.problem_type, model.head_names), ("regression", ("classify",)))

    def test_other_labels_and_one_kind_of_passages(self):
        file = self.write("train.tsv", ("query", "passage", "label"), lambda draw: [*pair(draw)[:2], "2"])
        self.assertIn(
            "train.tsv:2: the label 2 is neither 0 nor 1; correct it", self.error(task="rerank", train_file=file)
        )
        file = self.write("train.tsv", ("query", "passage", "label"), lambda draw: [*pair(draw)[:2], "1"])
        self.assertIn("all passages are relevant; provide", self.error(task="rerank", train_file=file))
        with self.assertRaisesRegex(UserError, "--pair_column"):
            Rerank.open_file(Rerank.Options(text_column="query", pair_column="nothing"), file, "train_file", "strict")


if __name__ == "__main__":
    unittest.main()
