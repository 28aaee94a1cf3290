"""What a learning problem is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.problems.data import Data

Prepare = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def cross_entropy() -> keras.Loss:
    """Of logits and whole-numbered labels."""
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
        prepare_train: makes a model's input of a batch of training inputs, at random
            if it likes; None: they are taken as they are.
        prepare_test: the same for test inputs.
        streams: None, or the number of streams into which a text is cut: batch i + 1
            goes on where batch i ended, so that batches have this size, their order
            stays and an incomplete one is left out. Layers that have a method
            `reset_state` start each pass over the data afresh.
    """

    load: Callable[[str | None], Data]
    build: Callable[[], keras.Model]
    loss: Callable[[], Any] = cross_entropy
    accuracy: bool = True
    prepare_train: Prepare | None = None
    prepare_test: Prepare | None = None
    streams: int | None = None
