"""Shared by the tests of the experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from ml_collections import ConfigDict

from svag_tf.experiments import config as configs
from svag_tf.experiments import problems
from svag_tf.experiments.problems.data import Data

ROOT = Path(__file__).resolve().parents[2]


def config_of(name: str, **fields: object) -> ConfigDict:
    """The config of a file in configs/, by its stem, with other values of fields."""
    config = configs.load_config(name)
    config.update_from_flattened_dict(fields)
    return config


@pytest.fixture(scope="session")
def load_config() -> Callable[[str], ConfigDict]:
    """`config_of`, for tests that import nothing from here."""
    return config_of


@pytest.fixture(autouse=True)
def _global_state_restored() -> Iterator[None]:
    """`train` makes TensorFlow deterministic for the process; other tests want XLA."""
    yield
    if keras.backend.backend() == "tensorflow":
        from tensorflow.python.framework.config import disable_op_determinism

        disable_op_determinism()
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def make_config(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., ConfigDict]:
    """Makes the config of a tiny run with a dropout layer; any field overridden."""

    def load(data_dir: str | None) -> Data:
        rng = np.random.default_rng(0)
        y = np.arange(96, dtype=np.int32) % 3
        x = (rng.random((96, 4)) + np.eye(3, 4)[y]).astype(np.float32)
        return Data(x[:64], y[:64], x[64:], y[64:])

    def build() -> keras.Model:
        return keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.Dropout(0.5),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(3, dtype="float32"),
            ]
        )

    monkeypatch.setitem(problems.PROBLEMS, "tiny", problems.Problem(load, build))

    def make(**fields: object) -> ConfigDict:
        config = config_of("digits")
        config.problem, config.epochs, config.batch_size = "tiny", 3, 10
        config.update_from_flattened_dict(fields)
        return config

    return make
