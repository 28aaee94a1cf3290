"""TensorFlow: the update of one variable, compiled by XLA and made in place.

A kernel reads a variable, its slots and its gradient and writes the variable and the
slots. XLA compiles it into loops over the memory of the variables themselves: nothing
of a variable's size is allocated. It is compiled once for each shape, dtype and rule
and shared by all variables and optimizers of the process: it takes the variables as
arguments and captures none, so that it can be called from any graph.
"""

import functools
import threading

import keras
import tensorflow as tf

_KERNELS: dict = {}
_LOCK = threading.RLock()


def update(rule, key, variables, gradient, scalars, jit_compile):
    """Gives a variable and its slots the values that a rule computes from them.

    Args:
        rule: Function of the gradient, the scalars and the variables' values; returns
            their new values, element-wise and in their dtypes.
        key: Hashable; rules with the same key are the same.
        variables: List of the variable and its slots, all of one shape.
        gradient: Dense tensor of that shape, or `tf.IndexedSlices`.
        scalars: Tensor, passed on to the rule.
        jit_compile: `True`, `False`, or `"auto"`: `True` where XLA serves.
    """
    variables = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    if isinstance(gradient, tf.IndexedSlices):
        _update_sparse(rule, key, variables, gradient, scalars, jit_compile)
    else:
        _update_dense(rule, key, variables, gradient, scalars, jit_compile)


def _update_dense(rule, key, variables, gradient, scalars, jit_compile):
    if jit_compile is True or (jit_compile == "auto" and _xla_serves(variables[0])):
        kernel = _kernel(rule, key, variables, gradient, scalars)
        kernel([v.handle for v in variables], gradient, scalars)
        return
    gradient = tf.broadcast_to(gradient, tf.shape(variables[0]))
    for variable, value in zip(variables, rule(gradient, scalars, *variables)):
        variable.assign(value)


def _update_sparse(rule, key, variables, gradient, scalars, jit_compile):
    """The update of the dense gradient, without making it.

    The rows that it touches are computed apart; all others have the gradient 0.
    """
    rows, values = _summed_rows(gradient)
    new_values = rule(values, scalars, *(tf.gather(v, rows) for v in variables))
    zero = tf.zeros((), values.dtype)
    _update_dense(rule, key, variables, zero, scalars, jit_compile)
    for variable, value in zip(variables, new_values):
        variable.scatter_update(tf.IndexedSlices(value, rows))


def _summed_rows(gradient):
    """A sparse gradient with the values of repeated indices summed.

    For n indices it has n rows as well: the last of those that differ is repeated.
    That keeps all shapes static, as XLA needs them.

    Returns:
        Tensors of shapes (n,) and (n, ...): the indices of the rows and their values.
    """
    order = tf.argsort(gradient.indices, stable=True)
    rows = tf.gather(gradient.indices, order)
    is_first = tf.concat([tf.ones_like(rows[:1]), _differ(rows)], 0)
    segment = tf.cumsum(is_first) - 1
    n = tf.size(rows)
    sums = tf.math.unsorted_segment_sum(tf.gather(gradient.values, order), segment, n)
    last = tf.minimum(tf.range(n, dtype=segment.dtype), segment[-1:])
    rows = tf.gather(tf.math.unsorted_segment_max(rows, segment, n), last)
    return rows, tf.gather(sums, last)


def _differ(rows):
    """1 where an element differs from the one before it, else 0; from the second on."""
    return tf.cast(rows[1:] != rows[:-1], rows.dtype)


def _kernel(rule, key, variables, gradient, scalars):
    """The compiled update, from the process's store or new."""
    shape, dtypes = variables[0].shape, tuple(v.dtype for v in variables)
    key = (key, tuple(shape), dtypes, gradient.dtype, gradient.shape.rank == 0,
           tuple(scalars.shape), scalars.dtype)  # fmt: skip
    with _LOCK:
        if key not in _KERNELS:
            _KERNELS[key] = _traced(rule, shape, dtypes, gradient, scalars)
        return _KERNELS[key]


def _traced(rule, shape, dtypes, gradient, scalars):
    def svag_kernel(handles, gradient, scalars):
        values = []
        for handle, dtype in zip(handles, dtypes):
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
            values.append(tf.ensure_shape(value, shape))
        gradient = tf.broadcast_to(gradient, shape)
        for handle, value in zip(handles, rule(gradient, scalars, *values)):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)

    handles = [tf.TensorSpec((), tf.resource)] * len(dtypes)
    gradient_shape = () if gradient.shape.rank == 0 else shape
    with tf.init_scope():  # Outside the graph, cond or loop that is being traced.
        return tf.function(
            svag_kernel, jit_compile=True, autograph=False
        ).get_concrete_function(
            handles,
            tf.TensorSpec(gradient_shape, gradient.dtype),
            tf.TensorSpec(scalars.shape, scalars.dtype),
        )


def _xla_serves(variable):
    """Whether XLA compiles for the device of a variable of known shape."""
    device = tf.DeviceSpec.from_string(variable.device).device_type
    return variable.shape.is_fully_defined() and _xla_compiles_for(device or "CPU")


@functools.cache
def _xla_compiles_for(device_type):
    try:
        with tf.init_scope(), tf.device(f"/{device_type}:0"):
            return bool(tf.function(lambda x: x == x, jit_compile=True)(tf.ones(())))
    except (tf.errors.OpError, ValueError):
        return False
