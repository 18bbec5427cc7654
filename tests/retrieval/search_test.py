"""Exact search compared with sorting all documents in float64, fusion and figures with values computed by hand."""

import json
import math
import re
import unittest
from unittest import mock

import numpy as np

import tfzoo
from tests import helpers
from tests.retrieval import encoders
from tfzoo import query
from tfzoo.errors import CheckFailed, UserError
from tfzoo.prediction import answers, folders, open_domain
from tfzoo.prediction.predictor import Predictor
from tfzoo.prediction.stream import Stream
from tfzoo.retrieval import build, fusion, measures, search
from tfzoo.retrieval.bm25 import BM25

WORDS = "red green blue fox dog cat runs sleeps eats in the house garden street".split()


def reference(similarity: str, queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Returns similarities [Q, N] in float64."""
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    differences = queries[:, None] - vectors
    return {
        "cosine": lambda: queries @ vectors.T / np.linalg.norm(queries, axis=1)[:, None],
        "dot": lambda: queries @ vectors.T,
        "euclidean": lambda: -np.linalg.norm(differences, axis=-1),
        "manhattan": lambda: -np.abs(differences).sum(-1),
    }[similarity]()


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)

    def build(self, texts, name="index", encoder=None, **options):
        """Builds an index of texts with the ids d0, d1, ..., and opens it."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
        build.build(self.folder / name, encoders.plan(path, **options), lambda: encoder or encoders.Encoder())
        return tfzoo.open_index(self.folder / name, encode=encoders.vectors)


def some_texts(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 7))) for _ in range(count)]


class ExactTest(Case):
    def test_equals_sorting_all_documents(self):
        texts = some_texts(120)  # Short texts: many are equal.
        self.assertLess(len({*texts}), 115)
        queries = [f"query {i}" for i in range(5)]
        for similarity in ("cosine", "dot", "euclidean", "manhattan"):
            for dtype in ("float32", "float16"):
                encoder = encoders.Encoder(similarity=similarity)
                index = self.build(texts, f"{similarity}_{dtype}", encoder, dtype=dtype)
                expected = reference(similarity, encoders.vectors(queries), np.array(index.store.vectors))
                if similarity == "cosine" and dtype == "float32":
                    lengths = np.linalg.norm(np.array(index.store.vectors), axis=1)
                    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
                for top in (1, 7, 120, 500):
                    # One block and several, one batch of queries and several.
                    for block, most in ((1 << 14, 256), (13, 2)):
                        with mock.patch.multiple(search, _BLOCK=block, _MOST_QUERIES=most):
                            found = index.search(queries, top=top, method="vectors")
                        for results, scores in zip(found, expected, strict=True):
                            order = np.argsort(-scores.round(12), kind="stable")[:top]
                            self.assertEqual([result.id for result in results], [f"d{i}" for i in order])
                            self.assertEqual([result.rank for result in results], list(range(1, len(order) + 1)))
                            self.assertEqual([result.text for result in results], [texts[i] for i in order])
                            found_scores = [result.score for result in results]
                            np.testing.assert_allclose(found_scores, scores[order], rtol=1e-6, atol=1e-7)

    def test_rounding_of_matrix_products_does_not_decide(self):
        """Two vectors differ by less than float32 products resolve, and the second is better."""
        index = self.build(["a", "b", "c"], encoder=encoders.Encoder(similarity="dot"))
        vectors = np.ones((3, 8), np.float32)
        vectors[1, 0], vectors[2] = 1 + 2**-23, -1
        one = np.array([[1, *[1e4] * 7]], np.float32)
        self.assertEqual(*(one @ vectors[:2].T)[0])  # Equal in float32.
        self.assertLess(*(one.astype(np.float64) @ vectors[:2].T.astype(np.float64))[0])
        index._vectors.vectors = vectors
        index._encode = lambda queries: one
        self.assertEqual([result.id for result in index.search("q", method="vectors", top=1)[0]], ["d1"])

    def test_scores_do_not_depend_on_the_other_queries(self):
        index = self.build(some_texts(50))
        queries = [f"red dog {i}" for i in range(9)]
        together = index.search(queries)
        self.assertEqual([index.search(query)[0] for query in queries], together)

    def test_bm25_returns_documents_with_a_word_in_the_order_of_their_scores(self):
        texts = some_texts(80)
        index = self.build(texts)
        for words in ("red fox", "the house in the street", "cat", "unknown", "?!"):
            scores = BM25.of(texts).scores(words)
            order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
            for top in (1, 5, 200):
                (results,) = index.search([words], top=top, method="bm25")
                self.assertEqual([result.id for result in results], [f"d{i}" for i in order[:top]])
                np.testing.assert_allclose([result.score for result in results], scores[order[:top]], rtol=1e-12)

    def test_what_is_refused(self):
        index = self.build(["red", "green"])
        for words, options in (
            (r"query 2 is blank; write a text", dict(queries=["red", " "])),
            ("top=0: must be at least 1", dict(top=0)),
            ("method=x: must be one of hybrid, vectors, bm25", dict(method="x")),
            ("fusion=x: must be one of weighted, rrf", dict(fusion="x")),
            (r"vector_weight=1.5: must be from 0 to 1", dict(vector_weight=1.5)),
        ):
            with self.assertRaisesRegex(UserError, words):
                index.search(**(dict(queries="red") | options))
        only = self.build(["red", "green"], "only", methods=("bm25",))
        self.assertEqual((index.methods, only.methods), (("hybrid", "vectors", "bm25"), ("bm25",)))
        with self.assertRaisesRegex(UserError, "method=hybrid: .* was built with --method=bm25; use bm25"):
            only.search("red", method="hybrid")
        index._encode = lambda queries: np.full((1, 8), np.nan)
        with self.assertRaises(CheckFailed):
            index.search("red")
        index._encode = lambda queries: np.ones((1, 5))
        with self.assertRaisesRegex(UserError, "have 8 numbers"):
            index.search("red")


class FusionTest(Case):
    def test_weighted_by_hand(self):
        # (0.5 + 1) / (0.8 + 1) = 5/6 of the similarities' range, and 2/4 of BM25's.
        found = fusion.weighted(
            np.array([0.5, 0.8, -1.0]), np.array([2.0, 0.0, 4.0]), lowest=-1, highest=0.8, most=4, weight=0.7
        )
        np.testing.assert_allclose(found, [0.7 * 5 / 6 + 0.3 / 2, 0.7, 0.3], rtol=1e-12)
        found = fusion.weighted(np.array([0.5]), np.zeros(1), lowest=-1, highest=0.8, most=0, weight=0.7)
        np.testing.assert_allclose(found, [0.7 * 5 / 6], rtol=1e-12)

    def test_reciprocal_ranks_by_hand(self):
        documents, scores = fusion.reciprocal_ranks([np.array([4, 2, 9]), np.array([2, 7])])
        self.assertEqual(documents.tolist(), [2, 4, 7, 9])
        np.testing.assert_allclose(scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-12)

    def test_hybrid_equals_the_fusion_of_all_scores(self):
        texts, queries = some_texts(90), ["red fox", "the garden", "nothing known"]
        bm25 = BM25.of(texts)
        for similarity in ("cosine", "dot", "euclidean"):
            index = self.build(texts, similarity, encoders.Encoder(similarity=similarity))
            similarities = reference(similarity, encoders.vectors(queries), np.array(index.store.vectors))
            for weight in (0.0, 0.4, 1.0):
                found = index.search(queries, top=20, vector_weight=weight)
                for words, vectors, results in zip(queries, similarities, found, strict=True):
                    lowest = -1 if similarity == "cosine" else vectors.min()
                    expected = weight * (vectors - lowest) / (vectors.max() - lowest)
                    expected += (1 - weight) * bm25.scores(words) / (bm25.scores(words).max() or 1)
                    order = np.argsort(-expected.round(9), kind="stable")[:20]
                    np.testing.assert_allclose([one.score for one in results], expected[order], rtol=1e-5, atol=1e-7)
                    self.assertEqual([result.id for result in results], [f"d{i}" for i in order])
            for words, vectors, results in zip(queries, similarities, index.search(queries, fusion="rrf"), strict=True):
                scores = bm25.scores(words)
                by_words = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
                expected = np.zeros(90)
                for ranking in (np.argsort(-vectors.round(9), kind="stable"), by_words):
                    for rank, i in enumerate(ranking, 1):
                        expected[i] += 1 / (60 + rank)
                order = np.argsort(-expected, kind="stable")[:10]
                self.assertEqual([result.id for result in results], [f"d{i}" for i in order])


class MeasuresTest(Case):
    def test_by_hand(self):
        figures = measures.figures([["a", "b", "c", "d"]], [["b", "d", "x"]])
        ideal = 1 + 1 / math.log2(3) + 1 / 2
        self.assertEqual((figures["recall@1"], figures["MRR"]), (0, 1 / 2))
        self.assertAlmostEqual(figures["recall@5"], 2 / 3)
        self.assertAlmostEqual(figures["nDCG@10"], (1 / math.log2(3) + 1 / math.log2(5)) / ideal)
        figures = measures.figures([["a", "b"], ["b"]], [["a"], ["x"]])
        self.assertEqual(figures, {"recall@1": 0.5, "recall@5": 0.5, "MRR": 0.5, "nDCG@10": 0.5})

    def test_of_a_command(self):
        self.build(["red fox", "green dog", "blue cat"], methods=("bm25",))
        target, listed = self.folder / "out.jsonl", self.folder / "relevant.tsv"
        listed.write_text("red\td0\ngreen cat\td1\ngreen cat\td2\nfox\td2\n")
        where = f"--index_dir={self.folder / 'index'}"
        code, out, err = helpers.run(query, where, f"--relevant={listed}", f"--output={target}", "--top=1")
        self.assertEqual((code, out), (0, ""), err)
        self.assertIn("3 queries: recall@1 0.5000, recall@5 0.6667, MRR 0.6667, nDCG@10 0.6667 (the first 10", err)
        records = [json.loads(line) for line in target.read_text().splitlines()]
        self.assertEqual([record["query"] for record in records], ["red", "green cat", "fox"])
        self.assertEqual([[one["id"] for one in record["results"]] for record in records], [["d0"], ["d1"], ["d0"]])
        self.assertEqual(sorted(records[0]["results"][0]), ["id", "rank", "score", "text"])
        as_json = self.folder / "relevant.jsonl"
        as_json.write_text('{"query": "red", "relevant": ["d0"]}\n{"query": "red", "relevant": ["d1"]}\n')
        code, out, err = helpers.run(query, where, f"--relevant={as_json}")
        self.assertIn("2 queries: recall@1 0.5000", err)
        code, out, err = helpers.run(query, where, f"--relevant={as_json}", "--query=red")
        self.assertIn("1 queries: recall@1 0.5000, recall@5 0.5000, MRR 1.0000", err)  # Both ids.
        wrong = self.folder / "wrong.jsonl"
        wrong.write_text('{"query": "red", "relevant": []}\n')
        for argv, words in (
            (["--query=a", f"--relevant={as_json}"], "--query: .* does not contain the query 'a'; add it"),
            ([f"--relevant={wrong}"], r"wrong.jsonl:1: 'relevant' is \[\]; write a list"),
            (["--relevant=a.csv"], "--relevant=a.csv: must be a .jsonl or .tsv file"),
            ([], "--query or --input: specify one of them"),
            (["--query= "], "--query: a query is blank; write a text"),
            (["--query=a", "--top=0"], "--top=0: must be at least 1"),
            (["--query=a", "--method=vectors"], "method=vectors: .* use bm25"),
        ):
            code, out, err = helpers.run(query, where, *argv)
            self.assertEqual((code, out), (2, ""), err)
            self.assertRegex(err, rf"\Aerror: .*{words}.*\n\Z")


class Names(Predictor):
    """Answers with the first word of a context that begins with a capital letter; its score is 1 / its length."""

    task, inputs, length = "span", ("question", "context"), 1000

    def answer(self, texts, device=0):
        found = [re.search(r"\b[A-Z]\w*", context) for _, context in texts]
        return [
            answers.spans([answers.part(each[0], *each.span(), 1 / len(each[0]))] if each else [], 0.25)
            for each in found
        ]


class ReaderTest(Case):
    def one(self, passages, weight):
        with Stream(Names()) as stream:
            (found,) = open_domain.read(["who?"], [[open_domain.Passage(*each) for each in passages]], stream, weight)
        return found

    def test_the_answer_with_the_highest_sum(self):
        passages = [("7", "the Annabel ran", 8.0), ("8", "nobody", 6.0), ("9", "the Bo ran", 4.0)]
        # 1/7 and 1; 1/2 and 1/2.
        part = {"answer": "Bo", "start": 4, "end": 6, "score": 0.5, "no_answer": 0.25}
        self.assertEqual(self.one(passages, 0.6), part | {"id": "9", "total": 0.5})
        found = self.one(passages, 0.5)
        self.assertEqual((found["answer"], found["id"]), ("Annabel", "7"))
        self.assertAlmostEqual(found["total"], (1 / 7 + 1) / 2, places=6)
        self.assertEqual(self.one(passages[1:2], 0.5), {"answer": ""})
        self.assertEqual(self.one([], 0.5), {"answer": ""})

    def test_of_a_command(self):
        self.build(["a red fox Bo", "a red dog Annabel", "a blue cat Cy"], methods=("bm25",))
        target, listed = self.folder / "out.jsonl", self.folder / "relevant.jsonl"
        rows = [("red dog", "d1", ["annabel", "x"]), ("blue cat", "d2", ["the Cy!"]), ("red fox", "d0", [])]
        lines = [{"query": query, "relevant": [id], "answers": right} for query, id, right in rows]
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
        flags = [f"--index_dir={self.folder / 'index'}", "--reader=names", f"--output={target}", "--top=1"]
        with mock.patch.object(folders, "open_folder", lambda folder: Names()):
            code, _, err = helpers.run(query, *flags, f"--relevant={listed}", "--read=2", "--reader_weight=0.9")
            self.assertEqual(code, 0, err)
            self.assertIn("3 queries: recall@1 1.0000", err)
            # Annabel is the answer of the best document, but Bo of the second one has the higher sum.
            figures = "exact match 0.3333, f1 0.3333, has answer exact match 0.5000, has answer f1 0.5000, "
            self.assertIn(f"answers of names: {figures}no answer accuracy 0.0000 (rules of squad)", err)
            records = [json.loads(line) for line in target.read_text().splitlines()]
            self.assertEqual([record["answer"] for record in records], ["Bo", "Cy", "Bo"])
            self.assertEqual([record["id"] for record in records], ["d0", "d2", "d0"])
            self.assertEqual([len(record["results"]) for record in records], [1, 1, 1])
            code, _, err = helpers.run(query, *flags, f"--relevant={listed}", "--read=1", "--query=red dog")
            self.assertIn("exact match 1.0000, f1 1.0000 (rules of squad)", err)
            listed.write_text(listed.read_text().replace(', "answers": []', ""))
            code, _, err = helpers.run(query, *flags, f"--relevant={listed}")
            self.assertEqual(code, 2)
            self.assertIn("relevant.jsonl:3: 'answers' is None; write a list of texts", err)
            with mock.patch.object(Names, "task", "tag"):
                code, _, err = helpers.run(query, *flags, "--query=red")
            self.assertEqual(code, 2)
            self.assertIn("--reader=names: its task is tag, which does not answer questions; specify a model", err)


if __name__ == "__main__":
    unittest.main()
