"""Tiny random encoders of Model Garden, and what they answer: the references of tests/models/model_garden_test.py.

    python tests/assets/peers.py --output=tests/assets/model_garden

Made with tf-models-official 2.20.0, tf-keras 2.20.1 and tensorflow 2.20.0. NAME.npz has `weight.*` by Model Garden's
names and in its shapes, `input.*` by our names, `output.sequence`, `output.pooled` and `output.logits`, those of the
masked positions, `target`, the mean cross-entropy `loss` and `gradient.*` of it. Every weight has normal noise: what
a test leaves out shows.
"""

import argparse
import pathlib

import numpy as np
import tensorflow as tf
import tf_keras
from official.nlp.modeling import layers, networks

LENGTH, VOCAB = 9, 29
SIZES = dict(vocab_size=VOCAB, hidden_size=12, num_layers=2, num_attention_heads=3, inner_dim=20)
SIZES |= dict(max_sequence_length=11, type_vocab_size=2)
CASES = {
    "bert": dict(),  # Its default is the approximate gelu.
    "bert_projected": dict(embedding_width=6, num_layers=1, inner_activation="relu"),
}


def make(name, random):
    """The encoder, and the head of masked words with the encoder's activation."""
    encoder = networks.BertEncoderV2(**SIZES | CASES[name], output_dropout=0.0, attention_dropout=0.0)
    function = CASES[name].get("inner_activation", lambda x: tf_keras.activations.gelu(x, approximate=True))
    encoder({key: tf.ones((1, LENGTH), tf.int32) for key in ("input_word_ids", "input_mask", "input_type_ids")})
    head = layers.MaskedLM(encoder.get_embedding_table(), activation=function, name="masked_lm")
    head.build((None, None, SIZES["hidden_size"]))
    for variable in encoder.variables + head.variables:
        variable.assign(variable + random.normal(0, 0.2, variable.shape))
    return encoder, head


def answers(encoder, head, random):
    mask = np.arange(LENGTH) < np.array([LENGTH, 6, 4])[:, None]
    inputs = {
        "token_ids": random.integers(5, VOCAB, mask.shape) * mask,
        "padding_mask": mask,
        "segment_ids": (np.arange(LENGTH) > 2) * mask,
        "masked_positions": np.array([[1, 5, 8], [0, 2, 5], [3, 1, 2]]),
    }
    target = random.integers(5, VOCAB, inputs["masked_positions"].shape)
    theirs = dict(token_ids="input_word_ids", padding_mask="input_mask", segment_ids="input_type_ids")
    with tf.GradientTape() as tape:
        outputs = encoder({theirs[key]: np.asarray(inputs[key], np.int32) for key in theirs})
        logits = head(outputs["sequence_output"], tf.constant(inputs["masked_positions"], tf.int32))
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits))
    variables = {variable.name.removesuffix(":0").partition("/")[2]: variable for variable in weights(encoder, head)}
    gradients = tape.gradient(loss, [*variables.values()], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    arrays = {f"input.{k}": v if k == "padding_mask" else v.astype(np.int32) for k, v in inputs.items()}
    arrays |= {"output.sequence": outputs["sequence_output"], "output.pooled": outputs["pooled_output"]}
    arrays |= {"output.logits": logits, "loss": loss, "target": target.astype(np.int32)}
    arrays |= {f"weight.{name}": variable for name, variable in variables.items()}
    arrays |= {f"gradient.{name}": tf.convert_to_tensor(gradient) for name, gradient in zip(variables, gradients)}
    return {key: np.asarray(value) for key, value in arrays.items()}


def weights(encoder, head):
    """All variables: the head's table of embeddings is the encoder's."""
    own = {variable.ref() for variable in encoder.variables}
    return [*encoder.variables, *(variable for variable in head.variables if variable.ref() not in own)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CASES):
        tf_keras.utils.set_random_seed(number)
        random = np.random.default_rng(number)
        np.savez_compressed(output / f"{name}.npz", **answers(*make(name, random), random))


if __name__ == "__main__":
    main()
