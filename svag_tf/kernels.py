"""TensorFlow: the update of one variable, compiled by XLA and made in place.

A kernel reads a variable, its slots and its gradient and writes the variable and the
slots. XLA compiles it into loops over the memory of the variables themselves: nothing
of a variable's size is allocated, but for the copies of small variables that are named
below. It is compiled once for each shape, dtype and rule
and shared by all variables and optimizers of the process: it takes the variables as
arguments and captures none, so that it can be called from any graph.

Where XLA does not serve, the rule runs op by op, with the same numbers up to
round-off: with `jit_compile=False`; on a device that XLA cannot compile for; for a
variable whose slots lie on another device; for a variable whose shape is not fully
known; and for the rows of a sparse gradient, whose number changes from batch to batch.

A model whose variables have many shapes would wait for as many kernels. There small
variables are padded to a power of two, and share the kernels of these lengths.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from svag_tf import replicas

_COMPILED: dict[Any, list[Callable]] = {}
_LOCK = threading.RLock()
# An optimizer with more shapes than this pads variables of at most so many elements.
MANY_SHAPES = 32
_PADDED_UP_TO = 2**16


class Kernel(NamedTuple):
    """A rule, and how it is run.

    Attributes:
        steps: Functions of the gradient, scalars and the values of a variable and its
            slots; each returns their new values, element-wise and in their dtypes,
            `None` for those that it leaves, and sees those of the step before.
        key: Hashable; steps with the same key are the same.
        jit_compile: `True`, `False`, or `"auto"`: `True` where XLA serves.
        together: Whether the steps are compiled as one program. A step that needs
            what is stored by the one before, in a narrower dtype, had better read it:
            in one program XLA would hold it in the wider dtype as well.
        many_shapes: Whether it is one of so many shapes that a kernel for each would
            take long to compile.
    """

    steps: tuple[Callable, ...]
    key: tuple
    jit_compile: bool | str
    together: bool
    many_shapes: bool = False

    def rule(self, gradient, scalars, *values):
        """The new values of a variable and its slots."""
        for step in self.steps:
            new = step(gradient, scalars, *values)
            values = tuple(x if y is None else y for x, y in zip(values, new))
        return values


def update(kernel, variables, gradient, scalars):
    """Gives a variable and its slots the values that a rule computes from them.

    A sparse gradient has the effect of the dense one that it stands for, without
    making it: the rows that it touches are computed apart, and all others as if they
    had the gradient 0.

    Args:
        kernel: `Kernel`.
        variables: List of the variable and its slots, all of one shape.
        gradient: Dense tensor of that shape, or `tf.IndexedSlices`.
        scalars: Tensor, passed on to the rule.
    """
    variables = _tf_variables(variables)
    gradient = _of_known_shape(gradient, variables[0].shape)
    if not isinstance(gradient, tf.IndexedSlices):
        _update_all(kernel, variables, gradient, scalars)
        return
    rows, values = _summed_rows(gradient)
    new_values = _of_rows(kernel, variables, rows, values, scalars)
    _update_all(kernel, variables, tf.zeros((), values.dtype), scalars)
    _write_rows(variables, rows, new_values)


def update_lazily(kernel, variables, gradient, counts, scalars):
    """The same, but of the rows that a sparse gradient touches, and of no others.

    Args:
        kernel: `Kernel`.
        variables: List of the variable and its slots, all of one shape (n, ...).
        gradient: Dense tensor of that shape, or `tf.IndexedSlices`.
        counts: Integer variable of shape (n,), the updates made to each row, or `None`
            for a rule that does not depend on them.
        scalars: Function of the count of the update that is being made to each row,
            shape (k,), or of `None`: the rule's scalars, a tuple.
    """
    variables = _tf_variables(variables)
    gradient = _of_known_shape(gradient, variables[0].shape)
    sparse = isinstance(gradient, tf.IndexedSlices)
    t = None
    if sparse:
        rows, gradient = _summed_rows(gradient)
    if counts is not None:
        (counts,) = _tf_variables([counts])
        t = (tf.gather(counts, rows) if sparse else tf.convert_to_tensor(counts)) + 1
    numbers = scalars(t)
    if t is not None:  # One for each row: shape (4, k, 1, ...).
        inner = [1] * (variables[0].shape.rank - 1)
        numbers = [tf.reshape(x + tf.zeros_like(t, x.dtype), [-1, *inner])
                   for x in numbers]  # fmt: skip
    numbers = tf.stack(numbers)
    if sparse:
        new_values = _of_rows(kernel, variables, rows, gradient, numbers)
        _write_rows(variables, rows, new_values)
    else:
        _update_all(kernel, variables, gradient, numbers)
    if t is None:
        return
    if sparse:
        _write_rows([counts], rows, [t])
    else:
        counts.assign(t)


def _tf_variables(variables):
    return [replicas.local(v) for v in variables]


def _of_known_shape(gradient, shape):
    """The gradient; where its graph does not know the shape, the run checks it.

    One of another shape would be broadcast, and one of unknown shape get a kernel of
    its own.
    """
    if isinstance(gradient, tf.IndexedSlices):
        rows = tf.TensorShape([None]).concatenate(shape[1:])
        values = _of_known_shape(gradient.values, rows)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    if tf.TensorShape(gradient.shape).is_fully_defined():
        return gradient
    return tf.ensure_shape(gradient, shape)


def _update_all(kernel, variables, gradient, scalars):
    jit_compile = kernel.jit_compile
    if jit_compile is True or (jit_compile == "auto" and _xla_serves(variables)):
        handles = [v.handle for v in variables]
        with tf.device(variables[0].device):
            if kernel.many_shapes and _is_small(variables[0].shape, scalars):
                _update_padded(kernel, variables, gradient, scalars)
                return
            for compiled in _compiled(kernel, variables, gradient, scalars):
                compiled(handles, gradient, scalars)
        return
    gradient = tf.broadcast_to(gradient, tf.shape(variables[0]))
    for variable, value in zip(variables, kernel.rule(gradient, scalars, *variables)):
        variable.assign(value)


def _is_small(shape, scalars):
    return (
        shape.is_fully_defined()
        and 0 < shape.num_elements() <= _PADDED_UP_TO
        and scalars.shape.rank == 1  # Not one for each row.
    )


def _update_padded(kernel, variables, gradient, scalars):
    """Updates copies that are padded to a power of two, and writes them back."""
    shape = variables[0].shape
    size = shape.num_elements()
    length = 2 ** (size - 1).bit_length()
    flat, start, end, whole = (
        tf.constant(x, tf.int32) for x in ([-1], [0], [size], shape.as_list())
    )
    paddings = tf.constant([[0, length - size]])

    def padded(x):
        return tf.pad(tf.reshape(x, flat), paddings)

    gradient = padded(tf.broadcast_to(gradient, shape))
    values = [padded(v) for v in variables]
    changed = [False] * len(values)
    for program in _compiled_padded(kernel, values, gradient, scalars):
        new = program(gradient, scalars, *values)
        changed = [c or x is not None for c, x in zip(changed, new)]
        values = [x if y is None else y for x, y in zip(values, new)]
    for variable, value, is_new in zip(variables, values, changed):
        if is_new:
            variable.assign(tf.reshape(tf.slice(value, start, end), whole))


def _of_rows(kernel, variables, rows, gradient, scalars):
    """The new values of some rows of a variable and its slots."""
    return kernel.rule(gradient, scalars, *(tf.gather(v, rows) for v in variables))


def _write_rows(variables, rows, values):
    for variable, value in zip(variables, values):
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
    changes = tf.cast(rows[1:] != rows[:-1], rows.dtype)
    segment = tf.cumsum(tf.concat([tf.zeros_like(rows[:1]), changes], 0))
    n = tf.size(rows)
    sums = tf.math.unsorted_segment_sum(tf.gather(gradient.values, order), segment, n)
    last = tf.minimum(tf.range(n, dtype=segment.dtype), segment[-1:])
    rows = tf.gather(tf.math.unsorted_segment_max(rows, segment, n), last)
    return rows, tf.gather(sums, last)


def _compiled(kernel, variables, gradient, scalars):
    """The compiled programs that update variables in place."""
    shape, dtypes = variables[0].shape, tuple(v.dtype for v in variables)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in (gradient, scalars)]
    return _stored(
        kernel, (shape, dtypes, *specs), lambda p: _compile(p, shape, dtypes, specs)
    )


def _compiled_padded(kernel, values, gradient, scalars):
    """The compiled programs that return new values."""
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in (gradient, scalars, *values)]
    return _stored(kernel, ("values", *specs), lambda p: _concrete(p, *specs))


def _stored(kernel, key, compile_program):
    """The programs of a kernel, from the process's store or new."""
    key = (*kernel.key, *key)
    with _LOCK:
        if key not in _COMPILED:
            programs = [kernel.rule] if kernel.together else kernel.steps
            _COMPILED[key] = [compile_program(p) for p in programs]
        return _COMPILED[key]


def _compile(rule, shape, dtypes, specs):
    def svag_kernel(handles, gradient, scalars):
        values = []
        for handle, dtype in zip(handles, dtypes):
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
            values.append(tf.ensure_shape(value, shape))
        gradient = tf.broadcast_to(gradient, shape)
        new_values = rule(gradient, scalars, *values)
        for handle, old, new in zip(handles, values, new_values):
            if new is not None and new is not old:
                tf.raw_ops.AssignVariableOp(resource=handle, value=new)

    return _concrete(
        svag_kernel, [tf.TensorSpec((), tf.resource)] * len(dtypes), *specs
    )


def _concrete(function, *specs):
    compiled = tf.function(function, jit_compile=True, autograph=False)
    with tf.init_scope():  # Outside the graph, cond or loop that is being traced.
        return compiled.get_concrete_function(*specs)


def _xla_serves(variables):
    """Whether XLA can compile the update of a variable and its slots."""
    device = variables[0].device
    return (
        all(v.device == device for v in variables)
        and variables[0].shape.is_fully_defined()
        and _xla_compiles_for(tf.DeviceSpec.from_string(device).device_type or "CPU")
    )


@functools.cache
def _xla_compiles_for(device_type):
    try:
        with tf.init_scope(), tf.device(f"/{device_type}:0"):
            return bool(tf.function(lambda x: x == x, jit_compile=True)(tf.ones(())))
    except (tf.errors.OpError, ValueError):
        return False
