"""Updates variables in place: a single one, several joined, or natively."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import Any, NamedTuple

import numpy as np

from svag_tf import internals, native, replicas
from svag_tf.kernels.programs import (
    Kernel,
    compiled_in_place,
    device_type,
    is_compiled,
    refuse,
    run_for_values,
)
from svag_tf.kernels.sparse import column, updated_rows, write_rows
from svag_tf.optional import tensorflow as tf

_THREAD = threading.local()
# An optimizer with more shapes than MANY_SHAPES updates variables of at most
# _JOINED_UP_TO elements together, in arrays of up to _ROWS rows and _WIDTH columns.
MANY_SHAPES = 32
_JOINED_UP_TO = 2**16
_ROWS, _WIDTH = 2**9, 2**7


class Update(NamedTuple):
    """The arguments of an `update`."""

    kernel: Kernel
    variables: list
    gradient: Any
    scalars: Any


def unconverted(method):
    """Returns a method that AutoGraph leaves alone, with all that it calls.

    In a `tf.function` of the user AutoGraph would convert an update for each variable,
    at the cost of much of the first step. Keras' own training steps do without it, too.
    """

    @functools.cache
    def unconverted_method():  # Not at import, which must not need TensorFlow.
        return tf.autograph.experimental.do_not_convert(method)

    @functools.wraps(method)
    def call(*args, **kwargs):
        return unconverted_method()(*args, **kwargs)

    return call


def current_graph():
    """Returns the graph that is being made; the same object whenever none is."""
    return tf.compat.v1.get_default_graph()


def _in_graph(graph):
    """Returns a context whose operations are of this graph, or eager for none."""
    if graph is current_graph():
        return contextlib.nullcontext()
    return graph.as_default() if graph.building_function else tf.init_scope()


def after_gradients(gradients):
    """Returns a context whose graph operations run after these gradients."""
    graph = current_graph()
    gradients = tf.nest.flatten(gradients)  # Some are pairs.
    tensors = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    here = [t for t in tensors if tf.is_symbolic_tensor(t) and t.graph is graph]
    if not here:
        return contextlib.nullcontext()
    # A single operation: otherwise each one would wait for every gradient.
    return tf.control_dependencies([tf.group(*here)])


class _Waiting:
    """Updates to make at the end of `deferred`.

    Args:
        joins: Whether to update small variables of different shapes together.
    """

    def __init__(self, joins: bool):
        self.graph, self.joins = current_graph(), joins
        self.variables: set[int] = set()
        self.natively: list[Update] = []
        self.joined: list[Update] = []

    def make(self) -> None:
        """Makes the updates that wait."""
        natively, joined = self.natively, self.joined
        self.variables, self.natively, self.joined = set(), [], []
        for group in _grouped(natively, lambda u: ()):
            _update_natively(group)
        groups = _grouped(
            joined, lambda u: (u.kernel.key, isinstance(u.scalars, tuple))
        )
        done: list = []
        for part in (part for group in groups for part in _parts(group)):
            # One after the other, so that few copies are in memory at a time.
            device = part[0].variables[0].device
            with tf.device(device), tf.control_dependencies(done):
                done = _update_joined(part)


def _waiting():
    return getattr(_THREAD, "waiting", None)


@contextlib.contextmanager
def deferred(has_many_shapes):
    """Collects the updates that are scheduled in its body, and makes them at its end.

    Args:
        has_many_shapes: Whether to update small variables of different shapes together.
    """
    outer = _waiting()
    _THREAD.waiting = waiting = _Waiting(has_many_shapes)
    try:
        yield
    finally:
        _THREAD.waiting = outer
    waiting.make()


def _grouped(updates, key):
    """Groups updates by device, dtypes and key."""
    groups: dict[Any, list[Update]] = {}
    for each in updates:
        dtypes = (each.gradient.dtype, *(v.dtype for v in each.variables))
        where = each.variables[0].device
        groups.setdefault((where, dtypes, key(each)), []).append(each)
    return groups.values()


def schedule_update(kernel, variables, gradient, scalars):
    """Makes an update now or, within `deferred`, at its end."""
    variables = _tf_variables(variables)
    gradient = _of_known_shape(gradient, variables[0].shape)
    this = Update(kernel, variables, gradient, scalars)
    waiting = _waiting()
    if waiting is not None and id(variables[0]) in waiting.variables:
        with _in_graph(waiting.graph):  # Its second update needs the first.
            waiting.make()
    if waiting is None or waiting.graph is not current_graph():
        with deferred(has_many_shapes=False):  # Alone, or in a branch.
            schedule_update(*this)
        return
    if _is_native(this):
        waiting.natively.append(this)
    elif waiting.joins and _can_wait(this):
        waiting.joined.append(this)
    else:
        update(*this)
        return
    waiting.variables.add(id(variables[0]))


def _is_native(update):
    """Returns whether an update is made by the native build."""
    choice = update.kernel.jit_compile
    if choice not in ("auto", "native"):
        return False
    reason = _not_native(update)
    if reason and choice == "native":
        refuse(update.variables, reason)
    return not reason


def _not_native(update):
    """Returns why an update cannot be made by the native build, or `None`."""
    build = native.load()
    if build.update is None:
        return f"the native build is {build.status}"
    kernel, (theta, *slots), gradient, scalars = update
    slot_dtype = slots[0].dtype.name if slots else "float32"
    if kernel.method is None:
        return "its rule is not one of the native ones"
    if native.rule_name(kernel.method, slot_dtype) not in build.rules:
        return f"the native build is not for {kernel.method} with {slot_dtype} slots"
    if isinstance(gradient, tf.IndexedSlices) or isinstance(scalars, tuple):
        return "its gradient is sparse, or its rows count their updates"
    if {theta.dtype, gradient.dtype} != {tf.float32}:
        return "variable and gradient are not float32"
    devices = {v.device for v in (theta, *slots)}
    if len(devices) > 1 or device_type(theta) != "CPU":
        return "it is not on a CPU"
    if not theta.shape.is_fully_defined():
        return "its shape is not known"
    if native.is_turned_off():
        return "the model is being exported"
    if internals.is_in_xla():
        return "the training step is compiled by XLA"
    return None


def _update_natively(updates):
    """Makes updates of different variables by one operation."""
    kernel, (theta, *slots), *_ = updates[0]
    variables = zip(*(u.variables for u in updates))
    handles = [[v.handle for v in same] for same in variables]
    with tf.device(theta.device):
        native.load().update(
            variables=handles[0],
            slots=[handle for slot in handles[1:] for handle in slot],
            gradients=[u.gradient for u in updates],
            scalars=tf.stack([u.scalars for u in updates]),
            method=kernel.method,
            slot_dtype=slots[0].dtype if slots else tf.float32,
            decays=[u.kernel.decays for u in updates],
        )


def update(kernel, variables, gradient, scalars):
    """Assigns a variable and its slots the values that a rule computes from them.

    A sparse gradient has the effect of the dense gradient that it stands for, which is
    never made: the rows that it touches are computed separately, and all others with
    the gradient 0.

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
    rows, *new_values, _ = updated_rows(kernel, variables, None, gradient, scalars)
    _update_all(kernel, variables, tf.zeros((), gradient.dtype), scalars)
    write_rows(variables, rows, new_values)


def update_lazily(kernel, variables, gradient, counts, scalars):
    """Updates as `update` does, but only the rows that a sparse gradient touches.

    Args:
        kernel: `Kernel`.
        variables: List of the variable and its slots, all of one shape (n, ...).
        gradient: Dense tensor of that shape, or `tf.IndexedSlices`.
        counts: Integer variable of shape (n,), the updates made to each row, or `None`
            for a rule that does not depend on them.
        scalars: Tensor, passed on to the rule; with `counts`, in a tuple with the
            update counts of the k rows, shape (k, 1, ...).
    """
    variables = _tf_variables(variables)
    gradient = _of_known_shape(gradient, variables[0].shape)
    if counts is not None:
        (counts,) = _tf_variables([counts])
    if isinstance(gradient, tf.IndexedSlices):
        rows, *new_values = updated_rows(kernel, variables, counts, gradient, scalars)
        write_rows([*variables, counts], rows, new_values)
        return
    if counts is None:
        schedule_update(kernel, variables, gradient, scalars)
        return
    t = tf.convert_to_tensor(counts) + 1
    schedule_update(kernel, variables, gradient, (scalars, column(t, gradient)))
    counts.assign(t)


def _tf_variables(variables):
    return [replicas.local(v) for v in variables]


def _of_known_shape(gradient, shape):
    """Returns the gradient, its shape known and, if need be, checked at run time.

    A gradient of another shape would be broadcast, and one of unknown shape would get a
    kernel of its own.
    """
    if isinstance(gradient, tf.IndexedSlices):
        rows = tf.TensorShape([None]).concatenate(shape[1:])
        values = _of_known_shape(gradient.values, rows)
        indices = tf.convert_to_tensor(gradient.indices)
        return tf.IndexedSlices(values, indices, gradient.dense_shape)
    if tf.TensorShape(gradient.shape).is_fully_defined():
        return gradient
    return tf.ensure_shape(gradient, shape)


def _update_all(kernel, variables, gradient, scalars):
    if is_compiled(kernel, variables):
        handles = [v.handle for v in variables]
        with tf.device(variables[0].device):
            for compiled in compiled_in_place(kernel, variables, gradient, scalars):
                compiled(handles, gradient, scalars)
        return
    gradient = tf.broadcast_to(gradient, tf.shape(variables[0]))
    for variable, value in zip(variables, kernel.rule(gradient, scalars, *variables)):
        variable.assign(value)


def _can_wait(update):
    shape = update.variables[0].shape
    return (
        shape.is_fully_defined()
        and 0 < shape.num_elements() <= _JOINED_UP_TO
        and not isinstance(update.gradient, tf.IndexedSlices)
        and is_compiled(update.kernel, update.variables)
    )


def _rows(update):
    """Returns how many rows a variable takes in a joined array."""
    return -(-update.variables[0].shape.num_elements() // _WIDTH)


def _parts(updates):
    """Splits updates into lists that take at most `_ROWS` rows each."""
    part: list[Update] = []
    for each in sorted(updates, key=_rows):  # Fills parts better: fewer shapes.
        if part and sum(map(_rows, part)) + _rows(each) > _ROWS:
            yield part
            part = []
        part.append(each)
    yield part


def _update_joined(updates):
    """Updates copies of several variables in one array, and writes them back.

    Every variable begins a new row, so that each row has the scalars of one variable.
    The number of rows is a power of two, so that a few kernels serve all models.

    Returns:
        List with an operation that ends after all writes; empty outside of graphs.
    """
    kernel = updates[0].kernel
    rows = [_rows(u) for u in updates]
    rows[-1] += 2 ** (sum(rows) - 1).bit_length() - sum(rows)
    sizes = [u.variables[0].shape.num_elements() for u in updates]
    gaps = [_WIDTH * n - size for n, size in zip(rows, sizes)]
    flat, table = tf.constant([-1]), tf.constant([sum(rows), _WIDTH])
    shapes = [u.variables[0].shape for u in updates]
    filling = functools.cache(lambda gap, dtype: tf.constant(0, dtype, [gap]))

    def joined(tensors):
        pieces = []
        for tensor, shape, gap in zip(tensors, shapes, gaps):
            pieces.append(tensor if shape.rank == 1 else tf.reshape(tensor, flat))
            if gap:
                pieces.append(filling(gap, tensor.dtype))
        return tf.reshape(tf.concat(pieces, 0), table)

    gradient = joined([u.gradient for u in updates])
    values = [joined(v) for v in zip(*(u.variables for u in updates))]
    given = [u.scalars for u in updates]
    counted = isinstance(given[0], tuple)
    owners = np.repeat(np.arange(len(updates)), rows)
    scalars = tf.stack([each[0] for each in given] if counted else given, 1)
    scalars = tf.gather(scalars, owners, axis=1)[..., None]
    if counted:  # The rows of a variable are not those of the array.
        counts = [tf.broadcast_to(each[1], s) for each, s in zip(given, shapes)]
        scalars = scalars, joined(counts)
    new_values = run_for_values(kernel, gradient, scalars, values)
    lengths = [n for pair in zip(sizes, gaps) for n in pair]
    writes = []
    for i, new in enumerate(new_values):
        if new is not None:
            pieces = tf.split(tf.reshape(new, flat), lengths)[::2]
            for each, piece, shape in zip(updates, pieces, shapes):
                piece = piece if shape.rank == 1 else tf.reshape(piece, shape)
                writes.append(each.variables[i].assign(piece, read_value=False))
    return [] if tf.executing_eagerly() else [tf.group(*writes)]
