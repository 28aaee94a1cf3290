"""DeepOBS' noisy quadratic with a spectrum like that of a deep network."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems.data import Data

DIMENSIONS = 100
POINTS = 1000
DEVIATION = 0.6
# The seeds of DeepOBS: matrix and data are the same to the last digit.
MATRIX_SEED, TRAIN_SEED, TEST_SEED = 42, 42, 43


@keras.saving.register_keras_serializable(package="svag_tf")
class Quadratic(layers.Layer):
    """0.5 (theta - x)' Q (theta - x) for each x, theta being the layer's weight.

    theta starts at 1. Input: shape (n, 100); output: shape (n, 1).
    """

    def build(self, input_shape: Any) -> None:
        self.theta = self.add_weight(
            shape=(DIMENSIONS,), initializer="ones", name="theta"
        )
        self._matrix = matrix().astype(np.float32)

    def call(self, x: Any) -> Any:
        d = self.theta - x
        return 0.5 * ops.sum(ops.matmul(d, self._matrix) * d, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="svag_tf")
def output_as_loss(y: Any, output: Any) -> Any:
    """Returns the output of a model that computes its own loss; `y` is ignored."""
    return ops.mean(output, axis=-1)


def quadratic_deep() -> keras.Model:
    """Builds the quadratic as a model whose output is the loss (100 parameters)."""
    return keras.Sequential(
        [keras.Input((DIMENSIONS,)), Quadratic(dtype="float32")], name="quadratic_deep"
    )


def load_points(data_dir: str | None = None) -> Data:
    """Returns 1000 train and 1000 test points from N(0, 0.6^2 I) in 100 dimensions.

    They are always the same. The labels are zeros and never used.

    Raises:
        ExperimentError: if `data_dir` is given.
    """
    if data_dir is not None:
        raise ExperimentError(
            "data_dir does not apply to the problem 'quadratic_deep', whose data is "
            f"drawn at random; leave it None. Received: data_dir={data_dir!r}"
        )
    train, test = (
        np.random.RandomState(seed)
        .normal(0, DEVIATION, (POINTS, DIMENSIONS))
        .astype(np.float32)
        for seed in (TRAIN_SEED, TEST_SEED)
    )
    y = np.zeros((POINTS, 1), np.float32)
    return Data(train, y, test, y)


def matrix() -> np.ndarray:
    """Returns Q: 90 eigenvalues from (0, 1), 10 from (30, 60), in random directions.

    It is always the same: shape (100, 100), float64, symmetric.
    """
    rng = np.random.RandomState(MATRIX_SEED)
    eigenvalues = np.concatenate([rng.uniform(0, 1, 90), rng.uniform(30, 60, 10)])
    r = rotation(DIMENSIONS, rng)
    return r.T @ np.diag(eigenvalues) @ r


def rotation(dimensions: int, rng: np.random.RandomState) -> np.ndarray:
    """Returns a random rotation, uniform over all (Haar measure).

    The subgroup algorithm of Diaconis and Shahshahani (1987) starts with a rotation of
    the plane and adds dimensions; each time, the old rotation is followed by a
    reflection that takes the new axis to a random direction.
    """
    angle = 2 * np.pi * rng.uniform()
    r = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for size in range(3, dimensions + 1):
        direction = rng.normal(size=size)
        normal = -direction / np.linalg.norm(direction)
        normal[0] += 1
        normal /= np.linalg.norm(normal)
        larger = np.eye(size)
        larger[1:, 1:] = r
        r = larger - 2 * np.outer(normal, normal @ larger)
    return -r
