"""Every family beside its reference: the golden files of tests/assets, through the real converter and back."""

import pathlib
import tempfile
import unittest.mock

import tensorflow as tf

from tests import parity

GOLDEN = pathlib.Path(__file__).parent / "assets" / "golden"


class ParityTest(tf.test.TestCase):
    def test_outputs_loss_and_gradients_are_the_reference_s(self):
        for case in parity.cases(GOLDEN):
            with self.subTest(case=case.name):
                for name, difference in parity.compare(case).items():
                    allowed = parity.GRADIENTS if name == "gradients" else parity.OUTPUTS
                    self.assertLessEqual(difference, allowed, f"{case.name}: {name}")

    def test_there_and_back_is_bit_identical(self):
        for case in parity.cases(GOLDEN):
            with self.subTest(case=case.name), tempfile.TemporaryDirectory() as folder:
                parity.there_and_back(case, pathlib.Path(folder))

    def test_a_small_change_of_a_weight_is_noticed(self):
        load = parity.huggingface.load

        def changed(case):
            model, tokenizer = load(case)
            variable = model.encoder.stack.blocks[1].mlp.down.kernel
            variable.assign(variable * 1.001)
            return model, tokenizer

        with unittest.mock.patch.object(parity.huggingface, "load", changed):
            differences = parity.compare(GOLDEN / "bert")
        self.assertGreater(differences["sequence"], parity.OUTPUTS)
        self.assertGreater(differences["logits"], parity.OUTPUTS)


if __name__ == "__main__":
    tf.test.main()
