"""TensorFlow: what an optimizer does in one of several replicas of a tf.distribute run.

Under `MirroredStrategy` and `MultiWorkerMirroredStrategy` every replica has a copy of
every variable and its own gradient, that of its part of the batch. Gradients are
summed over the replicas before anything else is done with them: clipping,
accumulation, averages and the update itself then see the gradient of the whole batch,
and every replica makes the same update to its own copy. After the sum no replica needs
another one, so that the update may stand in a `tf.cond`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from svag_tf import parts
from svag_tf.optional import tensorflow as tf


def check_strategy() -> None:
    """Raises an error under a strategy that Keras 3 loses updates with."""
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


@functools.cache
def mend_fit() -> None:
    """Lets Keras' `fit` do under mirrored strategies what it does on one device.

    Replaces three methods of `keras.Model` in this process. An optimizer that is made
    in the scope of such a strategy calls it.

    Under `MultiWorkerMirroredStrategy` Keras 3 fails for every optimizer: it builds the
    model from the mean of the replicas' first batches, which that strategy cannot take,
    and averages metrics, which are scalars, along an axis. Both are changed under that
    strategy; the first under `MirroredStrategy` too, where it fails for parts that do
    not come out even. With an optimizer of this package, parts of a batch count by
    their size: see `svag_tf.parts`.
    """
    steps = getattr(keras.Model, "_make_function", None)
    build = getattr(keras.Model, "_maybe_symbolic_build", None)
    compute_loss = keras.Model.compute_loss
    if steps is None or build is None:
        return

    def make_function(model: keras.Model, step: Any) -> Any:
        optimizer = getattr(model, "optimizer", None)
        ours = hasattr(getattr(optimizer, "inner_optimizer", optimizer), "exchanged")
        strategy = model.distribute_strategy
        many = _is_mirrored(strategy) and strategy.num_replicas_in_sync > 1
        if ours and many and step == model.train_step:
            step = parts.weighted_by_size(model, step)
        if not _many_workers(strategy):
            return steps(model, step)
        if model.steps_per_execution > 1:
            raise ValueError(
                "Argument `steps_per_execution` of `compile` must be 1 under "
                "MultiWorkerMirroredStrategy, which cannot exchange gradients in a "
                f"loop. Received: steps_per_execution={model.steps_per_execution}"
            )

        def step_with_an_axis(data: Any) -> Any:
            return keras.tree.map_structure(lambda v: tf.expand_dims(v, 0), step(data))

        return steps(model, step_with_an_axis)

    def symbolic_build(
        model: keras.Model, iterator: Any = None, data_batch: Any = None
    ) -> None:
        strategy = model.distribute_strategy
        here = strategy.experimental_local_results
        if iterator is not None and _is_mirrored(strategy):
            for *_, batches in iterator:  # Two or three, by the version of Keras.
                batch, iterator = next(batches), None
                data_batch = tf.nest.map_structure(lambda v: here(v)[0], batch)
                break
        build(model, iterator=iterator, data_batch=data_batch)

    @functools.wraps(compute_loss)
    def noted_loss(
        model: keras.Model,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = compute_loss(model, x, y, y_pred, sample_weight, training)
        return parts.noted(model, loss, y, y_pred, sample_weight)

    keras.Model.compute_loss = noted_loss
    keras.Model._make_function = make_function
    keras.Model._maybe_symbolic_build = symbolic_build


def _is_mirrored(strategy: Any) -> bool:
    return isinstance(
        strategy,
        tf.distribute.MirroredStrategy | tf.distribute.MultiWorkerMirroredStrategy,
    )


def mirrored_scope() -> bool:
    """Whether a mirrored strategy is in scope, of one replica or of several."""
    return tf.distribute.has_strategy() and _is_mirrored(tf.distribute.get_strategy())


def _many_workers(strategy: Any) -> bool:
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.extended._in_multi_worker_mode()
    )


def context() -> Any:
    """The replica context, if this is one replica among mirrored ones, else None."""
    return tf.distribute.get_replica_context() if mirrored_scope() else None


@contextlib.contextmanager
def eager_variables() -> Iterator[None]:
    """Creates variables at once, also while a `tf.function` is traced.

    TensorFlow traces a function that creates variables a second time, and keeps both
    graphs as long as the function.
    """

    def create(next_creator, **kwargs):
        kwargs["experimental_enable_variable_lifting"] = False
        return next_creator(**kwargs)

    if tf.distribute.has_strategy():  # It creates them in its own way.
        yield
    else:
        with tf.init_scope(), tf.variable_creator_scope(create):
            yield


def local(variable: Any) -> Any:
    """This replica's copy of a variable; outside of replicas the variable itself."""
    if isinstance(variable, keras.Variable):
        variable = variable.value
    here = context()
    if here is None or not isinstance(variable, tf.distribute.DistributedValues):
        return variable
    handle = variable.handle  # In a replica, that of its own copy.
    copies = here.strategy.experimental_local_results(variable)
    return next(copy for copy in copies if copy.handle is handle)


def check_mirrored(variables: list) -> None:
    """Raises an error if one of the variables has no copy for each replica."""
    for variable in variables:
        value = getattr(variable, "value", variable)
        if hasattr(value, "_distributed_container"):
            continue  # A copy itself.
        if not isinstance(value, tf.distribute.DistributedValues):
            raise ValueError(
                f"The variable {variable.path} is not mirrored: all replicas would "
                "write to one copy of it. Create the model and the optimizer, and "
                "call `compile`, in `with strategy.scope():`."
            )


class Payload(NamedTuple):
    """What each replica hands to the all-reduce of one step.

    Attributes:
        parameters: Numbers in all gradients.
        bytes: What they take. Every replica sends and receives about
            2 (n - 1)/n times as much in a ring of n.
    """

    parameters: int
    bytes: int


def summed(grads: list) -> tuple[list, Payload]:
    """The gradients summed over all replicas; `None` where there is none."""
    present = [g for g in grads if g is not None]
    reduced = iter(context().all_reduce(tf.distribute.ReduceOp.SUM, present))
    parameters = size = 0
    for g in present:
        values = g.values if isinstance(g, tf.IndexedSlices) else g
        numbers = values.shape.num_elements() or 0
        parameters += numbers
        size += numbers * values.dtype.size
        if isinstance(g, tf.IndexedSlices):
            size += (g.indices.shape.num_elements() or 0) * g.indices.dtype.size
    return [None if g is None else next(reduced) for g in grads], Payload(
        parameters, size
    )


def majority(values: list) -> tuple[list, Payload]:
    """The sign that most replicas vote for, element by element.

    Each replica votes with the sign of its value, 0 for 0. The result is the sign of
    the sum of the votes: 0 for a tie. A variable of which some replica has a value
    that is not finite is NaN as a whole.

    A vote + 1 is one of 0, 1, 2, and a sum of n of them at most 2n: a digit in base
    2n + 1. As many digits as fit share one int32, and the sum over the replicas adds
    each digit by itself.

    Args:
        values: List of dense float tensors of known shapes.

    Returns:
        List of tensors of their shapes and dtypes, and the `Payload`.
    """
    here = context()
    n = here.num_replicas_in_sync
    base, digits = vote_digits(n)
    sizes = [v.shape.num_elements() for v in values]
    finite = [tf.reduce_all(tf.math.is_finite(v)) for v in values]
    votes = [tf.reshape(tf.cast(tf.sign(v), tf.int32), [-1]) + 1 for v in values]
    votes.append(tf.cast(tf.stack(finite), tf.int32))  # One more digit a variable.
    votes = tf.concat(votes, 0)
    count = votes.shape.num_elements()
    words = math.ceil(count / digits)
    votes = tf.reshape(tf.pad(votes, [[0, words * digits - count]]), [words, digits])
    powers = tf.constant([base**i for i in range(digits)], tf.int32)
    packed = tf.reduce_sum(votes * powers, 1)
    packed = here.all_reduce(tf.distribute.ReduceOp.SUM, packed)
    sums = tf.reshape(packed[:, None] // powers % base, [-1])[:count]
    *sums, finite = tf.split(sums, [*sizes, len(values)])
    result = []
    for value, total, replicas in zip(values, sums, tf.unstack(finite)):
        vote = tf.cast(tf.sign(total - n), value.dtype)
        vote = tf.where(replicas == n, vote, tf.cast(math.nan, value.dtype))
        result.append(tf.reshape(vote, value.shape))
    return result, Payload(sum(sizes), 4 * words)


def vote_digits(replicas: int) -> tuple[int, int]:
    """The base in which votes of so many replicas are written; its digits an int32."""
    base = 2 * replicas + 1
    digits = 0
    while base ** (digits + 1) <= 2**31:
        digits += 1
    if not digits:
        raise ValueError(
            f"A majority vote is for at most {2**30 - 1} replicas. Received: {replicas}"
        )
    return base, digits
