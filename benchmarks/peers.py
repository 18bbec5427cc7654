"""The contenders of train_step.py, each the same training step, each run in a process of its own.

    python benchmarks/peers.py NAME[:WAY] PRECISION INTER_OP_THREADS     (train_step.py calls it, over pipes)

The step: BERT with 4 layers of 512, 8 heads, 2,048 in the feed-forward part and 30,522 words; 16 rows of 128
tokens, 20 masked positions in each; masked-language-model head with tied output embedding; dropout 0.1, on
attention too; AdamW with learning rate 1e-4 and weight decay 0.01; global-norm clipping at 1.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from side_by_side import answer

BATCH_SIZE, SEQUENCE_LENGTH, MASKED = 16, 128, 20
VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, INTERMEDIATE_SIZE, MAX_POSITIONS = 30522, 512, 4, 8, 2048, 512
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, DROPOUT = 1e-4, 0.01, 1.0, 0.1
TOKENS = BATCH_SIZE * SEQUENCE_LENGTH

# Trains as many steps as it is told and returns the last loss, a tensor or a number.
Train = Callable[[int], Any]


def batches() -> Iterator[dict[str, Any]]:
    """The same random batches for everyone, without end."""
    import numpy as np

    random = np.random.default_rng(0)
    made = []
    for _ in range(4):
        segment_ids = np.zeros([BATCH_SIZE, SEQUENCE_LENGTH], np.int32)
        segment_ids[:, SEQUENCE_LENGTH // 2 :] = 1
        positions = [random.choice(SEQUENCE_LENGTH, MASKED, replace=False) for _ in range(BATCH_SIZE)]
        made.append(
            {
                "token_ids": random.integers(5, VOCAB_SIZE, segment_ids.shape, np.int32),
                "segment_ids": segment_ids,
                "padding_mask": np.ones(segment_ids.shape, np.bool_),
                "positions": np.sort(np.array(positions, np.int32), axis=1),
                "labels": random.integers(5, VOCAB_SIZE, [BATCH_SIZE, MASKED], np.int32),
            }
        )
    while True:
        yield from made


def ours(precision: str, way: str) -> tuple[Train, int]:
    """tfzoo's model, objective and optimizer in the step of tfzoo.train.  way: "train", the only one.

    It does a little more than the others: its next-sentence head is computed too.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import distribution, models, optim
    from tfzoo import train as train_lib
    from tfzoo.objectives.masked_lm import MaskedLM
    from tfzoo.text.wordpiece import WordPiece

    if way != "train":
        raise ValueError(f"unknown way {way!r}")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = WordPiece(special + [f"word{i}" for i in range(VOCAB_SIZE - len(special))])
    keras.utils.set_random_seed(0)
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    model = models.build(
        "bert_small",
        dtype=policy,
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        max_positions=MAX_POSITIONS,
        dropout=DROPOUT,
        attention_dropout=DROPOUT,
    )
    optimizer = optim.make_optimizer("adamw", LEARNING_RATE, model.trainable_variables, weight_decay=WEIGHT_DECAY)
    objective = MaskedLM(tokenizer, SEQUENCE_LENGTH)
    strategy = distribution.make_strategy("default")
    run_steps = train_lib.make_step(strategy, model, optimizer, objective, clip_norm=CLIP_NORM)

    def features(batch: dict[str, Any]) -> dict[str, Any]:
        return {
            "token_ids": batch["token_ids"],
            "segment_ids": batch["segment_ids"],
            "padding_mask": batch["padding_mask"],
            "masked_positions": batch["positions"],
            "masked_ids": batch["labels"],
            "masked_weights": np.ones([BATCH_SIZE, MASKED], np.float32),
            "next_sentence": np.zeros([BATCH_SIZE], np.int32),
            "next_sentence_weight": np.zeros([BATCH_SIZE], np.float32),
        }

    some = [features(batch) for batch, _ in zip(batches(), range(4))]
    dataset = tf.data.Dataset.from_tensor_slices({name: np.stack([row[name] for row in some]) for name in some[0]})
    iterator = iter(dataset.repeat())

    def train(steps: int) -> Any:
        return run_steps(iterator, tf.constant(steps))[-1]

    return train, model.count_params()


def kerashub(precision: str, way: str) -> tuple[Train, int]:
    """KerasHub's BertMaskedLM.

    way: "fit", "batch" (train_on_batch) or "function" (a tf.function of its user's); "-xla" compiles it.
    """
    import keras
    import keras_hub
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision])
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCAB_SIZE,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        hidden_dim=HIDDEN_SIZE,
        intermediate_dim=INTERMEDIATE_SIZE,
        dropout=DROPOUT,
        max_sequence_length=MAX_POSITIONS,
    )
    model = keras_hub.models.BertMaskedLM(backbone)
    optimizer = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, global_clipnorm=CLIP_NORM)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    how, _, xla = way.partition("-")
    # metrics=[] is to its advantage: unlike ours, its accuracy is left out.
    model.compile(optimizer=optimizer, loss=loss_of, metrics=[], weighted_metrics=[], jit_compile=bool(xla))

    def pairs() -> Iterator[tuple[dict[str, Any], Any]]:
        for batch in batches():
            features = {name: batch[name] for name in ("token_ids", "segment_ids")}
            features["padding_mask"] = batch["padding_mask"].astype("int32")
            yield {**features, "mask_positions": batch["positions"]}, batch["labels"]

    data = pairs()
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


def garden(precision: str, way: str) -> tuple[Train, int]:
    """Model Garden's pretrainer, trained by the train_step of its own MaskedLMTask.

    way: "function" (with its AdamWeightDecay) or "keras" (with tf_keras's AdamW); "-xla" compiles it.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tf_keras
    from official.modeling.optimization import legacy_adamw
    from official.nlp.configs import bert, encoders
    from official.nlp.tasks import masked_lm

    tf_keras.utils.set_random_seed(0)
    tf_keras.mixed_precision.set_global_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision])
    encoder = encoders.BertEncoderConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        num_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        intermediate_size=INTERMEDIATE_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        type_vocab_size=2,
        dropout_rate=DROPOUT,
        attention_dropout_rate=DROPOUT,
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
    # The loss is a part of the task; its accuracy is left out, to its advantage.
    metrics = [tf_keras.metrics.Mean(name="lm_example_loss")]

    @tf.function(jit_compile=bool(xla), autograph=False)
    def graph(inputs: dict[str, Any]) -> Any:
        return task.train_step(inputs, model, optimizer, metrics)[task.loss]

    data = batches()

    def train(steps: int) -> Any:
        for _ in range(steps):
            batch = next(data)
            inputs = {
                "input_word_ids": batch["token_ids"],
                "input_mask": batch["padding_mask"].astype("int32"),
                "input_type_ids": batch["segment_ids"],
                "masked_lm_positions": batch["positions"],
                "masked_lm_ids": batch["labels"],
                "masked_lm_weights": batch["labels"].clip(1, 1).astype("float32"),
            }
            loss = graph({name: tf.constant(value) for name, value in inputs.items()})
        return loss

    train(1)  # Its variables are made by the first call.
    return train, sum(int(tf.size(variable)) for variable in model.trainable_variables)


# What makes it, the fastest way that was found for it, and the inter-op threads of that (0: TensorFlow's choice).
CONTENDERS: dict[str, tuple[Callable[[str, str], tuple[Train, int]], str, int]] = {
    "ours": (ours, "train", 0),
    "kerashub": (kerashub, "batch", 0),
    "garden": (garden, "function", 0),
}


def work(contender: str, precision: str, inter_op: str) -> Callable[[int], dict[str, float]]:
    """steps -> what a step took, the last loss and the process's peak."""
    name, _, way = contender.partition(":")
    make, fastest_way, threads = CONTENDERS[name]
    if name == "garden":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(int(inter_op or threads))
    train, parameters = make(precision, way or fastest_way)

    def measured(steps: int) -> dict[str, float]:
        start, start_cpu = time.perf_counter(), time.process_time()
        loss = float(train(steps))
        seconds = (time.perf_counter() - start) / steps
        cpu = (time.process_time() - start_cpu) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"seconds": seconds, "cpu": cpu, "loss": loss, "peak": peak, "parameters": parameters}

    return measured


if __name__ == "__main__":
    answer(lambda: work(*sys.argv[1:]))
