"""Gradients of any finite size, and those that are not finite."""

import keras
import numpy as np
import pytest
import table
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import METHODS, Oracle, signed

tf = pytest.importorskip("tensorflow")

SIGN_METHODS = tuple(name for name, method in METHODS.items() if method.form is signed)
DAMPED = tuple(name for name, method in METHODS.items() if method.noise)
MODES = ("eager", "xla", "op by op")


def stepper(variant, size, mode="eager", beta=0.9, dtype="float32", learning_rate=1.0):
    """Returns theta, and a function that resets theta to 0 and makes a step."""
    theta = keras.Variable(np.zeros(size), dtype=dtype)
    optimizer = table.make(
        variant,
        beta,
        learning_rate,
        jit_compile=False if mode == "op by op" else "auto",
    )
    optimizer.build([theta])

    def apply(g):
        theta.assign(tf.zeros_like(theta.value))
        optimizer.apply([g], [theta])

    if mode != "eager":
        apply = tf.function(apply, jit_compile=mode == "xla", autograph=False)

    def step(g):
        apply(tf.constant(np.broadcast_to(g, size), dtype))
        return -theta.numpy()

    return optimizer, theta, step


# 1e-30, 1e-29, ... 1e30, times noise, a constant and an alternating sign.
SIZES = 10.0 ** np.arange(-30, 31)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beta", table.BETAS)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_updates_are_finite_and_damped(variant, beta, mode):
    rng = np.random.default_rng(0)
    _, _, step = stepper(variant, (3, len(SIZES)), mode, beta)
    largest = np.zeros((3, len(SIZES)))
    for t in range(12):
        g = (
            np.stack(
                [
                    rng.normal(size=len(SIZES)),
                    np.ones(len(SIZES)),
                    np.full(len(SIZES), (-1.0) ** t),
                ]
            )
            * SIZES
        )
        largest = np.maximum(largest, np.abs(g))
        update = step(g).astype(np.float64)
        assert np.isfinite(update).all()
        form = METHODS[variant].form
        assert (np.abs(update) <= form(1.0, largest) * (1 + 1e-5)).all()
        # Without noise gamma is 1. Where g^2 is about to underflow, near 1e-18, it
        # loses digits, and never all of them.
        gamma = update[1] / form(1.0, SIZES)
        np.testing.assert_allclose(gamma[SIZES > 1e-15], 1, 1e-5)
        np.testing.assert_allclose(gamma, 1, 0.5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1e-25, 1e-15, 1e15, 1e25])
@pytest.mark.parametrize("variant", SIGN_METHODS)
def test_sign_methods_still_step(variant, size, mode):
    _, _, step = stepper(variant, (2,), mode)
    for _ in range(30):
        np.testing.assert_allclose(step(np.array([size, -size])), [1, -1], 1e-5)


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_one_huge_gradient_does_not_freeze_a_weight(variant, beta):
    """v~ must forget it. After 1e38 that takes 0.9^t 1e38 < 1e-3: t = 900."""
    _, _, step = stepper(variant, (3,), "graph", beta)
    step(np.array([1e12, 1e25, -1e38]))
    for _ in range(1000):
        update = step(np.ones(3))
    expected = METHODS[variant].form(1.0, np.ones(3))
    np.testing.assert_allclose(update, expected, 1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_gradient_that_is_not_finite_reaches_the_weight(variant, mode):
    """As NaN, at once and in every dtype; the other weights are updated as usual."""
    thetas = [keras.Variable(np.zeros(4), dtype=dtype) for dtype in table.DTYPES]
    optimizer = table.make(variant, jit_compile=False if mode == "op by op" else "auto")
    optimizer.build(thetas)

    def apply(gradients):
        optimizer.apply(gradients, thetas)

    if mode != "eager":
        apply = tf.function(apply, jit_compile=mode == "xla", autograph=False)
    for g in (np.ones(4), [np.nan, np.inf, -np.inf, 1.0]):
        apply([tf.constant(g, dtype) for dtype in table.DTYPES])
    for theta in thetas:
        theta = table.to_numpy(theta)
        assert np.isnan(theta[:3]).all(), theta
        expected = -2 * table.LEARNING_RATE * METHODS[variant].form(1.0, 1.0)
        np.testing.assert_allclose(theta[3], expected, 1e-3)


@pytest.mark.parametrize("variant", table.VARIANTS)
@pytest.mark.parametrize("gradient", [np.nan, np.inf, -np.inf])
def test_not_finite_for_good_only_in_its_own_place(variant, gradient):
    """At the first step too; afterwards m~ is not finite, and no step hides that."""
    _, _, step = stepper(variant, (2,))
    np.testing.assert_array_equal(
        np.isnan(step(np.array([gradient, 1]))), [True, False]
    )
    later = np.isnan(step(np.ones(2)))
    np.testing.assert_array_equal(later, [bool(METHODS[variant].slots), False])


@pytest.mark.parametrize("variant", ["ssd", "msgd", "msvag", "svas_gaussian"])
def test_terminate_on_nan(variant):
    """A loss that turns NaN is seen by the callback made for it."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(table.make(variant), "mse")
    x = np.ones((8, 1))
    y = np.where(np.arange(8) == 3, np.nan, 1.0)[:, None]
    history = model.fit(
        x,
        y,
        batch_size=1,
        epochs=3,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    assert len(history.epoch) == 1
    assert np.isnan(model.get_weights()[0]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beta", table.BETAS)
@pytest.mark.parametrize("variant", DAMPED)
def test_first_gradient_is_taken_whole(variant, beta, mode):
    """gamma is exactly 1 in the first step: the step is that of the plain method."""
    g = x = np.array([1.0, -0.3, 1e-25, -1e15, 1e25, 7e-4, 0.0], np.float32)
    _, _, step = stepper(variant, g.shape, mode, beta)
    if METHODS[variant].step == "m":
        x = stepper("msgd", g.shape, mode, beta)[2](g)
    np.testing.assert_array_equal(step(g), METHODS[variant].form(1.0, x))


@pytest.mark.parametrize("beta", table.BETAS)
@pytest.mark.parametrize("variant", DAMPED)
def test_first_gradient_after_zeros_is_not_the_first_step(variant, beta):
    """Zeros are observations. gamma is that of the oracle, and below 1."""
    oracle = Oracle(variant, 1.0, beta, ())
    _, _, step = stepper(variant, (), beta=beta)
    for g in (0.0, 0.0, 0.0, 2.0):
        update, expected = step(g), oracle.update(g)
        np.testing.assert_allclose(update, expected, 1e-6)
    assert beta == 0 or oracle.gamma(oracle.m, oracle.v) < 0.99


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_zero_gradients_make_no_update(variant):
    _, _, step = stepper(variant, (2,))
    for _ in range(3):
        np.testing.assert_array_equal(step(np.array([0.0, -0.0])), [0.0, 0.0])


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("variant", table.VARIANTS)
@settings(max_examples=25, deadline=None)
@given(
    gradients=hnp.arrays(np.float32, (6, 8), elements=FINITE),
    beta=st.sampled_from([0.0, 1e-3, 0.5, 0.9, 0.999]),
)
def test_any_finite_gradient_makes_a_finite_update(variant, gradients, beta):
    """The step is no larger than without damping: gamma is in [0, 1]."""
    # A weight of 1e38 is finite, minus an update of 3e38 it is not: a small rate.
    rate = 2.0**-10
    _, _, step = stepper(variant, (8,), beta=beta, learning_rate=rate)
    largest = np.zeros(8)
    for g in gradients:
        largest = np.maximum(largest, np.abs(g.astype(np.float64)))
        update = step(g).astype(np.float64)
        assert np.isfinite(update).all()
        bound = METHODS[variant].form(1.0, largest)
        assert (np.abs(update) <= rate * bound * (1 + 1e-4)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beta", [0.1, 0.9])
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_the_largest_gradients_of_both_signs(variant, beta, mode):
    _, _, step = stepper(variant, (1,), mode, beta)
    for g in (3e38, -3e38, 1.0):
        assert np.isfinite(step(np.array([g]))).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_float64_keeps_its_range(variant, mode):
    """Even if a constant of the rule does not fit in float32."""
    sizes = np.array([0, 1, 1e-90, 1e-200, 1e200])
    _, _, step = stepper(variant, (5,), mode, dtype="float64")
    for _ in range(3):
        expected = METHODS[variant].form(1.0, sizes)
        np.testing.assert_allclose(step(sizes), expected, 1e-12)
