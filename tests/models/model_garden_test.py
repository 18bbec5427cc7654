"""BERT compared with Model Garden's encoder and masked-LM head: outputs, loss and gradients.

tests/assets/peers.py wrote the files.
"""

import pathlib

import numpy as np
import tensorflow as tf

from tests import parity
from tfzoo import config
from tfzoo.models import bert
from tfzoo.weights import table

GARDEN = pathlib.Path(__file__).parents[1] / "assets" / "model_garden"
CASES = {"bert": dict(activation="gelu_tanh"), "bert_projected": dict(activation="relu", embedding_size=6)}
_LAYER, _TFZOO = "transformer/layer_{}", "encoder/stack/layer_{}"
TABLE = {
    "word_embeddings": "encoder/embeddings/tokens",
    "position_embedding/embeddings": "encoder/embeddings/positions",
    "type_embeddings/embeddings": "encoder/embeddings/segments",
    "embeddings/layer_norm": "encoder/embeddings/norm",
    "embedding_projection": "encoder/embeddings/projection",
    **{f"{_LAYER}/self_attention/{name}": f"{_TFZOO}/attention/{name}" for name in ("query", "key", "value")},
    f"{_LAYER}/self_attention/attention_output": f"{_TFZOO}/attention/output",
    f"{_LAYER}/self_attention_layer_norm": f"{_TFZOO}/self_norm",
    f"{_LAYER}/intermediate": f"{_TFZOO}/mlp/up",
    f"{_LAYER}/output": f"{_TFZOO}/mlp/down",
    f"{_LAYER}/output_layer_norm": f"{_TFZOO}/mlp_norm",
    "pooler_transform": "pooler/dense",
    "transform/dense": "lm/transform",
    "transform/LayerNorm": "lm/norm",
    "bias": "lm/bias",
    "absent": "next_sentence/dense",
}
NAMING = table.Naming({name: f"/{name}" for name in table.HUGGING_FACE.leaves}, transposed=False, canonical=str)


class ModelGardenTest(tf.test.TestCase):
    def test_the_same_outputs_loss_and_gradients(self):
        for name, fields in CASES.items():
            with self.subTest(name=name):
                golden = dict(np.load(GARDEN / f"{name}.npz"))
                model, slots = made(golden, fields)
                inputs = {k.removeprefix("input."): tf.constant(v) for k, v in golden.items() if "input." in k}
                with tf.GradientTape() as tape:
                    outputs = model(inputs)
                    loss = parity.loss_of(outputs["logits"], golden["target"], "cross_entropy")
                mask = golden["input.padding_mask"]
                self.close(outputs["sequence"][mask], golden["output.sequence"][mask])
                self.close(outputs["pooled"], golden["output.pooled"])
                self.close(outputs["logits"], golden["output.logits"])
                self.close(loss, golden["loss"])
                # The loss does not depend on the pooler.
                read = [slot for slot in slots if not slot.name.startswith("pooler_transform")]
                gradients = tape.gradient(loss, [slot.variables[0] for slot in read])
                for slot, gradient in zip(read, gradients):
                    expected = golden[f"gradient.{slot.name}"]
                    self.close(tf.reshape(gradient, expected.shape), expected, 1e-4)

    def close(self, actual, expected, allowed=1e-5):
        self.assertLessEqual(np.max(np.abs(actual - expected)), allowed * max(1, np.max(np.abs(expected))))


def made(golden, fields):
    """Returns a tfzoo model with Model Garden's weights, and each weight's place there, where heads are a separate
    axis.
    """
    sizes = dict(vocab_size=29, hidden_size=12, num_heads=3, intermediate_size=20, max_positions=11, num_segments=2)
    layers = {key.split("/")[1] for key in golden if key.startswith("weight.transformer/")}
    sizes |= dict(num_layers=len(layers), dropout=0.0, attention_dropout=0.0)
    model = bert.Model(config.TransformerConfig(**sizes | fields), heads=("lm", "next_sentence"))
    slots = [slot for slot in table.slots(TABLE, model, NAMING) if not slot.name.startswith("absent")]
    values = {key.removeprefix("weight."): value for key, value in golden.items() if key.startswith("weight.")}
    assert sorted(values) == sorted(slot.name for slot in slots)
    for slot in slots:
        (variable,) = slot.variables
        variable.assign(values[slot.name].reshape(variable.shape))
    return model, slots


if __name__ == "__main__":
    tf.test.main()
