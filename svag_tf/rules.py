"""The mathematics of the paper: pure functions on arrays, in the paper's symbols.

Every function works on the tensors of any Keras backend and is element-wise.
`beta` is a Python float in [0, 1); `t` = 1, 2, 3, ... is the count of the update
that is being made, a scalar tensor of the dtype of the computation (float32 or
wider). m~ and v~ are the moving averages of g and g^2 that start at 0; m and v are
the same, corrected for that start:

    m = m~ / (1 - beta^t)                        v = v~ / (1 - beta^t)
    rho = (1 - beta)(1 + beta^t) / ((1 + beta)(1 - beta^t))
    s = (v - m^2) / (1 - rho)          unbiased estimate of sigma^2 = var[g]
    rho s                              estimate of var[m]
    eta^2 = s / m^2, or rho s / m^2    noise-to-signal ratio

In floats 1 - rho loses all its digits for small t, so it is never formed: the two
factors that turn v - m^2 into s and into rho s are computed directly (with expm1).
At t = 1, and always for beta = 0, the averages hold one observation, which says
nothing about the noise: both factors are 0 there, and every gamma is 1.

A float32 square overflows above 1.8e19 and underflows below 1e-19. Squares saturate,
and a small m^2 is scaled before it is compared with the noise, so that any finite
gradient gives a finite update with gamma in [0, 1].

Reference: L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance
of Stochastic Gradients", ICML 2018, sections 2 to 4.
"""

import math

import ml_dtypes
from keras import backend, ops


def largest(dtype):
    """Returns the largest finite number of a floating-point dtype, as a float."""
    return float(ml_dtypes.finfo(dtype).max)


def saturating_square(x):
    """Returns x^2, at most a quarter of the largest finite float; NaN stays NaN.

    So the sum of a squared signal and its noise is finite too (for beta >= 0.5).
    """
    return _at_most(ops.square(x), 0.25 * _largest_like(x))


# `where` keeps NaN, and XLA on a CPU compiles it to faster code than `clip`.


def _at_most(x, bound):
    return ops.where(x > bound, bound, x)


def _at_least(x, bound):
    return ops.where(x < bound, bound, x)


def _largest_like(x):
    dtype = backend.standardize_dtype(x.dtype)
    return ops.convert_to_tensor(largest(dtype), dtype=dtype)


def moving_average(average, value, beta, betas=None):
    """Returns beta * average + (1 - beta) * value.

    For beta >= 0.5 computed as a correction of the average: rounding beta to float32
    would cost digits when it is close to 1. Neither form can overflow.

    Args:
        average: Tensor.
        value: Tensor like it.
        beta: Float in [0, 1), which selects the form.
        betas: beta and 1 - beta as scalar tensors of the same dtype, or `None` for
            constants.
    """
    if beta == 0.0:
        return value
    kept, new = betas or (beta, 1.0 - beta)
    if beta < 0.5:
        return kept * average + new * value
    return average + (new * value - new * average)


def bias_correction(t, beta):
    """Returns 1 / (1 - beta^t), the correction of an average that starts at 0."""
    if beta == 0.0:
        return ops.ones_like(t)
    return -1.0 / ops.expm1(t * math.log(beta))


def bias_corrected(average, correction):
    """Returns average / (1 - beta^t), at most the largest finite float in size.

    Equation: m = m~ / (1 - beta^t), v = v~ / (1 - beta^t).
    """
    limit = _largest_like(average)
    return _at_least(_at_most(average * correction, limit), -limit)


def has_history(t, beta):
    """Returns 1 if the averages hold more than one observation, else 0."""
    return ops.cast(t > 1.0, t.dtype) if beta > 0.0 else ops.zeros_like(t)


def variance_factor(t, beta):
    """Returns 1 / (1 - rho), which makes v - m^2 an unbiased sigma^2; 0 at t = 1.

    Equation: 1/(1 - rho) = (1 + beta)(1 - beta^t) / (2 (beta - beta^t)).
    """
    if beta == 0.0:
        return ops.zeros_like(t)
    return (1.0 + beta) * -ops.expm1(t * math.log(beta)) * _over_decay(t, beta)


def mean_variance_factor(t, beta):
    """Returns rho / (1 - rho), which makes v - m^2 the variance of m; 0 at t = 1.

    Equation: rho/(1 - rho) = (1 - beta)(1 + beta^t) / (2 (beta - beta^t)).
    """
    if beta == 0.0:
        return ops.zeros_like(t)
    return (1.0 - beta) * (1.0 + ops.exp(t * math.log(beta))) * _over_decay(t, beta)


def mean_variance_ratio(t, beta):
    """Returns rho, the variance of m over that of g; 1 at t = 1.

    Equation: rho = (1 - beta)(1 + beta^t) / ((1 + beta)(1 - beta^t)).
    """
    if beta == 0.0:
        return ops.ones_like(t)
    decayed = ops.exp(t * math.log(beta))
    return (1.0 - beta) * (1.0 + decayed) / (1.0 + beta) * bias_correction(t, beta)


def _over_decay(t, beta):
    """Returns 1 / (2 (beta - beta^t)), 0 at t = 1."""
    decay = -ops.expm1(ops.clip(t - 1.0, 1.0, math.inf) * math.log(beta))
    # A beta below 1e-30 averages nothing in float32, and 1/beta may overflow there.
    return has_history(t, beta) / (2.0 * max(beta, 1e-30) * decay)


def excess(m, v):
    """Returns v - m^2, clipped at 0: in exact arithmetic it is never negative."""
    return _at_least(v - saturating_square(m), ops.zeros((), m.dtype))


def signal_and_noise(m, v, factor):
    """Returns m^2 and factor (v - m^2), whose quotient is the noise-to-signal ratio.

    Both are multiplied by the same power of two, so that m^2 is not 0 where m is not;
    both saturate.

    Args:
        m: Average of g, corrected for its start.
        v: Average of g^2, likewise.
        factor: Scalar. `variance_factor` for the gradient's noise (s),
            `mean_variance_factor` for that of its average (rho s).
    """
    return signal_and_variance(m, excess(m, v), factor)


def signal_and_variance(m, variance, factor):
    """Returns m^2 and factor * variance, scaled and bounded as in `signal_and_noise`.

    Args:
        m: Average of g, corrected for its start.
        variance: An estimate of g's variance, never negative.
        factor: Scalar. 1 for the gradient's noise, `mean_variance_ratio` for that of
            its average.
    """
    exponent = int(ml_dtypes.finfo(backend.standardize_dtype(m.dtype)).maxexp)
    one, up = (
        ops.convert_to_tensor(scale, dtype=m.dtype)
        for scale in (1.0, 2.0 ** (exponent // 2))
    )
    scale = ops.where(ops.abs(m) < 2.0 ** -(exponent // 4), up, one)
    # In this order, and finite: the factor may be 0, or make the product underflow.
    noise = _at_most(variance * scale * scale, _largest_like(m))
    return saturating_square(m * scale), factor * noise


def gamma_gradient(signal, noise):
    """Returns gamma = 1 / (1 + eta^2), and 0 where m = 0.

    The factor that minimises E||gamma g - grad L||^2 (the paper's Lemma).
    """
    return signal / ops.where(signal == 0.0, 1.0, signal + noise)


def gamma_sign(signal, noise):
    """Returns gamma = erf(1 / (sqrt(2) eta)), and 0 where m = 0.

    The factor 2 P[sign(g) = sign(grad L)] - 1 that minimises
    E||gamma sign(g) - sign(grad L)||^2 for Gaussian noise (the paper's Lemma).
    """
    # Above erf(6) it is 1 in float64 too, but XLA's erf stops short of 1.
    certain = signal >= 72.0 * noise
    ratio = signal / ops.where(certain, 1.0, 2.0 * noise)
    gamma = ops.where(certain, 1.0, ops.erf(ops.sqrt(ratio)))
    return ops.where(signal == 0.0, 0.0, gamma)


def gamma_sign_adam(signal, noise):
    """Returns gamma = (1 + eta^2)^(-1/2), and 0 where m = 0.

    With eta^2 = (v - m^2)/m^2 it makes gamma * sign(m) = m / sqrt(v): Adam.
    """
    return ops.sqrt(gamma_gradient(signal, noise))
