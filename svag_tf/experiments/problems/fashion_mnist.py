"""The paper's P1: a network for Fashion-MNIST."""

from __future__ import annotations

import keras
from keras import layers


def fmnist_2c2d() -> keras.Model:
    """Builds DeepOBS' network of two convolutions and two dense layers (28x28x1).

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
