"""Saves and restores the state that differs between replicas."""

from __future__ import annotations

import keras
import numpy as np

from svag_tf.distribution.processes import (
    copies_of,
    gathered,
    inner_optimizer,
    replicas_here,
)


def local_state(model: keras.Model) -> list[np.ndarray]:
    """Returns the optimizer state that differs by replica: the m~ of a majority vote.

    `model.save` and checkpoints hold only that of the first replica. All processes of a
    run must call this function at the same time.

    Args:
        model: `keras.Model`, compiled, with its optimizer built.

    Returns:
        An array for each of the optimizer's `local_variables`, of the shape (replicas,
        *shape of the variable).

    Example:

    >>> import keras
    >>> import svag_tf
    >>> from svag_tf import distribution
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSSD(aggregation="majority_vote"))
    >>> model.optimizer.build(model.trainable_variables)
    >>> [array.shape for array in distribution.local_state(model)]
    [(1, 2, 1), (1, 1)]
    """
    variables = getattr(inner_optimizer(model.optimizer), "local_variables", ())
    states = []
    for variable in variables:
        copies = np.stack([keras.ops.convert_to_numpy(c) for c in copies_of(variable)])
        states.append(gathered(model, copies))
    return states


def set_local_state(model: keras.Model, states: list[np.ndarray]) -> None:
    """Gives each replica the state that `local_state` returned.

    Args:
        model: `keras.Model`, compiled, with its optimizer built.
        states: The result of `local_state`, for the same number of replicas.

    Raises:
        ValueError: If arrays are missing or have wrong shapes.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> from svag_tf import distribution
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSSD(aggregation="majority_vote"))
    >>> model.optimizer.build(model.trainable_variables)
    >>> distribution.set_local_state(model, distribution.local_state(model))
    """
    variables = getattr(inner_optimizer(model.optimizer), "local_variables", ())
    here = replicas_here(model)
    expected = [(here.total, *v.shape) for v in variables]
    received = [tuple(np.shape(s)) for s in states]
    if received != expected:
        raise ValueError(
            f"Argument `states` must hold arrays of the shapes {expected}: (replicas, "
            f"*shape of the variable). Received: {received}"
        )
    for variable, state in zip(variables, states):
        if here.number == 1:
            variable.assign(state[here.first])
            continue
        for copy, value in zip(copies_of(variable), state[here.first :]):
            copy.assign(value)
