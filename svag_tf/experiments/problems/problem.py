"""Defines a learning problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras
import numpy as np

from svag_tf.experiments.problems.data import Data

Measure = Literal["test_accuracy", "test_loss", "train_loss"]
Prepare = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def cross_entropy() -> keras.Loss:
    """Returns the cross-entropy of logits and integer labels."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclass(frozen=True)
class Problem:
    """A data set, a model for it and the loss.

    Attributes:
        load: takes `data_dir` (a folder or None), returns the data.
        build: returns a new, built, uncompiled model.
        loss: returns the loss of labels and the model's output. Default: the
            cross-entropy of logits. Regularisers are the model's own.
        accuracy: whether the output has an accuracy.
        tuned_by: the final measure by which comparisons choose the learning rates.
            Default: the test accuracy, or the test loss without accuracies. Where the
            question is how fits generalize, "train_loss": the test set would choose
            rates that are too low to fit.
        prepare_train: turns a batch of training inputs into the model's input, possibly
            at random; None to use them unchanged.
        prepare_test: the same for test inputs.
        streams: None, or the number of streams into which a text is cut: batch i + 1
            continues where batch i ended, so batches have this size, their order is
            fixed and an incomplete one is left out. Layers that have a method
            `reset_state` start each pass over the data afresh.
    """

    load: Callable[[str | None], Data]
    build: Callable[[], keras.Model]
    loss: Callable[[], Any] = cross_entropy
    accuracy: bool = True
    tuned_by: Measure | None = None
    prepare_train: Prepare | None = None
    prepare_test: Prepare | None = None
    streams: int | None = None

    def __post_init__(self) -> None:
        measures = get_args(Measure)[0 if self.accuracy else 1 :]
        if self.tuned_by not in (None, *measures):
            raise ValueError(
                f"tuned_by must be one of {', '.join(measures)}, or None. Received: "
                f"tuned_by={self.tuned_by!r}, accuracy={self.accuracy}"
            )
