"""TensorFlow: batches that do not split evenly over the replicas, in `fit`.

Each replica's loss is the mean over its part of the batch, and Keras weights all parts
equally, so the examples of a small one count more. Here a part counts by the number of
items in its mean: with n_r of N on replica r of R, its loss is multiplied by

    n_r R / N,

which is 1 for parts of equal size. The sum of the gradients over the replicas, each
divided by R, is then that of the mean over the whole batch. n_r is the number of
examples; for a masked output the number of unmasked steps, and for a loss with
reduction "mean_with_sample_weight" the sum of the weights.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import keras

from svag_tf import internals
from svag_tf.optional import tensorflow as tf

_UNEVEN = (
    "A batch does not split evenly over the replicas, and the number of items in the "
    "mean of each part's loss is not known: examples would count unequally. Make the "
    "size of all batches a multiple of the number of replicas, also of the last one: "
    "tf.data's batch(size, drop_remainder=True), or a number of examples that is a "
    "multiple of the batch size. Or use the loss that `compile` is given, a mean over "
    "the batch."
)


_EMPTY = (
    "A batch has no example for one of the replicas. A stand-in would spoil the "
    "statistics of BatchNormalization, and can only be made for dense data. Leave the "
    "last batch out: tf.data's batch(size, drop_remainder=True), or a number of "
    "examples that is a multiple of the batch size."
)


class _Step(threading.local):
    """The training step that this thread runs or traces for one replica.

    Attributes:
        rows: number of examples of this replica; None outside of a step.
        loss: the value that Keras' `compute_loss` returned in the step.
        share: n_r R / N, a scalar; None for 1.
        scaled: whether the optimizer has multiplied the loss by `share`.
    """

    rows: Any = None
    loss: Any = None
    share: Any = None
    scaled = False


_step = _Step()


def weighted_by_size(model: keras.Model, step: Callable) -> Callable:
    """Wraps a model's training step so that parts of a batch count by their size.

    A replica without examples is given one of zeros with weight 0, as some of
    TensorFlow's operations fail, or end the process, for an empty batch.

    Args:
        model: compiled with an optimizer of this package.
        step: function of a replica's data, `model.train_step`.

    Returns:
        A function like `step`. It raises an error for an uneven batch if the loss of
        `compute_loss` is not passed to the optimizer's `scale_loss`, and for a replica
        without examples if it cannot have a stand-in.
    """

    @functools.wraps(step)
    def weighted(data: Any) -> Any:
        first = next(v for v in tf.nest.flatten(data) if v is not None)
        _step.__dict__.clear()
        _step.rows = rows = tf.shape(first)[0]
        try:
            # An exchange must take place on all replicas, whatever their parts.
            if not _can_stand_in(model, data):
                outputs = step(_or_error(data, rows))
            elif first.shape[0]:
                outputs = step(data)
            else:
                outputs = _with_stand_in(model, step, data, rows)
            if not _step.scaled:
                _assert_even(rows)
            return outputs
        finally:
            _step.__dict__.clear()

    return weighted


def _can_stand_in(model: keras.Model, data: Any) -> bool:
    normalized = any(
        isinstance(layer, keras.layers.BatchNormalization)
        for layer in internals.layers_of(model)
    )
    return not normalized and all(
        value is None or isinstance(value, tf.Tensor) for value in tf.nest.flatten(data)
    )


def _with_stand_in(model: keras.Model, step: Callable, data: Any, rows: Any) -> Any:
    """Makes a step; if there is no example, with one of zeros and without its metrics.

    Args:
        model: the model to train.
        step: function of the data.
        data: a replica's data.
        rows: number of its examples.
    """
    values = [value for value in tf.nest.flatten(data) if value is not None]

    def zeros() -> list:
        return [tf.zeros(tf.concat([[1], tf.shape(v)[1:]], 0), v.dtype) for v in values]

    chosen = iter(tf.cond(rows > 0, lambda: values, zeros))

    def replaced(value: Any) -> Any:
        if value is None:
            return None
        one = next(chosen)
        one.set_shape([None, *value.shape[1:]])
        return one

    metrics = model.metrics_variables
    before = [tf.identity(v) for v in metrics]
    outputs = step(tf.nest.map_structure(replaced, data))
    for variable, value in zip(metrics, before):
        variable.assign(tf.where(rows > 0, tf.identity(variable), value))
    return outputs


def _or_error(data: Any, rows: Any) -> Any:
    """Returns the data; raises an error on all replicas if one has no example."""
    none = _summed(tf.cast(rows == 0, tf.int32))
    with tf.control_dependencies([tf.debugging.Assert(none == 0, [_EMPTY])]):
        return tf.nest.map_structure(
            lambda v: None if v is None else tf.identity(v), data
        )


def _replicas() -> int:
    return tf.distribute.get_replica_context().num_replicas_in_sync


def _summed(value: Any) -> Any:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def record_loss(
    model: keras.Model, loss: Any, y: Any, y_pred: Any, sample_weight: Any
) -> Any:
    """Records the number of items in a loss's mean; called where Keras computes it.

    Returns:
        The loss; 0 on a replica without examples, where it may be NaN.
    """
    if _step.rows is None:
        return loss
    losses = [part for part in tf.nest.flatten(model.loss) if part is not None]
    reductions = {getattr(f, "reduction", "sum_over_batch_size") for f in losses}
    outputs = tf.nest.flatten(y_pred)
    masks = [internals.mask_of(output) for output in outputs]
    regularized = sum(v.regularizer is not None for v in model.trainable_weights)
    added = len(model.losses) > regularized
    sums = {"sum", "none", None}
    if reductions & sums:
        if reductions <= sums and not added:
            _step.loss = loss  # A sum needs no weights.
        return loss
    if not isinstance(model.loss, dict):
        _check_losses(losses, tf.nest.flatten(y), outputs)
    other = [mask for mask in masks if mask is not None]
    if "mean_with_sample_weight" in reductions and sample_weight is not None:
        other += tf.nest.flatten(sample_weight)
    if other and (len(outputs) > 1 or len(other) > 1 or added):
        raise ValueError(
            "On several replicas a mask on the output, or sample weights with the "
            'reduction "mean_with_sample_weight", can only be used with one output and '
            "one loss: a second loss would be a mean over other items. Received: "
            f"{len(outputs)} outputs, {sum(m is not None for m in masks)} with a mask"
            f"{', and losses of layers' if added else ''}"
        )
    if other:
        here = tf.reduce_sum(tf.cast(other[0], tf.float32))
        here = tf.where(_step.rows > 0, here, 0.0)
    else:
        here = tf.cast(_step.rows, tf.float32)
    share = tf.math.divide_no_nan(here * _replicas(), _summed(here))
    _step.loss = tf.where(share > 0, loss, tf.zeros_like(loss))
    _step.share = share
    return _step.loss


def weighted_loss(loss: Any) -> Any:
    """Weights a replica's loss by its part of the batch; called by `scale_loss`."""
    if loss is not _step.loss or loss is None:
        return loss
    _step.scaled = True
    return loss if _step.share is None else loss * tf.cast(_step.share, loss.dtype)


def zero_if_empty(grads: list) -> list:
    """Returns the gradients; 0 on a replica without examples, where they may be NaN."""
    share = _step.share
    if share is None or not _step.scaled:
        return grads
    # An IndexedSlices has no rows there.
    dense = [g for g in grads if tf.is_tensor(g) and not hasattr(g, "indices")]
    zeros = functools.partial(tf.nest.map_structure, tf.zeros_like, dense)
    chosen = dict(zip(map(id, dense), tf.cond(share > 0, lambda: dense, zeros)))
    return [chosen.get(id(g), g) for g in grads]


def _check_losses(losses: list, ys: list, outputs: list) -> None:
    """Raises an error for a loss that is one number for the whole batch."""
    if len(losses) == 1:
        losses = losses * len(outputs)
    for loss, y, output in zip(losses, ys, outputs):
        own = loss if isinstance(loss, FunctionType) else type(loss)
        if isinstance(loss, str) or own.__module__.startswith("keras."):
            rank = output.shape.rank - 1  # The last axis is summed over.
        else:
            specs = [tf.TensorSpec(v.shape, keras.config.floatx()) for v in (y, output)]
            function = tf.function(getattr(loss, "call", loss), autograph=False)
            rank = function.get_concrete_function(*specs).output_shapes.rank
        if rank == 0:
            raise ValueError(
                "On several replicas a loss must have a value for each example: Keras "
                "takes a single number for the batch as a sum, and updates become too "
                "large. Received: the loss "
                f"{getattr(loss, '__name__', loss)}, which is a scalar for an output "
                f"of shape {tuple(output.shape)}"
            )


def _assert_even(rows: Any) -> None:
    """Makes the step fail on all replicas unless they have the same number of rows."""
    rows = tf.cast(rows, tf.int64)
    total, squares = tf.unstack(_summed(tf.stack([rows, rows**2])))
    even = tf.equal(squares * _replicas(), total**2)
    tf.debugging.Assert(even, [_UNEVEN, "Rows here:", rows, "of", total])
