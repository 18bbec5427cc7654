"""Model cards: metadata as the Hugging Face hub and a YAML parser read them, and text. Does not need TensorFlow."""

import dataclasses
import json
import re
import types
import unittest

import huggingface_hub
import yaml

from tests import made_run
from tests.helpers import temporary_folder
from tfzoo import results
from tfzoo.results import Results, Score
from tfzoo.weights import model_card
from tfzoo.weights.model_card import Origin

TOKENIZER = types.SimpleNamespace(mask_id=1, vocab=["a", "<mask>"])


def model(*heads: str, family="bert", labels=("negative", "positive"), **others):
    config = types.SimpleNamespace(num_layers=4, num_decoder_layers=2, hidden_size=256)
    values = dict(can_generate=False, is_encoder_decoder=False, count_params=lambda: 11_170_560)
    return types.SimpleNamespace(family=family, head_names=heads, labels=labels, config=config, **(values | others))


def metadata(text: str) -> dict:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1])


def found(test, **changes) -> Results:
    path = temporary_folder(test) / "evaluation.json"
    path.write_text(json.dumps(made_run.results(["negative", "positive"])))
    return dataclasses.replace(results.read(path), **changes)


class MetadataTest(unittest.TestCase):
    def test_a_fine_tuned_classifier(self):
        result = found(self)
        text = model_card.text(model("classify"), Origin("mine", base_model="owner/encoder", results=[result]))
        fields = metadata(text)
        self.assertEqual(
            {name: fields[name] for name in fields if name != "model-index"},
            {
                "library_name": "tfzoo",
                "tags": ["tfzoo", "bert", "safetensors"],
                "pipeline_tag": "text-classification",
                "base_model": "owner/encoder",
            },
        )
        (entry,) = fields["model-index"]
        self.assertEqual(entry["name"], "mine")
        (shown,) = entry["results"]
        self.assertEqual(shown["dataset"], {"name": "dev.tsv", "type": "unknown", "split": "validation"})
        self.assertEqual([each["type"] for each in shown["metrics"]], ["accuracy", "f1", "matthews_correlation"])
        self.assertAlmostEqual(shown["metrics"][0]["value"], result.main.value, 6)

    def test_the_hub_reads_it(self):
        origin = Origin("mine", license="apache-2.0", languages=["en", "de"], results=[found(self)])
        card = huggingface_hub.ModelCard(model_card.text(model("classify"), origin))
        self.assertEqual(
            (card.data.library_name, card.data.license, card.data.language), ("tfzoo", "apache-2.0", ["en", "de"])
        )
        self.assertEqual(card.data.model_name, "mine")
        self.assertEqual([each.metric_type for each in card.data.eval_results][:2], ["accuracy", "f1"])
        self.assertEqual(card.data.eval_results[0].dataset_split, "validation")

    def test_what_is_unknown_is_missing(self):
        fields = metadata(model_card.text(model("classify"), Origin()))
        self.assertEqual(fields.keys(), {"library_name", "tags", "pipeline_tag"})

    def test_pipelines(self):
        generates = dict(can_generate=True)
        for tag, given, task in (
            ("text-classification", model("classify"), ""),
            ("text-classification", model("relation"), ""),
            ("token-classification", model("tag"), ""),
            ("question-answering", model("span"), ""),
            ("sentence-similarity", model("embed"), ""),
            ("fill-mask", model("lm", "next_sentence"), "masked_lm"),
            ("text-generation", model("lm", family="gpt2", **generates), "causal"),
            ("text-generation", model("lm", family="t5", is_encoder_decoder=True, **generates), "span_corruption"),
            ("translation", model("lm", family="t5", is_encoder_decoder=True, **generates), "seq2seq"),
            ("feature-extraction", model(), ""),
            (None, model("replaced_token"), "replaced_token"),
        ):
            fields = metadata(model_card.text(given, Origin("mine", task=task)))
            self.assertEqual(fields.get("pipeline_tag"), tag, (given.head_names, task))
            self.assertEqual("sentence-transformers" in fields["tags"], tag == "sentence-similarity")

    def test_any_text_is_valid_yaml(self):
        words = (
            "no Null 1e-05 0x1F 1_000 2024-01-01 12:30:45 {x} [x] &a *a !a %a @a `a | > ? --- ... ~ = << ' \"".split()
        )
        odd = ["\\", "#1", "a: b", "- a", "a #b", "", " ", "ä京😀", "a\nb", "a\tb", "\x00\x7f\x85", "\u2028", "\ufeff"]
        for name in words + odd:
            result = found(self, file=name or "-")
            text = model_card.text(model("classify"), Origin(task=name, results=[result]), name=name or "-")
            fields = metadata(text)
            self.assertEqual(fields["model-index"][0]["name"], name or "-")
            self.assertEqual(fields["model-index"][0]["results"][0]["dataset"]["name"], name or "-")
            self.assertEqual(fields["tags"][3:], [name][: bool(name)])
        self.assertEqual(metadata(model_card.text(model(), Origin(task="a\ud800b")))["tags"][3], "a\ufffdb")

    def test_numbers_stay_numbers(self):
        scores = tuple(Score(f"s{i}", value) for i, value in enumerate((1e-5, 1e16, 0.0, -0.5, 3, 1e-9)))
        fields = metadata(model_card.text(model("classify"), Origin(results=[Results("classify", scores)])))
        values = [each["value"] for each in fields["model-index"][0]["results"][0]["metrics"]]
        self.assertEqual(values, [1e-5, 1e16, 0.0, -0.5, 3.0, 0.0])

    def test_license_of_a_folder(self):
        folder = temporary_folder(self)
        self.assertEqual(model_card.license_of(folder), "")
        for text, license in (
            ("---\nlanguage: en\nlicense: apache-2.0\n---\n# x\n", "apache-2.0"),
            ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
            ("---\nlicense: [a, b]\n---\n", ""),
            ("# x\nlicense: mit\n", ""),
            ("---\nlicense: mit\n", ""),
        ):
            (folder / "README.md").write_text(text)
            self.assertEqual(model_card.license_of(folder), license, text)


class TextTest(unittest.TestCase):
    def test_training_and_scores(self):
        origin = Origin(
            "mine",
            task="classify",
            data=[("training", "train.tsv"), ("validation", "dev.tsv")],
            counts={"rows": 12000},
            steps=1500,
            settings=[("learning_rate", "5e-05"), ("overrides", "dropout=0, x=1")],
            base_model="owner/encoder",
            results=[found(self)],
        )
        text = model_card.text(model("classify"), origin)
        for line in (
            "# mine",
            "- Task: `classify`",
            "- Training data: `train.tsv`",
            "- Training rows: 12,000",
            "- Steps: 1,500",
            "--learning_rate=5e-05 '--overrides=dropout=0, x=1'",
            "### Validation: dev.tsv, 872 rows",
            "| Score | Model | 95% interval | majority class | linear model |",
        ):
            self.assertIn(f"\n{line}\n", text)
        self.assertRegex(text, r"\| Accuracy \| 0\.\d{3} \| 0\.\d{3} to 0\.\d{3} \| 0\.348 \| 0\.824 \|")
        self.assertIn("It was trained from [owner/encoder](https://huggingface.co/owner/encoder).", text)
        self.assertIn("Its labels are `negative`, `positive`.", text)
        self.assertIn("no test file was evaluated", text)
        self.assertIn('pipeline("text-classification", FOLDER)("What a day")', text)

    def test_a_model_that_loses(self):
        score = Score("accuracy", 0.8, baselines={"linear": 0.824})
        text = model_card.text(model("classify"), Origin(results=[Results("classify", (score,))]))
        self.assertIn("The model does not beat the linear model: accuracy 0.800, compared with 0.824.", text)

    def test_limitations_state_what_was_measured(self):
        self.assertIn("No score of this model is known", model_card.text(model("classify"), Origin()))
        tested = found(self, validation=False, file="test.csv")
        text = model_card.text(model("classify"), Origin(results=[found(self), tested]))
        self.assertIn("The model was tested on `test.csv` only.", text)
        self.assertNotIn("no test file", text)

    def test_use_of_saved_folders(self):
        fill = model_card.text(model("lm", family="roberta"), Origin(), tokenizer=TOKENIZER)
        self.assertIn('pipeline("fill-mask", FOLDER)("What a <mask>")', fill)
        embed = model_card.text(model("embed"), Origin())
        self.assertIn("tfzoo.embed_texts(", embed)
        self.assertIn("SentenceTransformer(FOLDER).encode(", embed)
        reader = model_card.text(model("span"), Origin(), tokenizer=TOKENIZER)
        self.assertIn('pipeline("question-answering", FOLDER)(question="What was it?", context=', reader)
        own = model_card.text(model("classify", family="performer"), Origin(), in_transformers=False)
        self.assertNotIn("from transformers", own)
        for text in (fill, embed, reader, own):
            compile(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], "card", "exec")

    def test_use_of_artifacts(self):
        pair = model_card.text(
            model("classify"), Origin(), "savedmodel", name="nli", tokenizer=TOKENIZER, text_pair=True
        )
        request = re.search(r"nli:predict -d '(.*)'\n", pair)
        self.assertEqual(
            json.loads(request[1]), {"instances": [{"text": "What a day", "text_pair": "It was a good day"}]}
        )
        self.assertIn("/models/nli:ro", pair)
        without = model_card.text(model("classify"), Origin(), "savedmodel", name="nli")
        self.assertNotIn("curl", without)
        for kind in ("savedmodel", "onnx", "litert", "another"):
            text = model_card.text(model("classify"), Origin(), kind, tokenizer=TOKENIZER)
            self.assertIn("python verify.py .", text)
            self.assertIn("compared with the original model", text)

    def test_names_do_not_become_markup(self):
        name = "<b>x</b> *y* [z](u) | `w` # v\nu"
        labels = ("`a`", "<i>", "b\nc", "``")
        origin = Origin(
            name, task="`", data=[("training", name)], settings=[("x", "```\n")], results=[found(self, file=name)]
        )
        text = model_card.text(model("classify", labels=labels), origin)
        self.assertIn("\n# \\<b\\>x\\</b\\> \\*y\\* \\[z\\](u) \\| \\`w\\` \\# v u\n", text)
        self.assertIn("Its labels are `` `a` ``, `<i>`, `b c`, ``` `` ```.", text)
        self.assertIn("- Training data: `` <b>x</b> *y* [z](u) | `w` # v u ``", text)
        self.assertIn("````\n'--x=```\n'\n````", text)
        headings = [line for line in text.partition("\n---\n")[2].splitlines() if line.startswith("#")]
        self.assertEqual([line.split()[0] for line in headings], ["#", "##", "##", "###", "##", "##"])

    def test_equal_facts_give_equal_text(self):
        origin = Origin("mine", task="classify", results=[found(self)])
        self.assertEqual(model_card.text(model("classify"), origin), model_card.text(model("classify"), origin))


if __name__ == "__main__":
    unittest.main()
