"""The paper in float64 NumPy: the reference that every optimizer is held against.

A transcription of Balles & Hennig (ICML 2018) that shares no code with `svag_tf` and
makes no effort to be fast or to survive float32: formulas as printed, element-wise.
`t` counts from 1.
"""

from collections.abc import Callable, Mapping
from math import erf
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


def ratio(numerator, denominator):
    """numerator / denominator, and 1 for 0/0."""
    out = np.ones_like(numerator)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def gradient_factor(m, noise):
    return ratio(m**2, m**2 + noise)


def adam_factor(m, noise):
    return np.sqrt(ratio(m**2, m**2 + noise))


def gaussian_factor(m, noise):
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.abs(m) / np.sqrt(2 * noise)
    return np.vectorize(erf, otypes=[np.float64])(x) if x.size else x


def scaled(gamma, x):
    return gamma * x


def signed(gamma, x):
    return gamma * np.sign(x)


class Method(NamedTuple):
    """What a method does; the tests go by this.

    Attributes:
        cls: Name of its class.
        step: "m" or "g", what it steps along.
        form: Function of gamma and that, which gives the direction.
        noise: "s", "rho s", "v - m^2", or None: what the factor is made from.
        factor: Function of m and this noise.
        arguments: Arguments of the class, beside those that all methods have.
    """

    cls: str
    step: str
    form: Callable
    noise: str | None = None
    factor: Callable | None = None
    arguments: Mapping = MappingProxyType({})

    @property
    def slots(self):
        """The slots that it needs."""
        if self.noise is not None:
            return "m_tilde", "v_tilde"
        return ("m_tilde",) if self.step == "m" else ()

    @property
    def is_measured(self):
        """Whether `GradientNoise` measures it: gamma is the only thing it adds."""
        return self.noise is not None and self.form in (scaled, signed)


GAUSSIAN, ADAM = {"adaptation": "gaussian"}, {"adaptation": "adam"}
METHODS = {
    "msgd": Method("MSGD", "m", scaled),
    "ssd": Method("SSD", "g", signed),
    "mssd": Method("MSSD", "m", signed),
    "svag": Method("SVAG", "g", scaled, "s", gradient_factor),
    "msvag": Method("MSVAG", "m", scaled, "rho s", gradient_factor),
    "svas_gaussian": Method("SVAS", "g", signed, "s", gaussian_factor, GAUSSIAN),
    "svas_adam": Method("SVAS", "g", signed, "s", adam_factor, ADAM),
    "msvas_gaussian": Method("MSVAS", "m", signed, "rho s", gaussian_factor, GAUSSIAN),
    "msvas_adam": Method("MSVAS", "m", signed, "v - m^2", adam_factor, ADAM),
}


def rho(t, beta):
    """The factor of var[m] = rho sigma^2, from the definition: sum of squared weights.

    m = sum_i w_i g_i with w_i = (1 - beta) beta^(t - i) / (1 - beta^t).
    """
    weights = (1 - beta) * beta ** np.arange(t, dtype=np.float64) / (1 - beta**t)
    return float(np.sum(weights**2))


class Oracle:
    """One variable's optimizer: `update(g)` returns what is subtracted from theta."""

    def __init__(self, method, learning_rate, beta, shape):
        self.method = METHODS[method]
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
        return self.method.form(self.gamma(m, v), m if self.method.step == "m" else g)

    def gamma(self, m, v):
        """The variance adaptation at the present t; 1 for the methods without."""
        if self.method.factor is None:
            return np.ones_like(m)
        excess = np.maximum(v - m**2, 0)
        if self.t == 1 or self.beta == 0:  # One observation: no noise to be seen.
            noise = np.zeros_like(m)
        else:
            r = rho(self.t, self.beta)
            s = excess / (1 - r)
            noise = {"s": s, "rho s": r * s, "v - m^2": excess}[self.method.noise]
        return np.where(m == 0, 0.0, self.method.factor(m, noise))
