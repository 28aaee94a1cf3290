"""Sums gradients over the replicas, and counts their votes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from svag_tf.optional import tensorflow as tf
from svag_tf.replicas.strategy import context


class Payload(NamedTuple):
    """The size of what each replica passes to the all-reduce of one step.

    Attributes:
        parameters: Numbers in all gradients.
        bytes: Their size. In a ring of n, every replica sends and receives about
            2 (n - 1)/n times as much.
    """

    parameters: int
    bytes: int


class MeanAndVariance(NamedTuple):
    """The mean gradient of all replicas, and that mean's variance between them."""

    mean: Any
    variance: Any


def summed(grads: list) -> tuple[list, Payload]:
    """Sums gradients over all replicas; `None` stays `None`."""
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


def mean_and_variance(grads: list) -> tuple[list, Payload]:
    """Returns the mean gradients of all replicas and those means' variances.

    With n replicas and their gradients g_i, whose mean is g, the variance of g is
    estimated by

        c = sum_i (g_i - g)^2 / (n (n - 1)).

    Args:
        grads: List of this replica's dense gradients, or `None`. Keras divides its loss
            by n, so that they are g_i / n.
    """
    n = context().num_replicas_in_sync
    means, payload = summed(grads)
    squares = [
        None if g is None else tf.square(g * n - mean) / (n * (n - 1))
        for g, mean in zip(grads, means)
    ]
    variances, _ = summed(squares)
    pairs = [
        None if mean is None else MeanAndVariance(mean, variance)
        for mean, variance in zip(means, variances)
    ]
    return pairs, payload._replace(bytes=2 * payload.bytes)


def majority(values: list) -> tuple[list, Payload]:
    """Returns the sign that most replicas vote for, element by element.

    Each replica votes with the sign of its value, 0 for 0. The result is the sign of
    the sum of the votes: 0 for a tie. If any value of a variable is not finite on any
    replica, all of the variable becomes NaN.

    A vote + 1 is one of 0, 1, 2, and a sum of n of them at most 2n: a digit in base
    2n + 1. As many digits as fit share one int32, and the sum over the replicas adds
    each digit separately.

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
    votes.append(tf.cast(tf.stack(finite), tf.int32))  # One more digit per variable.
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
    """Returns the base for the votes of n replicas, and its digits in an int32."""
    base = 2 * replicas + 1
    digits = 0
    while base ** (digits + 1) <= 2**31:
        digits += 1
    if not digits:
        raise ValueError(
            f"A majority vote allows at most {2**30 - 1} replicas. Received: {replicas}"
        )
    return base, digits
