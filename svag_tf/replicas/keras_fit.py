"""Repairs Keras' `fit` under mirrored strategies, where it fails or counts wrongly."""

from __future__ import annotations

import functools
from typing import Any

import keras

from svag_tf import internals
from svag_tf.optional import tensorflow as tf
from svag_tf.replicas import uneven_batches
from svag_tf.replicas.strategy import is_mirrored


@functools.cache
def patch_keras_fit() -> None:
    """Makes Keras' `fit` do under mirrored strategies what it does on one device.

    Replaces three methods of `keras.Model` in this process. An optimizer that is made
    in the scope of such a strategy calls this function.

    Under `MultiWorkerMirroredStrategy` Keras 3 fails for every optimizer: it builds the
    model from the mean of the replicas' first batches, which that strategy cannot
    compute, and averages metrics, which are scalars, along an axis. Both are changed
    under that strategy; the first under `MirroredStrategy` too, where it fails for
    parts of unequal size. With an optimizer of this package, parts of a batch count by
    their size: see `svag_tf.replicas.uneven_batches`.
    """
    steps = getattr(keras.Model, internals.MAKE_FUNCTION, None)
    build = getattr(keras.Model, internals.SYMBOLIC_BUILD, None)
    compute_loss = keras.Model.compute_loss
    if steps is None or build is None:
        return

    def make_function(model: keras.Model, step: Any) -> Any:
        optimizer = getattr(model, "optimizer", None)
        inner = getattr(optimizer, "inner_optimizer", optimizer)  # Loss scaling.
        ours = isinstance(inner, internals.HookedOptimizer)
        strategy = model.distribute_strategy
        many = is_mirrored(strategy) and strategy.num_replicas_in_sync > 1
        if ours and many and step == model.train_step:
            step = uneven_batches.weighted_by_size(model, step)
        if not internals.has_many_workers(strategy):
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
        if iterator is not None and is_mirrored(strategy):
            for *_, batches in iterator:  # Two or three items, by the version of Keras.
                batch, iterator = next(batches), None
                data_batch = tf.nest.map_structure(lambda v: here(v)[0], batch)
                break
        build(model, iterator=iterator, data_batch=data_batch)

    @functools.wraps(compute_loss)
    def recorded_loss(
        model: keras.Model,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        loss = compute_loss(model, x, y, y_pred, sample_weight, training)
        return uneven_batches.record_loss(model, loss, y, y_pred, sample_weight)

    keras.Model.compute_loss = recorded_loss
    setattr(keras.Model, internals.MAKE_FUNCTION, make_function)
    setattr(keras.Model, internals.SYMBOLIC_BUILD, symbolic_build)
