"""The contenders of train_step.py: the same training step in three libraries, each in its own process.

    python benchmarks/peers.py SHAPE NAME[:WAY] PRECISION INTER_OP_THREADS     (train_step.py calls it, through pipes)

The step: 4 layers of width 512 with 8 heads and 2,048 in the feed-forward part; AdamW with learning rate 1e-4 and
weight decay 0.01; global-norm clipping at 1. No padding.

| shape | vocabulary | rows | predicted | dropout |
| --- | ---: | --- | --- | --- |
| bert | 30,522 | 16 of 128 | 20 masked positions per row, through BERT's head | 0.1, also in attention |
| gpt2 | 50,257 | 8 of 256 | every token | 0.1, also in attention |
| t5 | 32,128 | 8 of 256, and of 64 for the decoder's 4 layers | the decoder's tokens | none, as in T5 1.1 |

The output matrix is the token embedding in all three shapes.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from side_by_side import answer

BATCH_SIZE = {"bert": 16, "gpt2": 8, "t5": 8}
SEQUENCE_LENGTH = {"bert": 128, "gpt2": 256, "t5": 256}
MASKED, TARGET_LENGTH = 20, 64
VOCAB_SIZE = {"bert": 30522, "gpt2": 50257, "t5": 32128}
DROPOUT = {"bert": 0.1, "gpt2": 0.1, "t5": 0.0}
HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, INTERMEDIATE_SIZE = 512, 4, 8, 2048
MAX_POSITIONS = {"bert": 512, "gpt2": 1024}
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0

# Trains so many steps and returns the last loss, a tensor or a number.
Train = Callable[[int], Any]


def tokens(shape: str) -> int:
    """Returns the tokens per step, including the decoder's."""
    return BATCH_SIZE[shape] * (SEQUENCE_LENGTH[shape] + (TARGET_LENGTH if shape == "t5" else 0))


def batches(shape: str) -> Iterator[dict[str, Any]]:
    """Yields the same four random batches in a cycle, with tfzoo's names; `targets` are the tokens to predict."""
    import numpy as np

    random = np.random.default_rng(0)
    batch_size, length = BATCH_SIZE[shape], SEQUENCE_LENGTH[shape]

    def words(columns: int):
        return random.integers(5, VOCAB_SIZE[shape], [batch_size, columns], np.int32)

    made: list[dict[str, Any]] = []
    for _ in range(4):
        batch = {"token_ids": words(length), "padding_mask": np.ones([batch_size, length], np.bool_)}
        if shape == "bert":
            batch["segment_ids"] = np.tile(np.arange(length, dtype=np.int32) * 2 // length, [batch_size, 1])
            positions = [random.choice(length, MASKED, replace=False) for _ in range(batch_size)]
            batch["masked_positions"] = np.sort(np.array(positions, np.int32), axis=1)
            batch["targets"] = words(MASKED)
        elif shape == "gpt2":
            batch["targets"] = words(length)
        else:
            batch["targets"] = words(TARGET_LENGTH)
            batch["decoder_token_ids"] = np.pad(batch["targets"], [(0, 0), (1, 0)])[:, :-1]
        made.append(batch)
    while True:
        yield from made


def tfzoo_model(shape: str, dropout: float, dtype: str = "float32"):
    """Returns tfzoo's model with a language model head and, for bert, the next-sentence head."""
    from tfzoo import models

    sizes: dict[str, Any] = {"max_positions": MAX_POSITIONS[shape]} if shape in MAX_POSITIONS else {}
    if shape == "t5":
        sizes["head_dim"] = HIDDEN_SIZE // NUM_HEADS
    return models.build(
        {"bert": "bert_small", "gpt2": "gpt2", "t5": "t5_small"}[shape],
        dtype=dtype,
        vocab_size=VOCAB_SIZE[shape],
        hidden_size=HIDDEN_SIZE,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        dropout=dropout,
        attention_dropout=dropout,
        **sizes,
    )


def tfzoo_objective(shape: str):
    """Returns the objective of tfzoo, with a placeholder tokenizer."""
    from tfzoo.objectives import shared
    from tfzoo.objectives.masked_lm import MaskedLM
    from tfzoo.text.wordpiece import WordPiece

    if shape != "bert":
        return shared.TokenTargets(None, 0)  # The part of Causal and SpanCorruption that processes a batch.
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"word{i}" for i in range(VOCAB_SIZE[shape] - len(special))]
    return MaskedLM(WordPiece(special + words), SEQUENCE_LENGTH[shape])


def tfzoo_features(shape: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns a batch as tfzoo's model and objective read it."""
    import numpy as np

    batch = dict(batch)
    weights = np.ones(batch["targets"].shape, np.float32)
    if shape == "bert":
        none = np.zeros([BATCH_SIZE[shape]], np.int32)
        pair = {"next_sentence": none, "next_sentence_weight": none.astype(np.float32)}
        return batch | pair | {"masked_ids": batch.pop("targets"), "masked_weights": weights}
    if shape == "gpt2":
        del batch["padding_mask"]  # As in training: no token attends to later ones.
    return batch | {"target_weights": weights}


def with_tfzoo(shape: str, precision: str, way: str) -> tuple[Train, int]:
    """tfzoo's model, objective and optimizer in the step of tfzoo.train.  way: "train", the only one.

    For bert it computes a little more than the peers: the next-sentence head.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo.training import distribution, optimizers
    from tfzoo.training import step as step_lib

    if way != "train":
        raise ValueError(f"unknown way {way!r}")
    keras.utils.set_random_seed(0)
    model = tfzoo_model(shape, DROPOUT[shape], POLICIES[precision])
    optimizer = optimizers.make_optimizer("adamw", LEARNING_RATE, model.trainable_variables, weight_decay=WEIGHT_DECAY)
    strategy = distribution.make_strategy("default")
    run_steps = step_lib.make_step(strategy, {"main": model}, optimizer, tfzoo_objective(shape), clip_norm=CLIP_NORM)
    some = [tfzoo_features(shape, batch) for batch, _ in zip(batches(shape), range(4))]
    dataset = tf.data.Dataset.from_tensor_slices({name: np.stack([row[name] for row in some]) for name in some[0]})
    iterator = iter(dataset.repeat())

    def train(steps: int) -> Any:
        return run_steps(iterator, tf.constant(steps))[-1]

    return train, model.count_params()


POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def kerashub_model(shape: str, dropout: float):
    """Returns KerasHub's model with a language model head."""
    from keras_hub import models

    sizes = dict(
        vocabulary_size=VOCAB_SIZE[shape],
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        hidden_dim=HIDDEN_SIZE,
        intermediate_dim=INTERMEDIATE_SIZE,
        dropout=dropout,
    )
    if shape == "bert":
        return models.BertMaskedLM(models.BertBackbone(**sizes, max_sequence_length=MAX_POSITIONS[shape]))
    if shape == "gpt2":
        return models.GPT2CausalLM(models.GPT2Backbone(**sizes, max_sequence_length=MAX_POSITIONS[shape]))
    return models.T5Seq2SeqLM(models.T5Backbone(**sizes, activation="relu", use_gated_activation=False))


def kerashub_features(shape: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns a batch as KerasHub's model reads it."""
    mask = batch["padding_mask"].astype("int32")
    if shape == "t5":
        return {
            "encoder_token_ids": batch["token_ids"],
            "encoder_padding_mask": mask,
            "decoder_token_ids": batch["decoder_token_ids"],
            "decoder_padding_mask": mask[:, :TARGET_LENGTH],
        }
    features = {"token_ids": batch["token_ids"], "padding_mask": mask}
    if shape == "bert":
        features |= {"segment_ids": batch["segment_ids"], "mask_positions": batch["masked_positions"]}
    return features


def kerashub(shape: str, precision: str, way: str) -> tuple[Train, int]:
    """KerasHub's model with Keras's loss and AdamW.

    way: "fit", "batch" (train_on_batch) or "function" (a tf.function written by the user); "-xla" compiles it.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(POLICIES[precision])
    model = kerashub_model(shape, DROPOUT[shape])
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, global_clipnorm=CLIP_NORM)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    how, _, xla = way.partition("-")
    # metrics=[] favors KerasHub: unlike in tfzoo, no accuracy is computed.
    model.compile(optimizer=optimizer, loss=loss_of, metrics=[], weighted_metrics=[], jit_compile=bool(xla))
    data = ((kerashub_features(shape, batch), batch["targets"]) for batch in batches(shape))
    if how == "fit":
        some = [next(data) for _ in range(4)]
        dataset = tf.data.Dataset.from_tensor_slices(
            (
                {name: tf.stack([features[name] for features, _ in some]) for name in some[0][0]},
                tf.stack([labels for _, labels in some]),
            )
        ).repeat()

        def train(steps: int) -> Any:
            return model.fit(dataset, steps_per_epoch=steps, verbose=0).history["loss"][-1]

    elif how == "batch":

        def train(steps: int) -> Any:
            for _ in range(steps):
                loss = model.train_on_batch(*next(data))
            return loss

    elif how == "function":
        optimizer.build(model.trainable_variables)

        @tf.function(jit_compile=bool(xla), autograph=False)
        def graph(features: dict[str, Any], labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(features, training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables))
            return loss

        def train(steps: int) -> Any:
            for _ in range(steps):
                features, labels = next(data)
                loss = graph({name: tf.constant(value) for name, value in features.items()}, tf.constant(labels))
            return loss

    else:
        raise ValueError(f"unknown way {way!r}")
    return train, model.count_params()


def garden(shape: str, precision: str, way: str) -> tuple[Train, int]:
    """Model Garden's BERT pretrainer, trained by the train_step of its MaskedLMTask.

    way: "function" (with its AdamWeightDecay) or "keras" (with tf_keras's AdamW); "-xla" compiles it.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tf_keras
    from official.modeling.optimization import legacy_adamw
    from official.nlp.configs import bert, encoders
    from official.nlp.tasks import masked_lm

    if shape != "bert":
        raise ValueError(f"Model Garden has no {shape}")
    tf_keras.utils.set_random_seed(0)
    tf_keras.mixed_precision.set_global_policy(POLICIES[precision])
    encoder = encoders.BertEncoderConfig(
        vocab_size=VOCAB_SIZE[shape],
        hidden_size=HIDDEN_SIZE,
        num_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        max_position_embeddings=MAX_POSITIONS[shape],
        type_vocab_size=2,
        dropout_rate=DROPOUT[shape],
        attention_dropout_rate=DROPOUT[shape],
    )
    config = bert.PretrainerConfig(
        encoder=encoders.EncoderConfig(type="bert", bert=encoder), cls_heads=[], mlm_activation="gelu"
    )
    task = masked_lm.MaskedLMTask(masked_lm.MaskedLMConfig(model=config))
    model = task.build_model()
    how, _, xla = way.partition("-")
    if how == "function":
        optimizer = legacy_adamw.AdamWeightDecay(
            LEARNING_RATE,
            weight_decay_rate=WEIGHT_DECAY,
            epsilon=1e-6,
            exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"],
            gradient_clip_norm=CLIP_NORM,
        )
    elif how == "keras":
        optimizer = tf_keras.optimizers.AdamW(
            LEARNING_RATE, weight_decay=WEIGHT_DECAY, global_clipnorm=CLIP_NORM, jit_compile=False
        )
    else:
        raise ValueError(f"unknown way {way!r}")
    # Omitting the task's accuracy favors Model Garden.
    metrics = [tf_keras.metrics.Mean(name="lm_example_loss")]

    @tf.function(jit_compile=bool(xla), autograph=False)
    def graph(inputs: dict[str, Any]) -> Any:
        return task.train_step(inputs, model, optimizer, metrics)[task.loss]

    data = batches(shape)

    def train(steps: int) -> Any:
        for _ in range(steps):
            batch = next(data)
            inputs = {
                "input_word_ids": batch["token_ids"],
                "input_mask": batch["padding_mask"].astype("int32"),
                "input_type_ids": batch["segment_ids"],
                "masked_lm_positions": batch["masked_positions"],
                "masked_lm_ids": batch["targets"],
                "masked_lm_weights": batch["targets"].clip(1, 1).astype("float32"),
            }
            loss = graph({name: tf.constant(value) for name, value in inputs.items()})
        return loss

    train(1)  # The first call creates the variables.
    return train, sum(int(tf.size(variable)) for variable in model.trainable_variables)


def same_loss(shape: str) -> tuple[float, float]:
    """Returns the losses of tfzoo and KerasHub for one batch, with the same weights and no dropout."""
    import keras
    import tensorflow as tf

    from tfzoo.objectives import shared

    own, peer = tfzoo_model(shape, 0.0), kerashub_model(shape, 0.0)
    # Both list their variables in the same order, except for those with a unique size.
    left = list(peer.trainable_variables)
    for variable in own.trainable_variables:
        like = next((v for v in left if v.value.shape.num_elements() == variable.value.shape.num_elements()), None)
        assert like is not None, variable.path
        like.assign(tf.reshape(variable.value, like.shape))
        left = [v for v in left if v is not like]
    assert not left, [v.path for v in left]
    batch = next(batches(shape))
    features = {name: tf.constant(x) for name, x in tfzoo_features(shape, batch).items()}
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    words, _ = shared.cross_entropy(shared.forward(own, features, False)["logits"], features["targets"])
    return float(tf.reduce_mean(words)), float(loss_of(batch["targets"], peer(kerashub_features(shape, batch))))


# The factory, the fastest way found, and its number of inter-op threads (0: chosen by TensorFlow).
CONTENDERS: dict[str, tuple[Callable[[str, str, str], tuple[Train, int]], str, int]] = {
    "tfzoo": (with_tfzoo, "train", 0),
    "kerashub": (kerashub, "batch", 0),
    "garden": (garden, "function", 0),
}


def work(shape: str, contender: str, precision: str, inter_op: str) -> Callable[[int], dict[str, float]]:
    """Returns a function: steps -> time per step, last loss and peak memory of the process."""
    name, _, way = contender.partition(":")
    make, fastest_way, threads = CONTENDERS[name]
    if name == "garden":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(int(inter_op or threads))
    train, parameters = make(shape, precision, way or fastest_way)

    def measured(steps: int) -> dict[str, float]:
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = float(train(steps))
        seconds = (time.perf_counter() - start) / steps
        cpu = (time.process_time() - start_cpu) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"seconds": seconds, "cpu": cpu, "loss": loss, "peak": peak, "parameters": parameters}

    return measured


if __name__ == "__main__":
    if sys.argv[1] == "same_loss":
        print("Losses with the same weights: {:.6f} (tfzoo) and {:.6f} (KerasHub).".format(*same_loss(sys.argv[2])))
    else:
        answer(lambda: work(*sys.argv[1:]))
