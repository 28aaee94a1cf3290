"""Checks that all replicas are bitwise equal."""

from __future__ import annotations

import hashlib
from typing import Any

import keras
import numpy as np

from svag_tf.distribution.processes import (
    copies_of,
    gathered,
    inner_optimizer,
    replicas_here,
)


class ReplicasDifferError(RuntimeError):
    """Raised if variables differ that must be the same on all replicas.

    Attributes:
        variables: Paths of these variables.
    """

    def __init__(self, variables: list[str]):
        self.variables = variables
        shown = ", ".join(variables[:5]) + (", ..." if len(variables) > 5 else "")
        super().__init__(
            f"{len(variables)} variables differ between the replicas: {shown}. Go back "
            "to the last checkpoint. Possible causes: BatchNormalization without "
            "synchronized=True, a variable assigned to on one replica only, a faulty "
            "device."
        )


def check_replicas(model: keras.Model) -> int:
    """Checks that all replicas hold the same values, bit for bit.

    Compares the model's and its optimizer's variables, except metrics and the
    optimizer's `local_variables`. All processes of a run must call it at the same time;
    each sends 8 bytes per variable.

    Args:
        model: `keras.Model`, made under a tf.distribute strategy or a
            `keras.distribution`. Without one there is nothing to compare.

    Returns:
        The number of replicas compared.

    Raises:
        ReplicasDifferError: on every process; names the variables.

    Example:

    >>> import keras
    >>> from svag_tf import distribution
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> distribution.check_replicas(model)
    1
    """
    optimizer = getattr(model, "optimizer", None)
    inner = inner_optimizer(optimizer)
    left_out = [*model.metrics_variables, *getattr(inner, "local_variables", ())]
    ids = {id(v) for v in left_out}
    variables = {id(v): v for v in model.variables if id(v) not in ids}
    for variable in optimizer.variables if optimizer else ():
        if id(variable) not in ids:
            variables[id(variable)] = variable
    checked = list(variables.values())
    if not checked:
        return 1
    digests = _digests(model, checked)  # (replicas, variables, 2)
    differs = (digests != digests[:1]).any(axis=(0, 2))
    if differs.any():
        paths = (v.path for v, wrong in zip(checked, differs) if wrong)
        raise ReplicasDifferError(list(paths))
    return len(digests)


class ReplicaCheck(keras.callbacks.Callback):
    """Ends training with an error as soon as replicas differ.

    Args:
        every: Integer >= 1, the number of batches between two checks. Defaults to
            `None`: a check after every epoch.

    Raises:
        ReplicasDifferError: in `fit`, on every process; see `check_replicas`.

    Example: `model.fit(x, y, callbacks=[svag_tf.distribution.ReplicaCheck()])`.
    """

    def __init__(self, every: int | None = None):
        super().__init__()
        if every is not None and (
            isinstance(every, bool) or not isinstance(every, int) or every < 1
        ):
            raise ValueError(
                "Argument `every` must be an integer >= 1 or None. Received: "
                f"every={every!r}"
            )
        self.every = every
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches += 1
        if self.every is not None and self._batches % self.every == 0:
            check_replicas(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.every is None:
            check_replicas(self.model)


def _digests(model: keras.Model, variables: list) -> np.ndarray:
    """Returns digests of variables on all replicas: int32, (replicas, variables, 2)."""
    here = replicas_here(model)
    digests = np.zeros((here.number, len(variables), 2), np.int32)
    for i, variable in enumerate(variables if here.total > 1 else ()):
        copies = [keras.ops.convert_to_numpy(c) for c in copies_of(variable)]
        hashed = [_digest(c) for c in copies]
        digests[:, i] = hashed if len(hashed) == here.number else hashed[0]
    return gathered(model, digests)


def _digest(array: np.ndarray) -> np.ndarray:
    content = np.ascontiguousarray(array).tobytes()
    return np.frombuffer(hashlib.sha256(content).digest()[:8], np.int32)
