"""The task respond: candidates, ranks and baselines by hand, and a whole run."""

import json
import math
import random
import types
import unittest

import numpy as np

import tfzoo
from tests import helpers
from tests.tasks import small
from tests.tasks.fakes import rows_of
from tfzoo import evaluate, train
from tfzoo.data.responses import Response
from tfzoo.errors import UserError
from tfzoo.models import bert
from tfzoo.tasks import respond
from tfzoo.tasks.respond import Respond, draw_candidates


def task(**options):
    tokenizer = helpers.byte_tokenizer(["<s>", "</s>", "<pad>"], bos="<s>", cls="<s>", sep="</s>", pad="<pad>")
    return Respond(tokenizer, 32, page=bert, **options)


class CandidatesTest(unittest.TestCase):
    def test_they_are_different_and_wrong_but_one(self):
        contexts = ["c0", *(f"c{i}" for i in range(60))]  # Two rows have one context, and both answers are right.
        answers = ["a0", *(f"a{i % 20}" for i in range(1, 61))]
        found = draw_candidates(contexts, answers, 10)
        for i, rows in enumerate(found):
            texts = [answers[row] for row in rows]
            self.assertEqual((len(rows), len({*texts})), (10, 10))
            self.assertIn(i, rows.tolist())
            right = {answer for context, answer in zip(contexts, answers) if context == contexts[i]}
            self.assertEqual({*texts} & right, {answers[i]})
        again = draw_candidates(contexts, answers, 10)
        self.assertEqual([rows.tolist() for rows in found], [rows.tolist() for rows in again])
        places = [rows.tolist().index(i) for i, rows in enumerate(found)]
        self.assertEqual({*places}, {*range(10)})
        # The draw of a row depends on its number alone: further rows with other answers change which are drawn, but
        # numbers in place of texts do not.
        ids = {text: number for number, text in enumerate(dict.fromkeys(contexts + answers))}
        numbers = draw_candidates([ids[text] for text in contexts], [ids[text] for text in answers], 10)
        self.assertEqual([rows.tolist() for rows in numbers], [rows.tolist() for rows in found])

    def test_fewer_answers_than_candidates(self):
        self.assertEqual([sorted(rows) for rows in draw_candidates("abc", "xyx", 10)][1], [0, 1])
        with self.assertRaisesRegex(UserError, "^respond: .* have a single answer; provide conversations with others"):
            draw_candidates("ab", "xx", 10)


class RespondTest(unittest.TestCase):
    def test_rows(self):
        made = task()
        rows = rows_of(made, Response("f:1", ("Any news?\nHi", "None."), ("Hi", "Any news?", "None.")))
        batch = made.batch(rows, np.array([0]), 16)
        self.assertEqual({*batch}, {*made.signature(rows)})
        texts = [batch[f"{prefix}token_ids"][0, 0][batch[f"{prefix}padding_mask"][0, 0]] for prefix in made.PREFIXES]
        read = [made._tokenizer.detokenize([ids])[0].numpy().decode() for ids in texts]
        self.assertEqual(read, ["Any news?\nHi", "None."])

    def test_scores_by_hand(self):
        # Answers a, b, c in the directions of the axes; the contexts of rows 0 and 2 are nearest to a and b.
        vectors = np.array([[[3, 1, 0], [1, 0, 0]], [[0, 1, 2], [0, 2, 0]], [[0, 3, 2], [0, 0, 1]]], np.float32)
        keys = np.array([[10, 1], [11, 2], [12, 3]])
        made = task(candidates=3, matryoshka_sizes="2")
        outcome = made.outcome({"vectors": vectors, "keys": keys, "number": np.array([4, 7, 9])})
        self.assertEqual(outcome["ranks"].tolist(), [[1], [2], [2]])
        self.assertEqual(outcome["wrong"].tolist(), [[7, 1], [9, 1], [7, 1]])
        self.assertAlmostEqual(outcome["score"][1], 2 / math.sqrt(5), places=6)
        figures = made.score_rows(outcome)()
        self.assertEqual([*figures], ["recall_1", "recall_2", "mrr", "recall_1/2"])
        self.assertAlmostEqual(figures["recall_1"], 1 / 3)
        self.assertAlmostEqual(figures["recall_2"], 1)
        self.assertAlmostEqual(figures["mrr"], (1 + 1 / 2 + 1 / 2) / 3)
        mistakes = made.mistakes(outcome, 5)
        self.assertEqual([each["number"] for each in mistakes], [7, 9])
        self.assertEqual((mistakes[0]["gold_at"], mistakes[0]["predicted_at"]), ((7, 1), (9, 1)))

    def test_baselines(self):
        pairs = [("what is a cat", "a cat is an animal"), ("and the rose", "roses are red"), ("the sky", "blue sky")]
        rows = [Response("f:1", pair, pair) for pair in pairs]
        file = types.SimpleNamespace(rows=lambda: iter(rows))
        found = task(candidates=3).file_baselines(file, file)
        self.assertEqual({*found}, {"bm25", "tfidf"})
        self.assertEqual(found["tfidf"], {"recall_1": 1.0, "recall_2": 1.0, "recall_5": 1.0, "mrr": 1.0})
        # "rose" is not the word "roses": all candidates of row 1 have the score 0, and the first one is the first.
        place = draw_candidates(*zip(*pairs), 3)[1].tolist().index(1)
        self.assertAlmostEqual(found["bm25"]["mrr"], (2 + 1 / (place + 1)) / 3)

    def test_columns_do_not_apply(self):
        with self.assertRaisesRegex(UserError, "^--text_column=x: does not apply to conversations"):
            Respond.open_file(respond.Options(text_column="x"), "none", "train_file", "strict")


def write(path, count, seed):
    """Writes conversations whose answers have words of the kind of the last question."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            listed = []
            for _ in range(2):
                kind = draw.choice(("good", "bad"))
                for role in ("user", "assistant"):
                    text = " ".join(draw.choices(small.NEUTRAL, k=2) + draw.choices(small.WORDS[kind], k=2))
                    listed.append({"role": role, "content": text})
            file.write(json.dumps({"messages": listed}) + "\n")
    return path


class RunTest(unittest.TestCase):
    def test_train_and_evaluate(self):
        folder = helpers.temporary_folder(self)
        values = dict(task="respond", train_file=write(folder / "train.jsonl", 60, 0), context_messages=1)
        values |= dict(validation_file=None, steps=30, evaluate_every=30, checkpoint_every=30, learning_rate=0.02)
        run = folder / "run"
        code, out, err = helpers.run(train, *small.flags(folder, **values), f"--run_dir={run}")
        self.assertEqual(code, 0, err[-2000:])
        for text in (
            "recall@1 of 10",
            "MRR",
            "TF-IDF cosine",
            "BM25 ranking",
            "a row is an answer and up to 1 messages",
        ):
            self.assertIn(text, out + err)
        test = write(folder / "test.jsonl", 30, 1)
        code, out, err = helpers.run(evaluate, f"--model_dir={run}", f"--test_file={test}")
        self.assertEqual(code, 0, err[-2000:])
        record = json.loads((run / "evaluation-test.json").read_text())
        self.assertEqual((record["task"], record["rows"], record["best_metric"]), ("respond", 60, "recall_1"))
        # The ranks of an evaluation, from vectors of embed_texts.
        rows = list(Respond.open_file(respond.Options(context_messages=1), test, "test_file", "strict").rows())
        contexts, answers = zip(*(row.texts for row in rows), strict=True)
        model, tokenizer = tfzoo.load(run)
        first, second = (tfzoo.embed_texts(model, texts, tokenizer) for texts in (contexts, answers))
        ranks = []
        for i, chosen in enumerate(draw_candidates(contexts, answers, 10)):
            cosines = second[chosen] @ first[i]
            ranks.append(1 + int(np.sum(cosines > cosines[chosen.tolist().index(i)])))
        self.assertAlmostEqual(record["scores"]["recall_1"]["value"], np.mean([rank == 1 for rank in ranks]), places=6)
        self.assertAlmostEqual(record["scores"]["mrr"]["value"], np.mean([1 / rank for rank in ranks]), places=6)
        # Half of the wrong answers are of the other kind.
        self.assertGreater(record["scores"]["mrr"]["value"], record["baselines"]["bm25"]["mrr"])


if __name__ == "__main__":
    unittest.main()
