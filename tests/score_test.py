"""Likelihoods compared with a plain computation, windows with a manual formula, and diversity with manual counts."""

import json
import math
import unittest
import unittest.mock

import keras
import numpy as np

import tfzoo
from tests import helpers
from tfzoo import score
from tfzoo.errors import CheckFailed, UserError
from tfzoo.evaluation import diversity, likelihood, windows
from tfzoo.evaluation.ngram import KneserNey
from tfzoo.models.record import FolderRecord
from tfzoo.training import inputs, runs
from tfzoo.training.config import CorpusConfig

SPECIALS = ["<s>", "</s>", "<pad>"]
SIZES = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_positions": 16}


def logs(model, ids, **others):
    """Returns [L, V], the log-probabilities of the token after each token, from one plain call."""
    name = "decoder_token_ids" if others else "token_ids"
    logits = np.asarray(model({name: np.array([ids]), **others})["logits"], np.float64)[0]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


class WindowsTest(unittest.TestCase):
    def test_windows_by_hand(self):
        def of(*how):
            return list(windows.windows(*how))

        self.assertEqual(of(8, 1, 8, 4), [(0, 8, 1)])
        # Nine tokens, windows of 4 with a stride of 2: 0123, 2345, 4567, 678.
        self.assertEqual(of(9, 1, 4, 2), [(0, 4, 1), (2, 6, 4), (4, 8, 6), (6, 9, 8)])
        self.assertEqual(of(9, 1, 4, 3), [(0, 4, 1), (3, 7, 4), (6, 9, 7)])
        # A continuation of two tokens sees the 6 before it.
        self.assertEqual(of(20, 18, 8, 4), [(12, 20, 18)])
        self.assertEqual(of(20, 13, 8, 4), [(12, 20, 13)])
        # A continuation of ten tokens is longer than a window.
        self.assertEqual(of(20, 10, 8, 4), [(4, 12, 10), (8, 16, 12), (12, 20, 16)])

    def test_each_token_once_and_with_something_before_it(self):
        for count in range(2, 30):
            for first in range(1, count):
                for length in range(2, 9):
                    for stride in range(1, length):
                        judged = []
                        for begin, end, start in windows.windows(count, first, length, stride):
                            self.assertLess(begin, start)
                            self.assertLessEqual(end - begin, length)
                            judged += range(start, end)
                        self.assertEqual(judged, list(range(first, count)), (count, first, length, stride))


class Case(unittest.TestCase):  # tf.test.TestCase sets the seed before each test.
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        keras.utils.set_random_seed(3)  # First: it clears TensorFlow's caches, and with them the tokenizers' tables.
        roles = dict(bos="<s>", eos="</s>", cls="<s>", sep="</s>", pad="<pad>")
        cls.tokenizer = helpers.byte_tokenizer(SPECIALS, **roles)
        cls.shared = helpers.temporary_folder(cls)
        cls.model = tfzoo.build("gpt2", vocab_size=259, **SIZES)
        for weight in cls.model.trainable_variables:  # Far from uniform.
            weight.assign(weight + 0.3 * keras.random.normal(weight.shape))

    def ids(self, text):
        return self.tokenizer.tokenize([text]).to_list()[0]


class LikelihoodTest(Case):
    def test_texts_by_a_plain_computation(self):
        texts = ["one two", "你", "ab"]
        found = likelihood.score_texts(self.model, texts, self.tokenizer, batch_size=2)
        for text, one in zip(texts, found, strict=True):
            ids = [0, *self.ids(text)]  # Texts of tfzoo's runs begin with the tokenizer's token for it.
            table = logs(self.model, ids)
            expected = [table[t - 1, ids[t]] for t in range(1, len(ids))]
            self.assertEqual(one.token_ids, ids[1:])
            np.testing.assert_allclose(one.scores, expected, rtol=1e-5, atol=1e-5)
            self.assertEqual(one.likeliest, [int(table[t - 1].argmax()) == ids[t] for t in range(1, len(ids))])
            self.assertAlmostEqual(one.log_likelihood, sum(expected), places=3)
            np.testing.assert_allclose(one.perplexity, np.exp(-np.mean(expected)), rtol=1e-5)
        with unittest.mock.patch.object(self.model, "record", FolderRecord()):  # GPT-2's own texts begin without one.
            (one,) = likelihood.score_texts(self.model, ["ab"], self.tokenizer)
            ids = self.ids("ab")
            np.testing.assert_allclose(one.scores, [logs(self.model, ids)[0, ids[1]]], rtol=1e-5, atol=1e-5)
            with self.assertRaisesRegex(UserError, "text 0 .* is too short"):
                likelihood.score_texts(self.model, ["a"], self.tokenizer)

    def test_past_the_models_length(self):
        text = "a text of more tokens than fit."
        ids = [0, *self.ids(text)]
        self.assertEqual(len(ids), 32)
        for stride in (5, 8):
            expected, done = [], 1
            for begin in range(0, len(ids), stride):
                end = min(begin + 16, len(ids))
                if end > done:
                    table = logs(self.model, ids[begin:end])
                    expected += [table[t - 1 - begin, ids[t]] for t in range(done, end)]
                    done = end
            (one,) = likelihood.score_texts(self.model, [text], self.tokenizer, stride=stride)
            np.testing.assert_allclose(one.scores, expected, rtol=1e-5, atol=1e-5)
        for how, words in ((dict(stride=16), r"stride \(16\)"), (dict(length=17), r"length \(17\)")):
            with self.assertRaisesRegex(UserError, words):
                likelihood.score_texts(self.model, [text], self.tokenizer, **how)

    def test_continuations_of_a_decoder(self):
        contexts, continuations = ["a b ", "c", "", "long context, long context"], ["yes", " no", "x", " y"]
        found = likelihood.score_continuations(self.model, contexts, continuations, self.tokenizer)
        for context, continuation, one in zip(contexts, continuations, found, strict=True):
            head = [0, *self.ids(context.rstrip())]
            ids = [0, *self.ids(context + continuation)]
            begin = max(0, len(ids) - 16)
            table = logs(self.model, ids[begin:])
            expected = [table[t - 1 - begin, ids[t]] for t in range(len(head), len(ids))]
            self.assertEqual(one.token_ids, ids[len(head) :])
            np.testing.assert_allclose(one.scores, expected, rtol=1e-5, atol=1e-5)
        self.assertEqual(found[0].token_ids, self.ids(" yes"))  # The word includes the space before it.
        with self.assertRaisesRegex(UserError, "continuation 0 .* adds no token"):
            likelihood.score_continuations(self.model, ["a"], [""], self.tokenizer)

    def test_continuations_of_encoder_decoders(self):
        for name, sizes, source, start in (
            ("t5_small", dict(head_dim=8, num_decoder_layers=1), ([], [1]), [2]),
            ("bart_base", dict(num_decoder_layers=1), ([0], [1]), [1, 0]),
        ):
            model = tfzoo.build(name, vocab_size=259, **(SIZES | sizes))
            model.record = FolderRecord({"decoder_start_token_id": start[0]})
            for weight in model.trainable_variables:
                weight.assign(weight + 0.3 * keras.random.normal(weight.shape))
            contexts, continuations = ["question", "你"], ["yes", "no"]
            found = likelihood.score_continuations(model, contexts, continuations, self.tokenizer)
            for context, continuation, one in zip(contexts, continuations, found, strict=True):
                ids = [*start, *self.ids(continuation)]
                table = logs(model, ids, token_ids=np.array([source[0] + self.ids(context) + source[1]]))
                expected = [table[t - 1, ids[t]] for t in range(len(start), len(ids))]
                np.testing.assert_allclose(one.scores, expected, rtol=1e-5, atol=1e-5, err_msg=name)
            with self.assertRaisesRegex(UserError, "provide a context and a continuation"):
                likelihood.score_texts(model, ["a"], self.tokenizer)
            with self.assertRaisesRegex(UserError, "continuation 0 has [0-9]+ tokens"):
                likelihood.score_continuations(model, ["a"], ["b" * 20], self.tokenizer)


class CommandTest(Case):
    def run_main(self, *argv):
        with unittest.mock.patch.object(runs, "load", lambda *_: (self.model, self.tokenizer)):
            return helpers.run(score, f"--model_dir={self.shared}", *argv)

    def test_files(self):
        source, target = self.shared / "in.jsonl", self.shared / "out.jsonl"
        source.write_text('{"text": "one"}\n{"text": "two"}\n')
        code, out, err = self.run_main(f"--input={source}", f"--output={target}", "--tokens")
        self.assertEqual((code, out), (0, ""), err)
        records = [json.loads(line) for line in target.read_text().splitlines()]
        expected = likelihood.score_texts(self.model, ["one", "two"], self.tokenizer)
        for record, one in zip(records, expected, strict=True):
            np.testing.assert_allclose(record["log_likelihood"], one.log_likelihood, rtol=1e-5)
            np.testing.assert_allclose(record["perplexity"], math.exp(-one.log_likelihood / 3), rtol=1e-5)
            self.assertEqual("".join(token for token, _ in record["scores"]), record["text"])
        total = sum(one.log_likelihood for one in expected)
        self.assertIn(f"6 tokens, log-likelihood {total:,.2f}"[:-1], err)
        code, out, err = self.run_main("--context=a", "--continuation=b", "--continuation= c")
        self.assertEqual([json.loads(line)["continuation"] for line in out.splitlines()], ["b", " c"])
        self.assertIn("greedy", out)

    def test_what_is_refused_is_one_line(self):
        mixed = self.shared / "mixed.jsonl"
        mixed.write_text('{"context": "a", "continuation": "b"}\n{"text": "one"}\n')
        for argv, words in (
            ([], "specify one of them"),
            (["--text=a", "--input=b"], "--text and --input: are mutually exclusive"),
            (["--context=a", "--text=b"], "must be given together"),
            ([f"--input={mixed}"], "mixed.jsonl:2: has no continuation"),
            (["--input=nowhere"], "--input=nowhere: no such file"),
            (["--text="], "text 0 .* is too short"),
            (["--text=ab", "--stride=16"], "stride"),
        ):
            code, out, err = self.run_main(*argv)
            self.assertEqual((code, out), (2, ""), err)
            self.assertRegex(err, rf"\Aerror: .*{words}.*\n\Z")
        code, _, err = self.run_main("--text=a")
        self.assertEqual(code, 0)
        bad = self.model.trainable_variables[0]
        kept = bad.numpy()
        bad.assign(np.full(kept.shape, np.nan))
        try:
            with self.assertRaises(CheckFailed):
                likelihood.score_texts(self.model, ["ab"], self.tokenizer)
        finally:
            bad.assign(kept)


class NgramCommandTest(Case):
    """Documents of a and b, the last of which are held out."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.corpus = cls.shared / "corpus.txt"
        documents = (f"{number:b}".replace("0", "a").replace("1", "b") for number in range(8, 90))
        cls.corpus.write_text("\n\n".join(documents) + "\n")

    def run_main(self, *argv, ngram=3):
        where = f"--corpus={self.corpus}", f"--cache_dir={self.shared / 'cache'}", "--held_out=0.2"
        return helpers.run(score, f"--ngram={ngram}", *where, "--tokenizer=characters", *argv)

    def expected(self, *texts):
        """Returns the scores of texts; the training part is the start of the file."""
        config = CorpusConfig(
            corpus=str(self.corpus), cache_dir=str(self.shared / "cache"), held_out=0.2, tokenizer="characters"
        )
        corpus, tokenizer = inputs.read_corpus(config)
        train, held_out = inputs.tokenized_parts(config, corpus, tokenizer)
        self.assertGreater(len(train.token_ids), len(held_out.token_ids))
        model = KneserNey(train.token_ids, train.document_starts, order=3, vocab_size=tokenizer.vocab_size)
        if not texts:
            return [model.score(held_out.token_ids, held_out.document_starts).log_probabilities]
        return [model.score(np.array(tokenizer.tokenize([text])[0])).log_probabilities for text in texts]

    def test_the_held_out_part(self):
        (scores,) = self.expected()
        code, out, err = self.run_main()
        self.assertEqual(code, 0, err)
        record = json.loads(out)
        self.assertEqual(record["corpus"], str(self.corpus))
        self.assertEqual(record["tokens"], len(scores))
        self.assertAlmostEqual(record["log_likelihood"], scores.sum())
        self.assertAlmostEqual(record["perplexity"], np.exp(-scores.mean()))
        self.assertIn(f"{len(scores)} tokens, log-likelihood {scores.sum():,.4f}, {-scores.mean():.4f} nats per", err)

    def test_texts(self):
        expected = self.expected("ab", "bab")
        source, target = self.shared / "in.txt", self.shared / "out.jsonl"
        source.write_text("ab\nbab\n")
        for argv in (["--text=ab", "--text=bab"], [f"--input={source}"]):
            code, out, err = self.run_main("--tokens", f"--output={target}", *argv)
            self.assertEqual((code, out), (0, ""), err)
            records = [json.loads(line) for line in target.read_text().splitlines()]
            self.assertEqual([record["text"] for record in records], ["ab", "bab"])
            for record, scores in zip(records, expected, strict=True):
                self.assertAlmostEqual(record["log_likelihood"], scores.sum())
                self.assertEqual("".join(token for token, _ in record["scores"]), record["text"])
                np.testing.assert_allclose([score for _, score in record["scores"]], scores)
            self.assertIn("5 tokens, log-likelihood", err)

    def test_what_is_refused_is_one_line(self):
        pairs = self.shared / "pairs.jsonl"
        pairs.write_text('{"context": "a", "continuation": "b"}\n')
        empty = self.shared / "empty.txt"
        empty.write_text("\n")
        for argv, words in (
            (["--model_dir=runs/gpt"], "--model_dir and --ngram: are mutually exclusive"),
            (["--stride=4"], "--stride: does not apply to --ngram; omit it"),
            (["--context=a", "--continuation=b"], "--context: does not apply to --ngram"),
            (["--text=a", "--input=b"], "--text and --input: are mutually exclusive"),
            ([f"--input={pairs}"], "pairs.jsonl:1: has a continuation, which --ngram does not score"),
            (["--text="], "text '' contains no token"),
            ([f"--corpus={self.shared}"], "is a folder"),
            ([f"--corpus={empty}"], "empty.txt"),
            (["--ngram=0"], "--ngram=0: must be from 1 to 20"),
        ):
            code, out, err = self.run_main(*argv)
            self.assertEqual((code, out), (2, ""), err)
            self.assertRegex(err, rf"\Aerror: .*{words}.*\n\Z")
        for argv, words in (
            (["--model_dir=x", "--text=a", "--held_out=0.1"], "--held_out: does not apply to --model_dir"),
            (["--text=a"], "--model_dir or --ngram: specify one of them"),
        ):
            code, out, err = helpers.run(score, *argv)
            self.assertEqual((code, out), (2, ""), err)
            self.assertRegex(err, rf"\Aerror: .*{words}.*\n\Z")


class DiversityTest(unittest.TestCase):
    def test_distinct(self):
        # a b a b | a c: of 6 words 3 are distinct; of pairs ab ba ab ac, 3 of 4.
        texts = ["a b a b".split(), "a c".split()]
        self.assertEqual(diversity.distinct(texts, 1), 3 / 6)
        self.assertEqual(diversity.distinct(texts, 2), 3 / 4)
        self.assertEqual(diversity.distinct([["a"]], 2), 0.0)

    def test_repetition(self):
        # Of the pairs ab ba ab ba ab of one text, 3 of 5 occurred before; of the other text, none.
        self.assertEqual(diversity.repetition([list("ababab")], 2), 3 / 5)
        self.assertEqual(diversity.repetition([list("ababab"), list("abc")], 2), (3 / 5 + 0) / 2)
        self.assertEqual(diversity.repetition([list("ab")], 4), 0.0)

    def test_bleu_by_hand(self):
        # "the cat sat on the mat" against "the cat is on the mat": 5 of 6 words, 3 of 5 pairs (the cat, on the, the
        # mat), 1 of 4 triples (on the mat), and no four of 3, which counts as 0.1.
        one, other = "the cat sat on the mat".split(), "the cat is on the mat".split()
        expected = (5 / 6 * 3 / 5 * 1 / 4 * 0.1 / 3) ** 0.25
        self.assertAlmostEqual(diversity.bleu(one, [other]), expected, places=12)
        self.assertEqual(diversity.bleu(one, [one]), 1.0)
        # Clipped by the maximum count in one reference: "the" counts 2 of 7 (Papineni et al. 2002, section 2.1).
        references = ["the cat is on the mat".split(), "there is a cat on the mat".split()]
        self.assertAlmostEqual(diversity.bleu(["the"] * 7, references, order=1), 2 / 7, places=12)
        # Brevity penalty: 4 words instead of 6, exp(1 - 6 / 4).
        self.assertAlmostEqual(diversity.bleu("the cat is on".split(), [other]), math.exp(1 - 6 / 4), places=12)

    def test_self_bleu_is_the_mean_over_the_texts(self):
        texts = ["a b c d e".split(), "a b c d f".split(), "v w x y z".split()]
        expected = np.mean([diversity.bleu(texts[i], texts[:i] + texts[i + 1 :]) for i in range(3)])
        self.assertAlmostEqual(diversity.self_bleu(texts), expected, places=12)
        self.assertEqual(diversity.self_bleu([texts[0]] * 3), 1.0)

    def test_words(self):
        self.assertEqual(
            diversity.words("It's 3 o'clock, 你好吗!"), ["It's", "3", "o'clock", ",", "你", "好", "吗", "!"]
        )


if __name__ == "__main__":
    unittest.main()
