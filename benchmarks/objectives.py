"""One training step of every objective compared with masked_lm's at equal size, and ELECTRA's compared with those of
its two models alone: `make bench`, or

    .venv/bin/python benchmarks/objectives.py [--objectives=masked_lm,causal] [--precision=float32] [--rounds=10]

All models have 4 blocks of width 256 with 4 heads and 1,024 in the feed-forward part (an encoder-decoder has 2 + 2) and
a vocabulary of 8,192 tokens; a step has 16 rows of 128 tokens without padding, packed if the objective packs, with
dropout 0.1. Batches are prepared in advance. Speeds are rows times sequence_length per second, as tfzoo.train logs.

ELECTRA's step is compared with the sum of two steps: masked_lm on the generator alone, and binary classification of
given tokens by the discriminator alone, each with its own embeddings and optimizer.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import history
from side_by_side import Worker, answer, markdown, ratio, ratios, turns

SCRIPT = str(pathlib.Path(__file__))
BATCH_SIZE, LENGTH, VOCAB_SIZE = 16, 128, 8192
SIZES = dict(
    hidden_size=256,
    num_heads=4,
    intermediate_size=1024,
    max_positions=512,
    vocab_size=VOCAB_SIZE,
    dropout=0.1,
    attention_dropout=0.1,
)
ENCODER, ENCODER_DECODER = dict(num_layers=4), dict(num_layers=2, num_decoder_layers=2)
T5 = ENCODER_DECODER | {"head_dim": 64, "dropout": 0.1}
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective, the model that it trains, and their options."""

    objective: str
    model: str
    sizes: Mapping[str, Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# One line for each objective, or for a way of it that has another step. The first one is the reference.
CASES = {
    "masked_lm": Case("masked_lm", "bert_small", ENCODER, {"pairs": "none"}),
    "masked_lm, pairs": Case("masked_lm", "bert_small", ENCODER),
    "causal": Case("causal", "gpt2", ENCODER),
    "prefix_lm, decoder": Case("prefix_lm", "gpt2", ENCODER),
    "fill_in_the_middle": Case("fill_in_the_middle", "gpt2", ENCODER),
    "replaced_token": Case("replaced_token", "electra_small", ENCODER | {"embedding_size": 0}),
    "permutation": Case("permutation", "xlnet_base", ENCODER),
    "permutation, memory": Case("permutation", "xlnet_base", ENCODER, {"memory_length": LENGTH}),
    "span_corruption": Case("span_corruption", "t5_small", T5),
    "prefix_lm": Case("prefix_lm", "t5_small", T5),
    "ul2": Case("ul2", "t5_small", T5),
    "denoise": Case("denoise", "bart_base", ENCODER_DECODER),
    "seq2seq": Case("seq2seq", "t5_small", T5),
}
ELECTRA = "replaced_token"
ALONE = ("generator alone", "discriminator alone")


def tokenizer():
    """Returns a placeholder for a tokenizer, with all the special tokens that objectives require."""
    import numpy as np

    from tfzoo.objectives.fill_in_the_middle import MARKERS

    roles = ("pad_id", "eos_id", "unk_id", "cls_id", "sep_id", "mask_id", "bos_id")
    sentinels = [VOCAB_SIZE - 1 - i for i in range(100)]
    return types.SimpleNamespace(
        vocab=[f"t{i}" for i in range(VOCAB_SIZE - 103)] + [*MARKERS[0]] + [f"s{i}" for i in range(100)],
        vocab_size=VOCAB_SIZE,
        special_ids=sorted([*range(len(roles)), *sentinels]),
        sentinel_ids=sentinels,
        continues=np.arange(VOCAB_SIZE) % 3 == 0,
        **{name: i for i, name in enumerate(roles)},
    )


def corpus(sentences: int = 25):
    """Returns documents of random tokens, each of 25 sentences of 20 tokens, or of another number of them."""
    import numpy as np

    from tfzoo.data.tokenized import TokenizedCorpus

    count = 200_000
    token_ids = np.random.default_rng(0).integers(7, VOCAB_SIZE - 103, count).astype(np.int32)
    return TokenizedCorpus(token_ids, np.arange(0, count + 1, 20), np.arange(0, count + 1, 20 * sentences))


def prepared(case: Case):
    """Returns (objective, module of the model's family, the model's config, four batches)."""
    from tfzoo import config as config_lib
    from tfzoo import models
    from tfzoo.data import pipeline
    from tfzoo.training import registry

    page, config = models.find(case.model)
    config = config_lib.from_mapping(vars(config) | SIZES | dict(case.sizes), type(config))
    objective = registry.find(case.objective).form_for(page)(tokenizer(), LENGTH, **case.options)
    rows = objective.rows(corpus(2 if case.objective == "seq2seq" else 25))
    batches = pipeline.training_batches(rows, objective, batch_size=BATCH_SIZE, seed=0, first_step=0, num_steps=4)
    return objective, page, config, batches


def alone(name: str, objective, page, config, batches):
    """Returns (objective, models, batches) of one of ELECTRA's models without the other."""
    import tensorflow as tf

    from tfzoo.objectives import masked_lm, replaced_token, shared
    from tfzoo.objectives import objective as protocol

    if name == ALONE[0]:
        generator = replaced_token.generator_config(config, objective.options.generator_size)
        masked = masked_lm.MaskedLM(tokenizer(), LENGTH, pairs="none")
        return masked, {protocol.MAIN: page.Model(generator, heads=("lm",))}, batches

    class Detection(protocol.Objective):
        """Classification of every token, as in the second half of ELECTRA's step."""

        def loss(self, models, batch, training=True):
            logits = shared.forward(models[protocol.MAIN], batch, training)["discriminate_logits"]
            weights = batch["token_weights"]
            each = tf.nn.sigmoid_cross_entropy_with_logits(batch["replaced"], logits)
            return tf.reduce_sum(each * weights), tf.reduce_sum(weights)

    def corrupted(batch):
        logits = tf.random.stateless_normal([*batch["masked_ids"].shape, VOCAB_SIZE], (1, 2))
        token_ids, replaced = objective.corrupt(batch, logits)
        return batch | {"token_ids": token_ids, "replaced": tf.cast(replaced, tf.float32)}

    return Detection(None, LENGTH), {protocol.MAIN: page.Model(config, heads=objective.heads)}, batches.map(corrupted)


def work(name: str, precision: str) -> Callable[[int], dict[str, float]]:
    """Returns a function: steps -> time per step and last loss."""
    import keras
    import tensorflow as tf

    from tfzoo.training import distribution, optimizers
    from tfzoo.training import step as step_lib

    keras.utils.set_random_seed(0)
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    keras.config.set_dtype_policy(policy)
    objective, page, config, batches = prepared(CASES[ELECTRA if name in ALONE else name])
    if name in ALONE:
        objective, models, batches = alone(name, objective, page, config, batches)
    else:
        models = objective.build_models(page, config, policy)
    variables = step_lib.trainable_variables(models)
    optimizer = optimizers.make_optimizer("adamw", LEARNING_RATE, variables, weight_decay=WEIGHT_DECAY)
    run_steps = step_lib.make_step(
        distribution.make_strategy("default"), models, optimizer, objective, clip_norm=CLIP_NORM
    )
    iterator = iter(batches.cache().repeat())
    parameters = sum(int(tf.size(variable)) for variable in variables)

    def measured(steps: int) -> dict[str, float]:
        start = time.perf_counter()
        loss = float(run_steps(iterator, tf.constant(steps))[-1])
        return {"seconds": (time.perf_counter() - start) / steps, "loss": loss, "parameters": parameters}

    return measured


def report(workers: list[Worker], precision: str) -> str:
    """Returns a table; the last column is the speed of each objective over that of the first."""
    seconds = {worker.name: [each["seconds"] for each in worker.answers] for worker in workers}
    first = next(iter(seconds.values()))
    rows = []
    for worker in workers:
        step, last = statistics.median(seconds[worker.name]), worker.answers[-1]
        rows.append(
            [
                worker.name,
                f"{1000 * step:.0f}",
                f"{BATCH_SIZE * LENGTH / step:,.0f}",
                f"{last['parameters'] / 1e6:.1f} M",
                f"{last['loss']:.2f}",
                f"{ratio(first, seconds[worker.name]):.2f}",
            ]
        )
    return markdown(
        [f"objective, {precision}", "ms per step", "tokens/s", "parameters", "loss", f"speed of {workers[0].name} = 1"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", default=";".join(CASES), help="names of CASES, separated by ;")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    args = parser.parse_args()
    names = args.objectives.split(";")
    if unknown := set(names) - set(CASES):
        parser.error(f"--objectives={args.objectives}: {', '.join(sorted(unknown))}: choose from {'; '.join(CASES)}")
    names += ALONE if ELECTRA in names else ()
    workers = []
    for name in names:  # One at a time: tracing and compiling are not measured.
        workers.append(Worker(name, SCRIPT, "--work", name, args.precision))
        workers[-1].ask(3)
    for worker in turns(workers, args.rounds):
        worker.ask(1)  # Wakes the threads and fills the caches.
        worker.answers.append(worker.ask(args.steps))
    for worker in workers:
        worker.close()
    print(report(workers, args.precision))
    taken = {worker.name: [each["seconds"] for each in worker.answers] for worker in workers}
    for name in names[1:]:
        history.record("objectives", args.precision, name, names[0], ratios(taken[names[0]], taken[name]))
    if ELECTRA in names:
        both = [sum(pair) for pair in zip(*(taken[name] for name in ALONE), strict=True)]
        print(f"\n{ELECTRA}: {ratio(taken[ELECTRA], both):.3f} times the sum of its two models' steps")
        history.record("objectives", args.precision, ELECTRA, " + ".join(ALONE), ratios(both, taken[ELECTRA]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        answer(lambda: work(*sys.argv[2:]))
    else:
        main()
