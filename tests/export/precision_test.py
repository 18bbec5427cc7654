"""The error of float32, and the tolerance derived from it."""

import json
import pathlib
import tempfile
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import tensorflow as tf

from tests.export import small
from tfzoo.errors import CheckFailed
from tfzoo.export import artifact, golden, interface, precision, publish, verify
from tfzoo.export.answers import Options
from tfzoo.export.precision import Limits


def cases(model):
    return golden.token_cases(model, None, Options(16)).values()


def ill_conditioned():
    """Returns a classifier whose logits are small differences of large numbers, of which float32 keeps few digits."""
    model = small.model(heads=("classify",), pool="mean", num_layers=1)
    head, (inputs, *_) = model.heads["classify"], cases(model)
    kernel, bias = (np.zeros(weight.shape, np.float32) for weight in head.weights)
    kernel[0] = 1e4
    bias -= 1e4 * np.mean(np.asarray(model(inputs)["sequence"])[0, :, 0])
    head.set_weights([kernel, bias])
    return model


def casts_of_matrices(graph):
    """Returns the matrices that the graph reads from variables and casts."""
    found = []
    for operation in graph.get_operations():
        source = operation
        while source.type in ("Cast", "Identity", "IdentityN", "Reshape", "Transpose"):
            source = source.inputs[0].op
        if operation.type == "Cast" and source.type == "ReadVariableOp" and len(source.outputs[0].shape) > 1:
            found.append(source.inputs[0].name)
    return found


class PrecisionTest(tf.test.TestCase):
    def test_what_float32_does(self):
        for family, options in (("gpt2", dict(num_layers=1)), ("reformer", {})):
            model = small.model(family, **options)
            (inputs, *_) = cases(model)
            first = {name: value[:1] for name, value in inputs.items()}
            exact = precision.with_precision(model, "float64")
            self.assertEqual({np.asarray(weight).dtype for weight in exact.weights}, {np.dtype(np.float64)})
            got, want = (np.asarray(m(first)["logits"], np.float64) for m in (model, exact))
            apart = np.abs(got - want).max() / max(1, np.abs(want).max())
            self.assertAllClose(precision.float32_error(model, [inputs]), apart, rtol=1e-9)
            self.assertBetween(apart, 1e-8, 3e-6)  # A few rounding errors of 6e-8.
            self.assertEqual({layer.compute_dtype for layer in model._flatten_layers()}, {"float32"})
        model = ill_conditioned()
        self.assertBetween(precision.float32_error(model, cases(model)), 1e-5, 1e-2)

    def test_bfloat16_in_every_family(self):
        for family, sizes in small.FAMILIES.items():
            overrides: dict[str, Any] = {name: 1 for name in ("num_layers", "num_decoder_layers") if name in sizes}
            if family == "reformer":  # With hashing, a rounding error can move a token to another bucket.
                overrides |= dict(attention_layers=["local"])
            model = small.model(family, **overrides)
            exact, half = (precision.with_precision(model, each) for each in ("float64", "bfloat16"))
            states = {weight.path for weight in half.weights if "seed" in weight.path or "features" in weight.path}
            for weight in half.weights:
                self.assertTrue(weight.dtype == "bfloat16" or weight.path in states, weight.path)
            inputs = {name: tf.constant(value) for name, value in list(cases(model))[1].items()}
            in_graph = tf.function(lambda inputs, half=half: half(inputs, training=False), autograph=False)
            concrete = in_graph.get_concrete_function(inputs)
            self.assertEqual(casts_of_matrices(concrete.graph), [], family)
            got, true = in_graph(inputs), exact(inputs)
            for name, axes in interface.outputs_of(model).items():
                want = np.asarray(true[name], np.float64)
                real = interface.real_of(inputs, axes, want.shape)
                apart = (np.asarray(tf.cast(got[name], tf.float64)) - want)[real]
                # Some dozens of roundings change a number by at most 2^-8 of it each, and most cancel: the root mean
                # squares are from 1.2 to 3.5 times 2^-8.
                error = np.sqrt(np.square(apart).mean() / np.square(want[real]).mean())
                self.assertBetween(error, 1e-4, 8 * 2**-8, f"{family} {name}")

    def test_weights_of_another_type(self):
        model = small.model(num_layers=1)
        mixed = small.model(num_layers=1, dtype="mixed_bfloat16")
        for start in (model, mixed):
            half = precision.with_precision(start, "bfloat16")
            self.assertEqual(half.dtype_policy.name, "bfloat16")
            self.assertIs(precision.with_precision(half, "bfloat16"), half)
            back = precision.with_precision(half, "float32")
            self.assertEqual({weight.dtype for weight in back.weights}, {"float32"})
            for rounded, weight in zip(back.get_weights(), start.get_weights(), strict=True):
                self.assertAllEqual(rounded, weight.astype(ml_dtypes.bfloat16).astype(np.float32))

    def test_a_savedmodel_in_bfloat16_takes_half_of_the_space(self):
        model, folder = (
            small.model("distilbert", heads=("tag",), num_layers=1),
            pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir())),
        )
        with mock.patch.object(publish, "replay"):
            made = artifact.export(
                model, None, folder, formats=["savedmodel"], sequence_length=16, precision="bfloat16"
            )["savedmodel"]
        self.assertEqual(json.loads((made / "manifest.json").read_text())["precision"], "bfloat16")
        self.assertStartsWith(verify.verify(made), "savedmodel distilbert version 1: largest difference")
        weights = tf.saved_model.load(made).weights
        self.assertEqual({weight.dtype for weight in weights}, {tf.bfloat16})
        self.assertEqual(sum(weight.numpy().nbytes for weight in weights), 2 * model.count_params())
        stored = (made / "variables" / "variables.data-00000-of-00001").stat().st_size
        self.assertBetween(stored, 2 * model.count_params(), 3 * model.count_params())

    def test_padding_does_not_count(self):
        model = small.model(heads=("tag",), num_layers=1)
        inputs = {name: value[-1:] for name, value in list(cases(model))[1].items()}
        real = inputs["padding_mask"]
        self.assertFalse(real.all())
        error = precision.float32_error(model, [inputs])
        exactly = precision._in_float64

        def wrong_at_padding(*given):
            return {"tag_logits": exactly(*given)["tag_logits"] + tf.cast(~real, tf.float32)[..., None]}

        with mock.patch.object(precision, "_in_float64", wrong_at_padding):
            self.assertEqual(precision.float32_error(model, [inputs]), error)

    def test_limits(self):
        def limits(model, error, **constants):
            with (
                mock.patch.object(precision, "float32_error", lambda *_: error),
                mock.patch.multiple(precision, **({"_DEEP": 12} | constants)),
            ):
                return list(precision.limits_of(model, lambda: precision.measured_error(model, ())))

        shallow, deep = small.model(num_layers=1), small.model("t5", num_layers=6, num_decoder_layers=6)
        self.assertEqual(limits(shallow, 1e-7), [Limits(2e-5)])
        self.assertEqual(limits(shallow, 1e-5), [Limits(2e-5), Limits(8e-5, 1e-5)])
        self.assertEqual(limits(shallow, 1.0), [Limits(2e-5), Limits(1e-3, 1.0)])
        self.assertEqual(limits(deep, 1e-7), [Limits(2e-5, 1e-7)])
        self.assertEqual(limits(deep, 1e-5), [Limits(8e-5, 1e-5)])
        self.assertEqual(limits(deep, 1e-5, _MOST_PARAMETERS=0), [Limits(1e-4)])
        self.assertEqual(limits(small.model(num_layers=1, dtype="mixed_bfloat16"), 1e-5), [Limits(8e-2)])
        self.assertEqual(Limits(1e-4).of(["logits"]), {"logits": {"of": "largest", "allowed": 1e-4}})
        self.assertEqual(Limits(1e-4).of(["scores"]), {"scores": {"of": "each", "allowed": 1e-3}})

    def test_an_export_is_held_against_what_float32_does(self):
        model, folder = small.model(heads=("tag",)), pathlib.Path(tempfile.mkdtemp(dir=self.get_temp_dir()))

        def export(error=None, most=precision.MOST):
            """No two computations agree within the default tolerance."""
            with (
                mock.patch.dict(precision.USUAL, float32=1e-12),
                mock.patch.object(precision, "float32_error", error or precision.float32_error),
                mock.patch.object(precision, "MOST", most),
                mock.patch.object(artifact, "MOST", most),
                mock.patch.object(publish, "replay"),
            ):
                return artifact.export(model, None, folder, formats=["onnx"], sequence_length=16)["onnx"]

        made = export()
        stated = json.loads((made / "manifest.json").read_text())
        allowed = stated["tolerances"]["tokens"]["logits"]["allowed"]
        self.assertAllClose(allowed, 8 * stated["float32_error"])
        self.assertBetween(stated["measured"]["tokens/logits"]["difference"], 1e-12, allowed)
        verify.verify(made)
        with self.assertRaisesRegex(
            CheckFailed,
            "differs by .*; the model's float32 outputs differ from its float64 outputs by .*, too much for a "
            "comparison: shorten",
        ):
            export(most=2e-12)
        with self.assertRaisesRegex(CheckFailed, "differs by .* allowed; choose other --formats and report"):
            export(lambda *_: 0.0)
        self.assertEqual([path.name for path in made.parent.iterdir()], [made.name])


class CompareTest(tf.test.TestCase):
    def test_numbers_at_real_tokens(self):
        limit = {"of": "largest", "allowed": 1e-5}
        values = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
        real = np.array([[True, True, False], [True, False, False]])
        want = {"values": values, "real": real}
        got = values + np.where(real, 0, 5).astype(np.float32)[..., None]
        self.assertEqual(
            verify.compare(got, want, limit), {"difference": 0.0, "mean": 0.0, "numbers": 12, "equal": 0, "compared": 0}
        )
        for row, token in np.argwhere(real):
            wrong = got.copy()
            wrong[row, token, 2] += 0.01
            with self.assertRaisesRegex(verify.Failure, "differs by"):
                verify.compare(wrong, want, limit)
        got[1, 2, 0] = np.inf
        with self.assertRaisesRegex(verify.Failure, "not finite"):
            verify.compare(got, want, limit)
        # Large values at padding do not widen the tolerance elsewhere.
        values[0, 2] = 1e6
        got = values.copy()
        got[0, 0, 0] += 0.01
        with self.assertRaisesRegex(verify.Failure, "differs by"):
            verify.compare(got, {"values": values, "real": real}, limit)

    def test_rows(self):
        values, limit = np.ones((3, 2), np.float32), {"of": "largest", "allowed": 1e-5}
        want = {"values": values, "real": np.array([True, False, True])}
        got = values.copy()
        got[1] = 7
        self.assertEqual(verify.compare(got, want, limit)["numbers"], 4)
        with self.assertRaisesRegex(verify.Failure, "shape"):
            verify.compare(got[:2], want, limit)


if __name__ == "__main__":
    tf.test.main()
