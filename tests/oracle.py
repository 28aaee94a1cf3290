"""The paper in float64 NumPy: the reference that every optimizer is held against.

A transcription of Balles & Hennig (ICML 2018) that shares no code with `svag_tf` and
makes no effort to be fast or to survive float32: formulas as printed, element-wise.
`t` counts from 1.
"""

from math import erf

import numpy as np

METHODS = (
    "msgd",
    "ssd",
    "mssd",
    "svag",
    "msvag",
    "svas_gaussian",
    "svas_adam",
    "msvas_gaussian",
    "msvas_adam",
)


def rho(t, beta):
    """The factor of var[m] = rho sigma^2, from the definition: sum of squared weights.

    m = sum_i w_i g_i with w_i = (1 - beta) beta^(t - i) / (1 - beta^t).
    """
    weights = (1 - beta) * beta ** np.arange(t, dtype=np.float64) / (1 - beta**t)
    return float(np.sum(weights**2))


def ratio(numerator, denominator):
    """numerator / denominator, and 1 for 0/0."""
    out = np.ones_like(numerator)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


class Oracle:
    """One variable's optimizer: `update(g)` returns what is subtracted from theta."""

    def __init__(self, method, learning_rate, beta, shape):
        assert method in METHODS
        self.method = method
        self.learning_rate = learning_rate
        self.beta = beta
        self.t = 0
        self.m_tilde = np.zeros(shape, np.float64)
        self.v_tilde = np.zeros(shape, np.float64)

    def update(self, g):
        """Takes one gradient in; returns learning_rate * direction."""
        g = np.asarray(g, np.float64)
        beta = self.beta
        self.t += 1
        self.m_tilde = beta * self.m_tilde + (1 - beta) * g
        self.v_tilde = beta * self.v_tilde + (1 - beta) * g**2
        self.g = g
        self.m = self.m_tilde / (1 - beta**self.t)
        self.v = self.v_tilde / (1 - beta**self.t)
        return self.learning_rate * self.direction(g, self.m, self.v)

    def direction(self, g, m, v):
        """The direction at the present t, for any g, m and v."""
        step = m if self.method.startswith("ms") else g
        if self.method in ("ssd", "mssd") or "svas" in self.method:
            step = np.sign(step)
        return self.gamma(m, v) * step

    def gamma(self, m, v):
        """The variance adaptation at the present t; 1 for the methods without."""
        if self.method in ("msgd", "ssd", "mssd"):
            return np.ones_like(m)
        excess = np.maximum(v - m**2, 0)
        if self.t == 1 or self.beta == 0:  # One observation: no noise to be seen.
            r, s, excess = 1.0, np.zeros_like(m), np.zeros_like(m)
        else:
            r = rho(self.t, self.beta)
            s = excess / (1 - r)
        if self.method == "svag":
            gamma = ratio(m**2, m**2 + s)
        elif self.method == "msvag":
            gamma = ratio(m**2, m**2 + r * s)
        elif self.method == "svas_adam":
            gamma = np.sqrt(ratio(m**2, m**2 + s))
        elif self.method == "msvas_adam":
            gamma = np.sqrt(ratio(m**2, m**2 + excess))
        else:
            variance = s if self.method == "svas_gaussian" else r * s
            with np.errstate(divide="ignore", invalid="ignore"):
                x = np.abs(m) / np.sqrt(2 * variance)
            gamma = np.vectorize(erf, otypes=[np.float64])(x) if x.size else x
        return np.where(m == 0, 0.0, gamma)
