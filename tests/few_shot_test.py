"""Zero- and few-shot classification: scores compared with a plain computation, long prompts, and the command."""

import json
import unittest
from unittest import mock

import keras
import numpy as np

import tfzoo
from tests import helpers
from tfzoo import few_shot
from tfzoo.errors import UserError
from tfzoo.evaluation import prompts
from tfzoo.evaluation.few_shot import Asker, Question
from tfzoo.evaluation.prompts import Example, Template
from tfzoo.training import runs

SPECIALS = ["<s>", "</s>", "<pad>"]
SIZES = dict(vocab_size=259, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=64)
FAMILIES = {
    "gpt2": {},
    "llama3_8b": dict(num_kv_heads=1, head_dim=8),
    "t5_small": dict(head_dim=8, num_decoder_layers=1),
}
WORDS = ("no", "yes!")


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        keras.utils.set_random_seed(3)  # First: it clears TensorFlow's caches, and with them the tokenizers' tables.
        roles = dict(bos="<s>", eos="</s>", cls="<s>", sep="</s>", pad="<pad>")
        cls.tokenizer = helpers.byte_tokenizer(SPECIALS, **roles)
        cls.models = {}
        for name, sizes in FAMILIES.items():
            model = cls.models[name] = tfzoo.build(name, **(SIZES | sizes))
            for weight in model.trainable_variables:  # Far from uniform.
                weight.assign(weight + 0.3 * keras.random.normal(weight.shape))

    def ids(self, text):
        return self.tokenizer.tokenize([text]).to_list()[0]

    def asker(self, name="gpt2", template="{text} = {label}", **options):
        return Asker(self.models[name], self.tokenizer, Template(template, WORDS, "", ";", False), **options)


class AskerTest(Case):
    def test_likelihoods_by_a_plain_computation(self):
        question = Question(("abc",), (Example(("x",), 1),))
        for name, model in self.models.items():
            expected = []
            for word in WORDS:
                prompt = self.ids("x = yes!;abc =")
                if model.is_encoder_decoder:
                    ids = [0, *self.ids(word)]  # As this tokenizer has cls and sep, texts are those of BART.
                    ids = [1, *ids]
                    inputs = {"token_ids": np.array([[0, *prompt, 1]]), "decoder_token_ids": np.array([ids])}
                    first = 2
                else:
                    ids = [0, *prompt, *self.ids(f" {word}")]
                    inputs, first = {"token_ids": np.array([ids])}, 1 + len(prompt)
                table = log_softmax(model(inputs)["logits"])[0]
                expected.append([table[t - 1, ids[t]] for t in range(first, len(ids))])
            for score, combine in (("sum", np.sum), ("mean", np.mean)):
                found = self.asker(name, score=score).scores([question])
                np.testing.assert_allclose(found, [[combine(each) for each in expected]], rtol=1e-4, err_msg=name)
                own = question._replace(words=WORDS[::-1])
                np.testing.assert_allclose(self.asker(name, score=score).scores([own])[0], found[0][::-1], rtol=1e-4)
            answer = self.asker(name, score="mean").answers([question])
            self.assertEqual(answer, [int(np.argmax([np.mean(each) for each in expected]))])

    def test_calibration_asks_with_texts_without_content(self):
        questions = [Question((text,), (Example(("x",), 1),)) for text in ("a", "bc", "def")]
        asker = self.asker(calibrate=True)
        plain = self.asker()
        free = np.stack(
            [plain.scores([Question((text,), each.examples) for text in ("N/A", "", "[MASK]")]) for each in questions]
        )
        expected = prompts.calibrated(np.stack(plain.scores(questions)), free).argmax(1)
        self.assertEqual(asker.answers(questions), expected.tolist())

    def test_long_prompts_lose_their_earliest_examples(self):
        asker = self.asker()
        # Of 64 tokens, <s>, the 5 of " yes!" and 2 more are not for the prompt: 56 remain.
        examples = tuple(Example((letter * 10,), 0) for letter in "abcd")  # 16 tokens each with ";".
        asked = asker._fitting([Question(("x" * 5,), examples), Question(("x",), examples[:1])])
        self.assertEqual(asked, [Question(("x" * 5,), examples[1:]), Question(("x",), examples[:1])])
        self.assertEqual((asker.dropped, asker.shortened), (1, 0))
        (cut,) = asker._fitting([Question(("x" * 99,), examples)])
        self.assertEqual((cut.examples, asker.dropped, asker.shortened), ((), 5, 1))
        self.assertGreater(len(cut.texts[0]), 45)
        self.assertLessEqual(len(self.ids(cut.texts[0] + " =")), 56)
        self.assertEqual(len(asker.answers([Question(("x" * 99,), examples)])), 1)
        with self.assertRaisesRegex(UserError, "^--template: is longer than the model reads"):
            self.asker(template="a" * 60 + "{text}{label}").answers([Question(("b",), ())])

    def test_completions(self):
        asker = self.asker(method="completion")
        questions = [Question((text,), ()) for text in ("a", "b", "c")]
        texts = [" Yes! And more", "no;yes!", "perhaps"]
        with mock.patch("tfzoo.evaluation.few_shot.generate_text", return_value=texts) as generate:
            self.assertEqual(asker.answers(questions), [1, 0, prompts.NO_ANSWER])
        self.assertEqual(generate.call_args[0][1], ["a =", "b =", "c ="])
        self.assertEqual(asker.unmatched, 1)
        with helpers.op_by_op():
            self.assertEqual(len(asker.answers(questions)), 3)

    def test_what_is_refused(self):
        for options, words in (
            (dict(method="completion", calibrate=True), "--calibrate and --score: apply to --method=likelihood"),
            (dict(length=65), "--sequence_length=65: the model reads at most 64"),
            (dict(length=8), "--sequence_length=8: leaves no room for a text in addition to the labels"),
        ):
            with self.assertRaisesRegex(UserError, words):
                self.asker(**options).answers([Question(("a",), ())])


class CommandTest(Case):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        rows = "".join(f"text {i}\t{'ab'[i % 3 > 0]}\n" for i in range(12))
        (self.folder / "train.tsv").write_text("text\tlabel\n" + rows)
        (self.folder / "test.tsv").write_text("text\tlabel\nsome\tb\nother\ta\nlast\tb\n")

    def run_main(self, *argv):
        fixed = [f"--model_dir={self.folder}", f"--train_file={self.folder / 'train.tsv'}"]
        fixed += [f"--test_file={self.folder / 'test.tsv'}", r"--template=T: {text}\nL: {label}"]
        with mock.patch.object(runs, "load", lambda *_: (self.models["gpt2"], self.tokenizer)):
            return helpers.run(few_shot, *fixed, *argv)

    def test_a_table(self):
        (self.folder / "flags.cfg").write_text("")
        code, out, err = self.run_main("--shots=0,2", "--seeds=2", "--label_words=a=no", "--random_baseline")
        self.assertEqual(code, 0, err)
        record = json.loads((self.folder / "few_shot-test.json").read_text())
        self.assertIn("3 rows, 2 labels: no, b", out)
        self.assertRegex(out, r"majority class +66\.67% +40\.00%")
        self.assertRegex(out, r"model, 2 shots +[0-9.]+% ± +[0-9.]+%")
        self.assertEqual(record["template"], "T: {text}\nL: {label}")
        self.assertEqual(
            [(each["model"], each["shots"], len(each["accuracy"]["values"])) for each in record["results"]],
            [("model", 0, 1), ("model", 2, 2), ("random weights", 0, 1), ("random weights", 2, 2)],
        )
        template = Template(record["template"], ["no", "b"], "", "\n\n", False)
        asker = Asker(self.models["gpt2"], self.tokenizer, template)
        answers = asker.answers([Question((text,), ()) for text in ("some", "other", "last")])
        self.assertEqual(record["results"][0]["accuracy"]["mean"], np.mean(np.array(answers) == [1, 0, 1]))

    def test_choices(self):
        rows = [{"question": f"q{i}", "choices": ["a", "bc", "d"][: 2 + i % 2], "label": i % 2} for i in range(6)]
        for name in ("train", "test"):
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        output = self.folder / "out.json"
        argv = ["--task=choice", f"--train_file={self.folder / 'train.jsonl'}", "--seeds=1", f"--output={output}"]
        argv += [f"--test_file={self.folder / 'test.jsonl'}", "--shots=1", "--score=mean"]
        code, out, err = self.run_main(*argv)
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"6 rows\n\n +accuracy *\ncommonest position +50\.00%")
        record = json.loads(output.read_text())
        pool = prompts.Pool([Example((row["question"],), row["label"], tuple(row["choices"])) for row in rows])
        template = Template("T: {text}\nL: {label}", (), "", "\n\n", False)
        asker = Asker(self.models["gpt2"], self.tokenizer, template, score="mean")
        right = []
        for i, row in enumerate(rows):
            texts, words = (row["question"],), tuple(row["choices"])
            (scores,) = asker.scores([Question(texts, tuple(pool.draw(1, 0, i, texts)), words)])
            self.assertEqual(len(scores), len(words))
            right.append(scores.argmax() == row["label"])
        self.assertEqual(record["results"][0]["accuracy"]["values"], [np.mean(right)])

    def test_what_is_refused_is_one_line(self):
        for argv, words in (
            (["--shots=x"], "--shots=x: is not a list of whole numbers"),
            (["--template=x"], "--template='x': must contain"),
            (["--output=/nowhere/x.json"], "--output=/nowhere/x.json: its folder does not exist"),
            (["--label_words=c=x", "--task=choice"], "--label_words=c=x: does not apply to --task=choice"),
            (["--label_words=c=x"], "--label_words=c=x: 'c=x' is not LABEL=WORDS"),
            ([f"--test_file={self.folder / 'no.tsv'}"], "no such file"),
        ):
            code, out, err = self.run_main(*argv)
            self.assertEqual((code, out), (2, ""), err)
            self.assertRegex(err.splitlines()[-1], rf"\Aerror: .*{words}")


if __name__ == "__main__":
    unittest.main()
