"""Models and layers behave as Keras users expect: compile, fit, evaluate, predict, save, clone, and what is refused.

`make test` covers every family with one head, `make keras` every head.
"""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import helpers
from tests.text.varied import CHINESE, SENTENCES
from tfzoo import models, nn
from tfzoo.config import EmbeddingConfig, Projection, TransformerConfig
from tfzoo.errors import UserError
from tfzoo.models.record import FolderRecord, SentenceRecord
from tfzoo.text import training
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training.step import make_step

LENGTH, ROWS = 12, 8
TEXTS = [*SENTENCES[:4], *CHINESE[:4]]
LABELS = np.array([0] * 4 + [1] * 4, np.int32)
# The head that `make test` uses for a family; "classify" for all others.
HEADS = {"bert": "tag", "electra": "discriminate", "gpt2": "lm", "roberta": "span", "t5": "lm", "xlnet": "tag"}


def crossentropy(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


@functools.cache
def tokenizer() -> WordPiece:
    return WordPiece(training.train_wordpiece([*SENTENCES, *CHINESE], 200, lowercase=True))


def build(family: str, heads=("classify",), **options):
    """Returns a small model of a family."""
    page = models.page(family)
    name = next(iter(page.CONFIGS))
    config = models.find(name)[1]
    sizes: dict = dict(vocab_size=200, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, dropout=0.0)
    sizes |= {"attention_dropout": 0.0, "max_positions": 32}
    for field, size in (("num_kv_heads", 1), ("head_dim", 8), ("embedding_size", 8), ("num_decoder_layers", 1)):
        if getattr(config, field):
            sizes[field] = size
    if family == "reformer":
        # So that the first token, which is classified, sees the others.
        sizes |= dict(attention_layers=["local"], axial_positions=False, causal=False)
    return tfzoo.build(name, heads=heads, **sizes | options)


def features(model, rows: int = ROWS):
    """Returns a batch of TEXTS and labels for every head."""
    inputs = tfzoo.Preprocessor(model, tokenizer(), LENGTH, fixed_length=True)(TEXTS[:rows])
    inputs = {name: value.numpy() for name, value in inputs.items()}
    if "relation" in model.head_names:
        inputs["entity_positions"] = np.tile(np.array([[1, 2]], np.int32), (rows, 1))
    ids = inputs["decoder_token_ids" if model.is_encoder_decoder else "token_ids"]
    labels = {
        "logits": ids,
        "tag_logits": ids % 2,
        "span_logits": ids % 2,
        "discriminate_logits": (ids % 2).astype(np.float32),
        "embedding": np.ones((rows, model.heads["embed"].size), np.float32) if "embed" in model.heads else None,
    }
    labels |= dict.fromkeys(("classify_logits", "relation_logits", "next_sentence_logits"), LABELS[:rows])
    return inputs, {name: labels[name] for name in model._answer_names()}


def loss_of(output: str):
    if output == "embedding":
        return "mse"
    return keras.losses.BinaryCrossentropy(from_logits=True) if output == "discriminate_logits" else crossentropy()


class Case(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)

    def refused(self, pattern, function, *args, **kwargs):
        with self.assertRaisesRegex(UserError, pattern) as caught:
            function(*args, **kwargs)
        self.assertNotIn("\n", str(caught.exception))


# In a new process: the number of devices cannot change after TensorFlow has started.
_LOAD = """
import sys, keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import tfzoo.models
for name in sys.argv[2:]:
    arrays = dict(np.load(f"{sys.argv[1]}/{name}.npz"))
    expected = arrays.pop("expected")
    model = keras.saving.load_model(f"{sys.argv[1]}/{name}.keras")
    np.testing.assert_array_equal(model.predict(arrays, verbose=0), expected, err_msg=name)
    assert model.optimizer.iterations.numpy() == 2, name
    print(name)
from tests import keras_test
keras_test.two_replicas()
"""


def two_replicas():
    """Keras's training on two devices is refused with a reason; predictions equal those of one device."""
    first = build("bert")
    inputs, _ = features(first)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = build("bert")
        model.set_weights(first.get_weights())
        model.compile("sgd", crossentropy())
    for method in (model.fit, model.evaluate):
        try:
            method(inputs, LABELS, verbose=0)
        except UserError as error:
            assert "with 2 replicas: Keras clips each replica's gradients separately" in str(error), error
        else:
            raise AssertionError(f"{method.__name__} was not refused")
    np.testing.assert_allclose(model.predict(inputs, verbose=0), first.predict(inputs, verbose=0), 1e-5, 1e-6)
    print("two replicas")


class FamiliesTest(Case):
    def check(self, cases):
        """Trains, evaluates, predicts and saves a model, and loads it in a new process."""
        for family, head in cases:
            with self.subTest(family=family, head=head):
                model = build(family, heads=[head])
                inputs, labels = features(model)
                (output,) = labels
                model.compile("sgd", loss_of(output))
                data = tf.data.Dataset.from_tensor_slices((inputs, labels[output])).batch(4)
                losses = model.fit(data, verbose=0).history["loss"]
                losses.append(model.evaluate(inputs, labels[output], batch_size=4, verbose=0))
                self.assertAllInRange(losses, 0.0, 10.0)
                expected = model.predict(inputs, verbose=0)
                self.assertAllClose(expected, model(inputs)[output], 1e-5, 1e-5)
                model.save(self.folder / f"{family}_{head}.keras")
                np.savez(self.folder / f"{family}_{head}.npz", expected=expected, **inputs)
                self.assertNotIn("?", summary(model))
        names = [f"{family}_{head}" for family, head in cases]
        done = helpers.python("-c", _LOAD, self.folder, *names)
        self.assertEqual(done.stdout.splitlines(), [*names, "two replicas"])

    def test_one_head_of_some_families(self):
        # An encoder and an encoder-decoder; the next test has all.
        families = ("bert", "bart")
        self.check([(family, HEADS.get(family, "classify")) for family in families])

    @pytest.mark.keras
    def test_every_head_of_every_family(self):
        self.check([(family, head) for family in models.FAMILIES for head in models.page(family).Model.HEADS])

    @pytest.mark.keras
    def test_every_family_in_every_precision_and_with_xla(self):
        for family in models.FAMILIES:
            for options in (
                {"dtype": "bfloat16"}, {"dtype": "mixed_bfloat16"}, {"dtype": "mixed_float16"}, {"jit_compile": True},
            ):  # fmt: skip
                with self.subTest(family=family, **options):
                    self.trains(family, **options)

    @pytest.mark.keras
    def test_bfloat16_with_xla(self):
        self.trains("bert", dtype="bfloat16", jit_compile=True)

    def trains(self, family, jit_compile="auto", **options):
        model = build(family, **options)
        inputs, _ = features(model)
        # In bfloat16 alone Adam's beta_2, 0.999, becomes 1, and it updates nothing.
        optimizer = keras.optimizers.Adam(0.01, beta_2=0.98)
        model.compile(optimizer, crossentropy(), metrics=["accuracy"], jit_compile=jit_compile)
        history = model.fit(inputs, LABELS, epochs=8, batch_size=ROWS, shuffle=False, verbose=0).history
        self.assertLess(history["loss"][-1], history["loss"][0])
        plain = build(family)
        plain.set_weights(model.get_weights())
        self.assertAllClose(model.predict(inputs, verbose=0), plain.predict(inputs, verbose=0), 0.1, 0.1)


def summary(model) -> str:
    lines: list[str] = []
    model.summary(print_fn=lambda text, **_: lines.append(text))
    return "".join(lines)


class FitTest(Case):
    def test_labels_losses_and_weights_by_name(self):
        model = build("bert", heads=["classify", "tag", "next_sentence"])
        inputs, labels = features(model)
        outputs = model(inputs)

        def mean(name, weights=1.0):
            losses = keras.losses.sparse_categorical_crossentropy(labels[name], outputs[name], from_logits=True)
            return float(tf.reduce_mean(losses * weights))

        weights = {"tag_logits": inputs["padding_mask"].astype(np.float32), "classify_logits": np.arange(8.0)}
        for losses, targets, sample_weight, expected in (
            (crossentropy(), labels, None, sum(map(mean, labels))),
            ({"tag_logits": crossentropy()}, labels, None, mean("tag_logits")),
            (crossentropy(), {"tag_logits": labels["tag_logits"]}, None, mean("tag_logits")),
            (
                {"tag_logits": crossentropy(), "classify_logits": crossentropy()},
                {name: labels[name] for name in weights},
                weights,
                sum(mean(name, weights[name]) for name in weights),
            ),
        ):
            model.compile("sgd", losses)
            result = model.evaluate(inputs, targets, sample_weight=sample_weight, batch_size=ROWS, verbose=0)
            self.assertAllClose(result[0] if isinstance(result, list) else result, expected, 1e-5)
        model.compile("sgd", crossentropy(), metrics={"tag_logits": ["accuracy"]})
        figures = model.evaluate(inputs, labels, batch_size=ROWS, verbose=0, return_dict=True)
        right = np.mean(outputs["tag_logits"].numpy().argmax(-1) == labels["tag_logits"])
        self.assertAllClose(figures["tag_logits_accuracy"], right)
        predicted = model.predict(inputs, verbose=0)
        self.assertCountEqual(predicted, labels)
        model.predicted_outputs = ("sequence",)
        model.predict_function = None
        self.assertAllClose(model.predict(inputs, verbose=0), outputs["sequence"], 1e-5, 1e-6)

    def test_a_model_with_one_head_takes_plain_and_named_ones(self):
        model = build("gpt2", heads=["classify"])
        inputs, labels = features(model)
        expected = float(tf.reduce_mean(crossentropy(reduction=None)(LABELS, model(inputs)["classify_logits"])))
        weighted = crossentropy()(LABELS, model(inputs)["classify_logits"], np.where(LABELS == 1, 3.0, 1.0))
        for loss, targets in (
            (crossentropy(), LABELS),
            ({"classify_logits": crossentropy()}, LABELS),
            ({"classify_logits": crossentropy()}, labels),
            (crossentropy(), labels),
        ):
            model.compile("sgd", loss, metrics=["accuracy"] if targets is LABELS and callable(loss) else None)
            result = model.evaluate(inputs, targets, batch_size=ROWS, verbose=0)
            self.assertAllClose(result[0] if isinstance(result, list) else result, expected, 1e-5)
        model.compile(keras.optimizers.SGD(0.0), crossentropy())
        history = model.fit(inputs, LABELS, class_weight={0: 1.0, 1: 3.0}, batch_size=ROWS, verbose=0).history
        self.assertAllClose(history["loss"], [float(weighted)], 1e-5)

    def test_what_would_train_towards_nothing_is_refused(self):
        model = build("bert", heads=["classify"])
        inputs, _ = features(model)
        for loss, labels, message in (
            (
                "sparse_categorical_crossentropy",
                LABELS,
                "loss 'sparse_categorical_crossentropy': expects prob",
            ),
            (
                keras.losses.SparseCategoricalCrossentropy(),
                LABELS,
                "expects probabilities, but the model returns logits",
            ),
            (
                {"clasify_logits": crossentropy()},
                LABELS,
                "loss: 'clasify_logits' is not the output of a head .did you",
            ),
            (crossentropy(), {"tag_logits": LABELS}, "labels: 'tag_logits' is not the output of a head"),
        ):
            model.compile("sgd", loss)
            self.refused(message, model.fit, inputs, labels, verbose=0)
        model.predicted_outputs = ("logit",)
        self.refused("predicted_outputs: 'logit' is not an output", model.predict, inputs, verbose=0)
        several = build("bert", heads=["classify", "tag"])
        several.compile("sgd", crossentropy())
        self.refused("labels: the model has several outputs", several.fit, inputs, LABELS, verbose=0)
        tag = build("bert", heads=["tag"])
        tag.compile("sgd", crossentropy())
        options = dict(class_weight={0: 1.0, 1: 2.0}, verbose=0)
        self.refused("class_weight: requires one label per row", tag.fit, inputs, LABELS, **options)

    def test_callbacks(self):
        model = build("bert")
        inputs, _ = features(model)
        model.compile(keras.optimizers.Adam(0.01), crossentropy(), metrics=["accuracy"])
        best = self.folder / "best.keras"
        callbacks = [
            keras.callbacks.EarlyStopping("val_loss", patience=1, min_delta=10.0),
            keras.callbacks.ModelCheckpoint(best, "val_loss", save_best_only=True),
            keras.callbacks.TensorBoard(self.folder / "events"),
        ]
        history = model.fit(
            inputs, LABELS, epochs=5, validation_data=(inputs, LABELS), callbacks=callbacks, verbose=0
        ).history
        self.assertLen(history["loss"], 2)  # No improvement is large enough, so training stops early.
        self.assertTrue(list((self.folder / "events").rglob("events.out*")))
        again = keras.saving.load_model(best)
        (loss, _) = again.evaluate(inputs, LABELS, verbose=0)
        self.assertAllClose(loss, min(history["val_loss"]), 1e-5)

    def test_losses_are_those_of_our_own_loop(self):
        class Objective:
            def loss(self, models_by_role, batch, training):
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                logits = models_by_role["main"](inputs, training=training)["classify_logits"]
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits)
                return tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32)

        first, second = build("bert"), build("bert")
        second.set_weights(first.get_weights())
        inputs, _ = features(first)
        data = tf.data.Dataset.from_tensor_slices({**inputs, "labels": LABELS}).repeat(3).batch(2)
        optimizer = keras.optimizers.AdamW(0.01)
        optimizer.build(second.trainable_variables)
        run = make_step(tf.distribute.get_strategy(), {"main": second}, optimizer, Objective())
        expected = run(iter(data), tf.constant(12)).numpy()

        losses: list[float] = []

        class EachBatch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                self.model.reset_metrics()

            def on_train_batch_end(self, batch, logs=None):
                losses.append(logs["loss"])

        first.compile(keras.optimizers.AdamW(0.01), crossentropy())
        fitted = data.map(lambda batch: ({n: x for n, x in batch.items() if n != "labels"}, batch["labels"]))
        first.fit(fitted, callbacks=[EachBatch()], verbose=0)
        self.assertAllClose(losses, expected, 1e-5, 1e-6)
        self.assertLess(sum(expected[-4:]), sum(expected[:4]))  # Of whole epochs.


class SavingTest(Case):
    def test_everything_that_a_model_was_made_with_is_saved(self):
        embed = EmbeddingConfig(pooling=("mean", "max"), layers=(Projection(8, "gelu"), "normalize"))
        record = FolderRecord(
            {"model_type": "bert", "class_name": "x"}, {"top_k": 3}, {"default": "{{ x }}"}, SentenceRecord(64)
        )
        model = build("bert", heads=["classify", "embed"], labels=["no", "yes", "maybe"], pool="mean", embed=embed)
        model.record = record
        inputs, _ = features(model)
        expected = model(inputs)
        model.save(self.folder / "m.keras")
        model.save_weights(self.folder / "m.weights.h5")
        cloned, rebuilt = keras.models.clone_model(model), type(model).from_config(model.get_config())
        for other in (cloned, rebuilt):
            other.load_weights(self.folder / "m.weights.h5")
        for other in (keras.saving.load_model(self.folder / "m.keras"), cloned, rebuilt):
            self.assertEqual(
                (other.config, other.labels, other.pool, other.embed, other.record, other.head_names, other.name),
                (model.config, model.labels, "mean", embed, record, ("classify", "embed"), model.name),
            )
            for name, value in other(inputs).items():
                self.assertAllEqual(value, expected[name])

    @pytest.mark.keras
    def test_layers_are_saved_and_used_by_themselves(self):
        config = TransformerConfig(
            vocab_size=30, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=16,
            dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        tokens, states = keras.Input((None,), dtype="int32"), keras.Input((None, 16))
        for inputs, layers in (
            (tokens, [nn.Embeddings(config)]),
            (tokens, [nn.Tower(config, causal=True)]),
            (states, [nn.MaskedLMHead(config, nn.TokenEmbedding(30, 16))]),
            (states, [nn.Block(config), nn.LayerNorm(), nn.MLP(config), nn.RMSNorm(1e-6), nn.Dropout(0.5, seed=1)]),
            (states, [nn.Stack(config), nn.Pooler(config), nn.Dense(3, activation=nn.activation("gelu"))]),
            (states, [nn.Attention(config), nn.Classifier(config, 3, hidden="tanh")]),
            (states, [nn.Attention(config.__class__(**vars(config) | {"attention": "lean"}))]),
            (states, [nn.EmbeddingHead(config, EmbeddingConfig(layers=(Projection(4),)))]),
        ):
            with self.subTest([type(layer).__name__ for layer in layers]):
                for layer in layers:
                    again = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
                    self.assertEqual(json.dumps(again.get_config()), json.dumps(layer.get_config()))
                outputs = inputs
                for layer in layers:
                    outputs = layer(outputs)
                model = keras.Model(inputs, outputs)
                draw = np.random.default_rng(0)
                shape = (2, 5) if inputs is tokens else (2, 5, 16)
                batch = draw.integers(0, 30, shape) if inputs is tokens else draw.normal(size=shape).astype(np.float32)
                model.save(self.folder / "m.keras")
                again = keras.saving.load_model(self.folder / "m.keras")
                self.assertAllEqual(again.predict(batch, verbose=0), model.predict(batch, verbose=0))
                self.assertLen(again.weights, len(model.weights))

    def test_a_whole_model_inside_of_a_functional_one(self):
        model = build("bert", heads=())
        inputs, _ = features(model)
        symbols = {name: keras.Input((None,), dtype=value.dtype.name) for name, value in inputs.items()}
        outer = keras.Model(symbols, keras.layers.Dense(1)(model(symbols)["pooled"]))
        outer.compile("adam", "mse")
        outer.fit(inputs, LABELS.astype(np.float32), verbose=0)
        outer.save(self.folder / "m.keras")
        again = keras.saving.load_model(self.folder / "m.keras")
        self.assertAllEqual(again.predict(inputs, verbose=0), outer.predict(inputs, verbose=0))

    def test_keras_own_export_says_that_nothing_is_verified(self):
        model = build("bert")
        inputs, _ = features(model)
        with self.assertLogs("absl", "WARNING") as logged:
            model.export(self.folder / "exported", verbose=False)
        self.assertIn("not verified; python -m tfzoo.export", logged.output[0])
        loaded = tf.saved_model.load(str(self.folder / "exported"))  # Kept: the function needs its variables.
        served = loaded.serve(inputs)
        self.assertAllClose(served["classify_logits"], model(inputs)["classify_logits"], 1e-5, 1e-6)


class ChangedTest(Case):
    def test_quantize_is_refused(self):
        dense = nn.Dense(3)
        dense.build((None, 2))
        for thing in (build("bert"), dense):
            self.refused(r"quantize\('int8'\): .*tfzoo.store_weights", thing.quantize, "int8")

    def test_lora(self):
        model = build("bert")
        inputs, _ = features(model)
        for layer in model._flatten_layers():
            if isinstance(layer, nn.Dense):
                layer.enable_lora(2)
        frozen = {weight.path: weight.numpy() for weight in model.non_trainable_weights}
        self.assertLen([w for w in model.trainable_weights if "lora" in w.path], 2 * 8)
        model.compile(keras.optimizers.Adam(0.02), crossentropy())
        history = model.fit(inputs, LABELS, epochs=10, verbose=0).history
        self.assertLess(history["loss"][-1], history["loss"][0])
        for weight in model.non_trainable_weights:
            if "kernel" in weight.path:
                self.assertAllEqual(weight, frozen[weight.path])
        expected = model.predict(inputs, verbose=0)
        model.save(self.folder / "m.keras")
        self.assertAllClose(
            keras.saving.load_model(self.folder / "m.keras").predict(inputs, verbose=0), expected, 1e-5, 1e-6
        )
        tfzoo.save(model, self.folder / "merged")  # With the adapters' product added to each kernel.
        again, _ = tfzoo.load(self.folder / "merged")
        self.assertAllClose(again.predict(inputs, verbose=0), expected, 1e-5, 1e-6)


class PreprocessorTest(Case):
    def test_strings_become_the_tokenizers_own_batch(self):
        words = tokenizer()
        model = build("bert")
        read = tfzoo.Preprocessor(model, words, 16)
        frame = words.cls_id, words.sep_id
        rows = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(3).map(read)
        for (inputs, labels), start in zip(rows, range(0, 8, 3), strict=True):
            texts = TEXTS[start : start + 3]
            self.assertAllEqual(labels, LABELS[start : start + 3])
            for text, ids, mask in zip(texts, inputs["token_ids"].numpy(), inputs["padding_mask"].numpy()):
                expected = [frame[0], *words.tokenize([text]).to_list()[0][:14], frame[1]]
                self.assertEqual(ids[mask].tolist(), expected)
        pairs = tf.data.Dataset.from_tensor_slices(((TEXTS, TEXTS[::-1]), LABELS, LABELS * 0.5)).batch(8).map(read)
        ((inputs, labels, weights),) = pairs
        self.assertAllEqual(weights, LABELS * 0.5)
        self.assertAllEqual(tf.reduce_max(inputs["segment_ids"], 1), np.ones(8))
        self.assertCountEqual(read(TEXTS), ["token_ids", "segment_ids", "padding_mask"])
        fixed = tfzoo.Preprocessor(model, words, 16, fixed_length=True)
        ((inputs, _),) = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(8).map(fixed)
        self.assertEqual(inputs["token_ids"].shape, (8, 16))
        both = tfzoo.Preprocessor(build("t5"), words, 16)(TEXTS)
        self.assertCountEqual(both, ["token_ids", "padding_mask", "decoder_token_ids", "decoder_padding_mask"])

    def test_what_it_refuses(self):
        model, words = build("bert"), tokenizer()
        self.refused("has no tokenizer", tfzoo.Preprocessor, model, None)
        self.refused(
            r"sequence_length=33: must be from 1 to the model's max_positions \(32\)",
            tfzoo.Preprocessor,
            model,
            words,
            33,
        )
        self.refused("the tokenizer has .* tokens", tfzoo.Preprocessor, build("bert", vocab_size=20), words)
        read = tfzoo.Preprocessor(model, words)
        self.refused(r"not strings \[B\]; call dataset.batch before dataset.map", read, tf.constant("one"))
        self.refused("has 3 parts", read, (TEXTS, TEXTS, TEXTS))

    @pytest.mark.faults
    def test_the_example_of_the_docs(self):
        start = self.folder / "start"
        tfzoo.save(
            build("bert", heads=["lm"], hidden_size=32, max_positions=64, initializer_range=0.1), start, tokenizer()
        )
        labelled = self.folder / "labelled.tsv"
        rows = [("english", text) for text in SENTENCES[:12]] + [("chinese", text) for text in CHINESE[:12]]
        lines = [f"{label}\t{' '.join(text.split())}" for label, text in rows if text.strip()]
        labelled.write_text("\n".join(lines) + "\n", encoding="utf-8")
        script = helpers.ROOT / "docs" / "fine_tune.py"
        environment = {"PYTHONPATH": str(helpers.ROOT)}
        done = helpers.python(script, start, labelled, self.folder / "tuned", 0.01, cwd=self.folder, **environment)
        self.assertRegex(done.stdout.strip().splitlines()[-1], r"accuracy: (1\.0|0\.9)")
        model, words = tfzoo.load(self.folder / "tuned")
        logits = model.predict(tfzoo.Preprocessor(model, words)([SENTENCES[0], CHINESE[0]]), verbose=0)
        self.assertEqual([model.labels[i] for i in logits.argmax(-1)], ["english", "chinese"])
