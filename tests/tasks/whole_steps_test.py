"""Losses that compare all rows of a step are the same on several replicas and in microbatches.

The functions below the tests run in the processes of tests/worlds.py.
"""

import unittest

import pytest

from tests import helpers
from tests.worlds import Worlds

STEPS, BATCH = 6, 12
CASES = {
    "cosent": dict(task="similarity"),
    "triples": dict(task="embed", columns=3, symmetric=True, matryoshka_sizes="4"),
}
ANSWERS = ("chat", "preferences")
worlds = Worlds("tests.tasks.whole_steps_test")


class WholeStepsTest(unittest.TestCase):
    def test_two_devices_are_one(self):
        self.check(["cosent"], ["mirrored2"])

    @pytest.mark.faults
    def test_many_are_one(self):
        self.check([*CASES], ["mirrored2", "workers2"])

    def check(self, names, others):
        """Compares the cases on one device, in microbatches, and in other worlds."""
        cases = [dict(CASES[name]) for name in names]
        # "split" shows how large the difference is if microbatches are compared only with themselves.
        calls = [["losses", case | more] for case in cases for more in ({}, {"parts": 3}, {"parts": 3, "split": True})]
        ((*alone,),) = worlds.run("one", calls)
        for name, one, parts, split in zip(names, alone[::3], alone[1::3], alone[2::3], strict=True):
            self.assertEqual(len(one["losses"]), STEPS)
            self.near(parts, one, f"{name} in three parts")
            self.assertGreater(abs(split["losses"][-1] - one["losses"][-1]), 1e-2, name)
        for world in others:
            ranks = worlds.run(world, [["losses", case | {"parts": parts}] for case in cases for parts in (1, 2)])
            for rank in ranks:
                for i, found in enumerate(rank):
                    self.near(found, alone[3 * (i // 2)], f"{world} {names[i // 2]}, {1 + i % 2} parts")

    def test_sums_over_answers(self):
        """Chat divides by the number of the answers' tokens, which differ between replicas; preferences has a frozen
        reference."""
        self.check_answers(["mirrored2"], ["chat"])

    @pytest.mark.faults
    def test_sums_over_answers_of_every_task_in_every_world(self):
        self.check_answers(["mirrored2", "workers2"], ANSWERS)

    def check_answers(self, others, tasks):
        calls = [["losses_of_answers", {"task": task, "parts": parts}] for task in tasks for parts in (1, 2)]
        ((*alone,),) = worlds.run("one", calls)
        for task, one, parts in zip(tasks, alone[::2], alone[1::2], strict=True):
            self.assertEqual(len(one["losses"]), STEPS)
            self.near(parts, one, f"{task} in two parts")
        for world in others:
            for rank in worlds.run(world, calls):
                for i, found in enumerate(rank):
                    self.near(found, alone[2 * (i // 2)], f"{world} {tasks[i // 2]}, {1 + i % 2} parts")

    def near(self, found, one, what):
        for name, values in one.items():
            for i, (a, b) in enumerate(zip(found[name], values, strict=True)):
                self.assertLessEqual(abs(a - b), 1e-6 * max(1.0, abs(b)), f"{what}: {name} {i}")

    def test_the_second_pass_draws_the_same_dropout_masks(self):
        ((found,),) = worlds.run("one", [["gradient_with_dropout", {}]])
        self.assertLess(found["difference"], 1e-6)
        self.assertGreater(found["without_the_masks"], 1e-2)


# ---------------------------------------------------------------- Functions that run in the worlds
def import_all():
    """Imports what the functions need, once."""
    from tfzoo.data import by_length, encoded
    from tfzoo.models import bert, gpt2
    from tfzoo.tasks import chat, embed, preferences, similarity
    from tfzoo.training import optimizers, step, task_inputs

    assert all((by_length, encoded, bert, gpt2, chat, embed, preferences, similarity, optimizers, step, task_inputs))


def made(task, columns=2, dropout=0.0, **options):
    """Returns (model, task, rows)."""
    import keras
    import numpy as np

    import tfzoo
    from tfzoo.config import EmbeddingConfig
    from tfzoo.data.encoded import EncodedRows
    from tfzoo.models import bert
    from tfzoo.training import registry
    from tfzoo.training.task_inputs import TaskRows

    keras.utils.set_random_seed(1)
    sizes = dict(vocab_size=260, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, max_positions=16)
    embed = EmbeddingConfig(layers=("normalize",))
    model = tfzoo.build("bert_tiny", **sizes, dropout=dropout, attention_dropout=dropout, heads=("embed",), embed=embed)
    for variable in model.trainable_variables:
        variable.assign_add(keras.random.normal(variable.shape, 0, 0.1, seed=len(variable.path)))
    tokenizer = helpers.byte_tokenizer(["<s>", "</s>", "<pad>"], cls="<s>", sep="</s>", pad="<pad>")
    learner = registry.find(task)(tokenizer, 16, page=bert, **options)
    draw = np.random.default_rng(0)
    ragged, texts = {}, []
    for i in range(columns):
        # Few different texts, so that there are copies.
        texts.append([draw.integers(3, 9, draw.integers(1, 3 + 4 * i)).astype(np.int32) for _ in range(60)])
        lengths = [len(ids) for ids in texts[-1]]
        ragged[f"text_{i}"] = np.concatenate(texts[-1]), np.concatenate([[0], np.cumsum(lengths)])
    numbers = dict(number=np.arange(60), label=draw.integers(0, 6, 60).astype(np.float32))
    named = {f"text_{i}": column for i, column in enumerate(texts)}
    return model, learner, TaskRows.of(learner, EncodedRows(numbers | {"keys": learner._keys(named)}, ragged))


def losses(world, task, parts=1, split=False, **options):
    """Returns the losses of some steps, and numbers of the weights at the end."""
    import numpy as np
    import tensorflow as tf

    from tfzoo.data import by_length
    from tfzoo.training import optimizers, step

    with world.strategy.scope():
        model, learner, rows = made(task, **options)
        optimizer = optimizers.make_optimizer("sgd", 0.3, model.trainable_variables)
    if split:
        learner.whole_batch = lambda models, parts: {}
    run = step.make_step(world.strategy, {"main": model}, optimizer, learner, num_parts=parts, clip_norm=1.0)

    def batches(context):
        return by_length.training_batches(
            rows, batch_size=BATCH, seed=3, first_step=0, num_steps=STEPS, context=context
        )

    iterator = iter(world.strategy.distribute_datasets_from_function(batches))
    found = run(iterator, tf.constant(STEPS)).numpy().tolist()
    assert np.all(np.isfinite(found)) and found[-1] != found[0]
    weights = [float(np.linalg.norm(variable.numpy())) for variable in model.trainable_variables]
    return {"losses": found, "weights": weights}


def losses_of_answers(world, task, parts):
    """Returns the losses of some steps of a task on conversations, and numbers of the weights at the end."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import models as models_lib
    from tfzoo.data import by_length
    from tfzoo.data.encoded import of_chunk
    from tfzoo.models import gpt2
    from tfzoo.training import optimizers, registry, step
    from tfzoo.training.task_inputs import TaskRows

    tokenizer = helpers.byte_tokenizer(["<s>", "</s>"], eos="</s>")
    tokenizer.chat_templates = {"default": "{% for m in messages %}{{ m.content }}</s>{% endfor %}"}
    learner = registry.find(task)(tokenizer, 16, page=gpt2)
    draw = np.random.default_rng(0)

    def ids(low, high):
        return draw.integers(2, 9, draw.integers(low, high)).astype(np.int32)

    columns = {"number": np.arange(40)}
    if task == "chat":
        columns |= {"tokens": [ids(4, 17) for _ in range(40)], "missing": np.zeros(40, np.int8)}
        columns["spans"] = [np.array([draw.integers(1, len(x) - 1), len(x)], np.int32) for x in columns["tokens"]]
    else:
        begins = draw.integers(1, 5, 40)
        columns |= {name: [ids(6, 17) for _ in range(40)] for name in ("chosen", "rejected")}
        columns |= {"chosen_begin": begins, "rejected_begin": begins, "missing": np.zeros(40, bool)}
    rows = TaskRows.of(learner, learner.training_rows(of_chunk(columns)))
    sizes = dict(vocab_size=260, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=12, max_positions=16)
    sizes |= dict(dropout=0.0, attention_dropout=0.0)
    with world.strategy.scope():
        keras.utils.set_random_seed(1)
        _, config = models_lib.find("gpt2")
        models = learner.build_models(gpt2, models_lib.config_class(gpt2)(**vars(config) | sizes))
        learner.initialized(models)
        optimizer = optimizers.make_optimizer("sgd", 0.3, step.trainable_variables(models))
    run = step.make_step(world.strategy, models, optimizer, learner, num_parts=parts, clip_norm=1.0)

    def batches(context):
        return by_length.training_batches(
            rows, batch_size=BATCH, seed=3, first_step=0, num_steps=STEPS, context=context
        )

    found = run(iter(world.strategy.distribute_datasets_from_function(batches)), tf.constant(STEPS)).numpy().tolist()
    assert np.all(np.isfinite(found)) and found[-1] != found[0]
    return {"losses": found, "weights": [float(np.linalg.norm(x.numpy())) for x in models["main"].trainable_variables]}


def gradient_with_dropout(world):
    """Compares the gradient of two passes with that of one tape over the same microbatches and masks."""
    import numpy as np
    import tensorflow as tf

    from tfzoo.training import step

    model, task, rows = made("embed", columns=3, dropout=0.3)
    variables = [variable.value for variable in step.trainable_variables({"main": model})]
    batch = {name: x.reshape(3, 4, *x.shape[1:]) for name, x in rows.batch(np.arange(12), 16).items()}
    parts = [{name: tf.constant(x[i]) for name, x in batch.items()} for i in range(3)]
    states = [variable for variable in model.non_trainable_variables if "seed" in variable.path]
    assert states
    start = [variable.numpy() for variable in states]

    def rewind():
        for variable, value in zip(states, start, strict=True):
            variable.assign(value)

    def of_tape():
        with tf.GradientTape() as tape:
            vectors = tf.concat([task.vectors(model, part, True) for part in parts], 0)
            loss, _ = task.batch_loss(vectors, {"keys": tf.reshape(batch["keys"], [12, 3])})
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]

    rewind()
    wanted = of_tape()
    other = of_tape()  # With other masks.
    rewind()
    more = task.whole_batch({"main": model}, {name: tf.constant(x) for name, x in batch.items()})
    with tf.GradientTape() as tape:
        losses = [
            task.loss({"main": model}, part | {name: x[i] for name, x in more.items()})[0]
            for i, part in enumerate(parts)
        ]
        total = tf.add_n(losses)
    found = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(total, variables)]

    def largest(one, two):
        return max(float(tf.reduce_max(tf.abs(a - b))) for a, b in zip(one, two, strict=True))

    return {"difference": largest(found, wanted), "without_the_masks": largest(other, wanted)}


if __name__ == "__main__":
    unittest.main()
