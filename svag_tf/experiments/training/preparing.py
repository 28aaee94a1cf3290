"""Prepares data, model and batches of a run."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import build_optimizer
from svag_tf.experiments.problems import PROBLEMS, Prepare, checks
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.training.config import JIT_COMPILE, TrainingConfig
from svag_tf.experiments.training.steps import Distribution


def prepared(
    config: TrainingConfig,
    data: Data | None = None,
    distribution: Distribution | None = None,
) -> tuple[Data, keras.Model]:
    """Returns the data and the new, compiled model of a run; sets the global seeds.

    By default the data is loaded, and the model is made for one device.

    Raises:
        ExperimentError: if one of them cannot be made.
    """
    data = selected(config, data)
    steps = len(data.x_train) // config.batch_size
    return data, _build_model(config, steps, distribution or Distribution())


class Batches(keras.utils.PyDataset):
    """Batches of arrays that depend only on a seed, the epoch and their number.

    Args:
        x: inputs, shape (n, ...).
        y: labels, shape (n, ...).
        batch_size: examples in a batch.
        seed: None for the given order and a last batch that may be smaller; a number
            for shuffled batches of equal size, the remainder left out.
        prepare: turns the inputs of a batch and a random generator into the model's
            inputs; None for the inputs themselves.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        prepare: Prepare | None = None,
    ):
        super().__init__()
        self._x, self._y, self._batch_size, self._seed = x, y, batch_size, seed
        self._prepare = prepare
        self._order = np.arange(len(x))
        self._epoch = 0

    def shuffle(self, epoch: int) -> None:
        """Takes the order of epoch 0, 1, 2, ...; without a seed it never changes."""
        self._epoch = epoch
        if self._seed is not None:
            rng = np.random.default_rng([self._seed, epoch])
            self._order = rng.permutation(len(self._x))

    def __len__(self) -> int:
        whole, rest = divmod(len(self._x), self._batch_size)
        return whole + (self._seed is None and rest > 0)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.part(index, slice(None))

    def size(self, index: int) -> int:
        """Returns the number of examples in batch 0, 1, 2, ..."""
        return min(self._batch_size, len(self._x) - index * self._batch_size)

    def part(self, index: int, positions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples at some positions, as they are in the whole batch."""
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        y = self._y[chosen[positions]]
        if self._prepare is None:
            return self._x[chosen[positions]], y
        # The last number separates this from other streams of the same seed and epoch.
        key = [self._seed or 0, self._epoch, index, 2]
        x = self._prepare(self._x[chosen], np.random.default_rng(key))
        return x[positions], y


def selected(config: TrainingConfig, data: Data | None) -> Data:
    """Returns the examples that the config selects."""
    problem = PROBLEMS[config.problem]
    if data is None:
        data = checks.load(config.problem, problem, config.data_dir)
    train, test = config.train_examples, config.test_examples
    for name, limit, n in (
        ("train_examples", train, len(data.x_train)),
        ("test_examples", test, len(data.x_test)),
    ):
        if limit is not None and limit > n:
            raise ExperimentError(
                f"{name} must not exceed the {n} examples of '{config.problem}'. "
                f"Received: {name}={limit}"
            )
    data = _first(data, train, test)
    if config.batch_size > len(data.x_train):
        raise ExperimentError(
            f"batch_size must be in [1, {len(data.x_train)}], the number of training "
            f"examples. Received: batch_size={config.batch_size}"
        )
    if problem.streams is not None:
        train, test = (
            len(x) // problem.streams * problem.streams
            for x in (data.x_train, data.x_test)
        )
        if test == 0:
            raise ExperimentError(
                f"test_examples must be at least {problem.streams}, the batch size of "
                f"'{config.problem}'. Received: "
                f"test_examples={config.test_examples}"
            )
        data = _first(data, train, test)
    return data


def _first(data: Data, train: int | None, test: int | None) -> Data:
    x_train, y_train, x_test, y_test = data
    return Data(x_train[:train], y_train[:train], x_test[:test], y_test[:test])


def _build_model(
    config: TrainingConfig, steps_per_epoch: int, distribution: Distribution
) -> keras.Model:
    jit_compile = JIT_COMPILE[config.jit_compile]
    keras.utils.set_random_seed(config.seed)
    if keras.backend.backend() == "tensorflow" and jit_compile is not True:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    problem = PROBLEMS[config.problem]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.dtype_policy)
    try:
        with distribution.scope():
            model = checks.build(config.problem, problem)
            distribution.prepare(model, config.batch_size)
            optimizer = build_optimizer(
                config.optimizer,
                config.schedule,
                config.epochs,
                steps_per_epoch,
            )
            model.compile(
                optimizer=distribution.optimizer(optimizer, config.dtype_policy),
                loss=checks.loss(config.problem, problem),
                jit_compile=jit_compile,
                **distribution.metrics(["accuracy"] if problem.accuracy else []),
            )
            model.optimizer.build(model.trainable_variables)
    finally:
        keras.config.set_dtype_policy(before)
    if jit_compile is True and not model.jit_compile:
        raise ExperimentError(
            "jit_compile='true' is not possible: Keras does not compile this model in "
            "this process. Use jit_compile='auto'."
        )
    return model
