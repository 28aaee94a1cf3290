"""Learning problems: where the data comes from and which model learns it.

A new problem is a function that builds its model and a row in `PROBLEMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import layers

from svag_tf.experiments import data


@dataclass(frozen=True)
class Problem:
    """A data set and a model for it.

    Attributes:
        load: takes `data_dir` (a folder or None), returns the data.
        build: returns a new, built, uncompiled model whose output is logits.
    """

    load: Callable[[str | None], data.Data]
    build: Callable[[], keras.Model]


def digits_cnn() -> keras.Model:
    """A small convolutional network for 8x8 digits (85,066 parameters)."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, dtype="float32"),
        ],
        name="digits_cnn",
    )


def fmnist_2c2d() -> keras.Model:
    """DeepOBS' network of two convolutions and two dense layers for 28x28x1 images.

    3,274,634 parameters. Kernels start truncated normal with deviation 0.05, biases
    at 0.05; no regularisation.
    """

    def start() -> dict[str, keras.Initializer]:
        return {
            "kernel_initializer": keras.initializers.TruncatedNormal(stddev=0.05),
            "bias_initializer": keras.initializers.Constant(0.05),
        }

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu", **start()),
            layers.MaxPooling2D(2, padding="same"),
            layers.Conv2D(64, 5, padding="same", activation="relu", **start()),
            layers.MaxPooling2D(2, padding="same"),
            layers.Flatten(),
            layers.Dense(1024, activation="relu", **start()),
            layers.Dense(10, dtype="float32", **start()),
        ],
        name="fmnist_2c2d",
    )


PROBLEMS = {
    "digits": Problem(data.load_digits, digits_cnn),
    "fmnist_2c2d": Problem(data.load_fashion_mnist, fmnist_2c2d),
}
