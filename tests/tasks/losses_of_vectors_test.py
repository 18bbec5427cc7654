"""Losses and figures of similarity, embed and rerank, compared with formulas in numpy and with scikit-learn."""

import csv
import itertools
import math
import os
import pathlib
import unittest

import numpy as np
import tensorflow as tf
from sklearn import metrics

from tests import helpers
from tfzoo.config import EmbeddingConfig, Projection
from tfzoo.errors import UserError
from tfzoo.evaluation import scores
from tfzoo.models import bert, gpt2
from tfzoo.models.record import SentenceRecord
from tfzoo.tasks import rerank, similarity
from tfzoo.tasks.embed import Embed
from tfzoo.tasks.similarity import Similarity

SPECIALS = ["<s>", "</s>", "<pad>"]


def made(task, page=bert, length=32, **options):
    tokenizer = helpers.byte_tokenizer(SPECIALS, bos="<s>", cls="<s>", sep="</s>", pad="<pad>")
    return task(tokenizer, length, page=page, **options)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


class SimilarityTest(unittest.TestCase):
    def setUp(self):
        draw = np.random.default_rng(0)
        self.vectors = draw.normal(size=(7, 2, 5)).astype(np.float32)
        self.label = np.array([0, 5, 2, 2, 3.5, 1, 5], np.float32)
        self.cosine = np.sum(unit(self.vectors[:, 0]) * unit(self.vectors[:, 1]), -1)

    def loss(self, task):
        return [float(x) for x in task.batch_loss(tf.constant(self.vectors), {"label": tf.constant(self.label)})]

    def test_cosent(self):
        total = 1.0
        for i, j in itertools.product(range(7), repeat=2):
            if self.label[i] > self.label[j]:
                total += math.exp((self.cosine[j] - self.cosine[i]) / 0.1)
        loss, weight = self.loss(made(Similarity, temperature=0.1))
        self.assertAlmostEqual(loss, math.log(total), places=5)
        self.assertEqual(weight, 1)
        self.label[:] = 2
        self.assertEqual(self.loss(made(Similarity))[0], 0)

    def test_mse_of_scaled_scores(self):
        task = made(Similarity, similarity_loss="mse", score_range="0,5")
        loss, weight = self.loss(task)
        self.assertAlmostEqual(loss, float(np.sum((self.cosine - self.label / 5) ** 2)), places=5)
        self.assertEqual(weight, 7)

    def test_figures_ignore_the_scale(self):
        predictions = {"vectors": self.vectors, "label": self.label, "number": np.arange(7)}
        task = made(Similarity)
        outcome = task.outcome(predictions)
        figures = task.score_rows(outcome)()
        self.assertEqual(list(figures), ["pearson", "spearman"])
        self.assertAlmostEqual(figures["pearson"], np.corrcoef(self.cosine, self.label)[0, 1], places=6)
        slope, offset = np.polyfit(self.cosine, self.label, 1)
        worst = np.argmax(np.abs(slope * self.cosine + offset - self.label))
        mistake = task.mistakes(outcome, 3)[0]
        self.assertEqual((mistake["number"], mistake["gold"]), (worst, f"{self.label[worst]:.3f}"))
        self.assertAlmostEqual(float(mistake["predicted"]), slope * self.cosine[worst] + offset, places=3)

    def test_the_baseline_of_tf_idf(self):
        train = [("the cat sat", "a dog"), ("two cats", "the end")]
        found = similarity.tfidf_cosines(train, [("a cat", "a cat"), ("cat", "dog"), ("zzz", "a cat")])
        np.testing.assert_allclose(found, [1, 0, 0], atol=1e-12)
        np.testing.assert_array_equal(similarity.tfidf_cosines([("", ""), (" ", "")], [("a", "a")]), [0])

    @unittest.skipUnless("TFZOO_DATA" in os.environ, "TFZOO_DATA is not set")
    def test_the_baseline_on_stsb(self):
        """The correlation with a script of its own was 0.7207."""
        columns = {}
        for part in ("train", "test"):
            path = pathlib.Path(os.environ["TFZOO_DATA"], "stsb-multi", f"stsb-en-{part}.csv")
            with open(path, newline="", encoding="utf-8") as file:
                columns[part] = list(csv.reader(file))
        pairs = {part: [(first, second) for first, second, _ in rows] for part, rows in columns.items()}
        found = similarity.tfidf_cosines(pairs["train"], pairs["test"])
        gold = [float(row[2]) for row in columns["test"]]
        self.assertAlmostEqual(np.corrcoef(found, gold)[0, 1], 0.7207, places=4)

    def test_errors(self):
        for options, message in (
            (dict(score_range="5,0", similarity_loss="mse"), "--score_range=5,0: must be two numbers"),
            (dict(score_range="0,5"), "--score_range=0,5: applies to --similarity_loss=mse"),
            (dict(pooling="mean,firts"), "--pooling=mean,firts: 'firts' is not one of .*did you mean first"),
            (dict(pooling="pooled"), "'pooled' is not one of first, last, mean"),
        ):
            with self.assertRaisesRegex(UserError, message):
                made(Similarity, **options)


class EmbedTest(unittest.TestCase):
    def setUp(self):
        draw = np.random.default_rng(1)
        self.vectors = draw.normal(size=(6, 3, 8)).astype(np.float32)
        self.keys = np.arange(18).reshape(6, 3)

    def expected(self, temperature=0.05, symmetric=False, sizes=(8,)):
        """The formula of the module's docstring, row by row."""
        total, keys = 0.0, self.keys
        for size in sizes:
            v = unit(self.vectors[..., :size])
            for i in range(6):
                logits = [v[i, 0] @ v[i, 1] / temperature]
                positives = {keys[j, 1] for j in range(6) if keys[j, 0] == keys[i, 0]}
                for j in range(6):
                    for k in (1, 2):
                        copy = keys[j, k] in (keys[i, 0], keys[i, 1])
                        if (j, k) != (i, 1) and not copy and not (k == 1 and keys[j, k] in positives):
                            logits.append(v[i, 0] @ v[j, k] / temperature)
                loss = np.log(np.exp(logits).sum()) - logits[0]
                if symmetric:
                    logits = [v[i, 1] @ v[i, 0] / temperature]
                    for j in range(6):
                        copy = keys[j, 0] in (keys[i, 0], keys[i, 1]) or keys[j, 1] == keys[i, 1]
                        if j != i and not copy:
                            logits.append(v[i, 1] @ v[j, 0] / temperature)
                    loss = (loss + np.log(np.exp(logits).sum()) - logits[0]) / 2
                total += loss
        return total

    def loss(self, **options):
        batch = {"keys": tf.constant(self.keys)}
        return [float(x) for x in made(Embed, **options).batch_loss(tf.constant(self.vectors), batch)]

    def test_in_batch_negatives(self):
        loss, weight = self.loss()
        self.assertAlmostEqual(loss, self.expected(), places=3)
        self.assertEqual(weight, 6)
        self.assertAlmostEqual(self.loss(temperature=0.5)[0], self.expected(0.5), places=4)
        symmetric = self.loss(symmetric=True)[0]
        self.assertAlmostEqual(symmetric, self.expected(symmetric=True), places=3)
        self.assertGreater(abs(symmetric - loss), 0.1)

    def test_copies_are_not_negatives(self):
        before = self.expected(symmetric=True)
        self.keys[3, 0] = self.keys[0, 0]  # A text with two positives.
        self.keys[4, 1] = self.keys[1, 1]  # A positive of two texts.
        self.keys[5, 2] = self.keys[2, 1]  # A negative that is the positive of another text,
        self.keys[4, 2] = self.keys[2, 0]  # and one that is a copy of a text.
        wanted = self.expected(symmetric=True)
        self.assertGreater(before - wanted, 0.1)
        self.assertAlmostEqual(self.loss(symmetric=True)[0], wanted, places=3)

    def test_matryoshka_adds_the_losses_of_prefixes(self):
        self.assertAlmostEqual(self.loss(matryoshka_sizes="2,4")[0], self.expected(sizes=(2, 4, 8)), places=3)
        with self.assertRaisesRegex(UserError, "--matryoshka_sizes=2,x: must be whole numbers"):
            made(Embed, matryoshka_sizes="2,x")

    def test_ranks_of_positives_in_the_corpus_of_the_file(self):
        # Texts 0 and 2 are copies with the positives A and B; text 1 is also the negative of row 2.
        keys = np.array([[1, 10, 20], [2, 11, 21], [1, 12, 2]])
        texts = {1: [1, 0, 0], 2: [0, 1, 0], 10: [0.9, 0, 1], 11: [0, 0.5, 1], 12: [1, 0, 0], 20: [1, 0, 0.1]}
        texts |= {21: [0, 1, 0.5]}
        vectors = np.array([[texts[key] for key in row] for row in keys], np.float32)
        vectors *= 3  # The lengths of vectors do not matter.
        task = made(Embed, matryoshka_sizes="2")
        outcome = task.outcome({"keys": keys, "vectors": vectors, "number": np.array([4, 5, 6])})
        # Cosines of text 0 with 12, 20, 10: 1, 0.995, 0.669. Of text 1 with its own copy 2: 1, but it is left out, with
        # 21, 11: 0.894, 0.447.
        self.assertEqual(outcome["ranks"][0].tolist(), [3, 1])
        self.assertEqual(outcome["ranks"][2].tolist(), [3, 1])
        self.assertEqual(outcome["ranks"][1, 0], 2)
        self.assertTrue(np.isnan(outcome["ranks"][1, 1]))
        self.assertEqual(outcome["wrong"].tolist(), [[4, 2], [5, 2], [4, 2]])
        self.assertAlmostEqual(outcome["score"][0], 1 / math.sqrt(1.01), places=5)
        figures = task.score_rows(outcome)()
        ideal = 1 + 1 / math.log2(3)
        two, one = (1 + 1 / 2) / ideal, 1 / math.log2(3)
        self.assertAlmostEqual(figures["ndcg_10"], (two + one + two) / 3)
        self.assertAlmostEqual(figures["recall_1"], 1 / 3)
        self.assertAlmostEqual(figures["recall_5"], 1)
        self.assertAlmostEqual(figures["mrr"], (1 + 1 / 2 + 1) / 3)
        # In two numbers, 10, 12 and 20 have the cosine 1 with text 0, 11 and 21 with text 1: the first is the first.
        self.assertAlmostEqual(figures["ndcg_10/2"], (ideal / ideal + 1 + ideal / ideal) / 3)
        self.assertEqual(
            task.mistakes(outcome, 5),
            [{"number": 5, "texts": (0,), "gold_at": (5, 1), "predicted_at": (5, 2), "score": outcome["score"][1]}],
        )

    def test_prompts_of_the_folder_and_of_flags(self):
        sentence = SentenceRecord(prompts={"query": "q: ", "other": "o"}, lowercase=True, max_length=512)
        task = made(Embed, sentence=sentence, document_prompt="d: ")
        self.assertEqual(task.sentence.prompts, {"query": "q: ", "document": "d: ", "other": "o"})
        self.assertEqual([wording.worded_text("Ab") for wording in task._wordings], ["q: ab", "d: ab"])
        self.assertEqual((task.sentence.max_length, task.sentence.similarity), (32, "cosine"))


class EmbeddingTest(unittest.TestCase):
    """How vectors are computed, from --init_from and flags."""

    def of(self, source=None, page=bert, **options):
        embed = made(Similarity, page=page, embed=source, **options).embed
        return embed.pooling, embed.layers

    def test_defaults_and_flags(self):
        dense = Projection(4, "tanh")
        source = EmbeddingConfig(pooling=("first", "max"), layers=("normalize", dense), pooler=True)
        self.assertEqual(self.of(), (("mean",), ("normalize",)))
        self.assertEqual(self.of(page=gpt2), (("last",), ("normalize",)))
        self.assertEqual(self.of(normalize=False, pooling="first,mean"), (("first", "mean"), ()))
        self.assertEqual(self.of(source), (("first", "max"), ("normalize", dense)))
        self.assertEqual(self.of(source, normalize=True), (("first", "max"), ("normalize", dense, "normalize")))
        self.assertEqual(self.of(source, normalize=False, pooling="last"), (("last",), (dense,)))
        self.assertEqual(self.of(EmbeddingConfig()), (("mean",), ()))
        self.assertFalse(made(Similarity, embed=source).embed.pooler)


class RerankTest(unittest.TestCase):
    def test_average_precision_is_that_of_scikit_learn_also_in_resamples(self):
        draw = np.random.default_rng(3)
        relevant, answers = draw.random(40) < 0.3, draw.integers(0, 12, 40).astype(float)  # With ties.
        weights = draw.integers(0, 3, (5, 40))
        found = scores.average_precision(relevant, answers, weights)
        for row, value in zip(weights, found, strict=True):
            chosen = np.repeat(np.arange(40), row)
            self.assertAlmostEqual(value, metrics.average_precision_score(relevant[chosen], answers[chosen]))
        self.assertEqual(scores.average_precision(np.zeros(3, bool), np.arange(3.0), np.ones((1, 3)))[0], 0)

    def test_passages_are_ranked_for_each_query_with_both_kinds(self):
        query = np.array([0, 1, 0, 0, 1, 2])
        label = np.array([1, 0, 0, 1, 1, 1]) > 0  # Query 2 has only a relevant passage.
        answer = np.array([0.5, 2.0, 1.0, -1.0, 3.0, -2.0])
        rows = rerank.ranking_rows(query, label, answer)
        figures = rows()
        # Query 0: ranks 2 and 3 of 3. Query 1: rank 1.
        first = (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3))
        self.assertAlmostEqual(figures["mrr"], (1 / 2 + 1) / 2)
        self.assertAlmostEqual(figures["ndcg_10"], (first + 1) / 2)
        self.assertAlmostEqual(figures["accuracy"], 2 / 6)
        self.assertAlmostEqual(figures["average_precision"], metrics.average_precision_score(label, answer))
        resample = rows(np.array([0, 0, 1]))
        self.assertAlmostEqual(resample["mrr"], (1 / 2 + 1 / 2 + 1) / 3)
        self.assertAlmostEqual(resample["accuracy"], (1 + 1 + 1) / 8)
        with self.assertRaisesRegex(UserError, "no query of the file has both relevant and other passages"):
            rerank.ranking_rows(np.array([0, 1]), np.array([True, False]), np.array([1.0, 2.0]))


if __name__ == "__main__":
    unittest.main()
