"""Each rule against its definition in the paper, in float32 and float64."""

from fractions import Fraction
from statistics import NormalDist

import keras
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops
from tiers import sampled

from svag_tf import rules

tf = pytest.importorskip("tensorflow")

BETAS = (0.0, 0.5, 0.9, 0.999)
TIMES = (1, 2, 3, 10, 100, 2000, 1_000_000)
RTOL = {"float32": 1e-6, "float64": 1e-12}
ADAPTATIONS = (rules.gamma_gradient, rules.gamma_sign, rules.gamma_sign_adam)


def scalar(x, dtype="float64"):
    return ops.convert_to_tensor(x, dtype=dtype)


def array(x, dtype="float64"):
    return ops.convert_to_tensor(np.asarray(x, dtype))


def exact_rho(t, beta):
    """The closed form in rational numbers; beta^t of a huge t is as good as 0."""
    beta = Fraction(beta)
    power = beta**t if t <= 2000 else Fraction(0)
    return (1 - beta) * (1 + power) / ((1 + beta) * (1 - power))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", TIMES)
def test_factors_of_the_noise(beta, t, dtype):
    """1/(1 - rho) and rho/(1 - rho); both 0 where one observation says nothing."""
    factors = (
        rules.variance_factor(scalar(t, dtype), beta),
        rules.mean_variance_factor(scalar(t, dtype), beta),
    )
    if t == 1 or beta == 0.0:
        expected = (0, 0)
    else:
        rho = exact_rho(t, beta)
        expected = (1 / (1 - rho), rho / (1 - rho))
    assert all(keras.backend.standardize_dtype(x.dtype) == dtype for x in factors)
    np.testing.assert_allclose(
        [float(x) for x in factors], [float(x) for x in expected], RTOL[dtype]
    )


@pytest.mark.parametrize("t", [2, 3, 100])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_factors_agree_with_the_sum_of_squared_weights(beta, t):
    rho = oracle.rho(t, beta)
    factor = float(rules.mean_variance_factor(scalar(t), beta))
    np.testing.assert_allclose(factor / (1 + factor), rho, 1e-11)
    one_over = float(rules.variance_factor(scalar(t), beta))
    np.testing.assert_allclose(1 - 1 / one_over, rho, 1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", TIMES)
def test_bias_correction(beta, t, dtype):
    power = Fraction(beta) ** t if t <= 2000 else Fraction(0)
    correction = rules.bias_correction(scalar(t, dtype), beta)
    corrected = rules.bias_corrected(array([3.0, -2.0], dtype), correction)
    expected = np.array([3.0, -2.0]) / float(1 - power)
    np.testing.assert_allclose(ops.convert_to_numpy(corrected), expected, RTOL[dtype])


def test_bias_correction_saturates():
    """v~ at the largest float, 1 - beta^t < 1: v is no more than the largest float."""
    largest = np.finfo("float32").max
    corrected = rules.bias_corrected(
        array([largest, -largest], "float32"),
        rules.bias_correction(scalar(1, "float32"), 0.9),
    )
    np.testing.assert_array_equal(corrected, [largest, -largest])


@pytest.mark.parametrize("beta", BETAS)
def test_moving_average(beta):
    average = rules.moving_average(array([3.0, 0.0]), array([-1.0, 5.0]), beta)
    expected = [beta * 3 - (1 - beta), (1 - beta) * 5]
    np.testing.assert_allclose(ops.convert_to_numpy(average), expected, 1e-15, 1e-16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e-9, 1.0, 1e9, 1e18])
def test_signal_and_noise(size, dtype):
    """Their quotient is eta^2 = factor (v - m^2) / m^2, with v - m^2 clipped at 0."""
    m, v = np.array([2.0, -2.0, 2.0]) * size, np.array([13.0, 5.0, 3.9]) * size**2
    factor = scalar(4.0, dtype)
    signal, noise = rules.signal_and_noise(array(m, dtype), array(v, dtype), factor)
    assert (ops.convert_to_numpy(signal) > 0).all()
    if dtype == "float64" or size > 1e-18:  # Else v itself underflows.
        np.testing.assert_allclose(noise / signal, [9.0, 1.0, 0.0], 1e-6)


def test_excess():
    m, v = array([2.0, -2.0, 2.0]), array([13.0, 5.0, 3.9])
    np.testing.assert_allclose(rules.excess(m, v), [9.0, 1.0, 0.0], 1e-15)


MEAN, SIGMA = 0.7, np.array([0.01, 0.1, 0.5, 1.0, 3.0, 100.0])
SIGNAL, NOISE = array(np.full(6, MEAN**2)), array(SIGMA**2)


def test_gamma_gradient_minimises_the_expected_error():
    """The paper's Lemma: E||gamma g - mu||^2 = gamma^2 (mu^2 + sigma^2) - ..."""
    gamma = ops.convert_to_numpy(rules.gamma_gradient(SIGNAL, NOISE))
    np.testing.assert_allclose(gamma, MEAN**2 / (MEAN**2 + SIGMA**2), 1e-14)

    def error(factor):
        return factor**2 * (MEAN**2 + SIGMA**2) - 2 * factor * MEAN**2 + MEAN**2

    for other in (0.99 * gamma, 1.01 * gamma):
        assert (error(gamma) < error(other)).all()


def test_gamma_sign_is_how_likely_the_sign_is_right():
    """2 P[sign(g) = sign(mu)] - 1 for g ~ N(mu, sigma^2)."""
    gamma = rules.gamma_sign(SIGNAL, NOISE)
    wrong = [NormalDist(MEAN, sigma).cdf(0) for sigma in SIGMA]
    expected = 1 - 2 * np.array(wrong)
    np.testing.assert_allclose(ops.convert_to_numpy(gamma), expected, 1e-12)


def test_gamma_sign_adam_is_adam():
    """gamma sign(m) = m / sqrt(v)."""
    m, v = np.array([0.5, -2.0, 1.0, 1e-3]), np.array([1.0, 4.5, 1.0, 2.0])
    squares = rules.signal_and_noise(array(m), array(v), scalar(1.0))
    gamma = ops.convert_to_numpy(rules.gamma_sign_adam(*squares))
    np.testing.assert_allclose(gamma * np.sign(m), m / np.sqrt(v), 1e-13)


@pytest.mark.parametrize("gamma", ADAPTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gamma_of_no_noise_is_one_and_of_no_signal_is_zero(gamma, dtype):
    m = array([1.0, -1e-30, 1e30, 0.0, 0.0, 0.0], dtype)
    v = array([1.0, 0.0, 1e30, 0.0, 5.0, np.finfo(dtype).max], dtype)
    if dtype == "float64":
        v = array([1.0, 1e-60, 1e60, 0.0, 5.0, np.finfo(dtype).max])
    squares = rules.signal_and_noise(m, v, scalar(1.0, dtype))
    np.testing.assert_array_equal(gamma(*squares), [1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("jit_compile", [None, False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gamma", ADAPTATIONS)
@pytest.mark.parametrize("beta", sampled([0.9], BETAS))
def test_gamma_is_exactly_one_at_the_first_step(gamma, beta, dtype, jit_compile):
    """Whatever round-off does to v - m^2, and whatever compiles the rules."""
    largest = np.finfo(dtype).max
    m = np.array([1.0, -0.3, 1e-25, -1e25, 1e-10, 0.0], dtype)
    v = np.minimum(np.square(m, dtype=np.float64) * (1 + 1e-6), largest)

    def gammas(m, v, t):
        factors = (rules.variance_factor, rules.mean_variance_factor)
        return [
            gamma(*rules.signal_and_noise(m, v, factor(t, beta))) for factor in factors
        ]

    if jit_compile is not None:
        gammas = tf.function(gammas, jit_compile=jit_compile, autograph=False)
    for values in gammas(array(m, dtype), array(v, dtype), scalar(1, dtype)):
        np.testing.assert_array_equal(values, [1, 1, 1, 1, 1, 0])


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(
    m=hnp.arrays(np.float32, 8, elements=FINITE),
    v=hnp.arrays(np.float32, 8, elements=FINITE),
    t=st.integers(1, 10**7),
    beta=st.floats(0, 1, exclude_max=True),
)
def test_gamma_lies_between_zero_and_one(m, v, t, beta):
    for factor in (rules.variance_factor, rules.mean_variance_factor):
        k = factor(scalar(t, "float32"), beta)
        squares = rules.signal_and_noise(
            array(m, "float32"), array(abs(v), "float32"), k
        )
        for gamma in ADAPTATIONS:
            values = ops.convert_to_numpy(gamma(*squares))
            assert ((values >= 0) & (values <= 1)).all(), values
            assert (values[m == 0] == 0).all()


def test_squares_saturate():
    square = rules.saturating_square(array([3.0, -1e25, np.inf, np.nan], "float32"))
    largest = np.finfo("float32").max
    bound = largest / 4
    np.testing.assert_array_equal(square, np.float32([9, bound, bound, np.nan]))
    assert rules.largest("float16") == 65504
    assert rules.largest("float32") == largest
