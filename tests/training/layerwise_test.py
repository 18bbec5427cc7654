"""Layer-wise decay of the learning rate and frozen layers, in models of every family and in runs."""

import shutil
import types

import numpy as np
import pytest
import tensorflow as tf

from tests import helpers, tiny_run
from tests.export import small
from tfzoo import models, train
from tfzoo.errors import UserError
from tfzoo.objectives.replaced_token import ReplacedToken
from tfzoo.training import TrainConfig, Trainer, checkpoint, layerwise, step
from tfzoo.training.inputs import read_model_config

# Family -> {start of a path within the model: number of layers above}; every variable has one of these starts. The
# encoders and decoders have two blocks, but the decoders of encoder-decoders three, and ALBERT one.
_ENCODER = {"encoder/embeddings/": 3, "encoder/stack/layer_0/": 2, "encoder/stack/layer_1/": 1}
_DECODER = {"decoder/stack/layer_0/": 3, "decoder/stack/layer_1/": 2, "decoder/stack/layer_2/": 1}
_DECODER_ONLY = {"decoder/embeddings/": 3, "decoder/stack/layer_0/": 2, "decoder/stack/layer_1/": 1}
_HEADS = {"lm/": 0, "classify/": 0}
LAYERS_ABOVE: dict[str, dict[str, int]] = {
    "albert": {"encoder/embeddings/": 2, "encoder/stack/layer_0/": 1, "pooler/": 0} | _HEADS,
    "bart": _ENCODER | {"decoder/embeddings/": 4} | _DECODER | _HEADS,
    "bert": _ENCODER | {"pooler/": 0} | _HEADS,
    "distilbert": _ENCODER | _HEADS,
    "electra": _ENCODER | _HEADS,
    "gpt2": _DECODER_ONLY | {"decoder/stack/norm/": 0, "classify/": 0},
    "llama": _DECODER_ONLY | {"decoder/stack/norm/": 0, "classify/": 0, "lm/": 0},
    "palm": _DECODER_ONLY | {"decoder/stack/norm/": 0, "classify/": 0},
    "performer": _ENCODER | {"encoder/stack/norm/": 0} | _HEADS,
    "reformer": _ENCODER | {"encoder/stack/norm/": 0} | _HEADS,
    "roberta": _ENCODER | _HEADS,
    "t5": _ENCODER
    | _DECODER
    | {"encoder/stack/norm/": 0, "decoder/stack/norm/": 0, "classify/": 0}
    | {"encoder/stack/relative_bias/": 3, "decoder/stack/relative_bias/": 4},
    "transformer": _ENCODER | _DECODER | _HEADS,
    "xlnet": _ENCODER | {"encoder/stack/query_start": 3} | _HEADS,
}


def built(family):
    sizes = {"num_layers": 2}
    return small.model(family, heads=("lm", "classify"), **(sizes if family != "albert" else {}))


def weights_of(model):
    return {v.path.partition("/")[2]: v for v in model.variables if "seed_generator" not in v.path}


class FamiliesTest(tf.test.TestCase):
    def test_factors(self):
        self.assertEqual(LAYERS_ABOVE.keys(), models.FAMILIES.keys())
        for family, expected in LAYERS_ABOVE.items():
            weights = weights_of(built_model := built(family))
            factors = layerwise.rate_factors({"main": built_model}, list(weights.values()), 0.5)
            matched = set()
            for path, factor in zip(weights, factors, strict=True):
                starts = [start for start in expected if path.startswith(start)]
                self.assertLen(starts, 1, f"{family}: {path}")
                matched |= {*starts}
                self.assertEqual(factor, 0.5 ** expected[starts[0]], f"{family}: {path}")
            self.assertEqual(matched, expected.keys(), family)

    def test_frozen_parts(self):
        for family in LAYERS_ABOVE:
            model = built(family)
            trained = {path for path, v in weights_of(model).items() if v.trainable}
            layerwise.freeze({"main": model}, "embeddings,layers:1")
            found = {path for path, v in weights_of(model).items() if v.trainable}
            self.assertEqual({v.path.partition("/")[2] for v in model.trainable_variables}, found)
            frozen = {
                path
                for path in trained
                if "/embeddings/" in path.partition("stack")[0] or "/layer_0/" in path or path in _SHARED_BY_BLOCKS
            }
            self.assertNotEmpty(frozen)
            self.assertEqual(found, trained - frozen, family)
            for path in found - {p for p in found if p.startswith(("lm/", "classify/", "pooler/"))}:
                self.assertIn(path.split("/")[2], ("layer_1", "layer_2", "norm"), f"{family}: {path}")

    def test_gradients_of_the_others_stay_the_same(self):
        """Whether the blocks' own gradients (Reformer's, recomputed blocks) rely on trainable variables."""
        for family in ("t5", "reformer"):
            ids = np.arange(16).reshape(2, 8) + 5
            features = {"token_ids": ids} | ({"decoder_token_ids": ids[:, ::-1]} if family == "t5" else {})
            results = []
            for frozen in (False, True):
                model = built(family)
                if family == "t5":
                    model.recompute_blocks()
                if frozen:
                    layerwise.freeze({"main": model}, "embeddings,layers:1")
                self.assertEqual(len(model.trainable_variables) < len(built(family).trainable_variables), frozen)
                variables = {v.path: v.value for v in model.trainable_variables}

                @tf.function(autograph=False)
                def gradients(model=model, variables=variables, features=features):
                    with tf.GradientTape(watch_accessed_variables=False) as tape:
                        tape.watch(variables)
                        loss = tf.reduce_sum(tf.square(model(features, training=False)["logits"]))
                    return tape.gradient(loss, variables, unconnected_gradients="zero")

                results.append({path: tf.convert_to_tensor(x).numpy() for path, x in gradients().items()})
            for path in results[1].keys() - {path for path in results[1] if path.endswith("key/bias")}:  # Rounding.
                value = results[1][path]
                self.assertAllClose(value, results[0][path], 0, 1e-4 * np.abs(value).max(), msg=path)

    def test_two_models_are_counted_separately(self):
        page, config = models.find("electra_small")
        config = models.config_lib.from_mapping(vars(config) | small.SIZES | dict(num_layers=3, embedding_size=10))
        tokenizer = small.tokenizer()
        both = ReplacedToken(tokenizer, 16, generator_size=0.5).build_models(page, config)
        trained = step.trainable_variables(both)
        factors = layerwise.rate_factors(both, trained, 0.5)
        shared = {id(v) for v in both["main"].variables} & {id(v) for v in both["generator"].variables}
        self.assertNotEmpty(shared)
        for variable, factor in zip(trained, factors, strict=True):
            above = {"embeddings": 4, "layer_0": 3, "layer_1": 2, "layer_2": 1}
            part = [name for name in above if f"/{name}/" in variable.path]
            self.assertEqual(factor, 0.5 ** above[part[0]] if part and "/lm/" not in variable.path else 1.0)
        layerwise.freeze(both, "embeddings,layers:3")
        for variable in step.trainable_variables(both):
            self.assertNotRegex(variable.path, "/(encoder|stack)/.*(embeddings/tokens|layer_)")


_SHARED_BY_BLOCKS = {
    "encoder/stack/relative_bias/embeddings",
    "decoder/stack/relative_bias/embeddings",
    "encoder/stack/query_start",
}


class OptionTest(tf.test.TestCase):
    def test_what_is_wrong(self):
        for value, pattern in (
            (
                "embedings",
                r"embedings is not one of embeddings, layers:N, such as layers:6 \(did you mean embeddings\?\)",
            ),
            ("layers", r"layers is not one of embeddings, layers:N"),
            ("layers:0", r"layers:0 is not one of"),
            ("layers:-1", r"layers:-1 is not one of"),
            ("embeddings:2", r"embeddings:2 is not one of"),
            ("pooler", r"pooler is not one of embeddings, layers:N, such as layers:6$"),
            ("layers:1,layers:2", r"contains layers twice; omit one of them"),
        ):
            with self.assertRaisesRegex(UserError, f"^--freeze={value}: {pattern}"):
                TrainConfig(run_dir="here", freeze=value)
        for value in (0.0, 1.1):
            with self.assertRaisesRegex(UserError, f"^layer_decay={value}: must be from 0.01 to 1.0$"):
                TrainConfig(run_dir="here", layer_decay=value)
        self.assertEqual(layerwise.parse("embeddings, layers:12"), layerwise.Frozen(True, 12))
        self.assertEqual(layerwise.parse(""), layerwise.Frozen())

    def test_more_blocks_than_the_model_has(self):
        for model, overrides, most, message in (
            ("bert_tiny", (), 2, "the model has 2 blocks; use at most layers:2"),
            ("bert_tiny", ("num_layers=1",), 1, "the model has 1 block; use at most layers:1"),
            ("albert_base_v2", (), 1, "the model has 1 block, whose weights all layers share; use at most layers:1"),
            ("gpt2", (), 12, "the model has 12 blocks; use at most layers:12"),
            ("bart_base", ("num_decoder_layers=3",), 3, "the decoder has 3 blocks; use at most layers:3"),
            ("t5_small", ("num_layers=2", "num_decoder_layers=3"), 2, "the encoder has 2 blocks; use at most layers:2"),
        ):
            _, page, config = read_model_config(types.SimpleNamespace(model=model, overrides=overrides))
            layerwise.check(f"layers:{most}", page.Model, config)
            layerwise.check("", page.Model, config)
            with self.assertRaisesRegex(UserError, f"^--freeze=layers:{most + 1}: {message}$"):
                layerwise.check(f"layers:{most + 1}", page.Model, config)


class RunTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)

    def flags(self, name, **others):
        sizes = "hidden_size=16,num_layers=3,num_heads=2,intermediate_size=32,max_positions=32"
        return [*tiny_run.flags(self.folder, **(dict(overrides=sizes) | others)), f"--run_dir={self.folder / name}"]

    def train(self, name, **others):
        code, out, err = helpers.run(train, *self.flags(name, **others))
        self.assertEqual(code, 0, out + err)
        return checkpoint.Checkpoints(self.folder / name / "checkpoints", read_only=True)

    @pytest.mark.faults
    def test_the_first_update_of_a_run(self):
        """With SGD without momentum, decay and clipping, the change of a variable is proportional to its rate."""
        plain = dict(optimizer="sgd", beta_1=0, weight_decay=0, clip_norm=0, warmup_steps=0, steps=1)
        values = {}
        for name, others in (("start", dict(learning_rate=0)), ("plain", {}), ("decay", dict(layer_decay=0.5))):
            values[name] = self.train(name, **plain | dict(learning_rate=50) | others).read()[2]
        for name, start in values["start"].items():
            # The gradient of a bias of the keys is rounding: it shifts all scores of a query alike.
            if not name.startswith("model/") or "seed" in name or "key/bias" in name:
                continue
            above = {"embeddings": 4, "layer_0": 3, "layer_1": 2, "layer_2": 1}
            part = [part for part in above if f"/{part}/" in name]
            factor = 0.5 ** above[part[0]] if part else 1.0
            change = values["plain"][name].astype(np.float64) - start
            rounding = 2**-23 * max(np.abs(start).max(), np.abs(change).max())
            self.assertAllClose(values["decay"][name] - start, change * factor, 0, rounding, msg=name)
            self.assertGreater(np.abs(change).max(), 100 * rounding, name)

    @pytest.mark.faults
    def test_frozen_variables_keep_their_bytes_and_the_run_resumes(self):
        flags = dict(
            freeze="embeddings,layers:2", layer_decay=0.8, weight_decay=0.1, checkpoint_every=2, keep_checkpoints=9
        )
        flags |= dict(ema_decay=0.5, on_nonfinite="rollback", evaluate_every=3)
        store = self.train("whole", **flags)
        first, last = (store.read(store.path(step))[2] for step in (0, 6))
        kept = {name for name in first if np.array_equal(first[name], last[name])}
        names = {name for name in first if name.startswith("model/") and "seed" not in name}
        frozen = {name for name in names if "/embeddings/" in name or "/layer_0/" in name or "/layer_1/" in name}
        self.assertGreater(len(frozen), 30)
        self.assertEqual(kept & names, frozen)
        slots = {name.removeprefix("optimizer/") for name in first if name.startswith("optimizer/")}
        owners = {name for name in names if any(slot.startswith(name.removeprefix("model/")) for slot in slots)}
        self.assertEqual(owners, names - frozen)

        shutil.copytree(self.folder / "whole", self.folder / "parts", symlinks=True)
        for path in (self.folder / "parts" / "checkpoints").iterdir():
            if int(path.name) > 2:
                shutil.rmtree(path)
        again = self.train("parts", **flags)
        self.assertEqual(tiny_run.measured(self.folder / "parts"), tiny_run.measured(self.folder / "whole"))
        for name, value in again.read()[2].items():
            self.assertAllEqual(value, last[name], name)

        code, _, err = helpers.run(train, *self.flags("parts", **flags | dict(freeze="embeddings")))
        self.assertEqual(code, 2)
        self.assertRegex(err, r"was started with different flags: --freeze \(embeddings,layers:2 -> embeddings\)")
        for freeze, message in (
            ("layers:4", "--freeze=layers:4: the model has 3 blocks; use at most layers:3"),
            ("norms", "--freeze=norms: norms is not one of embeddings, layers:N, such as layers:6"),
        ):
            code, out, err = helpers.run(train, *self.flags("new", freeze=freeze))
            self.assertEqual((code, out, err), (2, "", f"error: {message}\n"))
            self.assertFalse((self.folder / "new").exists())

    def test_everything_below_the_heads_frozen(self):
        config = TrainConfig(
            run_dir=str(self.folder / "run"),
            corpus=str(tiny_run.write_corpus(self.folder / "corpus.txt")),
            cache_dir=str(self.folder / "cache"),
            overrides=("hidden_size=16,num_heads=2,intermediate_size=32",),
            vocab_size=200,
            sequence_length=16,
            batch_size=4,
            steps=2,
            warmup_steps=0,
            freeze="embeddings,layers:2",
            layer_decay=0.5,
        )
        trainer = Trainer(config)
        self.assertEqual(helpers.captured(lambda _: trainer.run())[0], 0)
        trained = {v.path.split("/")[1] for v in step.trainable_variables(trainer.models)}
        self.assertEqual(trained, {"lm", "pooler", "next_sentence"})
        self.assertEqual(set(trainer.optimizer.rate_factors), {1.0})


if __name__ == "__main__":
    tf.test.main()
