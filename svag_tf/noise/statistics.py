"""Computes the sums, histograms and quotients that `GradientNoise` reports."""

from __future__ import annotations

import functools
import math

import numpy as np
from keras import ops

from svag_tf import rules
from svag_tf.noise.files import BINS, RANGES
from svag_tf.noise.per_example import compiled


def sums_of_variables(gamma_of, damping, with_update, theta, m_tilde, v_tilde, factors):
    """Returns each variable's sums and the scale of their squares: shape (8,) each."""
    rows = []
    for weights, first, second, f in zip(theta, m_tilde, v_tilde, factors):
        m, v, gamma = _elements(gamma_of, first, second, f)
        # A power of two, so that no square over- or underflows.
        largest = ops.max(ops.abs(m), initial=0.0)
        scale = ops.where(largest < 2.0**-32, 2.0**64, 1.0)
        scale = ops.where(largest > 2.0**32, 2.0**-64, scale)
        signal = ops.square(m * scale)
        excess = rules.excess(m, v) * scale * scale
        sums = [
            ops.cast(_has_gradient(m, v), "float32"),
            signal,
            f[2] * excess,
            f[3] * excess,
            gamma,
        ]
        if with_update:
            size = {"gradient": signal, "sampled": v * scale * scale}.get(damping, 1.0)
            sums += [gamma * gamma * size, ops.square(ops.cast(weights, "float32"))]
        totals = [ops.sum(part) for part in sums]
        totals += [ops.zeros((), "float32")] * (7 - len(totals))
        rows.append(ops.stack([*totals, scale]))
    return rows


def histograms_of_variables(gamma_of, theta, m_tilde, v_tilde, factors):
    """Returns counts of gamma and log10 eta^2 for every variable: shape (BINS,)."""
    counts: dict[str, list] = {name: [] for name in RANGES}
    for first, second, f in zip(m_tilde, v_tilde, factors):
        m, v, gamma = _elements(gamma_of, first, second, f)
        has_gradient = _has_gradient(m, v)
        signal, noise = rules.signal_and_noise(m, v, f[2])
        eta2 = ops.clip(noise / signal, 0.0, 1e30)  # Infinite where m = 0.
        values = {"gamma": gamma, "log10_eta2": ops.log10(eta2)}
        for name, (low, high) in RANGES.items():
            edges = np.linspace(low, high, BINS + 1, dtype="float32")
            edges[0], edges[-1] = -np.inf, np.inf
            # From 2.14 on, torch compares its tensors with tensors only.
            edges = ops.convert_to_tensor(edges)
            column = ops.reshape(values[name], (-1, 1))
            inside = ops.logical_and(column >= edges[:-1], column < edges[1:])
            inside = ops.logical_and(inside, ops.reshape(has_gradient, (-1, 1)))
            counts[name].append(ops.sum(ops.cast(inside, "int32"), axis=0))
    return counts


def _elements(gamma_of, m_tilde, v_tilde, factors):
    """Returns m, v and gamma of every element, in float32."""
    first, second, _, _, factor = factors
    m = rules.bias_corrected(ops.cast(m_tilde, "float32"), first)
    v = ops.cast(v_tilde, "float32") * second
    return m, v, gamma_of(*rules.signal_and_noise(m, v, factor))


def _has_gradient(m, v):
    return ops.logical_or(v > 0.0, m != 0.0)


@functools.lru_cache(maxsize=16)
def compiled_for(function, shapes, *arguments):
    """Returns `function` for all models with variables of these shapes."""
    del shapes  # Part of the key: a program sees the same shapes at each call.
    return compiled(functools.partial(function, *arguments))


def noise_scale(measurements):
    """Returns the simple noise scale and its standard error.

    Equation, with the means N and D of the n measurements' noise and signal:

        scale = N / D            error^2 = var[noise - scale * signal] / (n D^2)

    The means are taken separately, as McCandlish et al. do in appendix A.1: single
    signals are too noisy to divide by.

    Args:
        measurements: Pairs of the noise, the variance of one example's gradient, and
            the signal, the squared norm of the gradient, both summed over the elements.

    Returns:
        Two floats: inf and NaN where there is no signal, NaN for the error of fewer
        than three measurements.
    """
    noise, signal = np.asarray(list(measurements), np.float64).T
    scale = quotient(noise.mean(), signal.mean())
    if len(noise) < 3 or not math.isfinite(scale):
        return scale, math.nan
    residual = noise - scale * signal
    return scale, float(residual.std(ddof=1) / math.sqrt(len(noise)) / signal.mean())


def quotient(noise, signal):
    if math.isnan(noise) or math.isnan(signal):
        return math.nan
    if signal <= 0:
        return math.inf if noise > 0 else math.nan
    return float(noise / signal)
