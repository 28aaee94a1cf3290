"""Locates this process's replicas, and exchanges data between processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf: Any = None  # type: ignore[no-redef]


def inner_optimizer(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def copies_of(variable: Any) -> list:
    """Returns a variable's copies on this process's replicas, or its only copy."""
    value = variable.value
    if tf is not None:
        strategy = getattr(value, "distribute_strategy", tf.distribute.get_strategy())
        return list(strategy.experimental_local_results(value))
    if keras.backend.backend() != "jax" or not value.is_fully_replicated:
        return [value]
    if len(value.sharding.addressable_devices) == 1:
        return [np.asarray(value)]
    return [shard.data for shard in value.addressable_shards]


class LocalReplicas(NamedTuple):
    """The replicas of this process: `first`, ..., `first + number - 1` of `total`."""

    first: int
    number: int
    total: int


def replicas_here(model: keras.Model) -> LocalReplicas:
    """Returns which of a model's replicas are in this process."""
    if tf:
        numbers: list[int] = []

        def record(context: Any) -> Any:
            numbers.append(context.replica_id_in_sync_group)
            return tf.zeros(())

        strategy = model.distribute_strategy
        strategy.experimental_distribute_values_from_function(record)
        return LocalReplicas(min(numbers), len(numbers), strategy.num_replicas_in_sync)
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return LocalReplicas(0, 1, 1)
    import jax

    count = jax.local_device_count()
    total = distribution.device_mesh.devices.size
    return LocalReplicas(jax.process_index() * count, min(count, total), total)


def gathered(model: keras.Model, array: np.ndarray) -> np.ndarray:
    """Joins the processes' arrays (replicas here, ...) into one (all replicas, ...)."""
    here = replicas_here(model)
    if here.number == here.total:
        return array
    everything = np.zeros((here.total, *array.shape[1:]), array.dtype)
    everything[here.first : here.first + here.number] = array
    words = _summed(model, _words(everything.tobytes()))
    content = words.tobytes()[: everything.nbytes]
    return np.frombuffer(content, array.dtype).reshape(everything.shape)


def broadcast(model: keras.Model, content: bytes | None) -> bytes:
    """Returns the first process's content on all processes.

    Args:
        model: `keras.Model` that the processes train.
        content: Bytes; ignored on all but the first process.
    """
    here = replicas_here(model)
    if here.number == here.total:
        return content or b""
    mine = content if here.first == 0 and content is not None else b""
    length = int(_summed(model, np.array([len(mine)], np.int32))[0])
    words = np.zeros(-(-length // 4), np.int32)
    if mine:
        words = _words(mine)
    return _summed(model, words).tobytes()[:length]


def _words(content: bytes) -> np.ndarray:
    return np.frombuffer(content + b"\0" * (-len(content) % 4), np.int32)


def _summed(model: keras.Model, words: np.ndarray) -> np.ndarray:
    """Adds up int32 arrays of one shape over all processes."""
    if not tf:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(words)).sum(0, np.int32)
    strategy = model.distribute_strategy
    first = replicas_here(model).first

    def part(context: Any) -> Any:
        mine = context.replica_id_in_sync_group == first
        return tf.constant(words if mine else np.zeros_like(words))

    values = strategy.experimental_distribute_values_from_function(part)
    return strategy.reduce("SUM", values, axis=None).numpy()
