"""The training step and the evaluation: effects of parts, replicas, clipping and loss scaling."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import helpers
from tests.training.small_bert import BATCH, LENGTH, PREDICTIONS, VOCAB, batches, features, model, objective
from tfzoo import nn
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import optimizers
from tfzoo.training.step import make_evaluation, make_step


class SGD(optimizers._AlreadyReduced, keras.optimizers.SGD):
    pass


def optimizer_for(name, variables, loss_scaling=False):
    if name == "sgd":
        result = SGD(0.5, name="sgd")
        result.build(variables)
        return result
    return optimizers.make_optimizer(name, 0.02, variables, weight_decay=0.1, epsilon=1e-6, loss_scaling=loss_scaling)


def train(strategy, name, steps=6, dtype=None, dropout=0.0, loss_scaling=False, remat=False, **kwargs):
    """Returns (losses, model, optimizer) after some steps, two per call."""
    with strategy.scope():
        net = model(dtype, dropout)
        if remat:
            net.recompute_blocks()
        optimizer = optimizer_for(name, net.trainable_variables, loss_scaling)
    run = make_step(strategy, {"main": net}, optimizer, objective(), **kwargs)
    iterator = iter(strategy.experimental_distribute_dataset(batches(steps)))
    losses = np.concatenate([run(iterator, tf.constant(2)).numpy() for _ in range(steps // 2)])
    return losses, net, optimizer


def largest_difference(one, two):
    """Returns the difference between weights, without biases of keys: the softmax cancels them, so that their gradients
    are only rounding errors, which Adam and LAMB amplify."""
    return max(
        np.abs(a.numpy() - b.numpy()).max()
        for a, b in zip(one.trainable_weights, two.trainable_weights, strict=True)
        if not a.path.endswith("key/bias")
    )


def default(*args, **kwargs):
    return train(tf.distribute.get_strategy(), *args, **kwargs)


class StepTest(tf.test.TestCase):
    def test_losses_are_means_over_the_batch(self):
        losses, *_ = default("sgd", steps=2, clip_norm=1e-9)  # A low rate, so that no step changes the model much.
        net, data = model(), features(2 * BATCH)
        for step, found in enumerate(losses):
            part = {name: x[step * BATCH : (step + 1) * BATCH] for name, x in data.items()}
            total, weight = objective().loss({"main": net}, part)
            self.assertAllClose(found, total / weight, 1e-5)

    def test_parts_compute_what_the_whole_does(self):
        whole, net, _ = default("adamw", clip_norm=0.5)
        losses, again, _ = default("adamw", clip_norm=0.5, num_parts=4)
        self.assertAllClose(losses, whole, 1e-6, 1e-6)
        self.assertLess(largest_difference(net, again), 1e-5)
        self.assertLess(whole[-1], whole[0] - 0.1)

    def test_clipping_bounds_the_global_norm(self):
        before, data = model(), features(2 * BATCH)
        part = {name: x[:BATCH] for name, x in data.items()}
        with tf.GradientTape() as tape:
            total, weight = objective().loss({"main": before}, part)
        variables = [v.value for v in before.trainable_variables]
        gradients = [tf.convert_to_tensor(g) / weight for g in tape.gradient(total, variables)]
        norm = np.sqrt(sum(np.sum(g.numpy().astype(np.float64) ** 2) for g in gradients))
        for clip, expected in ((norm / 4, 0.25), (norm * 4, 1.0)):
            after = model()
            run = make_step(
                tf.distribute.get_strategy(),
                {"main": after},
                optimizer_for("sgd", after.trainable_variables),
                objective(),
                clip_norm=clip,
            )
            run(iter(batches(2)), tf.constant(1))
            for one, two, gradient in zip(before.trainable_weights, after.trainable_weights, gradients, strict=True):
                # With a rate of 0.5.
                self.assertAllClose(one - two, 0.5 * expected * gradient.numpy(), 1e-4, 1e-6)

    def test_loss_scaling_changes_nothing_in_float32(self):
        plain, net, _ = default("adamw", steps=4, clip_norm=0.5)
        scaled, again, _ = default("adamw", steps=4, clip_norm=0.5, loss_scaling=True, num_parts=2)
        self.assertAllClose(scaled, plain, 1e-6, 1e-6)
        self.assertLess(largest_difference(net, again), 1e-5)

    def test_float16_skips_a_step_that_overflows(self):
        net = model("mixed_float16")
        optimizer = optimizer_for("adamw", net.trainable_variables, loss_scaling=True)
        run = make_step(tf.distribute.get_strategy(), {"main": net}, optimizer, objective(), clip_norm=0.5)
        iterator = iter(batches(4))
        for scale, moves in ((2.0**60, False), (2.0**59, False), (2.0**8, True), (2.0**8, True)):
            optimizer.dynamic_scale.assign(scale)
            before = [v.numpy() for v in [*net.trainable_variables, *optimizer.inner_optimizer.variables]]
            (loss,) = run(iterator, tf.constant(1)).numpy()
            after = [v.numpy() for v in [*net.trainable_variables, *optimizer.inner_optimizer.variables]]
            self.assertTrue(np.isfinite(loss))
            self.assertTrue(all(np.all(np.isfinite(x)) for x in after))
            self.assertEqual(any(np.any(a != b) for a, b in zip(before, after, strict=True)), moves)
            self.assertEqual(float(optimizer.dynamic_scale), scale if moves else scale / 2)

    def test_a_norm_that_overflows_is_skipped(self):
        """The gradients and the loss are finite, but their squares are not."""
        stretch = tf.Variable(1e25)

        class Stretched(MaskedLM):
            def loss(self, models, batch, training=True):
                total, weight = super().loss(models, batch, training)
                more = total * (stretch - 1.0)
                return total + (more - tf.stop_gradient(more)), weight

        def check(optimizer_options, *steps):
            net = model()
            optimizer = optimizers.make_optimizer("sgd", 0.1, net.trainable_variables, **optimizer_options)
            stretched = Stretched(WordPiece(VOCAB), LENGTH)
            run = make_step(tf.distribute.get_strategy(), {"main": net}, optimizer, stretched, clip_norm=0.5)
            iterator = iter(batches(len(steps)))
            for size, scale, told, moved in steps:
                stretch.assign(size)
                optimizer.dynamic_scale.assign(scale)
                before = [v.numpy() for v in net.trainable_variables]
                (loss,) = run(iterator, tf.constant(1)).numpy()
                changed = any(np.any(a != v.numpy()) for a, v in zip(before, net.trainable_variables, strict=True))
                self.assertEqual((np.isnan(loss), changed), (told, moved), f"{optimizer_options} {size} {scale}")
            return float(optimizer.dynamic_scale)

        self.assertEqual(check(dict(skip_nonfinite=True), (1e25, 1.0, True, False), (1.0, 1.0, False, True)), 1.0)
        # A scale that can be lowered is lowered. If the scale of the mean loss, over about ten targets, is below 1,
        # the scale is not the cause.
        small = 2.0**-6
        steps = (
            (1e25, 1.0, False, False),
            (1e25, small, True, False),
            (1.0, 8.0, False, True),
            (1e25, small, True, False),
        )
        self.assertEqual(check(dict(loss_scaling=True), *steps), small / 2)

    def test_half_precision_learns(self):
        total, weight = objective().loss(
            {"main": model()}, {name: x[:BATCH] for name, x in features(6 * BATCH).items()}
        )
        first = total / weight
        for dtype in ("bfloat16", "float16"):
            losses, *_ = default("adamw", clip_norm=0.5, dtype=f"mixed_{dtype}", loss_scaling=dtype == "float16")
            self.assertNear(losses[0], first, 0.01 * first)
            self.assertLess(losses[-1], losses[0] - 0.1)

    def test_a_batch_that_asks_for_nothing(self):
        data = features(BATCH) | {"masked_weights": np.zeros([BATCH, PREDICTIONS], np.float32)}
        net = model()
        optimizer = optimizer_for("sgd", net.trainable_variables)
        run = make_step(tf.distribute.get_strategy(), {"main": net}, optimizer, objective(), clip_norm=1.0)
        losses = run(iter(tf.data.Dataset.from_tensors(data)), tf.constant(1))
        self.assertAllEqual(losses, [0.0])
        self.assertEqual(largest_difference(net, model()), 0)

    def test_recomputed_blocks_change_no_loss(self):
        kwargs = dict(dropout=0.3, clip_norm=0.5, num_parts=2)
        plain, net, _ = default("adamw", **kwargs)
        losses, again, _ = default("adamw", remat=True, **kwargs)
        self.assertAllClose(losses, plain, 1e-6, 1e-6)
        self.assertLess(largest_difference(net, again), 1e-5)
        for one, two in zip(net.non_trainable_variables, again.non_trainable_variables, strict=True):
            self.assertAllEqual(one, two)  # The seeds: none was used twice.

    def test_one_device_is_the_default(self):
        one, *_ = train(tf.distribute.OneDeviceStrategy("CPU:0"), "adamw", steps=2, clip_norm=0.5)
        self.assertAllEqual(one, default("adamw", steps=2, clip_norm=0.5)[0])


class EvaluationTest(tf.test.TestCase):
    def test_sums_are_exact_with_ragged_weights(self):
        net, data = model(), features(3 * BATCH, seed=7)
        figures = make_evaluation(tf.distribute.get_strategy(), {"main": net}, objective().evaluators())(
            batches(3, seed=7)
        )
        sums = {}
        for row in range(3 * BATCH):
            for name, pair in (
                objective().metrics({"main": net}, {k: x[row : row + 1] for k, x in data.items()}).items()
            ):
                sums[name] = sums.get(name, 0) + np.array(pair, np.float64)
        self.assertEqual(sums["masked_lm_loss"][1], data["masked_weights"].sum())
        self.assertEqual(sums["next_sentence_loss"][1], 16)
        for name, (total, weight) in sums.items():
            self.assertAllClose(figures[name], total / weight, 1e-6)
        self.assertAllClose(figures["masked_lm_perplexity"], np.exp(figures["masked_lm_loss"]))
        self.assertLen(figures, 5)

    def test_twice_the_same_with_dropout_in_the_model(self):
        evaluate = make_evaluation(tf.distribute.get_strategy(), {"main": model(dropout=0.5)}, objective().evaluators())
        self.assertEqual(evaluate(batches(2)), evaluate(batches(2)))


class ReplicasTest(tf.test.TestCase):
    def check(self, call):
        # In a separate process, because the number of devices is fixed once TensorFlow is initialized.
        result = helpers.python("-c", f"from tests.training import step_test; step_test.{call}")
        self.assertEqual(result.stdout.split()[-1:], ["fine"])

    @pytest.mark.faults
    def test_two_are_one_for_every_optimizer(self):
        self.check('two_replicas("sgd", "adamw", "muon", "lamb", "adafactor")')


def two_replicas(*names):
    """Compares two virtual devices with one; run in a fresh process."""
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    one = tf.distribute.get_strategy()

    by_name = {}
    for name in names:
        more = dict(num_parts=2, loss_scaling=True) if name == "adamw" else {}
        kwargs = dict(clip_norm=0.3) | more
        expected, net, _ = train(one, name, **kwargs)
        losses, again, _ = train(two, name, **kwargs)
        by_name[name] = expected
        np.testing.assert_allclose(losses, expected, 2e-6, 2e-6, err_msg=f"{name} {kwargs}")
        assert largest_difference(net, again) < 1e-5, (name, largest_difference(net, again))
    # Recomputed blocks use the same masks of each replica again.
    (plain, net, _), (losses, again, _) = (
        train(two, "adamw", dropout=0.3, clip_norm=0.3, num_parts=2, remat=remat) for remat in (False, True)
    )
    np.testing.assert_allclose(losses, plain, 1e-6, 1e-6, err_msg="remat")
    assert largest_difference(net, again) < 1e-5, ("remat", largest_difference(net, again))
    assert np.abs(losses - by_name["adamw"]).max() > 1e-3, "dropout was off"
    # Keras's own optimizer reduces a second time, so that this comparison can fail.
    optimizers._AlreadyReduced._all_reduce_sum_gradients, ours = (
        lambda self, pairs: keras.optimizers.SGD._all_reduce_sum_gradients(self, pairs),
        optimizers._AlreadyReduced._all_reduce_sum_gradients,
    )
    wrong, *_ = train(two, "sgd", clip_norm=0.3)
    optimizers._AlreadyReduced._all_reduce_sum_gradients = ours
    assert np.abs(wrong - by_name["sgd"]).max() > 1e-3

    evaluations = [
        (
            make_evaluation(s, {"main": _made(s)}, objective().evaluators()),
            s.experimental_distribute_dataset(batches(3, seed=7)),
        )
        for s in (one, two)
    ]
    figures = [evaluate(data) for evaluate, data in evaluations]
    for name, value in figures[0].items():
        np.testing.assert_allclose(figures[1][name], value, 1e-6, err_msg=name)

    with two.scope():
        dropout = nn.Dropout(0.5, seed=1)
        dropout.build(None)
    draw = tf.function(lambda: two.run(lambda: dropout(tf.ones([64]), training=True)))
    state = dropout.seed_generator.state.numpy()
    first, second = ([x.numpy() for x in two.experimental_local_results(draw())] for _ in range(2))
    drawn = [*first, *second]
    assert all(np.any(drawn[i] != drawn[j]) for i in range(4) for j in range(i)), "replicas draw the same"
    dropout.seed_generator.state.assign(state)
    np.testing.assert_array_equal([x.numpy() for x in two.experimental_local_results(draw())], first)
    print("fine")


def _made(strategy):
    with strategy.scope():
        return model()


if __name__ == "__main__":
    tf.test.main()
