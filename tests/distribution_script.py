"""Run by `test_distribution.py` in a process of its own, with three logical CPUs.

Runs all checks; prints the traceback of each that fails, and exits with 1 if any did.
"""

import itertools
import json
import runpy
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
import table
import tensorflow as tf
from keras import ops

import svag_tf
from svag_tf import distribution
from svag_tf.experiments.training.distributed import (
    Distribution,
    Mirrored,
    mirrored_strategy,
)
from svag_tf.experiments.training.train import Batches, train
from svag_tf.noise import files as noise_files

REPLICAS = 3
ROWS = 12  # In a batch: 4 per replica.
STEPS = 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, ROWS, 3)).astype("float32")
START = np.linspace(-1, 1, 12).reshape(3, 4)
Y = RNG.normal(size=(STEPS, ROWS, 4)).astype("float32")
ROOT = Path(svag_tf.__file__).parents[1]


class Training:
    """Linear least squares with an optimizer, on the replicas of a strategy or on none.

    Args:
        make: returns the optimizer.
        strategy: of tf.distribute, or `None`.
        gradient: function of a batch x, y and the variables: the gradients of the mean
            loss. Defaults to `None`: least squares.
    """

    def __init__(self, make, strategy=None, gradient=None):
        self.strategy = strategy or tf.distribute.get_strategy()
        self.n = self.strategy.num_replicas_in_sync
        with self.strategy.scope():
            self.kernel = keras.Variable(START, dtype="float32")
            self.bias = keras.Variable(np.zeros(4), dtype="float32")
            self.variables = [self.kernel, self.bias]
            self.optimizer = make()
            self.optimizer.build(self.variables)
        self.distribute_strategy = self.strategy  # As in a model.
        self.metrics_variables = []
        self.step = tf.function(self._step, autograph=False)
        self.gradient = gradient or self._least_squares

    def _least_squares(self, x, y):
        with tf.GradientTape() as tape:
            error = tf.reduce_mean((x @ self.kernel + self.bias - y) ** 2) / self.n
            loss = self.optimizer.scale_loss(error)
        return tape.gradient(loss, [v.value for v in self.variables])

    def _step(self, x, y):
        def on_replica(x, y):
            grads = self.gradient(x, y)
            self.optimizer.apply(grads, self.variables)

        self.strategy.run(on_replica, args=(x, y))

    def parts(self, k):
        """Batch k, on the replicas."""
        values = []
        for data in (X, Y):
            parts = np.split(data[k], self.n)

            def part(context, parts=parts):
                return tf.constant(parts[context.replica_id_in_sync_group])

            distribute = self.strategy.experimental_distribute_values_from_function
            values.append(distribute(part) if self.n > 1 else tf.constant(parts[0]))
        return values

    def run(self, steps=STEPS):
        for k in range(steps):
            self.step(*self.parts(k))
        return self

    def values(self):
        """All variables but the learning rate and counts, as they are on the first."""
        both = [*self.variables, *self.optimizer.variables]
        return [v.numpy() for v in both if len(v.shape)]


def schedule():
    return keras.optimizers.schedules.CosineDecay(0.02, 10)


COMBINATIONS = {
    "schedule, decay, global_clipnorm, EMA, scale": lambda variant: table.make(
        variant,
        learning_rate=schedule(),
        weight_decay=0.1,
        global_clipnorm=0.3,
        use_ema=True,
        ema_overwrite_frequency=2,
        loss_scale_factor=8.0,
    ),
    "accumulation, clipnorm, dynamic scale": lambda variant: (
        distribution.LossScaleOptimizer(
            table.make(
                variant,
                learning_rate=0.02,
                gradient_accumulation_steps=2,
                clipnorm=0.2,
                use_ema=True,
                ema_overwrite_frequency=2,
            ),
            initial_scale=16.0,
            dynamic_growth_steps=3,
        )
    ),
}


def check_same_numbers_as_on_one_device(strategy):
    """M-SVAG in all combinations; the others take turns in them."""
    pairs = [("msvag", name) for name in COMBINATIONS]
    others = [variant for variant in table.VARIANTS if variant != "msvag"]
    pairs += zip(others, itertools.cycle(COMBINATIONS))
    for variant, name in pairs:

        def make():
            return COMBINATIONS[name](variant)  # noqa: B023

        one, many = Training(make).run(), Training(make, strategy).run()
        moved = abs(one.values()[0] - START).max()
        assert moved > 1e-3, (variant, name)
        for a, b in zip(one.values(), many.values()):
            np.testing.assert_allclose(
                a, b, rtol=1e-6, atol=1e-6, err_msg=f"{variant}, {name}"
            )
        assert distribution.check_replicas(many) == REPLICAS


def check_clipvalue_and_plain_rule(strategy):
    def make():
        return svag_tf.MSVAG(0.02, clipvalue=0.05, jit_compile=False)

    one, many = Training(make).run(), Training(make, strategy).run()
    for a, b in zip(one.values(), many.values()):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert distribution.check_replicas(many) == REPLICAS


def check_sparse_gradients(strategy):
    for sparse_updates in ("exact", "lazy"):

        def make():
            return svag_tf.MSVAG(0.02, sparse_updates=sparse_updates)  # noqa: B023

        def training(strategy):
            t = Training(make, strategy)

            def gradient(x, y):
                rows = tf.cast(tf.math.argmax(x, 1), tf.int32)
                values = y / tf.cast(ROWS, y.dtype)
                return [
                    tf.IndexedSlices(values, rows, (3, 4)),
                    tf.reduce_sum(y, 0) / ROWS,
                ]

            t.gradient = gradient
            return t.run()

        one, many = training(None), training(strategy)
        for a, b in zip(one.values(), many.values()):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        assert distribution.check_replicas(many) == REPLICAS


def check_an_infinite_gradient_on_the_last_replica(strategy):
    """All replicas skip the step, as on one device, and the scale is halved."""
    x = X.copy()
    x[2, ROWS - 1, 0] = np.inf
    make = COMBINATIONS["accumulation, clipnorm, dynamic scale"]
    results = []
    for s in (None, strategy):
        t = Training(lambda: make("msvag"), s)
        original = X[2].copy()
        X[2] = x[2]
        try:
            t.run()
        finally:
            X[2] = original
        results.append(t)
    one, many = results
    for a, b in zip(one.values(), many.values()):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    for name in ("dynamic_scale", "step_counter", "iterations"):
        a, b = (int(ops.convert_to_numpy(getattr(t.optimizer, name))) for t in results)
        assert a == b, name
    assert a == 2
    assert distribution.check_replicas(many) == REPLICAS


def check_a_perturbed_replica_is_found(strategy):
    t = Training(lambda: svag_tf.MSVAG(0.1), strategy).run(1)
    assert distribution.check_replicas(t) == REPLICAS
    copies = strategy.experimental_local_results(t.optimizer.v_tilde[0].value)
    value = copies[1].numpy()
    value[0, 0] = np.nextafter(value[0, 0], np.float32(9))
    copies[1].assign(value)
    try:
        distribution.check_replicas(t)
    except distribution.ReplicasDifferError as error:
        assert error.variables == [t.optimizer.v_tilde[0].path], error
    else:
        raise AssertionError("not found")


def check_kernels_are_compiled_on_each_replica(strategy):
    t = Training(lambda: svag_tf.MSVAG(0.1), strategy)
    graph = t.step.get_concrete_function(*t.parts(0)).graph
    calls = [
        (op.device, op.get_attr("f").name)
        for op in graph.get_operations()
        if op.type in ("PartitionedCall", "StatefulPartitionedCall")
        and "svag_kernel" in op.get_attr("f").name
    ]
    assert len(calls) == REPLICAS * 2, calls
    assert len({device for device, _ in calls}) == REPLICAS, calls
    functions = {f.signature.name: f for f in graph.as_graph_def().library.function}
    for _, name in calls:
        assert functions[name].attr["_XlaMustCompile"].b, name
        written = [n.op for n in functions[name].node_def if "Assign" in n.op]
        assert written == ["AssignVariableOp"] * 3, written  # In place.


def reference_vote(opinions):
    """The sign of the majority; 0 for a tie. NaN for all if one is not finite."""
    opinions = np.array(opinions)
    if not np.isfinite(opinions).all():
        return np.full(opinions[0].shape, np.nan)
    up, down = (opinions > 0).sum(0), (opinions < 0).sum(0)
    return np.where(up > down, 1.0, np.where(down > up, -1.0, 0.0))


def check_majority_vote(strategy):
    """Compared with votes in plain NumPy; gradients with ties and zeros, then a NaN."""
    rng = np.random.default_rng(1)
    gradients = rng.integers(-2, 3, (STEPS, REPLICAS, 3, 4)).astype("float32")
    assert (reference_vote(gradients[0]) == 0).any()
    beta, rate, decay = 0.5, 0.125, 0.5
    for cls in (svag_tf.SSD, svag_tf.MSSD):
        t = Training(
            lambda: cls(  # noqa: B023
                rate, beta, weight_decay=decay, aggregation="majority_vote"
            ),
            strategy,
        )

        def gradient(x, y):
            # x: this replica's gradient, 12 numbers, divided by their number.
            return [tf.reshape(x, (3, 4)) / REPLICAS, tf.reshape(x, (3, 4))[0]]

        t.gradient = gradient
        theta = t.kernel.numpy().astype(np.float64)
        m = np.zeros((REPLICAS, 3, 4))
        step = tf.function(t._step, autograph=False)
        for g in [*gradients, np.where(np.arange(12).reshape(3, 4) == 5, np.nan, g0())]:
            g = np.broadcast_to(g, (REPLICAS, 3, 4)).astype("float32")
            m = beta * m + (1 - beta) * g if cls is svag_tf.MSSD else g
            theta = theta - rate * decay * theta - rate * reference_vote(m)
            values = strategy.experimental_distribute_values_from_function(
                lambda c: tf.constant(g[c.replica_id_in_sync_group])  # noqa: B023
            )
            step(values, values)
            np.testing.assert_allclose(t.kernel.numpy(), theta, 1e-6, 1e-6)
        assert np.isnan(theta).all()
        assert distribution.check_replicas(t) == REPLICAS
        assert t.optimizer.update_counts.numpy().tolist() == [len(gradients) + 1] * 2
        # 16 votes and a digit for each of the two variables, 11 of them an int32.
        assert t.optimizer.payload == (16, 4 * 2)
        state = distribution.local_state(t)
        assert [s.shape for s in state] == (
            [(REPLICAS, 3, 4), (REPLICAS, 4)] if cls is svag_tf.MSSD else []
        )
        if state:
            np.testing.assert_allclose(state[0], m, 1e-6)
            distribution.set_local_state(t, [s + 1 for s in np.nan_to_num(state[:1])] +
                                         [state[1]])  # fmt: skip
            again = distribution.local_state(t)
            np.testing.assert_array_equal(again[0], np.nan_to_num(state[0]) + 1)


def check_variance_of_replicas(strategy):
    """M-SVAG from the variance across replicas, compared with the equations."""
    rng = np.random.default_rng(2)
    gradients = rng.normal(0.5, 1, (STEPS, REPLICAS, 3, 4)).astype("float32")
    beta, rate = 0.8, 0.25
    t = Training(lambda: svag_tf.MSVAG(rate, beta, variance="replicas"), strategy)

    def gradient(x, y):
        return [tf.reshape(x, (3, 4)) / REPLICAS, tf.reshape(x, (3, 4))[0] / REPLICAS]

    t.gradient = gradient
    theta, m, c = t.kernel.numpy().astype(np.float64), 0.0, 0.0
    for k, g in enumerate(gradients.astype(np.float64), 1):
        mean = g.mean(0)
        m = beta * m + (1 - beta) * mean
        c = beta * c + (1 - beta) * g.var(0, ddof=1) / REPLICAS
        corrected = 1 - beta**k
        rho = (1 - beta) * (1 + beta**k) / ((1 + beta) * (1 - beta**k))
        signal = (m / corrected) ** 2
        gamma = signal / (signal + rho * c / corrected)
        theta = theta - rate * gamma * m / corrected
        values = strategy.experimental_distribute_values_from_function(
            lambda s: tf.constant(gradients[k - 1][s.replica_id_in_sync_group])  # noqa: B023
        )
        t.step(values, values)
        np.testing.assert_allclose(t.kernel.numpy(), theta, 1e-5, 1e-6)
    np.testing.assert_allclose(t.optimizer.c_tilde[0].numpy(), c, 1e-5)
    assert t.optimizer.payload == (16, 2 * 4 * 16)
    assert distribution.check_replicas(t) == REPLICAS


def g0():
    return np.ones((3, 4))


def check_refusals(strategy):
    def refused(make, text):
        try:
            make()
        except ValueError as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"no error: {text}")

    def outside():
        t = Training(lambda: svag_tf.MSVAG(0.1))
        t.strategy, t.n = strategy, REPLICAS
        t.step(*t.parts(0))

    def keras_loss_scaling():
        wrap = keras.optimizers.LossScaleOptimizer
        Training(lambda: wrap(svag_tf.MSVAG(0.1)), strategy).run(1)

    def central_storage():
        with tf.distribute.experimental.CentralStorageStrategy().scope():
            svag_tf.MSVAG(0.1).build([keras.Variable([1.0])])

    def fit(loss, cls=keras.Sequential, rows=8):
        with strategy.scope():
            model = cls([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile(svag_tf.MSVAG(), loss)
        x = np.ones((rows, 1))
        model.fit(x, x, batch_size=rows, epochs=1, verbose=0)

    def scalar(y, output):
        return ops.mean((y - output) ** 2)

    class Twice(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            return 2 * super().compute_loss(*args, **kwargs)

    fit("mse", Twice, rows=3)  # Splits evenly.

    class Normalized(keras.Sequential):
        def __init__(self, layers):
            super().__init__([*layers, keras.layers.BatchNormalization()])

    for cls, rows, words in (
        (Twice, 8, "Make the size of all batches a multiple"),
        (Normalized, 2, "Leave the last batch out"),
    ):
        try:
            fit("mse", cls, rows)
        except tf.errors.InvalidArgumentError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"no error: {words}")
    refused(lambda: fit(scalar), "Received: the loss scalar, which is a scalar for")
    refused(outside, "in `with strategy.scope():`")
    refused(keras_loss_scaling, "svag_tf.distribution.LossScaleOptimizer")
    refused(central_storage, "Received: CentralStorageStrategy")
    refused(
        lambda: svag_tf.SSD(aggregation="majority_vote", gradient_accumulation_steps=2),
        "Received: gradient_accumulation_steps=2",
    )
    refused(lambda: svag_tf.MSVAG(variance="replicas", clipnorm=1.0), "clipnorm=1.0")
    refused(
        lambda: Training(lambda: svag_tf.MSVAG(variance="replicas")).run(1),
        "needs the gradients of at least two replicas",
    )
    refused(
        lambda: distribution.LossScaleOptimizer(svag_tf.MSVAG(variance="replicas")),
        "cannot be used with loss scaling",
    )


def check_fit_with_parts_that_are_uneven(strategy):
    """Batches of 6 and 2, or of 7 and 1: some replicas have less, or no example."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(8, 5, 3)), rng.normal(size=(8, 5, 2))
    weights = rng.random((8, 1))
    x[rng.random((8, 5)) < 0.5] = 0.0

    class Regularized(keras.layers.Dense):
        def call(self, x):
            y = super().call(x)
            # NaN where there is no example, and its gradient too.
            self.add_loss(ops.mean(y**2) * ops.sum(self.kernel**2))
            return y

    def regularized():
        pool = keras.layers.MaxPooling1D(2, 1, "same")  # TensorFlow aborts for none.
        layers = [keras.Input((5, 3)), Regularized(2, kernel_regularizer="l2"), pool]
        model = keras.Sequential(layers)
        loss_scaling = distribution.LossScaleOptimizer
        optimizer = loss_scaling(svag_tf.MSVAG(0.1, clipnorm=0.2), 16.0)
        model.compile(optimizer, "mse", metrics=["mae"])
        return model

    def masked():
        layers = [keras.Input((5, 3)), keras.layers.Masking(), keras.layers.Dense(2)]
        model = keras.Sequential(layers)
        model.compile(svag_tf.MSVAG(0.1, gradient_accumulation_steps=2), "mse")
        return model

    for make, size in ((regularized, 6), (masked, 7)):
        trained, logs = [], []
        for used in (tf.distribute.get_strategy(), strategy):
            with used.scope():
                keras.utils.set_random_seed(0)
                model = make()
            start = model.get_weights()
            history = model.fit(
                x, y, size, 2, 0, shuffle=False, sample_weight=weights
            ).history
            logs.append(history.get("mae", []))
            assert np.isfinite(history["loss"]).all()
            trained.append(model.get_weights())
        np.testing.assert_allclose(*logs, rtol=1e-5)
        for a, b, c in zip(*trained, start):
            np.testing.assert_allclose(a, b, 1e-6, 1e-6, err_msg=make.__name__)
            assert abs(a - c).max() > 1e-2
        assert distribution.check_replicas(model) == REPLICAS


def check_batch_normalization_without_the_padding(strategy):
    """10 rows on 3 replicas, 4, 4 and 2 and 2 more; then 1, 1 and none."""
    for rows in (10, 2):
        x = np.random.default_rng(3).normal(2.0, 3.0, (rows, 4)).astype("float32")
        weights = []
        for used in (Distribution(), Mirrored(strategy)):
            with used.scope():
                keras.utils.set_random_seed(0)
                layers = [
                    keras.layers.BatchNormalization(momentum=0.5),
                    keras.layers.Dense(2),
                ]
                model = keras.Sequential([keras.Input((4,)), *layers])
                used.prepare(model, rows)
                model.compile(svag_tf.MSVAG(0.1), "mse", **used.metrics([]))
                model.optimizer.build(model.trainable_variables)
            used.fit(model, Batches(x, x[:, :2], rows), 3, 0, [])
            weights.append(model.get_weights())
        assert distribution.check_replicas(model) == REPLICAS
        for a, b in zip(*weights):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6, err_msg=rows)


def check_train_mirrored(strategy):
    """The digits, with dropout; 20 rows on 3 replicas and a last test batch of 1."""
    results = {}
    for name, replicas in (("none", None), ("mirrored", REPLICAS)):
        config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
        config.update_from_flattened_dict(
            {
                "epochs": 1,
                "batch_size": 20,
                "train_examples": 60,
                "test_examples": 61,
                "distribution": name,
                "replicas": replicas,
                "optimizer.learning_rate": 0.01,
                "noise.preset": "business",
                "noise.every": 1,
            }
        )
        folder = Path(sys.argv[1]) / name
        rows = train(config, folder, report=lambda row: None)
        model = keras.models.load_model(folder / "model.keras", compile=False)
        noise = noise_files.read_table(folder / "noise.csv", noise_files.COLUMNS)
        results[name] = rows, model.get_weights(), noise
    for a, b in zip(results["none"][1], results["mirrored"][1]):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for a, b in zip(results["none"][0], results["mirrored"][0]):
        for key in ("train_loss", "test_loss", "test_accuracy", "step"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, err_msg=key)
    for a, b in zip(results["none"][2], results["mirrored"][2], strict=True):
        assert a["step"] == b["step"]
        for key in ("gamma", "noise_scale"):
            np.testing.assert_allclose(float(a[key]), float(b[key]), rtol=1e-3)


def main(folder, *checks):
    """Runs the checks of these names; writes what went wrong in each."""
    strategy = mirrored_strategy(REPLICAS)
    outcomes = {}
    for name in checks:
        try:
            globals()[name](strategy)
            outcomes[name] = ""
        except Exception:
            outcomes[name] = traceback.format_exc()
            print(outcomes[name], file=sys.stderr)
    (Path(folder) / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
