"""Optimizers compared with their papers in float64 NumPy, schedules at given steps, decay mask, loss scaling."""

import contextlib
import math

import keras
import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.training import optimizers

SHAPES = {"kernel": (4, 3), "bias": (3,), "table": (5, 2, 3)}
STEPS = 10
# Factors on the learning rate of each variable; none is a power of two, which float32 multiplies without rounding.
FACTORS = (1.0, 0.7, 0.49)


def variables():
    random = np.random.default_rng(0)
    return [keras.Variable(random.normal(size=s), name=n, dtype="float32") for n, s in SHAPES.items()]


def gradients():
    random = np.random.default_rng(1)
    return [[random.normal(size=s) * 10.0**-i for i, s in enumerate(SHAPES.values())] for _ in range(STEPS)]


def single(arrays):
    return [tf.constant(array, tf.float32) for array in arrays]


def run(optimizer, values, steps=None):
    """Returns the variables after each step, in a graph like that of training."""
    apply = tf.function(lambda grads: optimizer.apply(grads))
    results = []
    for grads in steps or gradients():
        apply(single(grads))
        results.append([v.numpy() for v in values])
    return results


def numpy_run(update, decay):
    """Returns the same with `update(index, step, gradient, value, decay) -> value` of a paper; only matrices decay."""
    values = [v.numpy().astype(np.float64) for v in variables()]
    results = []
    for step, grads in enumerate(gradients(), 1):
        values = [
            update(i, step, g, x, decay if x.ndim > 1 else 0.0)
            for i, (g, x) in enumerate(zip(grads, values, strict=True))
        ]
        results.append(values)
    return results


class OptimizerCase(tf.test.TestCase):
    def check(self, results, expected, tolerance=1e-5):
        """Checks that learned values agree up to the tolerance and the rounding of weights to float32 in each step."""
        start = [v.numpy().astype(np.float64) for v in variables()]
        for step in range(STEPS):
            for one, two, before in zip(results[step], expected[step], start, strict=True):
                rounding = 2**-24 * np.abs(two).max() * (step + 1)
                error = np.abs(one - two).max()
                self.assertLess(error, tolerance * np.abs(two - before).max() + rounding, f"step {step}")


class AdamWTest(OptimizerCase):
    rate, b1, b2, eps, decay = 0.01, 0.8, 0.95, 1e-7, 0.1

    def made(self, name="adamw", **overrides):
        values = variables()
        settings = dict(beta_1=self.b1, beta_2=self.b2, epsilon=self.eps, weight_decay=self.decay)
        return optimizers.make_optimizer(name, self.rate, values, **settings | overrides), values

    def test_the_paper(self):
        m, v = {}, {}

        def update(i, t, g, x, decay):
            # Loshchilov and Hutter 2019, algorithm 2; eta_t alpha is the rate, which scales the decay as well.
            m[i] = self.b1 * m.get(i, 0) + (1 - self.b1) * g
            v[i] = self.b2 * v.get(i, 0) + (1 - self.b2) * g**2
            m_hat, v_hat = m[i] / (1 - self.b1**t), v[i] / (1 - self.b2**t)
            # Kingma and Ba 2015, section 2: epsilon is added to the uncorrected root.
            eps = self.eps / math.sqrt(1 - self.b2**t)
            return x - self.rate * factors[i] * (m_hat / (np.sqrt(v_hat) + eps) + decay * x)

        for factors in ((1.0, 1.0, 1.0), FACTORS):
            m.clear(), v.clear()
            self.check(run(*self.made(rate_factors=factors)), numpy_run(update, self.decay))

    def test_keras(self):
        ours, theirs = self.made(), variables()
        optimizer = keras.optimizers.AdamW(
            self.rate, beta_1=self.b1, beta_2=self.b2, epsilon=self.eps, weight_decay=self.decay
        )
        optimizer.exclude_from_weight_decay(var_list=[theirs[1]])
        optimizer.build(theirs)
        expected = [[x.astype(np.float64) for x in step] for step in run(optimizer, theirs)]
        self.check(run(*ours), expected)
        for one, two in zip(ours[0].variables, optimizer.variables, strict=True):
            self.assertAllClose(one, two, 1e-5, 1e-12)  # Including its state.

    def test_the_decay_mask(self):
        zeros = [[np.zeros(s) for s in SHAPES.values()]]
        for name in ("adamw", "lamb", "adafactor"):
            optimizer, values = self.made(name)
            kernel, bias, table = (x.numpy() for x in values)
            (after,) = run(optimizer, values, zeros)
            self.assertAllEqual(after[1], bias, name)
            for one, two in ((after[0], kernel), (after[2], table)):
                self.assertTrue(np.all(np.abs(one) < np.abs(two)), name)

    def test_no_decay(self):
        zeros = [[np.zeros(s) for s in SHAPES.values()]]
        for name in ("adamw", "lamb", "adafactor"):
            optimizer, values = self.made(name, weight_decay=0.0)
            before = [x.numpy() for x in values]
            for one, two in zip(run(optimizer, values, zeros)[0], before, strict=True):
                self.assertAllEqual(one, two, name)

    def test_a_schedule_is_followed(self):
        values = variables()
        schedule = optimizers.WarmUp(0.1, warmup_steps=4, total_steps=10, schedule="linear")
        optimizer = optimizers.make_optimizer("adamw", schedule, values)
        before = [v.numpy() for v in values]
        (one, two) = run(optimizer, values, [[np.ones(s) for s in SHAPES.values()]] * 2)
        # With a constant gradient, the length of every step is the rate.
        self.assertAllClose(before[0] - one[0], np.full(SHAPES["kernel"], 0.1 / 4), 1e-4)
        self.assertAllClose(one[0] - two[0], np.full(SHAPES["kernel"], 0.2 / 4), 1e-4)

    def test_which_variables_decay(self):
        self.assertEqual([optimizers.decays(v) for v in variables()], [True, False, True])

    def test_unknown_name(self):
        with self.assertRaisesRegex(UserError, "--optimizer=adam: must be one of adamw, muon, lamb, adafactor"):
            optimizers.make_optimizer("adam", 0.1, variables())
        with self.assertRaisesRegex(UserError, "--matrix_rate=2: applies only to --optimizer=muon; omit it"):
            optimizers.make_optimizer("adamw", 0.1, variables(), matrix_rate=2.0)


class LambTest(OptimizerCase):
    def test_the_paper(self):
        rate, b1, b2, eps = 0.01, 0.9, 0.99, 1e-6
        for decay, factors in ((0.0, None), (0.1, None), (0.1, FACTORS)):
            m, v = {}, {}

            def update(i, t, g, x, decay, m=m, v=v, factors=factors or (1.0, 1.0, 1.0)):
                # You et al. 2020, algorithm 2, with phi(z) = z.
                m[i] = b1 * m.get(i, 0) + (1 - b1) * g
                v[i] = b2 * v.get(i, 0) + (1 - b2) * g**2
                r = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + eps) + decay * x
                return x - rate * factors[i] * np.linalg.norm(x) / np.linalg.norm(r) * r

            values = variables()
            optimizer = optimizers.make_optimizer(
                "lamb", rate, values, beta_1=b1, beta_2=b2, epsilon=eps, weight_decay=decay, rate_factors=factors
            )
            self.check(run(optimizer, values), numpy_run(update, decay))

    def test_weights_of_zero_and_gradients_of_zero(self):
        value = keras.Variable(np.zeros([2, 2]), dtype="float32")
        optimizer = optimizers.make_optimizer("lamb", 0.1, [value])
        run(optimizer, [value], [[np.zeros([2, 2])], [np.ones([2, 2])]])
        # A ratio of 1 where a norm is 0: Adam's step.
        m_hat, v_hat = 0.1 / (1 - 0.9**2), 0.001 / (1 - 0.999**2)
        self.assertAllClose(value, np.full([2, 2], -0.1 * m_hat / math.sqrt(v_hat)), 1e-3)


class ModelCase(OptimizerCase):
    """Variables with the paths of a model's."""

    SHAPES = {
        "net/encoder/stack/layer_0/mlp/up/kernel": (6, 9),
        "net/encoder/stack/layer_0/mlp/down/kernel": (9, 6),
        "net/encoder/stack/layer_1/attention/query/kernel": (6, 2, 3),
        "net/encoder/stack/layer_1/attention/query/bias": (6,),
        "net/encoder/embeddings/tokens/embeddings": (7, 6),
        "net/lm/transform/kernel": (6, 6),
    }

    def made(self, name, rate=0.02, **overrides):
        random = np.random.default_rng(0)
        values = []
        for path, shape in self.SHAPES.items():
            with contextlib.ExitStack() as scopes:
                for scope in path.split("/")[:-1]:
                    scopes.enter_context(keras.name_scope(scope))
                values.append(keras.Variable(random.normal(size=shape), name=path.rpartition("/")[2], dtype="float32"))
        return optimizers.make_optimizer(name, rate, values, beta_2=0.95, **overrides), values

    def steps(self):
        random = np.random.default_rng(1)
        return [[random.normal(size=shape) for shape in self.SHAPES.values()] for _ in range(4)]


class MuonTest(ModelCase):
    def test_the_papers(self):
        self.check_the_papers(1.0)
        self.check_the_papers(2.5)
        self.check_the_papers(2.5, (0.9, 1.0, 0.7, 0.6, 0.3, 1.0))

    def check_the_papers(self, matrix_rate, factors=None):
        rate, momentum, decay = 0.02, 0.95, 0.1
        optimizer, values = self.made("muon", weight_decay=decay, matrix_rate=matrix_rate, rate_factors=factors)
        adamw, others = self.made("adamw", weight_decay=decay, rate_factors=factors)
        expected, velocity = [v.numpy().astype(np.float64) for v in values], {}
        found, plain = run(optimizer, values, self.steps()), run(adamw, others, self.steps())
        for step, grads in enumerate(self.steps()):
            for i, gradient in enumerate(grads):
                if i >= 3:
                    self.assertAllEqual(found[step][i], plain[step][i])  # AdamW's.
                    continue
                # Jordan et al. 2024: the quintic of the singular values alone, x -> 3.4445 x - 4.775 x^3 + 2.0315 x^5,
                # five times over; Liu et al. 2025, algorithm 1 and section 2.2: Nesterov's momentum, the scale.
                velocity[i] = momentum * velocity.get(i, 0) + gradient
                matrix = (gradient + momentum * velocity[i]).reshape(len(gradient), -1)
                left, singular, right = np.linalg.svd(matrix, full_matrices=False)
                singular = singular / np.linalg.norm(singular)
                for _ in range(5):
                    singular = 3.4445 * singular - 4.775 * singular**3 + 2.0315 * singular**5
                self.assertAllInRange(singular, 0.3, 1.3)
                update = 0.2 * math.sqrt(max(matrix.shape)) * (left * singular) @ right
                own_rate = rate * matrix_rate * (factors[i] if factors else 1.0)
                expected[i] *= 1 - own_rate * decay
                expected[i] -= own_rate * update.reshape(gradient.shape)
                self.assertAllClose(found[step][i], expected[i], 1e-5, 1e-6)

    def test_matrices_keep_one_moment(self):
        optimizer, values = self.made("muon")
        names = [variable.path.rpartition("/")[2] for variable in optimizer.variables]
        self.assertLen([name for name in names if name.endswith("momentum")], len(values))
        self.assertLen([name for name in names if name.endswith("velocity")], 3)


class SGDTest(OptimizerCase):
    def check_against(self, name, step):
        rate, decay = 0.5, 0.1
        for momentum, factors in ((0.9, (1.0, 1.0, 1.0)), (0.9, FACTORS), (0.0, FACTORS)):
            v = {}

            def update(i, t, g, x, decay, momentum=momentum, factors=factors, v=v):
                x, scaled = step(g, x, decay, rate * factors[i])
                v[i] = momentum * v.get(i, 0) + scaled
                return x - v[i]

            values = variables()
            optimizer = optimizers.make_optimizer(
                name, rate, values, beta_1=momentum, weight_decay=decay, rate_factors=factors
            )
            self.check(run(optimizer, values), numpy_run(update, decay))

    def test_sgd(self):
        # Heavy ball (Polyak 1964), with decoupled decay (Loshchilov and Hutter 2019, algorithm 1).
        self.check_against("sgd", lambda g, x, decay, rate: (x - rate * decay * x, rate * g))

    def test_lars(self):
        # You et al. 2017, algorithm 1, with a trust of 0.001; vectors as in SGD.
        def step(g, x, decay, rate):
            if x.ndim == 1:
                return x, rate * g
            size = np.linalg.norm(x)
            return x, rate * 0.001 * size / (np.linalg.norm(g) + decay * size) * (g + decay * x)

        self.check_against("lars", step)

    def test_averages(self):
        values = variables()
        first = [v.numpy() for v in values]
        optimizer = optimizers.make_optimizer("sgd", 0.1, values, ema_decay=0.8)
        with optimizers.averaged(optimizer):
            for v, before in zip(values, first, strict=True):
                self.assertAllEqual(v, before)  # Before the first update.
        steps = run(optimizer, values)
        expected = steps[0]
        for weights in steps[1:]:
            expected = [0.8 * mean + 0.2 * x for mean, x in zip(expected, weights, strict=True)]
        with optimizers.averaged(optimizer):
            for v, mean in zip(values, expected, strict=True):
                self.assertAllClose(v, mean, 1e-5, 1e-6)
        for v, last in zip(values, steps[-1], strict=True):
            self.assertAllEqual(v, last)


class AdafactorTest(OptimizerCase):
    def test_the_paper(self):
        rate, decay = 0.02, 0.1
        r, c, v = {}, {}, {}

        def update(i, t, g, x, decay):
            # Shazeer and Stern 2018, algorithms 4 (matrices) and 5 (vectors), with section 9's constants.
            def rms(z):
                return np.sqrt(np.mean(z**2))

            own_rate = rate * factors[i]
            rho = min(own_rate, 1 / math.sqrt(t))
            x = x - own_rate * decay * x  # Decoupled decay, before the update.
            alpha = max(1e-3, rms(x)) * rho
            beta = 1 - t**-0.8
            squares = g**2 + 1e-30
            if g.ndim > 1:
                r[i] = beta * r.get(i, 0) + (1 - beta) * squares.sum(-1, keepdims=True)
                c[i] = beta * c.get(i, 0) + (1 - beta) * squares.sum(-2, keepdims=True)
                v[i] = r[i] * c[i] / r[i].sum(-2, keepdims=True)
            else:
                v[i] = beta * v.get(i, 0) + (1 - beta) * squares
            u = g / np.sqrt(v[i])
            return x - alpha * u / max(1.0, rms(u))

        for factors in ((1.0, 1.0, 1.0), FACTORS):
            r.clear(), c.clear(), v.clear()
            values = variables()
            optimizer = optimizers.make_optimizer("adafactor", rate, values, weight_decay=decay, rate_factors=factors)
            self.check(run(optimizer, values), numpy_run(update, decay))

    def test_factors_are_all_that_is_kept_of_a_matrix(self):
        value = keras.Variable(np.ones([40, 30]), dtype="float32")
        optimizer = optimizers.make_optimizer("adafactor", 0.1, [value])
        kept = sorted(tuple(v.shape) for v in optimizer.variables if len(v.shape))
        self.assertEqual(kept, [(30,), (40,)])

    def test_rows_and_columns_without_a_gradient(self):
        # A token that never occurs, and a unit that is never active.
        for scale in (1.0, 1e-6):
            value = keras.Variable(np.ones([4, 3]), dtype="float32")
            optimizer = optimizers.make_optimizer("adafactor", 0.1, [value])
            gradient = np.full([4, 3], scale)
            gradient[1], gradient[:, 2] = 0, 0
            after = run(optimizer, [value], [[gradient]] * 3)[-1][0]
            self.assertTrue(np.all(np.isfinite(after)), after)
            self.assertAllEqual(after[gradient == 0], np.ones(6))
            self.assertAllLess(after[gradient != 0], 0.9)


class RateFactorsTest(ModelCase):
    """Factors on the learning rates, whatever the optimizer."""

    def test_an_update_is_that_of_the_rate_times_the_factor(self):
        factors = (0.25, 1.0, 0.5, 0.25, 0.5, 1.0)  # Powers of two, so that the products are exact.
        for name in optimizers.OPTIMIZERS:
            optimizer, values = self.made(name, weight_decay=0.1, rate_factors=factors)
            found = run(optimizer, values, self.steps())
            for factor in set(factors):
                optimizer, values = self.made(name, rate=0.02 * factor, weight_decay=0.1)
                expected = run(optimizer, values, self.steps())
                for step in range(len(found)):
                    for i in range(len(factors)):
                        same = np.array_equal(found[step][i], expected[step][i])
                        self.assertEqual(same, factors[i] == factor, f"{name}, variable {i}, step {step}")

    def test_with_loss_scaling_and_averages(self):
        options = dict(weight_decay=0.1, rate_factors=(0.5,) * 6)
        for more in (dict(skip_nonfinite=True), dict(ema_decay=0.9)):
            optimizer, values = self.made("adamw", **options, **more)
            other, others = self.made("adamw", rate=0.01, weight_decay=0.1)
            self.assertAllEqual(run(optimizer, values, self.steps())[-1][0], run(other, others, self.steps())[-1][0])


class WarmUpTest(tf.test.TestCase):
    def rates(self, schedule, steps, warmup=10, total=110, end=0.0):
        rate = optimizers.WarmUp(2.0, warmup_steps=warmup, total_steps=total, schedule=schedule, end=end)
        return [float(rate(step)) for step in steps]

    def test_rates_of_named_updates(self):
        # Update 9 is the last of ten warmup steps; 60 is half-way from 10 to 110, where the decay ends.
        steps = [0, 4, 9, 35, 60, 110, 500]
        for schedule, expected in (
            ("constant", [0.2, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
            ("linear", [0.2, 1.0, 2.0, 1.5, 1.0, 0.0, 0.0]),
            ("cosine", [0.2, 1.0, 2.0, 1 + math.sqrt(0.5), 1.0, 0.0, 0.0]),
            ("trapezoidal", [0.2, 1.0, 2.0, 2.0, 2.0, 0.0, 0.0]),
            ("inverse_sqrt", [0.2, 1.0, 2.0, *(2 * math.sqrt(10 / s) for s in (36, 61, 111, 501))]),
        ):
            self.assertAllClose(self.rates(schedule, steps), expected, 1e-5, 1e-6, msg=schedule)

    def test_end(self):
        self.assertAllClose(self.rates("linear", [60, 110, 200], end=0.5), [1.25, 0.5, 0.5], 1e-5)
        self.assertAllClose(self.rates("cosine", [60, 110, 200], end=0.5), [1.25, 0.5, 0.5], 1e-5)
        # The last of 110 updates does not have a rate of 0.
        self.assertAllClose(self.rates("linear", [109]), [0.02], 1e-5)

    def test_the_trapezoid_falls_over_its_last_updates(self):
        rate = optimizers.WarmUp(2.0, warmup_steps=10, total_steps=110, schedule="trapezoidal", end=1.0, decay_steps=40)
        self.assertAllClose([float(rate(s)) for s in (9, 70, 71, 90, 109, 110)], [2.0, 2.0, 1.975, 1.5, 1.025, 1.0])
        # Without a number, a fifth of all updates.
        self.assertAllClose(self.rates("trapezoidal", [88, 99, 109]), [2.0, 1.0, 2 / 22], 1e-5)
        again = optimizers.WarmUp(**rate.get_config())
        self.assertEqual([float(rate(s)) for s in range(60, 112)], [float(again(s)) for s in range(60, 112)])
        with self.assertRaisesRegex(UserError, r"--decay_steps=90: with --warmup_steps \(30\) exceeds --steps \(110\)"):
            optimizers.WarmUp(2.0, warmup_steps=30, total_steps=110, schedule="trapezoidal", decay_steps=90)
        with self.assertRaisesRegex(UserError, "--decay_steps=9: applies only to --schedule=trapezoidal; omit it"):
            optimizers.WarmUp(2.0, warmup_steps=3, total_steps=110, schedule="linear", decay_steps=9)

    def test_without_warm_up(self):
        for schedule in optimizers.SCHEDULES:
            first = self.rates(schedule, [0], warmup=0, total=10**6)[0]
            self.assertNear(first, 2.0, 1e-4, schedule)
        self.assertAllClose(self.rates("linear", [10, 19], warmup=20, total=20), [1.1, 2.0], 1e-5)

    def test_vaswani(self):
        # Section 5.3: d^-0.5 min(s^-0.5, s w^-1.5), whose peak is (d w)^-0.5.
        d, warmup = 512, 4000
        rate = optimizers.WarmUp((d * warmup) ** -0.5, warmup_steps=warmup, total_steps=1, schedule="inverse_sqrt")
        for s in (1, 100, 4000, 4001, 50_000):
            expected = d**-0.5 * min(s**-0.5, s * warmup**-1.5)
            self.assertAllClose(rate(tf.constant(s - 1, tf.int64)), expected, 1e-5)

    def test_wrong_use(self):
        with self.assertRaisesRegex(UserError, "--schedule=step: must be one of linear"):
            self.rates("step", [0])
        with self.assertRaisesRegex(UserError, r"--warmup_steps=20: must not exceed --steps \(10\)"):
            self.rates("linear", [0], warmup=20, total=10)
        with self.assertRaisesRegex(
            UserError, "--final_learning_rate=0.5: the schedule constant has no final learning rate; omit it"
        ):
            self.rates("constant", [0], end=0.5)

    def test_config_makes_the_same_schedule(self):
        rate = optimizers.WarmUp(2.0, warmup_steps=5, total_steps=9, schedule="cosine", end=0.1)
        again = optimizers.WarmUp(**rate.get_config())
        self.assertEqual([float(rate(s)) for s in range(12)], [float(again(s)) for s in range(12)])


class LossScalingTest(tf.test.TestCase):
    def test_finite_gradients_are_unscaled_and_others_skipped(self):
        values, plain = variables(), variables()
        optimizer = optimizers.make_optimizer("adamw", 0.01, values, weight_decay=0.1, loss_scaling=True)
        reference = optimizers.make_optimizer("adamw", 0.01, plain, weight_decay=0.1)
        grads = gradients()
        scale = float(optimizer.dynamic_scale)
        self.assertGreater(scale, 1)
        run(optimizer, values, [[g * scale for g in grads[0]]])
        run(reference, plain, grads[:1])
        for one, two in zip(values, plain, strict=True):
            self.assertAllClose(one, two, 1e-6, 1e-7)

        before = [v.numpy() for v in [*values, *optimizer.inner_optimizer.variables]]
        for bad in (np.inf, np.nan):
            broken = [g.copy() for g in grads[1]]
            broken[2].flat[4] = bad
            run(optimizer, values, [broken])
            scale /= 2
            self.assertEqual(float(optimizer.dynamic_scale), scale)
            after = [v.numpy() for v in [*values, *optimizer.inner_optimizer.variables]]
            for one, two in zip(after, before, strict=True):
                self.assertAllEqual(one, two)

    def test_its_state_is_among_its_variables(self):
        optimizer = optimizers.make_optimizer("adamw", 0.01, variables(), loss_scaling=True)
        kept = {id(v) for v in optimizer.variables}
        self.assertContainsSubset({id(optimizer.dynamic_scale), id(optimizer.step_counter)}, kept)
        self.assertIn(id(optimizer.inner_optimizer.iterations), kept)


if __name__ == "__main__":
    tf.test.main()
