"""The task mixture: shares and prefixes of rows, figures of each task; and a whole run."""

import json
import unittest

import numpy as np
import sacrebleu
import tensorflow as tf

from tests import helpers
from tfzoo import evaluate, train
from tfzoo.data import encoded
from tfzoo.data.text_mixture import MixedRow
from tfzoo.errors import UserError
from tfzoo.models import t5
from tfzoo.tasks.mixture import Mixture

TOKENIZER = helpers.byte_tokenizer(["<pad>", "</s>"], pad="<pad>", eos="</s>")


class Files:
    """An open mixture file with these rows of (name, source, target)."""

    tasks = {"de": "translate", "words": "text_to_text"}
    names = (*tasks,)

    def __init__(self, *rows):
        self._rows = [MixedRow("file:1", texts, name, f"{name}:") for name, *texts in rows]

    def rows(self):
        return iter(self._rows)


DE = ("Ein roter Ball liegt hier .", "Der Hund sieht die Katze .")
FILE = Files(*(("de", "x", each) for each in DE), ("words", "a", "b c"), ("words", "c", "d"), ("words", "e", "e"))


class MixtureTest(tf.test.TestCase):
    def task(self, **options):
        return Mixture(TOKENIZER, 64, page=t5, **options)

    def test_rows_and_shares(self):
        made = self.task(mixing_limit=2)
        texts = [made.prefixed(row) for row in FILE.rows()]
        self.assertEqual(texts, ["de: x", "de: x", "words: a", "words: c", "words: e"])
        sources = [np.arange(i, dtype=np.int32) for i in range(5)]
        rows = encoded.of_chunk({"number": np.arange(5), "part": np.array([0, 0, 1, 1, 1]), "source": sources})
        epoch = made.training_rows(rows)
        self.assertAllEqual(epoch.columns["number"], [0, 1, 0, 2, 3, 4])
        self.assertAllEqual(epoch.lengths("source"), [0, 1, 0, 2, 3, 4])
        self.assertAllEqual(epoch.values("source", 5), range(4))
        self.assertLen(epoch, 6)
        self.assertAllEqual(self.task().training_rows(rows).columns["number"], range(5))

    def test_which_rows_are_decoded(self):
        made = self.task(decoded_rows=4)
        made.prepare_evaluation(FILE)
        self.assertAllEqual(made._decoded, [True, True, True, True, False])
        made.prepare_evaluation(FILE, whole=True)
        self.assertAllEqual(made._decoded, [True] * 5)

    def test_figures(self):
        made = self.task()
        made.prepare_evaluation(FILE, whole=True)
        written = ["Ein roter Ball liegt da .", "Der Hund sieht die Katze .", "b", "d", "x"]
        outcome = {"number": np.arange(5), "text": np.array(written, object)}
        score = made.score_rows(outcome)
        found = score()
        bleu = sacrebleu.corpus_bleu(written[:2], [list(DE)]).score
        f1 = 100 * (2 / 3 + 1 + 0) / 3
        self.assertAllClose(found["bleu/de"], bleu)
        self.assertAllClose(found["token_f1/words"], f1)
        self.assertAllClose(found["exact_match/words"], 100 / 3)
        self.assertAllClose(found["mean_score"], (bleu + f1) / 2)
        some = score(np.array([4, 1, 1, 3]))
        self.assertAllClose([some["bleu/de"], some["token_f1/words"]], [100, 50])
        self.assertRegex(made.details(outcome)["signature"], "^de: .*tok:13a")
        baselines = made.file_baselines(FILE, FILE)
        self.assertEqual([*baselines], ["source", "memory"])
        self.assertEqual(baselines["memory"]["exact_match/words"], 100)
        # Both German sentences have the same source, so that the memory finds the first.
        bleu = sacrebleu.corpus_bleu([DE[0], DE[0]], [list(DE)]).score
        self.assertAllClose(baselines["memory"]["mean_score"], (bleu + 100) / 2)

    def test_flags_of_files(self):
        with self.assertRaisesRegex(UserError, "--prefix=x: does not apply to --task=mixture; write it into"):
            Mixture.open_file(Mixture.Options(prefix="x"), "file", "train_file", "strict")


class RunTest(unittest.TestCase):
    def test_train_and_evaluate(self):
        folder = helpers.temporary_folder(self)
        sizes = {"train": (60, 20), "dev": (9, 6)}
        words = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
        for part, counts in sizes.items():
            entries = {}
            for (name, kind), count in zip((("same", "translate"), ("back", "text_to_text")), counts):
                texts = [[words[(i * k + len(part)) % len(words)] for k in (1, 7, 11)] for i in range(count)]
                targets = [text if name == "same" else text[::-1] for text in texts]
                pairs = [f"{' '.join(text)}\t{' '.join(target)}\n" for text, target in zip(texts, targets)]
                (folder / f"{name}-{part}.tsv").write_text("".join(pairs))
                entries[name] = {"task": kind, "file": f"{name}-{part}.tsv", "prefix": f"{name}:"}
            (folder / f"{part}.json").write_text(json.dumps(entries))
        flags = dict(
            task="mixture",
            train_file=folder / "train.json",
            validation_file=folder / "dev.json",
            run_dir=folder / "run",
            cache_dir=folder / "cache",
            model="t5_small",
            overrides="hidden_size=16,num_layers=1,num_heads=2,head_dim=8,intermediate_size=32",
            tokenizer="sentencepiece",
            vocab_size=180,
            sequence_length=32,
            target_length=16,
            mixing_limit=40,
            batch_size=8,
            epochs=1,
            log_every=2,
        )
        code, out, err = helpers.run(train, *(f"--{name}={value}" for name, value in flags.items()))
        self.assertEqual(code, 0, err[-2000:])
        self.assertIn("90 training rows, 15 validation rows; 1.1 epochs, 12 steps", out)
        record = json.loads((folder / "run" / "evaluation.json").read_text())
        self.assertEqual(record["best_metric"], "mean_score")
        self.assertLessEqual({"bleu/same", "chrf/same", "token_f1/back", "exact_match/back"}, record["scores"].keys())
        flags = [f"--model_dir={folder / 'run'}", f"--test_file={folder / 'dev.json'}", "--nobaselines"]
        code, out, err = helpers.run(evaluate, *flags)
        self.assertEqual(code, 0, err[-2000:])
        self.assertRegex(out, r"BLEU \(same\) +\d")
        found = json.loads((folder / "run" / "evaluation-dev.json").read_text())
        self.assertEqual(found["scores"], record["scores"])


if __name__ == "__main__":
    tf.test.main()
