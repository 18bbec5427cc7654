"""Replaced tokens: the rows, the draw, the two models and their loss compared with NumPy, and a run with both."""

import json
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tests import helpers, tiny_run
from tests.data.corpora import corpus, random_words
from tests.nn.formulas import randomize
from tests.objectives.examples import VOCAB, batch_of, packed_example
from tfzoo import convert, models
from tfzoo.errors import UserError
from tfzoo.export import __main__ as export
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.objectives.replaced_token import GENERATOR, ReplacedToken, generator_config, sample
from tfzoo.text.characters import SPECIALS, Characters
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import TrainConfig, Trainer, checkpoint, initialize, report, runs, step
from tfzoo.weights import huggingface
from tfzoo.weights.table import is_state, relative_path

PAD, UNK, CLS, SEP, MASK = range(5)
LENGTH = 32
SMALL = dict(
    vocab_size=len(VOCAB),
    embedding_size=8,
    hidden_size=16,
    num_heads=4,
    num_layers=2,
    intermediate_size=24,
    max_positions=LENGTH,
    dropout=0.0,
    attention_dropout=0.0,
)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def objective(length=LENGTH, **options):
    return ReplacedToken(WordPiece(VOCAB), length, **options)


def both(made):
    """Returns the models of an objective, by role, with random weights."""
    page, config = models.find("electra_small")
    config = type(config)(**vars(config) | SMALL)
    found = made.build_models(page, config)
    for model in found.values():
        randomize(model)
    return found


class SampleTest(tf.test.TestCase):
    def test_a_token_covers_its_part_of_the_quantiles(self):
        for size in (1, 7, 255, 256, 257, 1000):
            random = np.random.default_rng(size)
            logits = random.normal(0, 3, [2, 40, size]).astype(np.float32)
            quantiles = random.random([2, 40]).astype(np.float32)
            quantiles[0, :2] = 0, 1 - 2**-23
            found = sample(tf.constant(logits), tf.constant(quantiles)).numpy()
            ends = np.cumsum(np.exp(log_softmax(logits)), -1)
            upper = np.take_along_axis(ends, found[..., None], -1)[..., 0]
            lower = upper - np.exp(np.take_along_axis(log_softmax(logits), found[..., None], -1))[..., 0]
            self.assertTrue(np.all(lower <= quantiles + 2e-6), size)
            self.assertTrue(np.all(upper > quantiles - 2e-6), size)

    def test_frequencies_are_the_probabilities(self):
        logits = np.random.default_rng(0).normal(0, 2, [600]).astype(np.float32)
        logits[[0, 100, 299, 599]] = -1e9  # The first and the last token of the vocabulary are never drawn.
        count = 40_000
        quantiles = ((np.arange(count) + 0.5) / count).astype(np.float32)[None]
        found = sample(tf.constant(np.broadcast_to(logits, [1, count, 600])), tf.constant(quantiles)).numpy()
        probabilities = np.exp(log_softmax(logits))
        counts = np.bincount(found[0], minlength=600)
        self.assertAllLess(np.abs(counts - count * probabilities), 1.5)
        self.assertAllEqual(counts[[0, 100, 299, 599]], [0, 0, 0, 0])

    def test_a_certain_token_is_drawn_at_every_quantile(self):
        for token in (0, 255, 256, 299):
            logits = np.full([1, 3, 300], -1e9, np.float32)
            logits[..., token] = 0
            found = sample(tf.constant(logits), tf.constant([[0.0, 0.5, 1 - 2**-23]], tf.float32))
            self.assertAllEqual(found, [[token] * 3])


class RowsTest(tf.test.TestCase):
    def test_the_worked_example(self):
        made = objective(9, mask_rate=0.4)
        the, chef, cooked, meal, ate = range(10, 15)
        text = [the, chef, cooked, the, meal]
        features = (made.prepare(packed_example(text, seed=seed)) for seed in range(200))
        features = next(f for f in features if f["masked_positions"].numpy().tolist()[:2] == [1, 3])
        expected = {
            "token_ids": [CLS, MASK, chef, MASK, the, meal, SEP, PAD, PAD],
            "padding_mask": [True] * 7 + [False] * 2,
            "masked_positions": [1, 3, 0],
            "masked_ids": [the, cooked, 0],
            "masked_weights": [1, 1, 0],
            "token_weights": [0, 1, 1, 1, 1, 1, 0, 0, 0],
        }
        for name, value in expected.items():
            self.assertAllEqual(features[name], value)
        batch = {name: x[None] for name, x in features.items()}
        logits = np.full([1, 3, len(VOCAB)], -1e9, np.float32)
        logits[0, [0, 1, 2], [the, ate, 5]] = 0.0
        token_ids, replaced = made.corrupt(batch, tf.constant(logits))
        self.assertAllEqual(token_ids, [[CLS, the, chef, ate, the, meal, SEP, PAD, PAD]])
        self.assertAllEqual(replaced, [[0, 0, 0, 1, 0, 0, 0, 0, 0]])

    def test_rates_special_tokens_and_restoring(self):
        for pack in (True, False):
            made, plain = objective(pack=pack), MaskedLM(WordPiece(VOCAB), LENGTH, pack=pack, pairs="none")
            text = random_words(120, 60, 1, len(VOCAB))
            batch, expected = batch_of(made, text), batch_of(plain, text)
            self.assertLessEqual(set(made.inputs), set(batch))
            for name in set(expected) & set(batch) - {"token_ids"}:
                self.assertAllEqual(batch[name], expected[name], name)
            rows, columns = np.nonzero(batch["masked_weights"])
            where = rows, batch["masked_positions"][rows, columns]
            original = expected["token_ids"].copy()
            original[where] = batch["masked_ids"][rows, columns]
            # Every selected token is [MASK], and no others changed.
            self.assertAllEqual(batch["token_ids"][where], np.full(len(rows), MASK))
            shown = batch["token_ids"].copy()
            shown[where] = original[where]
            self.assertAllEqual(shown, original)
            self.assertAllEqual(batch["token_weights"], (original >= 5).astype(np.float32))
            self.assertNear(batch["masked_weights"].sum() / batch["token_weights"].sum(), 0.15, 0.03)
            # Random tokens: only the masked ones change, and a draw of the original counts as original.
            logits = np.random.default_rng(0).normal(size=[*batch["masked_ids"].shape, len(VOCAB)]).astype(np.float32)
            token_ids, replaced = (x.numpy() for x in made.corrupt(batch, tf.constant(logits)))
            self.assertAllEqual(replaced, token_ids != original)
            drawn = token_ids[where]
            self.assertTrue(np.any(drawn == original[where]))
            token_ids[where] = original[where]
            self.assertAllEqual(token_ids, original)

    def test_seeds_decide(self):
        made, text = objective(), list(range(5, 25))
        one, same, other = (made.prepare(packed_example(text, seed=seed)) for seed in (1, 1, 2))
        for name in one:
            self.assertAllEqual(one[name], same[name])
        self.assertNotAllEqual(one["quantiles"], other["quantiles"])
        rows = [made.prepare(packed_example(text, seed=seed))["quantiles"] for seed in range(200)]
        self.assertNear(np.mean(rows), 0.5, 0.03)
        # Independent of the numbers with which MaskedLM selects.
        self.assertTrue(0 <= np.min(rows) < 0.01 and 0.99 < np.max(rows) < 1)

    def test_empty_and_one_token_documents(self):
        made = objective()
        features = [made.prepare(packed_example(*documents)) for documents in ([], [[]], [[7]], [[UNK]], [[7], [8]])]
        batch = {name: np.stack([f[name].numpy() for f in features]) for name in features[0]}
        self.assertAllEqual(batch["masked_weights"].sum(1), [0, 0, 1, 0, 2])
        self.assertAllEqual(batch["token_weights"].sum(1), [0, 0, 1, 0, 2])
        self.assertAllEqual(batch["token_ids"][2, :3], [CLS, MASK, SEP])
        by_role = both(made)
        total, weight = made.loss(by_role, batch)
        self.assertEqual(weight, 3)
        self.assertTrue(np.isfinite(total))
        empty = {name: x[:2] for name, x in batch.items()}
        self.assertEqual([float(x) for x in made.loss(by_role, empty)], [0, 0])

    def test_shapes_are_static(self):
        made = objective()
        signature = {name: tf.TensorSpec([None], tf.int32) for name in ("token_ids", "document_ids")}
        signature["seed"] = tf.TensorSpec([2], tf.int32)
        outputs = tf.function(made.prepare, input_signature=[signature]).get_concrete_function().structured_outputs
        for name, spec in outputs.items():
            self.assertTrue(spec.shape.is_fully_defined(), name)


class ModelsTest(tf.test.TestCase):
    def test_generators_have_the_sizes_of_the_paper(self):
        for size, share in (("base", 1 / 3), ("base", 0.333), ("large", 0.25), ("small", 1.0)):
            _, config = models.find(f"electra_{size}")
            _, expected = models.find(f"electra_{size}_generator")
            self.assertEqual(generator_config(config, share), expected)
        _, config = models.find("electra_small")
        quarter = generator_config(config, 0.25)  # Table 6: a quarter of the hidden size, the MLP and the heads.
        self.assertEqual((quarter.hidden_size, quarter.intermediate_size, quarter.num_heads), (64, 256, 1))
        self.assertEqual((quarter.embedding_size, quarter.num_layers), (128, 12))
        self.assertEqual(generator_config(config, 0.01), quarter)  # At least one head.

    def test_embeddings_are_shared(self):
        by_role = both(objective())
        one, two = by_role["main"].encoder.embeddings, by_role[GENERATOR].encoder.embeddings
        self.assertIs(one.tokens, two.tokens)
        self.assertIs(one.norm, two.norm)
        self.assertIs(one.positions, two.positions)
        self.assertIs(one.segments, two.segments)
        self.assertIsNot(one.projection, two.projection)
        self.assertEqual([two.projection.kernel.shape[1], two.size], [4, 8])
        shared = {id(v) for v in by_role["main"].variables} & {id(v) for v in by_role[GENERATOR].variables}
        self.assertLen(shared, 5)
        trained = step.trainable_variables(by_role)
        self.assertLen(trained, sum(len(m.trainable_variables) for m in by_role.values()) - 5)
        # Alone, each model has all its variables, under the names that it has when it is built alone.
        page = models.page("electra")
        for model in by_role.values():
            alone = page.Model(model.config, heads=model.head_names)
            self.assertEqual([v.path for v in alone.variables], [v.path for v in model.variables])
            self.assertEqual(alone.count_params(), model.count_params())

    def test_a_model_that_does_not_fit(self):
        with self.assertRaisesRegex(
            UserError,
            "--model=bert_tiny: has no head discriminate, which --objective=replaced_token requires; use elec",
        ):
            objective().check_model("bert_tiny", models.page("bert"))
        objective().check_model("electra_small", models.page("electra"))

    def test_a_tokenizer_without_the_mask(self):
        names = [text for role, text in SPECIALS.items() if role != "mask"]
        with self.assertRaisesRegex(UserError, "no token for .*mask"):
            ReplacedToken(Characters([*names, *"abc"]), 16)


class LossTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.made = objective(discriminator_weight=7.0)
        self.by_role = both(self.made)
        self.batch = batch_of(self.made, random_words(30, 20, 3, len(VOCAB)))

    def expected(self, batch):
        """Returns arrays over the masked tokens (losses, hits) and all ordinary tokens (row, loss, logit, label) in
        float64, from the logits of both models at all positions."""
        inputs = {n: batch[n] for n in ("token_ids", "segment_ids", "padding_mask", "document_ids", "position_ids")}
        words = log_softmax(self.by_role[GENERATOR](inputs)["logits"])
        rows, columns = np.nonzero(batch["masked_weights"])
        positions, ids = batch["masked_positions"][rows, columns], batch["masked_ids"][rows, columns]
        at_masked = words[rows, positions]
        ends = np.cumsum(np.exp(at_masked), 1)
        drawn = (ends <= batch["quantiles"][rows, columns][:, None]).sum(1)
        corrupted, labels = batch["token_ids"].copy(), np.zeros(batch["token_ids"].shape)
        corrupted[rows, positions], labels[rows, positions] = drawn, drawn != ids
        logits = self.by_role["main"](inputs | {"token_ids": corrupted})["discriminate_logits"].numpy().astype(float)
        losses = np.log1p(np.exp(logits)) - labels * logits
        ordinary = batch["token_weights"] > 0
        self.assertTrue(0 < labels.sum() < len(rows))
        return (-at_masked[np.arange(len(ids)), ids], at_masked.argmax(1) == ids), (
            np.nonzero(ordinary)[0],
            losses[ordinary],
            logits[ordinary],
            labels[ordinary],
        )

    def test_loss_and_metrics_against_numpy(self):
        (words, hits), (rows, losses, logits, labels) = self.expected(self.batch)
        masked, tokens = self.batch["masked_weights"].sum(1), self.batch["token_weights"].sum(1)
        loss = words.sum() + 7 * np.sum(losses * (masked / tokens)[rows])
        self.assertAllClose(self.made.loss(self.by_role, self.batch), (loss, len(words)), 1e-4)
        metrics = self.made.metrics(self.by_role, self.batch)
        positive = logits > 0
        expected = {
            "replaced_token_loss": (losses.sum(), len(losses)),
            "replaced_token_accuracy": (np.sum(positive == (labels > 0)), len(losses)),
            "replaced_token_precision": (np.sum(positive * labels), positive.sum()),
            "replaced_token_recall": (np.sum(positive * labels), labels.sum()),
            "original_share": (np.sum(labels == 0), len(losses)),
            "masked_lm_loss": (words.sum(), len(words)),
            "masked_lm_accuracy": (hits.sum(), len(words)),
        }
        self.assertEqual(sorted(metrics), sorted(expected))
        for name, value in expected.items():
            self.assertAllClose(metrics[name], value, 1e-4, msg=name)
        (evaluator,) = self.made.evaluators()
        figures = evaluator.figures({name: [float(x) for x in value] for name, value in metrics.items()})
        self.assertNear(figures["masked_lm_perplexity"], np.exp(words.mean()), 0.01 * np.exp(words.mean()))
        share = labels.mean()
        self.assertNear(figures["constant_loss"], -share * np.log(share) - (1 - share) * np.log(1 - share), 1e-5)
        self.assertEqual(evaluator.figures(metrics | {"original_share": (3, 3)})["constant_loss"], 0)
        self.assertLessEqual({figure for _, figure, _ in self.made.FIGURES}, set(figures))

    def test_full_rows_have_the_loss_of_the_paper(self):
        full = corpus([[LENGTH - 2]] * 4)
        full.token_ids[:] = np.random.default_rng(0).integers(5, len(VOCAB), len(full.token_ids))
        self.batch = batch_of(self.made, full)
        self.assertAllEqual(self.batch["token_weights"].sum(1), [LENGTH - 2] * 4)
        (words, _), (_, losses, _, _) = self.expected(self.batch)
        total, weight = self.made.loss(self.by_role, self.batch)
        self.assertNear(total / weight, words.mean() + 7 * losses.mean(), 1e-4)

    def test_sums_over_parts_are_the_sum_of_the_whole(self):
        whole, count = self.made.loss(self.by_role, self.batch), len(self.batch["token_ids"])
        for cuts in ([2], [1, 3, 4]):
            parts = [
                self.made.loss(self.by_role, {name: x[i:j] for name, x in self.batch.items()})
                for i, j in zip([0, *cuts], [*cuts, count], strict=True)
            ]
            self.assertAllClose([sum(p[0] for p in parts), sum(p[1] for p in parts)], whole, 1e-5)

    def test_no_gradient_passes_through_the_draw(self):
        shared = {id(v) for v in self.by_role["main"].trainable_variables}
        own = [v.value for v in self.by_role[GENERATOR].trainable_variables if id(v) not in shared]

        def gradients(compute):
            with tf.GradientTape() as tape:
                loss, _ = compute()
            return [tf.convert_to_tensor(g) for g in tape.gradient(loss, own)]

        plain = MaskedLM(WordPiece(VOCAB), LENGTH, pairs="none")
        masked_lm = gradients(lambda: plain.loss({"main": self.by_role[GENERATOR]}, self.batch))
        found = gradients(lambda: self.made.loss(self.by_role, self.batch))
        self.assertGreater(float(tf.linalg.global_norm(found)), 0.1)
        self.assertAllClose(found, masked_lm, 1e-5, 1e-6)

    def test_baselines_of_the_generator(self):
        baselines = self.made.baselines(np.array([7, 8, 9, 7]), [self.batch])
        self.assertEqual(set(baselines), {"frequency", "neighbour"})
        self.assertEqual(set(baselines["frequency"]), {"masked_lm_loss", "masked_lm_accuracy"})


class RunTest(tf.test.TestCase):
    """One run with two models, read, converted and continued."""

    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)
        self.enterContext(mock.patch.object(report, "plot"))

    def run_to(self, steps, name, **options):
        text = self.folder / "corpus.txt"
        if not text.exists():
            tiny_run.write_corpus(text)
        config = TrainConfig(
            run_dir=str(self.folder / name),
            corpus=str(text),
            cache_dir=str(self.folder / "cache"),
            model="electra_small",
            overrides=(
                "hidden_size=16,num_layers=1,num_heads=4,intermediate_size=32,max_positions=32,embedding_size=8",
            ),
            objective="replaced_token",
            vocab_size=200,
            sequence_length=32,
            batch_size=8,
            accumulation=2,
            steps=steps,
            warmup_steps=0,
            learning_rate=0.01,
            schedule="constant",
            ema_decay=0.5,
            log_every=1,
            evaluate_every=3,
            evaluate_batches=2,
            checkpoint_every=2,
            **options,
        )
        trainer = Trainer(config)
        code, out, err = helpers.captured(lambda _: trainer.run())
        self.assertEqual(code, 0, err)
        return trainer, out

    @pytest.mark.faults
    def test_two_models_in_one_run(self):
        trainer, out = self.run_to(6, "run")
        run = self.folder / "run"
        main, generator = trainer.models["main"], trainer.models[GENERATOR]
        # Shared variables count once.
        own = generator.count_params() - sum(
            int(np.prod(v.shape)) for v in generator.weights if any(v is w for w in main.weights)
        )
        self.assertIn(f"electra_small: {main.count_params() + own:,} parameters", out)
        self.assertIn('always "original"', out)
        record = json.loads((run / "config.json").read_text())["models"]
        self.assertEqual(
            {role: entry["heads"] for role, entry in record.items()}, {"main": ["discriminate"], GENERATOR: ["lm"]}
        )
        self.assertEqual([entry["config"]["hidden_size"] for entry in record.values()], [16, 4])
        # Each is loaded alone, with the averages, which are those of the shared variables too.
        _, _, arrays = checkpoint.Checkpoints(run / "checkpoints", read_only=True).read(run / "checkpoints" / f"{6:08}")
        table = "electra/encoder/embeddings/tokens/embeddings"
        self.assertAllEqual(arrays[f"model/{table}"], arrays[f"model.{GENERATOR}/{table}"])
        self.assertAllEqual(arrays[f"optimizer/{table}/average"], arrays[f"optimizer.{GENERATOR}/{table}/average"])
        loaded = {role: runs.load(run, run / "checkpoints" / f"{6:08}", role=role)[0] for role in record}
        for role, prefix in (("main", ""), (GENERATOR, f".{GENERATOR}")):
            for variable in loaded[role].trainable_variables:
                self.assertAllEqual(variable, arrays[f"optimizer{prefix}/{variable.path}/average"])
                self.assertNotAllEqual(variable, arrays[f"model{prefix}/{variable.path}"])
        self.assertAllEqual(*(model.tokens.embeddings for model in loaded.values()))
        # A further run starts with both, whichever of them is assigned last.
        made = objective()
        fresh = made.build_models(models.page("electra"), main.config)
        found = initialize.initialize_all(fresh, run)
        self.assertEqual((found.new, found.left_over), ((), ()))
        for role in record:
            best = runs.load(run, role=role)[0]
            for one, two in zip(fresh[role].trainable_variables, best.trainable_variables, strict=True):
                self.assertAllEqual(one, two)
        self.check_folders(run, loaded)
        self.check_wrong_roles(run)

    def check_folders(self, run, loaded):
        """Converts both models to folders of Hugging Face, and loads those."""
        ids, last = {"token_ids": tf.constant([[2, 9, 4, 12, 3]])}, run / "checkpoints" / f"{6:08}"
        for role, kind in (("main", "ElectraForPreTraining"), (GENERATOR, "ElectraForMaskedLM")):
            to = self.folder / f"to_{role}"
            code, out, err = helpers.run(
                convert,
                f"--from={run}",
                f"--to={to}",
                f"--role={role}",
                f"--checkpoint={last}",
            )
            self.assertEqual(code, 0, err)
            self.assertIn(kind, out)
            self.assertEqual(json.loads((to / "config.json").read_text())["architectures"], [kind])
            model, tokenizer = huggingface.load(to)
            self.assertEqual(model.head_names, loaded[role].head_names)
            self.assertEqual(tokenizer.vocab_size, model.config.vocab_size)
            one, two = model(ids), loaded[role](ids)
            for name in two:
                self.assertAllClose(one[name], two[name], 1e-6, 1e-6)
            values = {relative_path(v): v for v in loaded[role].variables if not is_state(v)}
            self.assertEqual(values.keys(), {relative_path(v) for v in model.variables if not is_state(v)})

    def check_wrong_roles(self, run):
        code, _, err = helpers.run(convert, f"--from={run}", f"--to={self.folder / 'to'}", "--role=generatr")
        self.assertEqual(code, 2)
        self.assertRegex(err, "^error: --role=generatr: .*did you mean generator.*its models are main, generator")
        code, _, err = helpers.run(
            convert, f"--from={self.folder / 'to_main'}", f"--to={self.folder / 'to'}", "--role=main"
        )
        self.assertEqual(code, 2)
        self.assertRegex(err, "--role=main: does not apply to a Hugging Face folder; omit it")
        exported = {}

        def record(model, tokenizer, output_dir, **options):
            exported[options["name"]] = model.head_names
            return {}

        for flags in ([], ["--role=generator"], ["--role=generator", "--name=words"]):
            with mock.patch("tfzoo.export.artifact.export", record):
                code, _, err = helpers.run(export, f"--model_dir={run}", f"--output_dir={self.folder}", *flags)
            self.assertEqual(code, 0, err)
        self.assertEqual(exported, {None: ("discriminate",), "electra_generator": ("lm",), "words": ("lm",)})

    @pytest.mark.faults
    def test_a_resumed_run_is_the_same(self):
        self.run_to(6, "whole")
        self.run_to(3, "parts")
        self.run_to(6, "parts")
        whole, parts = (tiny_run.measured(self.folder / name) for name in ("whole", "parts"))
        self.assertIn((6, "replaced_token_recall"), whole)
        self.assertEqual(parts, whole)


if __name__ == "__main__":
    tf.test.main()
