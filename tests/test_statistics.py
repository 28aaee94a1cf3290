"""Why rho: s is unbiased for sigma^2 and var[m] = rho sigma^2, over many draws.

The averages are those that the optimizers keep, the estimates those of the rules.
"""

import keras
import numpy as np
import pytest
from keras import ops
from tiers import sampled

import svag_tf
from svag_tf import rules

DRAWS = 200_000
SIGMA, MEAN = 2.0, 0.5
DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(MEAN, SIGMA, DRAWS),
    "exponential": lambda rng: MEAN + SIGMA * (rng.exponential(size=DRAWS) - 1),
}
TIMES = (2, 3, 10, 40)


def estimates(beta, distribution):
    """m and v - m^2 of all draws at each of TIMES, as the optimizer averages them."""
    rng = np.random.default_rng(0)
    optimizer = svag_tf.MSVAG(learning_rate=0.0, beta=beta)
    theta = keras.Variable(np.zeros(DRAWS), dtype="float64")
    optimizer.build([theta])
    for time in range(1, max(TIMES) + 1):
        g = DISTRIBUTIONS[distribution](rng)
        optimizer.apply([ops.convert_to_tensor(g)], [theta])
        if time in TIMES:
            t = ops.convert_to_tensor(float(time), dtype="float64")
            correction = rules.bias_correction(t, beta)
            m, v = (
                rules.bias_corrected(slot.value, correction)
                for slot in (optimizer.m_tilde[0], optimizer.v_tilde[0])
            )
            yield t, ops.convert_to_numpy(m), ops.convert_to_numpy(rules.excess(m, v))


def assert_mean(samples, expected):
    """Within 4 standard errors."""
    assert abs(deviation(samples, expected)) < 4


def deviation(samples, expected):
    """Of the samples' mean from an expected value, in standard errors."""
    return (samples.mean() - expected) / (samples.std() / np.sqrt(len(samples)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("beta", sampled([0.9], [0.5, 0.9, 0.999]))
def test_s_and_rho_s_are_unbiased(beta, distribution):
    for t, m, excess in estimates(beta, distribution):
        one_over = float(rules.variance_factor(t, beta))
        k = float(rules.mean_variance_factor(t, beta))
        rho = k / (1 + k)
        squares = (m - MEAN) ** 2  # Their mean is var[m].

        assert_mean(one_over * excess, SIGMA**2)
        assert_mean(squares, rho * SIGMA**2)
        assert_mean(k * excess - squares, 0.0)  # rho s estimates var[m].

        # Without the factors, these same draws would fail.
        assert deviation(excess, SIGMA**2) < -8
        assert deviation(squares, SIGMA**2) < -8
        assert deviation(one_over * excess - squares, 0.0) > 8
