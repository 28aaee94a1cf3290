"""The strategy in scope, and this replica's copies of variables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from svag_tf.optional import tensorflow as tf


def check_strategy() -> None:
    """Raises an error under a strategy with which Keras 3 loses updates."""
    strategy = tf.distribute.get_strategy()
    refused = (
        tf.distribute.ParameterServerStrategy,
        tf.distribute.experimental.CentralStorageStrategy,
    )
    if isinstance(strategy, refused):
        raise ValueError(
            "The optimizers of svag_tf run under tf.distribute's MirroredStrategy, "
            "MultiWorkerMirroredStrategy and OneDeviceStrategy, or without one: Keras "
            "3 does not support others and would lose updates. Received: "
            f"{type(strategy).__name__}"
        )


def is_mirrored(strategy: Any) -> bool:
    return isinstance(
        strategy,
        tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy,
    )


def mirrored_scope(replicas: int = 1) -> bool:
    """Returns whether a mirrored strategy of at least so many replicas is in scope."""
    strategy = tf.distribute.get_strategy()
    return is_mirrored(strategy) and strategy.num_replicas_in_sync >= replicas


def context() -> Any:
    """Returns the replica context if this is a mirrored replica, else None."""
    return tf.distribute.get_replica_context() if mirrored_scope() else None


@contextlib.contextmanager
def eager_variables() -> Iterator[None]:
    """Creates variables eagerly, even while a `tf.function` is traced.

    TensorFlow traces a function that creates variables twice, and keeps both graphs as
    long as the function. It keeps 35 kB for each name of a variable for ever, so their
    names are without that of the optimizer, which has a number: "/" makes them so.
    """

    def create(next_creator, **kwargs):
        kwargs["experimental_enable_variable_lifting"] = False
        kwargs["name"] = kwargs["name"] and kwargs["name"] + "/"
        return next_creator(**kwargs)

    if tf.distribute.has_strategy():  # It creates them in its own way.
        yield
    else:
        with tf.init_scope(), tf.variable_creator_scope(create):
            yield


def local(variable: Any) -> Any:
    """Returns this replica's copy of a variable; outside of replicas, the variable."""
    if isinstance(variable, keras.Variable):
        variable = variable.value
    here = context()
    if here is None or not isinstance(variable, tf.distribute.DistributedValues):
        return variable
    handle = variable.handle  # In a replica, the handle of its own copy.
    copies = here.strategy.experimental_local_results(variable)
    return next(copy for copy in copies if copy.handle is handle)


def check_mirrored(variables: list) -> None:
    """Raises an error if one of the variables has no copy for each replica."""
    for variable in variables:
        value = getattr(variable, "value", variable)
        if not isinstance(value, tf.distribute.DistributedValues):
            raise ValueError(
                f"The variable {variable.path} is not mirrored: all replicas would "
                "write to one copy of it. Create the model and the optimizer, and "
                "call `compile`, in `with strategy.scope():`."
            )
