"""The inputs and outputs of exports, by model."""

import numpy as np
import tensorflow as tf

from tests.export import small
from tfzoo.errors import UserError
from tfzoo.export import interface
from tfzoo.models import bert


class InterfaceTest(tf.test.TestCase):
    def test_inputs(self):
        both = ["token_ids", "padding_mask", "decoder_token_ids", "decoder_padding_mask"]
        for family, options, names in (
            ("bert", {}, ["token_ids", "segment_ids", "padding_mask"]),
            ("bert", dict(num_segments=1), ["token_ids", "padding_mask"]),
            ("bert", dict(heads=("relation",)), ["token_ids", "segment_ids", "padding_mask", "entity_positions"]),
            ("roberta", {}, ["token_ids", "padding_mask"]),
            ("xlnet", {}, ["token_ids", "segment_ids", "padding_mask"]),
            ("gpt2", {}, ["token_ids", "padding_mask"]),
            ("reformer", {}, ["token_ids", "padding_mask"]),
            ("t5", {}, both),
        ):
            self.assertEqual(list(interface.inputs_of(small.model(family, **options))), names)

    def test_an_input_that_is_not_known(self):
        class Speaking(bert.Model):
            INPUTS = (*bert.Model.INPUTS, "speaker_ids")
            REQUIRED_INPUTS = ("token_ids", "speaker_ids")

        model = Speaking(small.model(num_layers=1).config)
        with self.assertRaisesRegex(UserError, "exports do not support the input 'speaker_ids'; add it to"):
            interface.inputs_of(model)
        with self.assertRaisesRegex(UserError, "exports do not support the input 'x'"):
            interface.to_onnx({"x": np.zeros(1)})

    def test_signatures(self):
        signature = interface.tokens(small.model("t5", num_layers=1), 8)
        shapes = {name: tensor.shape for name, tensor in signature.inputs.items()}
        self.assertEqual(shapes["decoder_padding_mask"], ("batch", "decoder_sequence"))
        self.assertEqual(signature.outputs["logits"].shape, ("batch", "decoder_sequence", len(small.VOCAB)))
        signature = interface.tokens(small.model("reformer", heads=()), 8)
        self.assertEqual({tensor.shape for tensor in signature.inputs.values()}, {("batch", 8)})
        self.assertEqual(signature.outputs["sequence"].shape, ("batch", 8, 32))  # Two-stream attention.
        self.assertEqual([spec.shape.as_list() for spec in signature.specs()], [[None, 8]] * 2)
        self.assertEqual(signature.stated()["inputs"]["padding_mask"], {"dtype": "bool", "shape": ["batch", 8]})

    def test_samples(self):
        inputs = interface.sample(small.model("t5", num_layers=1), 3, 12, np.random.default_rng(0))
        self.assertEqual(inputs["token_ids"].shape, (3, 12))
        self.assertEqual(inputs["decoder_token_ids"].shape, (3, 8))
        self.assertAllEqual(inputs["padding_mask"].sum(1), [12, 8, 4])
        self.assertTrue((inputs["token_ids"][~inputs["padding_mask"]] == 0).all())
        one = interface.sample(small.model("t5", num_layers=1), 1, 12, np.random.default_rng(0), one_length=True)
        self.assertEqual({value.shape for value in one.values()}, {(1, 12)})
        model = small.model(heads=("relation",), num_layers=1)
        inputs = interface.sample(model, 2, 6, np.random.default_rng(0))
        self.assertAllEqual(inputs["segment_ids"], [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
        self.assertTrue((inputs["entity_positions"] < inputs["padding_mask"].sum(1)[:, None]).all())
        inputs = interface.padded(model, [[5, 6], [7]], 1)
        self.assertAllEqual(inputs["token_ids"], [[5, 6], [7, 1]])
        self.assertAllEqual(inputs["padding_mask"], [[True, True], [True, False]])
        self.assertEqual({value.dtype for value in interface.to_onnx(inputs).values()}, {np.dtype(np.int64)})

    def test_where_outputs_say_something(self):
        mask = np.array([[True, False], [False, False]])
        real = interface.real_of({"padding_mask": mask}, ("batch", "sequence", 3), (2, 2, 3))
        self.assertAllEqual(real, mask)
        real = interface.real_of({"padding_mask": mask}, ("batch", 3), (2, 3))
        self.assertAllEqual(real, [True, False])
        real = interface.real_of({"padding_mask": mask}, ("batch", "decoder_sequence"), (2, 4))
        self.assertAllEqual(real, np.ones((2, 4), bool))


if __name__ == "__main__":
    tf.test.main()
