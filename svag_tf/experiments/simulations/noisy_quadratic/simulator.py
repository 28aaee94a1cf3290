"""What is simulated: the problems, the methods on them, and their outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from svag_tf import rules
from svag_tf.experiments.config import distinct, field, number, whole
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.simulations import plots
from svag_tf.optional import tensorflow as tf

METHODS = (
    "sgd", "msgd", "svag", "msvag", plots.IDEAL, "ssd", "mssd", "svas", "msvas",
)  # fmt: skip
MILD, ILL = "mild", "ill-conditioned"
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class Config:
    """See configs/noisy_quadratic.py."""

    seed: int = whole(0)
    seeds: int = whole(2)
    dimension: int = whole(10)
    noise_levels: tuple[float, ...] = distinct(
        lambda v: isinstance(v, int | float) and 0 <= v < math.inf,
        "finite numbers >= 0, at least one and none twice, such as (0.0, 0.1)",
    )
    methods: tuple[str, ...] = distinct(
        lambda v: v in METHODS, f"of {', '.join(METHODS)}, at least one and none twice"
    )
    steps: int = whole(2)
    rates: int = whole(2)
    lowest_rate: float = number(0, ends="(]")
    highest_rate: float = field(float, lambda v: v > 0, "a finite number > lowest_rate")
    long_steps: int = whole(100)
    long_noise: float = number(0, ends="(]")
    long_rates: tuple[float, ...] = distinct(
        lambda v: isinstance(v, int | float) and 0 < v < 2,
        "numbers in (0, 2), at least one and none twice: rates relative to 1/L",
    )


@dataclass(frozen=True)
class Quadratic:
    """A problem: the eigenvalues of Q, and its eigenvectors as columns of a matrix."""

    spectrum: str
    rotated: bool
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.spectrum}, {'rotated' if self.rotated else 'axis-aligned'}"

    @property
    def matrix(self) -> np.ndarray:
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T


@dataclass(frozen=True)
class Outcome:
    """The outcome of a method on a problem with a noise level.

    Attributes:
        finals: mean over the seeds of the last loss, for each learning rate; inf where
            it diverged.
        best: index of the learning rate with the lowest loss.
        losses: the losses with that rate, shape (steps + 1, seeds).
    """

    finals: np.ndarray
    best: int
    losses: np.ndarray

    @property
    def final(self) -> float:
        return float(self.finals[self.best])


Outcomes = Mapping[tuple[str, float, str], Outcome]


def grid(config: Config) -> np.ndarray:
    """Returns the learning rates."""
    return np.geomspace(config.lowest_rate, config.highest_rate, config.rates)


def quadratics(dimension: int, seed: int) -> list[Quadratic]:
    """Returns four problems: two spectra, with eigenvectors on the axes or rotated."""
    rng = np.random.default_rng([seed, 0])
    steep = dimension // 10
    spectra = {
        MILD: rng.uniform(0.1, 1.1, dimension),
        ILL: np.concatenate(
            [rng.uniform(0, 1, dimension - steep), rng.uniform(30, 60, steep)]
        ),
    }
    q, r = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    rotation = q * np.sign(np.diag(r))  # uniform among the rotations and reflections
    return [
        Quadratic(name, rotated, spectrum, rotation if rotated else np.eye(dimension))
        for name, spectrum in spectra.items()
        for rotated in (False, True)
    ]


def simulator(
    method: str,
    rates: Sequence[float] | np.ndarray,
    seeds: int,
    dimension: int,
    steps: int,
) -> Callable[[np.ndarray, float, np.ndarray, int], np.ndarray]:
    """Makes a function that runs a method, with all learning rates and seeds at once.

    Its direction of descent depends only on the gradients, not on theta. So one
    optimizer with learning rate 1 serves all rates: a variable that is set to 0 before
    each step then holds minus the direction, for every rate and seed. All rates see the
    same noise.

    Returns:
        Function of the matrix Q, the noise's variance, the starting points (shape
        (seeds, d)) and the noise's seed. It returns the losses before and after each
        step: shape (steps + 1, rates, seeds).
    """
    shape = (len(rates), seeds, dimension)
    rate = tf.reshape(tf.constant(rates, tf.float32), (-1, 1, 1))
    descent = keras.Variable(tf.zeros(shape))
    fresh = []
    if method != plots.IDEAL:
        optimizer = OPTIMIZERS[method](learning_rate=1.0)
        optimizer.build([descent])
        fresh = [(v, v.numpy()) for v in optimizer.variables]

    def descended(gradient: Any, exact: Any, noise: Any) -> Any:
        if method == plots.IDEAL:
            signal = tf.square(exact)
            gamma = rules.gamma_gradient(signal, tf.broadcast_to(noise, shape))
            return -gamma * gradient
        descent.assign(tf.zeros(shape))
        optimizer.apply([gradient], [descent])
        return descent.value

    def loop(matrix: Any, noise: Any, start: Any, seed: Any) -> Any:
        def step(t: Any, theta: Any, losses: Any) -> tuple[Any, Any, Any]:
            exact = tf.reshape(tf.reshape(theta, (-1, dimension)) @ matrix, shape)
            losses = losses.write(t, 0.5 * tf.reduce_sum(theta * exact, -1))
            normal = tf.random.stateless_normal(shape[1:], tf.stack([seed, t]))
            gradient = exact + tf.sqrt(noise) * normal
            return t + 1, theta + rate * descended(gradient, exact, noise), losses

        losses = tf.TensorArray(tf.float32, steps + 1, element_shape=shape[:2])
        first = (tf.constant(0), tf.broadcast_to(start, shape), losses)
        return tf.while_loop(lambda t, *_: t <= steps, step, first)[2].stack()

    compiled = tf.function(loop, jit_compile=True, autograph=False)
    compiled = compiled.get_concrete_function(
        tf.TensorSpec((dimension, dimension)),
        tf.TensorSpec(()),
        tf.TensorSpec(shape[1:]),
        tf.TensorSpec((), tf.int32),
    )

    def run(
        matrix: np.ndarray, noise: float, start: np.ndarray, seed: int
    ) -> np.ndarray:
        for variable, value in fresh:
            variable.assign(value)
        numbers = [tf.constant(x, tf.float32) for x in (matrix, noise, start)]
        return compiled(*numbers, tf.constant(seed)).numpy()

    return run


def sgd_floor(eigenvalues: np.ndarray, rate: float, noise: float) -> float:
    """Returns the loss at which SGD with a constant learning rate stalls.

    In the direction of an eigenvalue l, theta finally has the variance
    rate^2 noise / (1 - (1 - rate l)^2), and the loss is 0.5 l times that.
    """
    return float(0.5 * rate * noise * np.sum(1.0 / (2.0 - rate * eigenvalues)))
