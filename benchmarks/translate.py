"""Training a translation model on multi30k, compared with KerasHub's layers in a model of equal size: `make bench`, or

    TFZOO_DATA=FOLDER .venv-peers/bin/python benchmarks/translate.py [--contenders=length,layers] [--rounds=5]

A Transformer of 3 + 3 layers of width 256 with 4 heads, 1,024 in the feed-forward part, pre-norm, dropout 0.1 and a
shared vocabulary of 8,192 pieces, whose embedding is the output matrix. All contenders have AdamW, clipping at 1 and
the cross-entropy without label smoothing, and read the batches of 64 pairs that `tfzoo.train --task=translate` reads.

    length        tfzoo's training step; rows of similar length together, padded to the longest
    fixed         the same with --nolength_batches: rows of --length tokens on both sides
    layers        KerasHub's TransformerEncoder, TransformerDecoder, SinePositionEncoding and ReversibleEmbedding in a
                  Keras model, trained with fit, with the batches of `length`
    layers:fixed  the same with the batches of `fixed`, and with XLA

Tokens are those of sources and targets, without padding. A turn is --steps updates, the same rows for all.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
from typing import Any

import history
from side_by_side import Clock, Worker, answer, markdown, processor, ratio, ratios, turns

CONTENDERS = ("length", "fixed", "layers", "layers:fixed")
GOAL = 1.1  # Tokens/s of `length`, relative to the fastest KerasHub.
VOCAB_SIZE, HIDDEN_SIZE, LAYERS, HEADS, INTERMEDIATE_SIZE, DROPOUT = 8192, 256, 3, 4, 1024, 0.1
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, CALL = 64, 1e-3, 0.01, 1.0, 10


def open_inputs(folder: pathlib.Path, length: int, by_length: bool):
    """Returns the inputs of a training run."""
    from tfzoo.training import task_inputs
    from tfzoo.training.config import TrainConfig

    data = pathlib.Path(os.environ["TFZOO_DATA"], "multi30k")
    sizes = f"num_layers={LAYERS},num_decoder_layers={LAYERS},hidden_size={HIDDEN_SIZE},num_heads={HEADS}"
    sizes += f",intermediate_size={INTERMEDIATE_SIZE},max_positions={length},norm_first=true"
    config = TrainConfig(
        run_dir=str(folder / "run"),
        task="translate",
        train_file=f"{data / 'train.en.gz'}+{data / 'train.de.gz'}",
        validation_file=f"{data / 'val.en.gz'}+{data / 'val.de.gz'}",
        cache_dir=str(folder / "cache"),
        model="transformer_base",
        overrides=(f"{sizes},dropout={DROPOUT},attention_dropout={DROPOUT}",),
        tokenizer="sentencepiece",
        vocab_size=VOCAB_SIZE,
        sequence_length=length,
        batch_size=BATCH_SIZE,
        length_batches=by_length,
        epochs=50,
    )
    (inputs,) = task_inputs.open_inputs(config.replace(label_smoothing=0.0), False, 1)
    return inputs


def work(contender: str, folder: pathlib.Path, length: int):
    """Returns a function: steps -> the "seconds", "cpu", "tokens", "positions", "parameters" and "loss" of the next
    steps."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    inputs = open_inputs(folder, length, "fixed" not in contender)
    return (kerashub if contender.startswith("layers") else tfzoo)(contender, inputs)


def count(batch: dict[str, Any]) -> tuple[int, int]:
    """Returns the tokens and the positions of a batch, of both sides."""
    masks = [batch["padding_mask"].numpy(), batch["target_weights"].numpy()]
    return int(sum(mask.sum() for mask in masks)), sum(mask.size for mask in masks)


def totals(inputs, first: int, steps: int) -> dict[str, int]:
    """Returns the tokens and the positions of some steps."""
    from tfzoo.data import pipeline

    batches = inputs.training_batches(pipeline.ALONE, first_step=first, passed_over=0, places=None)
    tokens, positions = map(sum, zip(*(count(batch) for batch in batches.take(steps))))
    return {"tokens": tokens, "positions": positions}


def tfzoo(contender: str, inputs):
    import keras
    import tensorflow as tf

    from tfzoo.training import distribution, optimizers
    from tfzoo.training import step as step_lib

    keras.utils.set_random_seed(0)
    strategy = distribution.make_strategy("default")
    models = inputs.objective.build_models(inputs.page, inputs.model_config, "float32")
    variables = step_lib.trainable_variables(models)
    optimizer = optimizers.make_optimizer("adamw", LEARNING_RATE, variables, weight_decay=WEIGHT_DECAY)
    run_steps = step_lib.make_step(strategy, models, optimizer, inputs.objective, clip_norm=CLIP_NORM)
    batches = distribution.spread(
        strategy, lambda context: inputs.training_batches(context, first_step=0, passed_over=0, places=None)
    )
    iterator, done = iter(batches), 0

    def train(steps: int) -> dict[str, Any]:
        nonlocal done
        clock, losses = Clock(), list[float]()
        while len(losses) < steps:
            losses += run_steps(iterator, tf.constant(min(CALL, steps - len(losses)))).numpy().tolist()
        measured = clock.read() | totals(inputs, done, steps)
        done += steps
        return measured | {"parameters": sum(model.count_params() for model in models.values()), "loss": losses[-1]}

    return train


def kerashub_model():
    """Returns a Keras model: source and target ids -> logits."""
    import keras
    from keras_hub import layers

    source = keras.Input([None], dtype="int32", name="token_ids")
    source_mask = keras.Input([None], dtype="bool", name="padding_mask")
    target = keras.Input([None], dtype="int32", name="decoder_token_ids")
    embedding = layers.ReversibleEmbedding(VOCAB_SIZE, HIDDEN_SIZE, tie_weights=True)
    places, dropout = layers.SinePositionEncoding(), keras.layers.Dropout(DROPOUT)

    def embedded(ids):
        vectors = embedding(ids) * HIDDEN_SIZE**0.5
        return dropout(vectors + places(vectors))

    sizes: dict[str, Any] = dict(intermediate_dim=INTERMEDIATE_SIZE, num_heads=HEADS, dropout=DROPOUT)
    memory = embedded(source)
    for _ in range(LAYERS):
        memory = layers.TransformerEncoder(**sizes, normalize_first=True)(memory, padding_mask=source_mask)
    memory = keras.layers.LayerNormalization()(memory)
    x = embedded(target)
    for _ in range(LAYERS):
        decoder = layers.TransformerDecoder(**sizes, normalize_first=True)
        x = decoder(x, memory, encoder_padding_mask=source_mask)
    logits = embedding(keras.layers.LayerNormalization()(x), reverse=True)
    return keras.Model({"token_ids": source, "padding_mask": source_mask, "decoder_token_ids": target}, logits)


def kerashub(contender: str, inputs):
    import keras

    from tfzoo.data import pipeline

    keras.utils.set_random_seed(0)
    model = kerashub_model()
    model.compile(
        optimizer=keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, global_clipnorm=CLIP_NORM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        jit_compile="fixed" in contender,
    )
    done = 0

    class Watch(keras.callbacks.Callback):
        """Measures from the first batch to the last: at both ends of an epoch `fit` waits for tf.data."""

        clock: "Clock | None" = None

        def on_train_batch_begin(self, batch, logs=None):
            self.clock = self.clock or Clock()

        def on_train_batch_end(self, batch, logs=None):
            assert self.clock
            self.measured, self.loss = self.clock.read(), float(logs["loss"])

    names = ("token_ids", "padding_mask", "decoder_token_ids")

    def train(steps: int) -> dict[str, Any]:
        nonlocal done
        batches = inputs.training_batches(pipeline.ALONE, first_step=done, passed_over=0, places=None).take(steps)
        watch = Watch()
        model.fit(
            batches.map(
                lambda batch: ({name: batch[name] for name in names}, batch["targets"], batch["target_weights"])
            ),
            verbose=0,
            callbacks=[watch],
        )
        measured = watch.measured | totals(inputs, done, steps)
        done += steps
        return measured | {"parameters": model.count_params(), "loss": watch.loss}

    return train


def compare(contenders: list[str], folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Measures and prints the table."""
    workers = []
    for name in contenders:  # One at a time: tracing and compiling are not measured.
        worker = Worker(name, __file__, f"--work={name}", f"--folder={folder}", f"--length={args.length}")
        worker.ask(args.warm_up)
        workers.append(worker)
    print(processor(), flush=True)
    for worker in turns(workers, args.rounds):
        worker.answers.append(worker.ask(args.steps))
        if args.verbose:
            print(worker.name, worker.answers[-1], flush=True)
    for worker in workers:
        worker.close()
    speeds = {each.name: [turn["tokens"] / turn["seconds"] for turn in each.answers] for each in workers}
    busy = {each.name: [turn["tokens"] / turn["cpu"] for turn in each.answers] for each in workers}
    peers = [name for name in speeds if name.startswith("layers")] or [contenders[0]]
    fastest = max(peers, key=lambda name: statistics.median(speeds[name]))
    rows = []
    for worker in workers:
        name, taken = worker.name, worker.answers
        tokens, positions = (sum(turn[key] for turn in taken) for key in ("tokens", "positions"))
        rows.append(
            [
                name,
                f"{statistics.median(speeds[name]):,.0f}",
                f"{1000 * statistics.median(turn['seconds'] for turn in taken) / args.steps:.0f}",
                f"{1 - tokens / positions:.1%}",
                f"{taken[-1]['parameters'] / 1e6:.2f} M",
                f"{ratio(speeds[name], speeds[fastest]):.2f}, {ratio(busy[name], busy[fastest]):.2f}",
            ]
        )
    print(markdown(["multi30k", "tokens/s", "ms per step", "padding", "parameters", f"speed of {fastest} = 1"], rows))
    for own in [name for name in speeds if not name.startswith("layers")]:
        for rival in [name for name in peers if name != own]:
            history.record("translate", "multi30k", own, rival, ratios(speeds[own], speeds[rival]))
    if "length" in speeds and fastest != "length":
        reached = ratio(speeds["length"], speeds[fastest])
        print(f"length: {reached:.2f} times KerasHub; {'reached' if reached >= GOAL else 'missed'}: {GOAL}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--length", type=int, default=64, help="tokens per side of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps per turn")
    parser.add_argument("--warm_up", type=int, default=64, help="steps before the first turn: rows of every length")
    parser.add_argument("--verbose", action="store_true", help="print every turn")
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        answer(lambda: work(args.work, args.folder, args.length))
        return
    if "TFZOO_DATA" not in os.environ:
        print("translate.py is skipped: TFZOO_DATA does not name a folder with multi30k")
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(args.contenders.split(","), pathlib.Path(temporary), args)


if __name__ == "__main__":
    main()
