"""`compile` and `fit`: every jit_compile, precision policy and method, exactly.

The loss is linear in the weights, so that the gradient of each batch is known: a mean
of products of powers of two, exact even in float16. The oracle then says where
training must end.
"""

import itertools

import keras
import numpy as np
import pytest
import table
from oracle import Oracle
from tiers import sampled

import svag_tf

tf = pytest.importorskip("tensorflow")

BATCH, EPOCHS, WIDTH = 4, 4, 3


def data():
    rng = np.random.default_rng(0)
    x = rng.choice([-0.25, 0.5, 0.75, 1.0], size=(24, WIDTH))
    y = rng.choice([1.0, 0.5, -0.25], size=(24, 1))
    return x.astype("float32"), y.astype("float32")


def linear_loss(y, output):
    return keras.ops.mean(keras.ops.cast(y, output.dtype) * output, axis=-1)


def model_of(optimizer, loss=linear_loss, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer, loss, **arguments)
    return model


def fit(model, epochs=EPOCHS, **arguments):
    model.fit(*data(), BATCH, epochs, shuffle=False, verbose=0, **arguments)
    return model.get_weights()[0]


def expected(variant, start, epochs=EPOCHS, rate=0.25, beta=0.9):
    x, y = (a.astype(np.float64) for a in data())
    oracle = Oracle(variant, rate, beta, (WIDTH, 1))
    theta = start.astype(np.float64)
    for _ in range(epochs):
        for i in range(0, len(x), BATCH):
            theta = theta - oracle.update(x[i : i + BATCH].T @ y[i : i + BATCH] / BATCH)
    return theta


@pytest.mark.parametrize(
    "variant, jit_compile",
    [
        *((variant, "auto") for variant in table.VARIANTS),
        *((variant, jit) for variant in ("ssd", "msvag") for jit in (True, False)),
    ],
)
def test_fit(variant, jit_compile):
    model = model_of(table.make(variant), jit_compile=jit_compile)
    end = expected(variant, model.get_weights()[0])
    np.testing.assert_allclose(fit(model), end, 1e-5, 1e-6)


@pytest.mark.parametrize(
    "arguments", [{"run_eagerly": True}, {"steps_per_execution": 3}]
)
@pytest.mark.parametrize("variant", ["ssd", "msvag"])
def test_fit_otherwise(variant, arguments):
    model = model_of(table.make(variant), **arguments)
    end = expected(variant, model.get_weights()[0])
    np.testing.assert_allclose(fit(model), end, 1e-5, 1e-6)


@pytest.mark.parametrize("use_ema", [False, True])
@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
def test_training_step_is_traced_once(scaled, jit_compile, use_ema):
    """The slots are created outside its graph: with them it would be traced twice."""
    traces = []

    class Model(keras.Sequential):
        def train_step(self, data):
            traces.append(data)
            return super().train_step(data)

    optimizer = svag_tf.MSVAG(use_ema=use_ema)
    if scaled:
        optimizer = svag_tf.distribution.LossScaleOptimizer(optimizer)
    model = Model([keras.Input((WIDTH,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, linear_loss, jit_compile=jit_compile)
    fit(model)
    assert len(traces) == 1


@pytest.mark.parametrize("jit_compile", ["auto", True, False])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("variant", ["mssd", "msvag"])
def test_mixed_precision(variant, policy, jit_compile):
    """Weights and slots stay float32; float16 has its loss scaled, without a trace."""
    keras.config.set_dtype_policy(policy)
    model = model_of(table.make(variant), jit_compile=jit_compile)
    end = expected(variant, model.get_weights()[0])
    np.testing.assert_allclose(fit(model), end, 1e-5, 1e-6)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    optimizer = model.optimizer.inner_optimizer if scaled else model.optimizer
    for slot in (*optimizer.m_tilde, *optimizer.v_tilde):
        assert slot.dtype == "float32"


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_loss_scaling_skips_what_overflows(variant):
    """A step whose scaled gradient is not finite is skipped, the weights unchanged."""
    theta = keras.Variable(np.zeros(2, np.float32))
    optimizer = keras.optimizers.LossScaleOptimizer(
        table.make(variant), initial_scale=8.0
    )
    oracle = Oracle(variant, table.LEARNING_RATE, 0.9, (2,))
    end = 0.0
    for g in ([1.0, 2.0], [np.inf, 1.0], [0.5, np.nan], [3.0, 1.0]):
        scale = float(optimizer.dynamic_scale) if optimizer.built else 8.0
        optimizer.apply([keras.ops.array(g, "float32") * scale], [theta])
        if np.isfinite(g).all():
            end = end - oracle.update(np.array(g))
        np.testing.assert_allclose(theta.numpy(), end, 1e-5)
    assert float(optimizer.dynamic_scale) == 2.0


@pytest.mark.parametrize("variant", ["ssd", "msvag", "svas_gaussian"])
def test_second_fit_does_not_retrace(variant):
    traces = []

    def loss(y, output):
        traces.append(1)
        return linear_loss(y, output)

    model = model_of(table.make(variant), loss)
    fit(model, 1)
    first = len(traces)
    fit(model, 2)
    assert len(traces) == first > 0


def test_learning_rate_schedule_callback():
    """Keras' callbacks set the learning rate between epochs."""
    model = model_of(table.make("msvag"))
    rates = []
    fit(
        model,
        3,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: rates.append(
                    float(model.optimizer.learning_rate)
                )
            ),
        ],
    )
    assert rates == [0.125, 0.0625, 0.03125]


def test_frozen_layer():
    """Its variables are not the optimizer's."""
    model = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.Dense(2), keras.layers.Dense(1)]
    )
    model.layers[0].trainable = False
    model.compile(table.make("msvag"), "mse")
    before = model.layers[0].get_weights()
    fit(model, 1)
    assert len(model.optimizer.m_tilde) == 2
    for a, b in zip(before, model.layers[0].get_weights()):
        np.testing.assert_array_equal(a, b)


def test_drop_in_for_a_custom_training_loop():
    import tensorflow as tf

    model = model_of(table.make("msvag"))
    end = expected("msvag", model.get_weights()[0])
    x, y = data()

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(y * model(x, training=True))
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, weights), weights)

    for _ in range(EPOCHS):
        for i in range(0, len(x), BATCH):
            step(tf.constant(x[i : i + BATCH]), tf.constant(y[i : i + BATCH]))
    np.testing.assert_allclose(model.get_weights()[0], end, 1e-5, 1e-6)


def batches(number):
    """A data set of so many batches, whose number it does not know."""
    x = np.random.default_rng(0).normal(size=(8 * number, 4)).astype("float32")
    parts = np.split(x, number)
    return tf.data.Dataset.from_generator(
        lambda: ((part, part[:, :1]) for part in parts),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1))),
    )


class Wrapper(keras.optimizers.Optimizer):
    """A user's wrapper, which makes the updates of another optimizer."""

    def __init__(self, wrapped):
        super().__init__(learning_rate=0.01)
        self.wrapped = wrapped

    def build(self, variables):
        super().build(variables)
        self.wrapped.build(variables)

    def update_step(self, gradient, variable, learning_rate):
        self.wrapped.update_step(gradient, variable, learning_rate)


def test_a_step_without_a_batch_is_none_in_a_wrapper():
    weights = []
    for wrap in (Wrapper, lambda optimizer: optimizer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = svag_tf.MSVAG(0.01)
        model.compile(wrap(optimizer), "mse")
        for _ in range(2):
            model.fit(batches(4), verbose=0)
        assert optimizer.update_counts.numpy().tolist() == [8, 8]
        weights += model.get_weights()
    for a, b in zip(weights[:2], weights[2:], strict=True):
        np.testing.assert_allclose(a, b, 1e-6)


@pytest.mark.parametrize(
    "steps_per_execution, jit_compile, options",
    sampled(
        [(1, True, {}), (3, False, {"use_ema": True})],
        itertools.product(
            (1, 3), (False, True), ({}, {"use_ema": True}, {"sparse_updates": "lazy"})
        ),
    ),
)
def test_a_step_without_a_batch_is_none(steps_per_execution, jit_compile, options):
    """At the end of data of unknown length, a training step begins without a batch."""
    optimizers, weights = [], []
    for known in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(
            svag_tf.MSVAG(0.01, **options),
            "mse",
            jit_compile=jit_compile,
            steps_per_execution=steps_per_execution,
        )
        data = batches(4)
        if known:
            data = data.apply(tf.data.experimental.assert_cardinality(4))
        for _ in range(2):
            model.fit(data, verbose=0)
        optimizers.append([v.numpy() for v in model.optimizer.variables])
        weights += model.get_weights()
        assert int(model.optimizer.iterations) == 8
        assert model.optimizer.update_counts.numpy().tolist() == [8, 8]
    for a, b in zip(*optimizers, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(weights[:2], weights[2:], strict=True):
        np.testing.assert_array_equal(a, b)
