"""The folder of a run: config.json, several models by role, options of loading, and initialization from weights."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

import tfzoo
from tests import helpers
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.models import bert, gpt2
from tfzoo.text import SPECIAL_TOKENS
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import checkpoint, optimizers, runs
from tfzoo.training import initialize as initialize_lib
from tfzoo.training.initialize import initialize
from tfzoo.weights import huggingface, table

SIZES = dict(vocab_size=8, hidden_size=8, num_heads=2, num_layers=2, intermediate_size=12, max_positions=16)
TOKENS = {"token_ids": tf.constant([[5, 6, 7, 5, 6]])}


def tokenizer():
    return WordPiece([*SPECIAL_TOKENS, "a", "b", "c"])


OLD = WordPiece([*SPECIAL_TOKENS, "a", "##b", "c"])


def weights(model) -> dict[str, np.ndarray]:
    return {table.relative_path(v): v.numpy() for v in model.variables if not table.is_state(v)}


class RunsCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)

    def write(self, by_role: Mapping[str, Any], names: Mapping[str, str], optimizer=None, folder="run") -> pathlib.Path:
        """Creates the folder of a run with one checkpoint."""
        run = self.folder / folder
        run.mkdir()
        (run / "flags.cfg").write_text("")
        runs.write_config(run, by_role, names, tokenizer())
        tokenizer().save(run / "tokenizer")
        checkpoint.Checkpoints(run / "checkpoints").save(1, checkpoint.model_variables(by_role, optimizer), {})
        return run

    def run_of(self, model, name="bert_tiny", **others) -> pathlib.Path:
        return self.write({"main": model}, {"main": name}, **others)

    def assert_same(self, one, other, leave_out=()):
        one, other = weights(one), weights(other)
        self.assertEqual(one.keys() - set(leave_out), other.keys() - set(leave_out))
        for path in one.keys() - set(leave_out):
            self.assertAllEqual(one[path], other[path])


class ConfigTest(RunsCase):
    def test_heads_labels_and_pool_are_kept(self):
        options = dict(heads=("classify", "tag"), labels=("no", "yes", "so"), pool="mean")
        model = helpers.noisy_model("bert_tiny", **SIZES, **options)
        run = self.run_of(model)
        record = json.loads((run / "config.json").read_text())
        self.assertEqual(record["tokenizer"], tokenizer().fingerprint())
        self.assertEqual(list(record["models"]), ["main"])
        kept = record["models"]["main"]
        self.assertEqual(kept.pop("config"), dataclasses.asdict(model.config))
        expected = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        self.assertEqual(kept, expected | {"model": "bert_tiny", "num_labels": 3})
        again, its_tokenizer = tfzoo.load(run)
        self.assertEqual((again.labels, again.num_labels, again.pool), (("no", "yes", "so"), 3, "mean"))
        self.assertEqual(again.head_names, ("classify", "tag"))
        self.assertEqual(its_tokenizer.fingerprint(), tokenizer().fingerprint())
        self.assert_same(again, model)
        self.assertAllEqual(again(TOKENS)["classify_logits"], model(TOKENS)["classify_logits"])

    def test_of_an_earlier_version(self):
        model = helpers.noisy_model("bert_tiny", **SIZES)
        run = self.run_of(model)
        bare = {"model": "bert_tiny", "heads": ["lm", "next_sentence"], "config": dataclasses.asdict(model.config)}
        for record in (bare, bare | {"tokenizer": tokenizer().fingerprint()}):
            (run / "config.json").write_text(json.dumps(record))
            self.assert_same(tfzoo.load(run)[0], model)
        self.assertEqual(tfzoo.load(run)[0].labels, ("LABEL_0", "LABEL_1"))

    def test_what_is_refused(self):
        run = self.run_of(helpers.noisy_model("bert_tiny", **SIZES))
        path = run / "config.json"
        good = json.loads(path.read_text())
        main = good["models"]["main"]
        for text, message in (
            ("{", f"{path}, line 1: is not JSON"),
            ("[]", f"{path}: contains a list, not an object"),
            ("{}", f"{path}: has no models, which must be an object"),
            (json.dumps({"models": {}}), f"{path}: lists no models"),
            (json.dumps({"models": []}), f"{path}: models is [], not an object"),
            (json.dumps({"config": {}}), f"{path}: main: has no model, which must be a string; add it"),
            (json.dumps({"models": {"main": main | {"heads": "lm"}}}), f"{path}: main: heads is 'lm', not a list"),
            (json.dumps({"models": {"main": main | {"num_labels": 0}}}), "num_labels is 0, not a whole number from "),
            (json.dumps({"models": {"main": main | {"pool": 3}}}), "pool is 3, not a string"),
            (json.dumps({"models": {"main": main | {"model": "bert_tin"}}}), "did you mean bert_tiny"),
        ):  # fmt: skip
            path.write_text(text)
            with self.subTest(text[:60]), self.assertRaises(UserError) as caught:
                tfzoo.load(run)
            self.assertIn(message, str(caught.exception))
        path.unlink()
        with self.assertRaisesRegex(
            UserError, "run: contains no config.json; specify a run folder or a Hugging Face folder"
        ):
            tfzoo.load(run)


class OptionsTest(RunsCase):
    def setUp(self):
        super().setUp()
        self.model = helpers.noisy_model("bert_tiny", **SIZES, heads=("lm",))
        self.run_dir = self.run_of(self.model)

    def test_other_heads_begin_fresh_and_what_is_left_is_said(self):
        with self.assertLogs("absl", "INFO") as logs:
            model, _ = tfzoo.load(self.run_dir, heads=("classify", "tag"), labels=("a", "b", "c"), pool="mean")
        text = "\n".join(logs.output)
        self.assertIn(
            "newly initialized: classify/dense/bias, classify/dense/kernel, tag/dense/bias, tag/dense/kernel", text
        )
        self.assertIn("lm/bias, ", text)
        self.assertIn("in the checkpoint but unused: ", text)
        self.assertEqual((model.labels, model.pool, model.head_names), (("a", "b", "c"), "mean", ("classify", "tag")))
        self.assertGreater(np.std(model.heads["classify"].dense.kernel), 0)
        self.assertAllEqual(model(TOKENS)["sequence"], self.model(TOKENS)["sequence"])
        model, _ = tfzoo.load(self.run_dir, heads=("lm", "classify"), num_labels=5, dtype="mixed_bfloat16")
        self.assertEqual(model(TOKENS)["classify_logits"].shape, (1, 5))
        self.assertEqual(model(TOKENS)["sequence"].dtype, tf.bfloat16)
        self.assertAllEqual(weights(model)["lm/bias"], weights(self.model)["lm/bias"])

    def test_other_numbers_of_labels_than_were_trained_are_refused(self):
        run = self.run_of(helpers.noisy_model("bert_tiny", **SIZES, heads=("tag",), num_labels=3), folder="tagged")
        self.assertEqual(tfzoo.load(run)[0].num_labels, 3)
        self.assertEqual(tfzoo.load(run, labels=("x", "y", "z"))[0].labels, ("x", "y", "z"))
        for options in (dict(num_labels=4), dict(labels=("x", "y"))):
            with self.assertRaisesRegex(UserError, "does not match this model.*tag/dense/bias"):
                tfzoo.load(run, **options)

    def test_a_class_of_the_users_own(self):
        class Louder(bert.Model):
            def answer(self, name, head, outputs, inputs, training):
                return 2 * super().answer(name, head, outputs, inputs, training)

        class Named(bert.Model):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs, name="mine")

        hub = self.folder / "hub"
        tfzoo.save(self.model, hub, tokenizer())
        expected = self.model(TOKENS)["logits"]
        for folder in (self.run_dir, hub):
            loud = tfzoo.load(folder, model_class=Louder)[0]
            self.assertIsInstance(loud, Louder)
            self.assertAllEqual(loud(TOKENS)["logits"], 2 * expected)
            named = tfzoo.load(folder, model_class=Named)[0]
            self.assertEqual(named.name, "mine")
            self.assertAllEqual(named(TOKENS)["logits"], expected)
            again = self.folder / f"{folder.name}_again"
            tfzoo.save(named, again, tokenizer())
            self.assert_same(tfzoo.load(again)[0], self.model)
            for wrong in (gpt2.Model, bert, "Louder"):
                with self.assertRaisesRegex(UserError, r"must be a subclass of tfzoo\.models\.bert\.Model"):
                    tfzoo.load(folder, model_class=wrong)
        own = self.run_of(named, folder="own")
        self.assert_same(tfzoo.load(own)[0], self.model)
        self.assert_same(tfzoo.load(own, model_class=Named)[0], self.model)

    def test_a_class_of_the_users_own_generates(self):
        class Shifted(gpt2.Model):
            def next_logits(self, sequence):
                return tf.roll(super().next_logits(sequence), 1, -1)

        model = helpers.noisy_model("gpt2", **SIZES)
        run = self.run_of(model, "gpt2", folder="causal")
        shifted, _ = tfzoo.load(run, model_class=Shifted)
        self.assertTrue(shifted.can_generate)
        with helpers.op_by_op():
            plain, other = (tfzoo.generate_ids(m, [[5, 6]], max_new_tokens=1) for m in (model, shifted))
        self.assertEqual((plain[0][-1] + 1) % 8, other[0][-1])

    def test_a_folder_that_is_not_a_runs(self):
        hub = self.folder / "hub"
        tfzoo.save(self.model, hub)
        for options in (dict(role="main"), dict(checkpoint_dir=hub)):
            with self.assertRaisesRegex(UserError, "hub is not a run folder .it contains no flags.cfg.; omit it"):
                tfzoo.load(hub, **options)
        self.assertEqual(tfzoo.load(hub, heads=("tag",), labels=("p", "q"))[0].labels, ("p", "q"))


class Pair(keras.Model):
    """A model with a layer that it may share with another model."""

    def __init__(self, shared, **options):
        super().__init__(**options)
        self.shared, self.own = shared, keras.layers.Dense(3, name="own")

    def call(self, x):
        return self.own(self.shared(x))


class RolesTest(RunsCase):
    def electra(self):
        sizes = SIZES | dict(embedding_size=6)
        generator = helpers.noisy_model("electra_small_generator", seed=1, **sizes)
        discriminator = helpers.noisy_model("electra_small", seed=2, **sizes | dict(hidden_size=16))
        optimizer = optimizers.make_optimizer(
            "adamw", 0.01, [*generator.trainable_variables, *discriminator.trainable_variables],
            weight_decay=0.0, beta_1=0.9, beta_2=0.99, ema_decay=0.5,
        )  # fmt: skip
        return {"main": discriminator, "generator": generator}, optimizer

    def test_one_model_has_the_names_that_it_had(self):
        model = helpers.noisy_model("bert_tiny", **SIZES)
        named = checkpoint.model_variables(model)
        self.assertEqual(list(named), list(checkpoint.model_variables({"main": model})))
        self.assertIn("model/bert/encoder/stack/layer_1/attention/query/kernel", named)

    def test_two_models_of_one_family_are_told_apart(self):
        by_role, optimizer = self.electra()
        variables = checkpoint.model_variables(by_role, optimizer)
        kernel = "electra/encoder/stack/layer_0/mlp/up/kernel"
        for role, suffix in (("main", ""), ("generator", ".generator")):
            own = weights(by_role[role])["encoder/stack/layer_0/mlp/up/kernel"]
            self.assertAllEqual(variables[f"model{suffix}/{kernel}"], own)
            # An average is initialized with its variable, which identifies it.
            self.assertAllEqual(variables[f"optimizer{suffix}/{kernel}/average"], own)
            self.assertEqual(variables[f"optimizer{suffix}/{kernel}/momentum"].shape, own.shape)
        self.assertLen(variables, sum(len(m.variables) for m in by_role.values()) + len(optimizer.variables))
        self.assertNotIn("#", "".join(variables))

    def test_each_is_loaded_by_its_role_with_its_averages(self):
        by_role, optimizer = self.electra()
        averages = {id(v): m for v, m in optimizers._averages(optimizer)}
        for mean in averages.values():
            mean.assign_add(tf.ones_like(mean))
        run = self.write(by_role, {"main": "electra_small", "generator": "electra_small_generator"}, optimizer)
        for role, expected in by_role.items():
            model, _ = tfzoo.load(run, role=role)
            self.assertEqual(model.head_names, expected.head_names)
            self.assertEqual(model.config, expected.config)
            for path, value in weights(model).items():
                self.assertAllEqual(value, weights(expected)[path] + 1)
        self.assertEqual(tfzoo.load(run)[0].head_names, ("discriminate",))
        with self.assertRaisesRegex(
            UserError, "contains no model 'generato' .did you mean generator.*; its models are main, gen"
        ):
            tfzoo.load(run, role="generato")

    def test_without_a_main_model_the_first_is_loaded(self):
        by_role, _ = self.electra()
        by_role = {"student": by_role["generator"], "teacher": by_role["main"]}
        run = self.write(by_role, {"student": "electra_small_generator", "teacher": "electra_small"})
        self.assertEqual(tfzoo.load(run)[0].head_names, ("lm",))
        self.assertEqual(tfzoo.load(run, role="teacher")[0].head_names, ("discriminate",))

    def test_a_model_that_is_not_trained_has_no_slots(self):
        student, teacher = (helpers.noisy_model("bert_tiny", seed=seed, **SIZES) for seed in (1, 2))
        optimizer = keras.optimizers.Adam(name="adam")
        optimizer.build(student.trainable_variables)
        variables = checkpoint.model_variables({"teacher": teacher, "main": student}, optimizer)
        self.assertFalse([name for name in variables if name.startswith("optimizer.")])
        self.assertIn("optimizer/bert/lm/bias/momentum", variables)

    def test_what_two_models_share_each_has_under_its_own_name(self):
        shared = keras.layers.Dense(4, name="both")
        by_role = {"main": Pair(shared, name="pair"), "other": Pair(shared, name="pair")}
        for model in by_role.values():
            model(np.zeros([1, 2], np.float32))
        optimizer = keras.optimizers.Adam(name="adam")
        trained = {id(v): v for model in by_role.values() for v in model.trainable_variables}
        optimizer.build(list(trained.values()))
        variables = checkpoint.model_variables(by_role, optimizer)
        (shared_name,) = [name for name in variables if name.startswith("model/") and name.endswith("both/kernel")]
        path = shared_name.partition("/")[2]
        self.assertIs(variables[f"model/{path}"], variables[f"model.other/{path}"])
        self.assertIs(variables[f"optimizer/{path}/velocity"], variables[f"optimizer.other/{path}/velocity"])
        (own,) = [name for name in variables if name.startswith("model/") and name.endswith("own/kernel")]
        path = own.partition("/")[2]
        self.assertIsNot(variables[f"model/{path}"], variables[f"model.other/{path}"])
        self.assertIsNot(variables[f"optimizer/{path}/velocity"], variables[f"optimizer.other/{path}/velocity"])


class InitializeTest(RunsCase):
    def test_from_a_run_by_name(self):
        source = helpers.noisy_model("bert_tiny", seed=1, **SIZES, heads=("lm", "next_sentence"))
        run = self.run_of(source)
        model = helpers.noisy_model("bert_tiny", seed=2, **SIZES | dict(num_layers=3), heads=("classify", "lm"))
        before = weights(model)
        found = initialize(model, run)
        body = {path for path in weights(source) if path.startswith("encoder/")}
        heads = {"lm/bias", "lm/norm/beta", "lm/norm/gamma", "lm/transform/bias", "lm/transform/kernel"}
        pooler = {"pooler/dense/bias", "pooler/dense/kernel"}
        self.assertEqual(set(found.loaded), body | heads | pooler)
        self.assertEqual(found.loaded, tuple(sorted(found.loaded)))
        self.assertEqual(set(found.new), weights(model).keys() - set(found.loaded))
        self.assertIn("classify/dense/kernel", found.new)
        self.assertIn("encoder/stack/layer_2/mlp/up/kernel", found.new)
        self.assertEqual(found.left_over, ("next_sentence/dense/bias", "next_sentence/dense/kernel"))
        for path, value in weights(model).items():
            self.assertAllEqual(value, weights(source)[path] if path in found.loaded else before[path])
        self.assertRegex(
            str(found), r"^loaded +44 variables\nresized +none\nnew +classify/dense/bias, .* and 10 more\nunused +next_"
        )

    def test_averages_and_roles(self):
        source = helpers.noisy_model("bert_tiny", seed=1, **SIZES)
        optimizer = optimizers.make_optimizer(
            "adamw", 0.01, source.trainable_variables, weight_decay=0.0, beta_1=0.9, beta_2=0.99, ema_decay=0.5
        )
        for _, mean in optimizers._averages(optimizer):
            mean.assign_add(tf.ones_like(mean))
        names = {"main": "bert_tiny", "teacher": "bert_tiny"}
        teacher = helpers.noisy_model("bert_tiny", seed=3, **SIZES)
        run = self.write({"main": source, "teacher": teacher}, names, optimizer)
        model = tfzoo.build("bert_tiny", **SIZES)
        self.assertEqual(initialize(model, run).new, ())
        for path, value in weights(model).items():
            self.assertAllEqual(value, weights(source)[path] + 1)
        initialize(model, run, role="teacher")
        self.assert_same(model, teacher)

    def test_from_a_hugging_face_folder(self):
        golden = pathlib.Path(__file__).parents[1] / "assets" / "golden" / "bert"
        folder = self.folder / "hub"
        shutil.copytree(golden, folder)
        record = json.loads((folder / "config.json").read_text())
        # The file contains both heads and the pooler, whatever architecture it declares.
        (folder / "config.json").write_text(json.dumps(record | {"architectures": ["BertForMaskedLM"]}))
        source, _ = huggingface.load(golden)
        model = models.page("bert").Model(source.config, heads=("classify", "next_sentence"), num_labels=3)
        found = initialize(model, folder)
        self.assertEqual(found.new, ("classify/dense/bias", "classify/dense/kernel"))
        self.assertIn("cls.predictions.transform.dense.weight", found.left_over)
        for path in found.loaded:
            self.assertAllEqual(weights(model)[path], weights(source)[path])
        self.assertIn("pooler/dense/kernel", found.loaded)
        self.assertIn("next_sentence/dense/kernel", found.loaded)

    def test_of_another_family_where_names_agree(self):
        run = self.run_of(
            helpers.noisy_model("distilbert_base_uncased", seed=1, **SIZES, heads=("lm",)), "distilbert_base_uncased"
        )
        model = tfzoo.build("bert_tiny", **SIZES | dict(num_segments=0), heads=("classify",))
        found = initialize(model, run)
        self.assertEqual({path.partition("/")[0] for path in found.new}, {"classify", "pooler"})
        for other, missing in (("bert_tiny", "encoder/embeddings/segments"), ("gpt2", "decoder/embeddings/")):
            model = tfzoo.build(other, **SIZES)
            before = weights(model)
            with self.assertRaisesRegex(UserError, f"run: belongs to the family distilbert, which lacks {missing}"):
                initialize(model, run)
            for path, value in weights(model).items():
                self.assertAllEqual(value, before[path])

    def test_another_vocabulary(self):
        """Rows by token, against means computed here; the loss of a text that both vocabularies have is the same."""
        sizes = SIZES | dict(heads=("lm",))
        for tied in (True, False):
            name, own = ("bert_tiny", {}) if tied else ("gpt2", dict(tie_embeddings=False))
            source = helpers.noisy_model(name, seed=1, **sizes, **own)
            run = self.write({"main": source}, {"main": name}, folder=f"run {tied}")
            new = WordPiece([*SPECIAL_TOKENS, "☃", "c", "ab", "a", "##b"])
            model = tfzoo.build(name, **sizes | dict(vocab_size=10), **own)
            with mock.patch.object(initialize_lib, "_tokenizer", lambda folder: OLD):
                found = initialize(model, run, tokenizer=new)
            tokens = "encoder/embeddings/tokens/embeddings" if tied else "decoder/embeddings/tokens/embeddings"
            output = "lm/bias" if tied else "lm/dense/kernel"
            self.assertEqual(set(found.resized), {tokens, output})
            self.assertEqual(
                found.resized[tokens], "8 tokens copied, 1 the mean of their old pieces, 1 the mean of all tokens"
            )
            before, after = weights(source), weights(model)
            for path, axis in ((tokens, 0), (output, -1)):
                old, rows = (np.moveaxis(values[path], axis, 0) for values in (before, after))
                self.assertAllEqual(rows[:5], old[:5])
                self.assertAllClose(rows[5], old[5:].mean(0))
                self.assertAllEqual(rows[6], old[7])
                self.assertAllClose(rows[7], (old[5] + old[6]) / 2)
                self.assertAllEqual(rows[8], old[5])
                self.assertAllEqual(rows[9], old[6])
            for path in found.loaded:
                self.assertAllEqual(before[path], after[path])
            ids = {"token_ids": tf.constant([[2, 5, 6, 7, 3]])}
            renumbered = {"token_ids": tf.constant([[2, 8, 9, 6, 3]])}
            logits, other = source(ids)["logits"], model(renumbered)["logits"]
            self.assertAllClose(tf.gather(other, [0, 1, 2, 3, 4, 8, 9, 6], axis=-1), logits, 1e-5, 1e-5)

    def test_more_and_fewer_positions_and_segments(self):
        source = helpers.noisy_model("roberta_base", seed=1, **SIZES, heads=("lm",), position_offset=2)
        run = self.run_of(source, "roberta_base")
        more = SIZES | dict(heads=("lm",), max_positions=40, num_segments=2, position_offset=2)
        model = tfzoo.build("roberta_base", **more)
        found = initialize(model, run, tokenizer=tokenizer())
        positions, segments = "encoder/embeddings/positions", "encoder/embeddings/segments"
        self.assertEqual(
            found.resized,
            {
                positions: "16 positions copied, 24 more repeat them",
                segments: "1 segments copied, 1 more repeat them",
            },
        )
        old, new = weights(source), weights(model)
        self.assertEqual(new[positions].shape, (42, 8))
        self.assertAllEqual(new[positions][:18], old[positions])
        self.assertAllEqual(new[positions][18:34], old[positions][2:])
        self.assertAllEqual(new[positions][34:], old[positions][2:10])
        self.assertAllEqual(new[segments], old[segments][[0, 0]])
        self.assertAllClose(model(TOKENS)["logits"], source(TOKENS)["logits"])
        model = tfzoo.build("roberta_base", **more | dict(max_positions=10, num_segments=1))
        found = initialize(model, run)
        self.assertEqual(found.resized, {positions: "10 positions copied"})
        self.assertAllEqual(weights(model)[positions], old[positions][:12])

    def test_a_head_with_other_labels_is_new(self):
        source = helpers.noisy_model("bert_tiny", seed=1, **SIZES, heads=("classify",), labels=("x", "y"))
        run = self.run_of(source)
        for labels, new in ((("x", "y"), ()), (("y", "x"), ("classify/dense/bias", "classify/dense/kernel"))):
            model = tfzoo.build("bert_tiny", **SIZES, heads=("classify",), labels=labels)
            before = weights(model)
            found = initialize(model, run)
            self.assertEqual(found.new, new)
            self.assertEqual(found.left_over, new)
            for path, value in weights(model).items():
                self.assertAllEqual(value, before[path] if path in new else weights(source)[path], path)

    def test_what_does_not_fit_is_refused_and_nothing_assigned(self):
        source = helpers.noisy_model("bert_tiny", seed=1, **SIZES, heads=("classify",), num_labels=3)
        run = self.run_of(source)
        for changed, message in (
            (
                dict(vocab_size=9),  # Without its tokenizer.
                r"encoder/embeddings/tokens/embeddings has the shape \[8, 8\], but \[9, 8\] in this model",
            ),
            (
                dict(intermediate_size=16),
                r"layer_0/mlp/down/kernel has the shape \[12, 8\], but \[16, 8\] in this model",
            ),
            (dict(num_heads=4), "its num_heads is 2, but 4 in this model, where .*--overrides=num_heads=2"),
            (dict(activation="relu"), "its activation is 'gelu', but 'relu' in this model"),
        ):
            model = tfzoo.build("bert_tiny", **SIZES | dict(heads=("classify",), num_labels=3) | changed)
            before = weights(model)
            with self.subTest(message), self.assertRaisesRegex(UserError, message):
                initialize(model, run)
            for path, value in weights(model).items():
                self.assertAllEqual(value, before[path])
        with self.assertRaisesRegex(UserError, "config.json: no such file"):
            initialize(model, self.folder / "nowhere")


if __name__ == "__main__":
    tf.test.main()
