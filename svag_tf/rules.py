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

In floats 1 - rho loses all its digits for small t, so it is never formed: the two
factors that turn v - m^2 into s and into rho s are computed directly (with expm1).
At t = 1, and always for beta = 0, the averages hold one observation, which says
nothing of the noise: both factors are 0 there, and every gamma is 1.

A float32 square overflows above 1.8e19 and underflows below 1e-19. Squares saturate
at the largest finite float, and a gamma without noise information is 1, so that any
finite gradient gives a finite update with gamma in [0, 1].

Reference: L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance
of Stochastic Gradients", ICML 2018, sections 2 to 4.
"""

import math

import ml_dtypes
from keras import backend, ops


def largest(dtype):
    """The largest finite number of a floating-point dtype, as a Python float."""
    return float(ml_dtypes.finfo(dtype).max)


def saturating_square(x):
    """x^2, at most the largest finite float of x's dtype; NaN stays NaN."""
    return ops.minimum(ops.square(x), largest(backend.standardize_dtype(x.dtype)))


def moving_average(average, value, beta):
    """beta * average + (1 - beta) * value, which cannot overflow."""
    return average + ((1.0 - beta) * value - (1.0 - beta) * average)


def bias_corrected(average, t, beta):
    """average / (1 - beta^t), saturating at the largest finite float.

    Equation: m = m~ / (1 - beta^t), v = v~ / (1 - beta^t).
    """
    if beta == 0.0:
        return average
    limit = largest(backend.standardize_dtype(average.dtype))
    return ops.clip(average * (-1.0 / ops.expm1(t * math.log(beta))), -limit, limit)


def several(t, beta):
    """1 if the averages hold more than one observation, else 0."""
    return ops.cast(t > 1.0, t.dtype) if beta > 0.0 else ops.zeros_like(t)


def _variance_factor(numerator, t, beta):
    """numerator / (2 (beta - beta^t)), 0 at t = 1 (one observation, no variance)."""
    shrink = -ops.expm1(ops.maximum(t - 1.0, 1.0) * math.log(beta))
    # Below 1e-30 a beta is no average at all in float32, and 1/beta no number.
    return several(t, beta) * numerator / (2.0 * max(beta, 1e-30) * shrink)


def variance_factor(t, beta):
    """1 / (1 - rho), the factor that makes v - m^2 an unbiased sigma^2; 0 at t = 1.

    Equation: 1/(1 - rho) = (1 + beta)(1 - beta^t) / (2 (beta - beta^t)).
    """
    if beta == 0.0:
        return ops.zeros_like(t)
    return _variance_factor((1.0 + beta) * -ops.expm1(t * math.log(beta)), t, beta)


def mean_variance_factor(t, beta):
    """rho / (1 - rho), the factor that makes v - m^2 the variance of m; 0 at t = 1.

    Equation: rho/(1 - rho) = (1 - beta)(1 + beta^t) / (2 (beta - beta^t)).
    """
    if beta == 0.0:
        return ops.zeros_like(t)
    return _variance_factor((1.0 - beta) * (1.0 + ops.exp(t * math.log(beta))), t, beta)


def excess(m, v):
    """v - m^2, which is never negative in exact arithmetic: clipped at 0."""
    return ops.maximum(v - saturating_square(m), 0.0)


def gradient_variance(m, v, t, beta):
    """s = (v - m^2) / (1 - rho), the unbiased estimate of the gradient's variance."""
    return variance_factor(t, beta) * excess(m, v)


def mean_variance(m, v, t, beta):
    """rho s, the estimate of the variance of the averaged gradient m."""
    return mean_variance_factor(t, beta) * excess(m, v)


def _adapted(factor, m, variance):
    """factor where there is noise; 1 where there is none; 0 where m = 0."""
    one = ops.ones_like(m)
    noisy = ops.where(variance > 0.0, factor, one)
    return ops.where(m == 0.0, ops.zeros_like(m), noisy)


def _positive(variance):
    """variance, with 1 for the zeros whose quotients `_adapted` throws away."""
    return ops.where(variance > 0.0, variance, ops.ones_like(variance))


def gamma_sign_adam(m, variance):
    """gamma = (1 + eta^2)^(-1/2) with eta^2 = variance / m^2: Adam's factor.

    With the variance v - m^2 it makes gamma * sign(m) = m / sqrt(v).
    """
    # |m| / sqrt(m^2 + variance) keeps its digits also where m^2 underflows.
    limit = largest(backend.standardize_dtype(m.dtype))
    square = ops.minimum(saturating_square(m) + _positive(variance), limit)
    return _adapted(ops.minimum(ops.abs(m) / ops.sqrt(square), 1.0), m, variance)


def gamma_gradient(m, variance):
    """gamma = 1 / (1 + eta^2) = m^2 / (m^2 + variance), eta^2 = variance / m^2.

    The factor that minimises E||gamma g - grad L||^2 (the paper's Lemma).
    """
    return ops.square(gamma_sign_adam(m, variance))


def gamma_sign(m, variance):
    """gamma = erf(1 / (sqrt(2) eta)) = erf(|m| / sqrt(2 variance)).

    The factor 2 P[sign(g) = sign(grad L)] - 1 that minimises
    E||gamma sign(g) - sign(grad L)||^2 for Gaussian noise (the paper's Lemma).
    """
    factor = ops.erf(math.sqrt(0.5) * ops.abs(m) / ops.sqrt(_positive(variance)))
    return _adapted(factor, m, variance)
