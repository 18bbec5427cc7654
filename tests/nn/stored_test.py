"""Weights stored as bfloat16 and int8: results equal those of a plain model with the rounded weights."""

import ml_dtypes
import numpy as np
import tensorflow as tf

import tfzoo
from tests.helpers import noisy_model, op_by_op, processor_flags, temporary_folder
from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.nn.stored import EXACT

TINY = dict(vocab_size=23, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24)
IDS = np.array([[3, 9, 5, 1], [7, 7, 2, 22]])


def rounded(matrix, dtype):
    """Returns the matrix [O, I] that the stored values represent."""
    if dtype == "bfloat16":
        return matrix.astype(ml_dtypes.bfloat16).astype(np.float32)
    scale = np.abs(matrix).max(1, keepdims=True) / np.float32(127)
    return np.rint(matrix / scale) * scale


def build(name, **overrides):
    return noisy_model(name, noise=0.3, **(TINY | overrides))


class StoredTest(tf.test.TestCase):
    def test_what_is_computed_is_what_rounded_weights_give(self):
        for name, overrides in (
            ("gpt2", dict(max_positions=16)),
            ("llama_tiny", dict(num_kv_heads=1, max_positions=16)),
            ("t5_small", dict(head_dim=8)),
        ):
            inputs = {"token_ids": IDS}
            if name == "t5_small":
                inputs["decoder_token_ids"] = IDS[::-1]
            for dtype in ("bfloat16", "int8"):
                plain, stored = build(name, **overrides), build(name, **overrides)
                stored.set_weights(plain.get_weights())
                as_they_were = plain(inputs)["logits"].numpy()
                size = sum(variable.numpy().nbytes for variable in stored.variables)
                tfzoo.store_weights(stored, dtype)
                self.assertEqual(nn.stored_weights(stored), dtype)
                self.assertLess(
                    sum(v.numpy().nbytes for v in stored.variables), size * dict(bfloat16=0.6, int8=0.5)[dtype]
                )
                matrices = 0
                for variable in plain.variables:
                    if variable.path.endswith("/kernel"):
                        variable.assign(rounded(variable.numpy().T, dtype).T)
                    elif variable.path.endswith("tokens/embeddings"):
                        variable.assign(rounded(variable.numpy(), dtype))
                    matrices += variable.path.endswith(("/kernel", "tokens/embeddings"))
                self.assertEqual(matrices, sum(isinstance(x, nn.StoredMatrix) for x in stored._flatten_layers()))
                expected, actual = plain(inputs)["logits"].numpy(), stored(inputs)["logits"].numpy()
                self.assertAllClose(actual, expected, 1e-5, 1e-5)
                self.assertGreater(np.abs(expected - as_they_were).max(), 1e-3)
                if name == "gpt2":
                    with op_by_op():
                        texts = [tfzoo.generate_ids(model, IDS, max_new_tokens=5) for model in (plain, stored)]
                    self.assertAllEqual(*texts)

    def test_products_in_a_loop_that_xla_compiles(self):
        matrix = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
        for dtype in ("bfloat16", "int8"):
            stored = nn.StoredMatrix(matrix, dtype)

            @tf.function(jit_compile=True, autograph=False)
            def product(x, stored=stored):
                with nn.compiled_steps(True):
                    return stored.product(x)

            for rows in (1, 3, 9):  # Each count uses a different branch.
                x = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
                self.assertAllClose(product(tf.constant(x)), x @ rounded(matrix, dtype).T, 1e-5, 1e-5)

    def test_products_of_a_decoding_step_round_to_bfloat16_except_the_largest_logits(self):
        random = np.random.default_rng(0)
        matrix, x = (random.normal(size=size).astype(np.float32) for size in ((300, 40), (2, 40)))
        stored = nn.StoredMatrix(matrix, "bfloat16")
        with nn.few_rows():
            product, logits = stored.product(tf.constant(x)).numpy(), stored.product(tf.constant(x), True).numpy()
        weights = rounded(matrix, "bfloat16").astype(np.float64)
        narrow = rounded(x, "bfloat16") @ weights.T
        # TensorFlow rounds to the nearest number; on processors without bfloat16 products, toward zero.
        rounding = 2.0**-8 if "avx512_bf16" in processor_flags() else 2.0**-7
        self.assertAllClose(product, narrow, rounding, 1e-5)
        self.assertAllEqual(product, rounded(product, "bfloat16"))
        expected = x @ weights.T
        largest = np.argsort(product, -1)[:, -EXACT:]
        exact = np.zeros(product.shape, bool)
        np.put_along_axis(exact, largest, True, -1)
        self.assertAllClose(logits[exact], expected[exact], 1e-5, 1e-5)
        self.assertAllEqual(logits[~exact], product[~exact])
        self.assertAllEqual(logits.argmax(-1), expected.argmax(-1))

    def test_a_row_of_zeros_stays_one(self):
        matrix = np.array([[0.0, 0.0], [1.0, -2.0]], np.float32)
        stored = nn.StoredMatrix(matrix, "int8")
        self.assertAllClose(stored.rows([0, 1]), [[0, 0], [64 / 127 * 2, -2]], 1e-6)
        self.assertAllEqual(stored.product(tf.constant([[0.0, 1.0]]))[0, 0], 0)

    def test_what_cannot_be(self):
        model = build("gpt2", max_positions=16)
        tfzoo.store_weights(model, "float32")
        self.assertEqual(nn.stored_weights(model), "")
        with self.assertRaisesRegex(UserError, "weights 'int4': must be one of float32, bfloat16, int8"):
            tfzoo.store_weights(model, "int4")
        tfzoo.store_weights(model, "int8")
        with self.assertRaisesRegex(UserError, "kept as int8 already"):
            tfzoo.store_weights(model, "bfloat16")
        folder = temporary_folder(self)
        with self.assertRaisesRegex(UserError, "save it before"):
            tfzoo.save(model, folder)


if __name__ == "__main__":
    tf.test.main()
