"""TensorFlow: the update of one variable, compiled by XLA and made in place.

A kernel reads a variable, its slots and its gradient and writes the variable and the
slots. XLA compiles it into loops over the memory of the variables themselves: nothing
of a variable's size is allocated, except the copies of small variables described below.
It is compiled once for each shape, dtype and rule and shared by all variables and
optimizers of the process: it takes the variables as arguments and captures none, so it
can be called from any graph.

The rule runs op by op, with the same numbers up to round-off, with `jit_compile=False`;
on a device that XLA cannot compile for; for a variable whose slots are on another
device; and for a variable whose shape is not fully known.

The rows that a sparse gradient touches are read, computed by a compiled program, and
written back. Their number changes from batch to batch, and XLA compiles for each
number, so the number is padded to the next power of two.

A model whose variables have many shapes would wait for many kernels to compile. So its
small variables are copied into one array, updated together, and written back.

Where there is a native build (`svag_tf.native`), dense gradients of float32 variables
on a CPU are left to it, with the same bits: one operation for all variables.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from svag_tf import native, replicas
from svag_tf.optional import tensorflow as tf

_COMPILED: dict[Any, list[Callable]] = {}
# Programs by a digest of their graphs.
_PROGRAMS: dict[Any, Callable] = {}
_LOCK = threading.RLock()
_WAITING = threading.local()
# An optimizer with more shapes than MANY_SHAPES updates variables of at most
# _JOINED_UP_TO elements together, in arrays of up to _ROWS rows and _WIDTH columns.
MANY_SHAPES = 32
_JOINED_UP_TO = 2**16
_ROWS, _WIDTH = 2**9, 2**7


class Store:
    """The kernels of one optimizer; comes first in their keys."""

    def __init__(self):
        self.compiled = {}


class Kernel(NamedTuple):
    """A rule, and how it is run.

    Attributes:
        steps: Functions of the gradient, scalars and the values of a variable and its
            slots; each returns their new values, element-wise and in their dtypes,
            `None` for unchanged ones, and is given those of the step before.
        key: Hashable; steps with the same key are the same. They are kept as long as
            the process, or as long as the `Store` that comes first in it.
        jit_compile: `True` for XLA, `"native"`, `False`, or `"auto"`: the native build
            where there is one that can make the update, otherwise XLA where it works.
        one_program: Whether the steps are compiled as one program. A step that needs
            what the one before stored in a narrower dtype should read it back: in one
            program XLA would hold it in the wider dtype as well.
        method: The name in `native/update.cc` of the method that the steps are.
        decays: Whether they have weight decay.
    """

    steps: tuple[Callable, ...]
    key: tuple
    jit_compile: bool | str
    one_program: bool
    method: str | None = None
    decays: bool = False

    def rule(self, gradient, scalars, *values):
        """Returns the new values of a variable and its slots."""
        for step in self.steps:
            new = step(gradient, scalars, *values)
            values = tuple(x if y is None else y for x, y in zip(values, new))
        return values


class Update(NamedTuple):
    """The arguments of an `update`."""

    kernel: Kernel
    variables: list
    gradient: Any
    scalars: Any


def after_gradients(gradients):
    """Returns a context in which graph operations run after these gradients."""
    graph = tf.compat.v1.get_default_graph()
    tensors = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    here = [t for t in tensors if tf.is_symbolic_tensor(t) and t.graph is graph]
    return tf.control_dependencies(here) if here else contextlib.nullcontext()


class _Waiting(NamedTuple):
    """Updates that are made at the end of `together`; `joined` only if asked for."""

    natively: list[Update]
    joined: list[Update] | None


@contextlib.contextmanager
def together(has_many_shapes):
    """Makes updates that are scheduled within it together, at its end.

    Args:
        has_many_shapes: Whether to join what XLA would compile for each shape.
    """
    outer = getattr(_WAITING, "updates", None)
    waiting = _Waiting([], [] if has_many_shapes else None)
    _WAITING.updates = waiting
    try:
        yield
    finally:
        _WAITING.updates = outer
    for group in _grouped(waiting.natively, lambda u: ()):
        _update_natively(group)
    joined = _grouped(
        waiting.joined or [], lambda u: (u.kernel.key, isinstance(u.scalars, tuple))
    )
    done: list = []
    for part in (part for group in joined for part in _parts(group)):
        # One after the other, so that few copies are in memory at a time.
        with tf.device(part[0].variables[0].device), tf.control_dependencies(done):
            done = _update_joined(part)


def _grouped(updates, key):
    """Returns lists of the updates of the same kind, on one device."""
    groups: dict[Any, list[Update]] = {}
    for each in updates:
        dtypes = (each.gradient.dtype, *(v.dtype for v in each.variables))
        where = each.variables[0].device
        groups.setdefault((where, dtypes, key(each)), []).append(each)
    return groups.values()


def schedule_update(kernel, variables, gradient, scalars):
    """Makes an update now or, within `together`, at its end."""
    variables = _tf_variables(variables)
    gradient = _of_known_shape(gradient, variables[0].shape)
    this = Update(kernel, variables, gradient, scalars)
    waiting = getattr(_WAITING, "updates", None)
    if _is_native(this):
        if waiting is None:
            _update_natively([this])
        else:
            waiting.natively.append(this)
    elif waiting is not None and waiting.joined is not None and _can_wait(this):
        waiting.joined.append(this)
    else:
        update(*this)


def _is_native(update):
    """Returns whether an update is made by the native build."""
    choice = update.kernel.jit_compile
    if choice not in ("auto", "native"):
        return False
    reason = _not_native(update)
    if reason and choice == "native":
        _refuse(update.variables, reason)
    return not reason


def _refuse(variables, reason):
    raise ValueError(
        f'jit_compile="native" cannot update {variables[0].name}: {reason}. Use '
        '"auto", which leaves to XLA what the native build cannot do.'
    )


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
    if len(devices) > 1 or _device_type(theta) != "CPU":
        return "it is not on a CPU"
    if not theta.shape.is_fully_defined():
        return "its shape is not known"
    if native.is_turned_off():
        return "the model is being exported"
    if native.is_in_xla():
        return "the training step is compiled by XLA"
    return None


def _update_natively(updates):
    """Makes updates by one operation, or by more if a variable has more than one."""
    now: dict[int, Update] = {}
    later = []
    for each in updates:
        if now.setdefault(id(each.variables[0]), each) is not each:
            later.append(each)
    group = list(now.values())
    kernel, (theta, *slots), *_ = group[0]
    handles = [[v.handle for v in same] for same in zip(*(u.variables for u in group))]
    with tf.device(theta.device):
        native.load().update(
            variables=handles[0],
            slots=[handle for slot in handles[1:] for handle in slot],
            gradients=[u.gradient for u in group],
            scalars=tf.stack([u.scalars for u in group]),
            method=kernel.method,
            slot_dtype=slots[0].dtype if slots else tf.float32,
            decays=[u.kernel.decays for u in group],
        )
    if later:
        _update_natively(later)


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
    rows, *new_values, _ = _updated_rows(kernel, variables, None, gradient, scalars)
    _update_all(kernel, variables, tf.zeros((), gradient.dtype), scalars)
    _write_rows(variables, rows, new_values)


def update_lazily(kernel, variables, gradient, counts, scalars):
    """Does the same, but only for the rows that a sparse gradient touches.

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
        rows, *new_values = _updated_rows(kernel, variables, counts, gradient, scalars)
        _write_rows([*variables, counts], rows, new_values)
        return
    if counts is None:
        schedule_update(kernel, variables, gradient, scalars)
        return
    t = tf.convert_to_tensor(counts) + 1
    schedule_update(kernel, variables, gradient, (scalars, _column(t, gradient)))
    counts.assign(t)


def _column(counts, rows):
    """Counts of rows, in a shape that broadcasts against the rows."""
    return tf.reshape(counts, [-1, *[1] * (rows.shape.rank - 1)])


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
    if _is_compiled(kernel, variables):
        handles = [v.handle for v in variables]
        with tf.device(variables[0].device):
            for compiled in _compiled(kernel, variables, gradient, scalars):
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
        and _is_compiled(update.kernel, update.variables)
    )


def _is_compiled(kernel, variables):
    if kernel.jit_compile == "native":
        _refuse(variables, "its gradient is sparse, or not that of all replicas")
    return kernel.jit_compile is True or (
        kernel.jit_compile == "auto" and _xla_serves(variables)
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
    new_values = _run_for_values(kernel, gradient, scalars, values)
    lengths = [n for pair in zip(sizes, gaps) for n in pair]
    writes = []
    for i, new in enumerate(new_values):
        if new is not None:
            pieces = tf.split(tf.reshape(new, flat), lengths)[::2]
            for each, piece, shape in zip(updates, pieces, shapes):
                piece = piece if shape.rank == 1 else tf.reshape(piece, shape)
                writes.append(each.variables[i].assign(piece, read_value=False))
    return [] if tf.executing_eagerly() else [tf.group(*writes)]


def _updated_rows(kernel, variables, counts, gradient, scalars):
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
    compiled = _is_compiled(kernel, variables)
    rows, gradient = _summed_rows(gradient, _enlarged(n) - n if compiled else 0)
    values, t = [tf.gather(v, rows) for v in variables], None
    if counts is not None:
        t = tf.gather(counts, rows) + 1
        scalars = scalars, _column(t, gradient)
    if not compiled:
        return [rows, *kernel.rule(gradient, scalars, *values), t]
    with tf.device(variables[0].device):
        new_values = _run_for_values(kernel, gradient, scalars, values)
    return [None if x is None else x[:n] for x in (rows, *new_values, t)]


def _enlarged(n):
    """Returns the smallest power of two that is at least n; 0 for 0."""
    if isinstance(n, int):
        return 2 ** (n - 1).bit_length() if n else 0
    powers = tf.constant([2**i for i in range(31)])
    return tf.reduce_max(tf.where(powers < 2 * n, powers, 0))


def _write_rows(variables, rows, values):
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


def _run_for_values(kernel, gradient, scalars, values):
    """Runs compiled programs; returns new values, `None` for unchanged ones."""
    changed = [False] * len(values)
    for program in _compiled_for_values(kernel, values, gradient, scalars):
        new = program(gradient, scalars, *values)
        changed = [c or x is not None for c, x in zip(changed, new)]
        values = [x if y is None else y for x, y in zip(values, new)]
    return [x if c else None for x, c in zip(values, changed)]


def _compiled(kernel, variables, gradient, scalars):
    """Returns the compiled programs that update variables in place."""
    shape, dtypes = variables[0].shape, tuple(v.dtype for v in variables)
    specs = _specs(gradient, scalars)
    return _stored(
        kernel, (shape, dtypes, *specs), lambda p: _compile(p, shape, dtypes, specs)
    )


def _compiled_for_values(kernel, values, gradient, scalars):
    """Returns the compiled programs that return new values."""
    specs = _specs(gradient, scalars, *values)
    return _stored(
        kernel, ("values", *specs), lambda p: _concrete(lambda *x: p(*x), *specs)
    )


def _specs(*tensors):
    return tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), tensors)


def _stored(kernel, key, compile_program):
    """Returns a kernel's programs, from a store or newly compiled."""
    owner, *rest = kernel.key
    compiled = owner.compiled if isinstance(owner, Store) else _COMPILED
    key = (*(rest if isinstance(owner, Store) else kernel.key), *key)
    with _LOCK:
        if key not in compiled:
            programs = [kernel.rule] if kernel.one_program else kernel.steps
            compiled[key] = [compile_program(p) for p in programs]
        return compiled[key]


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
        traced = compiled.get_concrete_function(*specs)
    if traced.captured_inputs:
        return traced
    # XLA never frees what it has compiled, so each program is compiled only once.
    graph = traced.graph.as_graph_def().SerializeToString(deterministic=True)
    digest = hashlib.sha256(graph).digest()
    return _PROGRAMS.setdefault((digest, str(specs)), traced)


def _xla_serves(variables):
    """Returns whether XLA can compile the update of a variable and its slots."""
    return (
        len({v.device for v in variables}) == 1
        and variables[0].shape.is_fully_defined()
        and _xla_compiles_for(_device_type(variables[0]))
    )


def _device_type(variable):
    return tf.DeviceSpec.from_string(variable.device).device_type or "CPU"


@functools.cache
def _xla_compiles_for(device_type):
    try:
        with tf.init_scope(), tf.device(f"/{device_type}:0"):
            return bool(tf.function(lambda x: x == x, jit_compile=True)(tf.ones(())))
    except (tf.errors.OpError, ValueError):
        return False
