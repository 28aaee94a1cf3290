"""scikit-learn's digits: a problem that needs no download and little time."""

from __future__ import annotations

import keras
from keras import layers


def digits_cnn() -> keras.Model:
    """Builds a small convolutional network for 8x8 digits (85,066 parameters)."""
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


def digits_mlp() -> keras.Model:
    """Builds a network of two hidden layers for 8x8 digits (26,122 parameters)."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, dtype="float32"),
        ],
        name="digits_mlp",
    )
