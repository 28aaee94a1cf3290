"""Methods that must agree with one another, and with Keras' own optimizers."""

import keras
import numpy as np
import pytest
import table
from keras import ops
from oracle import METHODS, scaled, signed

from svag_tf import rules

tf = pytest.importorskip("tensorflow")

STEPS = 200


def noisy(seed=0, steps=STEPS, size=50):
    rng = np.random.default_rng(seed)
    return (0.3 + rng.normal(size=(steps, size))).astype(np.float32)


def updates(optimizer, gradients, dtype="float32"):
    """Returns what each step subtracts from theta, which is reset to 0 before it."""
    theta = keras.Variable(np.zeros(gradients.shape[1:]), dtype=dtype)
    optimizer.build([theta])

    @tf.function(autograph=False)
    def step(g):
        theta.assign(tf.zeros_like(theta.value))
        optimizer.apply([g], [theta])

    out = []
    for g in gradients:
        step(tf.constant(g, dtype))
        out.append(-theta.numpy())
    return np.array(out)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_msvas_adam_is_adam(beta):
    """Adam with beta_1 = beta_2 and epsilon -> 0, to the accuracy of Keras' Adam.

    Keras rounds beta to float32, even with float64 variables: only 0.5 is exact.
    """
    adam = keras.optimizers.Adam(2.0**-8, beta_1=beta, beta_2=beta, epsilon=1e-30)
    ours = table.make("msvas_adam", beta, 2.0**-8)
    np.testing.assert_allclose(
        updates(ours, noisy(), "float64"),
        updates(adam, noisy(), "float64"),
        1e-9 if beta == 0.5 else 2e-6,
    )


def test_msvas_adam_is_adam_in_training():
    """Drop-in: the same losses in `fit`, from the same weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5)).astype(np.float32)
    y = np.tanh(x @ rng.normal(size=(5, 1))).astype(np.float32)
    losses = []
    for optimizer in (
        table.make("msvas_adam", 0.9, 0.01),
        keras.optimizers.Adam(0.01, beta_1=0.9, beta_2=0.9, epsilon=1e-12),
    ):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
        )
        model.compile(optimizer, "mse")
        history = model.fit(x, y, batch_size=16, epochs=5, verbose=0)
        losses.append(history.history["loss"])
    np.testing.assert_allclose(*losses, 1e-4)
    assert losses[0][-1] < 0.8 * losses[0][0]


@pytest.mark.parametrize("beta", table.BETAS)
def test_mssd_is_the_sign_of_msgd(beta):
    mssd = updates(table.make("mssd", beta, 1.0), noisy())
    msgd = updates(table.make("msgd", beta, 1.0), noisy())
    np.testing.assert_array_equal(mssd, np.sign(msgd))


def test_msgd_without_momentum_is_sgd():
    """Bit for bit."""
    ours = updates(table.make("msgd", 0.0, 0.1), noisy())
    sgd = updates(keras.optimizers.SGD(0.1), noisy())
    np.testing.assert_array_equal(ours, sgd)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_msgd_is_sgd_with_momentum_after_its_start(beta):
    """SGD's velocity is -rate m~ / (1 - beta); MSGD corrects m~ for its start."""
    ours = updates(table.make("msgd", beta, 0.1), noisy())
    sgd = updates(keras.optimizers.SGD(0.1 * (1 - beta), momentum=beta), noisy())
    correction = 1 - beta ** np.arange(1, STEPS + 1)
    np.testing.assert_allclose(ours * correction[:, None], sgd, 1e-5, 1e-7)


def test_ssd_is_the_sign_of_sgd():
    ours = updates(table.make("ssd", learning_rate=1.0), noisy())
    np.testing.assert_array_equal(ours, np.sign(noisy()))


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_without_averaging_all_are_plain(variant):
    """beta = 0: no averaging, gamma = 1."""
    plain = METHODS[variant].form(1.0, noisy())
    ours = updates(table.make(variant, 0.0, 1.0), noisy())
    np.testing.assert_allclose(ours, plain, 5e-7)


@pytest.mark.parametrize(
    "variant", [v for v in table.VARIANTS if METHODS[v].form in (scaled, signed)]
)
@pytest.mark.parametrize("size", [2.0**-10, 2.0**10])
def test_scale_of_the_gradient(variant, size):
    """Gradient methods scale with it, sign methods do not see it: gamma has no unit."""
    ours = updates(table.make(variant, 0.9, 1.0), noisy() * np.float32(size))
    base = updates(table.make(variant, 0.9, 1.0), noisy())
    if METHODS[variant].form is scaled:
        base = base * size
    np.testing.assert_allclose(ours, base, 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_sign_of_the_gradient(variant):
    mirrored = updates(table.make(variant, 0.9, 1.0), -noisy())
    np.testing.assert_array_equal(
        mirrored, -updates(table.make(variant, 0.9, 1.0), noisy())
    )


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_learning_rate_zero_averages_and_does_not_move(variant):
    optimizer = table.make(variant, 0.9, 0.0)
    assert not updates(optimizer, noisy(steps=3)).any()
    assert all(ops.any(slot != 0) for slot in optimizer.m_tilde)


@pytest.mark.parametrize("cls", table.classes())
def test_gamma_is_what_the_direction_is_damped_by(cls):
    """`GradientNoise` reports `gamma`, and takes it for what the step has."""
    optimizer = cls()
    if optimizer.damping is None:
        assert optimizer.gamma is None
        return
    rng = np.random.default_rng(0)
    g, m = (ops.convert_to_tensor(rng.normal(size=50), "float32") for _ in range(2))
    v = ops.square(m) + ops.convert_to_tensor(rng.random(50), "float32")
    factor = ops.convert_to_tensor(0.7, "float32")
    gamma = optimizer.gamma(*rules.signal_and_noise(m, v, factor))
    step = optimizer.direction(g, m, v, factor)
    whole = {"gradient": [m], "sampled": [g], "sign": [ops.sign(m), ops.sign(g)]}
    assert any(np.array_equal(step, gamma * part) for part in whole[optimizer.damping])
