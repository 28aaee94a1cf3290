"""Computes and writes the rows of a variable that a sparse gradient touches."""

from __future__ import annotations

from svag_tf.kernels.programs import is_compiled, run_for_values
from svag_tf.optional import tensorflow as tf


def updated_rows(kernel, variables, counts, gradient, scalars):
    """Returns the rows that a sparse gradient names, their new values and counts.

    The compiled program gets as many rows as the next power of two: XLA compiles it
    for few numbers of rows, and the last bits do not depend on whether a graph knows
    the number.

    Returns:
        List of tensors: the indices of the rows, in ascending order, their new values,
        and their new counts, `None` if `counts` is.
    """
    n = gradient.indices.shape[0]
    n = tf.size(gradient.indices) if n is None else n
    compiled = is_compiled(kernel, variables)
    rows, gradient = _summed_rows(gradient, _enlarged(n) - n if compiled else 0)
    values, t = [tf.gather(v, rows) for v in variables], None
    if counts is not None:
        t = tf.gather(counts, rows) + 1
        scalars = scalars, column(t, gradient)
    if not compiled:
        return [rows, *kernel.rule(gradient, scalars, *values), t]
    with tf.device(variables[0].device):
        new_values = run_for_values(kernel, gradient, scalars, values)
    return [None if x is None else x[:n] for x in (rows, *new_values, t)]


def _enlarged(n):
    """Returns the smallest power of two that is at least n; 0 for 0."""
    if isinstance(n, int):
        return 2 ** (n - 1).bit_length() if n else 0
    powers = tf.constant([2**i for i in range(31)])
    return tf.reduce_max(tf.where(powers < 2 * n, powers, 0))


def write_rows(variables, rows, values):
    """Overwrites rows of variables, each with its values; `None` changes nothing."""
    for variable, value in zip(variables, values):
        if value is not None:
            variable.scatter_update(tf.IndexedSlices(value, rows))


def _summed_rows(gradient, more):
    """Returns the rows that a sparse gradient names, each with the sum of its values.

    A repeated index keeps all its places, with the sum in each. That keeps shapes
    static, as XLA needs them, and uses a sort; XLA turns `tf.unique` into a loop with
    a step for each index.

    Args:
        gradient: `tf.IndexedSlices` with n indices.
        more: Number of arbitrary rows to append.

    Returns:
        Tensors of shapes (n + more,) and (n + more, ...): indices in ascending order,
        and sums.
    """
    order = tf.argsort(gradient.indices, stable=True)
    rows = tf.gather(gradient.indices, order)
    changes = tf.cast(rows[1:] != rows[:-1], rows.dtype)
    owners = tf.cumsum(tf.concat([tf.zeros_like(rows[:1]), changes], 0))
    values = tf.gather(gradient.values, order)
    sums = tf.math.unsorted_segment_sum(values, owners, tf.size(rows))
    rows, owners = (tf.pad(x, [[0, more]]) for x in (rows, owners))
    return rows, tf.gather(sums, owners)


def column(counts, rows):
    """Reshapes the counts of rows so that they broadcast against the rows."""
    return tf.reshape(counts, [-1, *[1] * (rows.shape.rank - 1)])
