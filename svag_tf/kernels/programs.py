"""Compiles rules with XLA, once for each shape and dtype."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from svag_tf.optional import tensorflow as tf

COMPILED: dict[Any, list[Callable]] = {}
# Programs by a digest of their graphs.
PROGRAMS: dict[Any, Callable] = {}
_LOCK = threading.RLock()


class Store:
    """Holds the kernels of one optimizer; it is the first part of their keys."""

    def __init__(self):
        self.compiled = {}


class Kernel(NamedTuple):
    """A rule, and how it is run.

    Attributes:
        steps: Functions of the gradient, scalars and the values of a variable and its
            slots. Each returns new values, element-wise and in their dtypes, or `None`
            for unchanged ones, and receives the values that the step before returned.
        key: Hashable; steps with the same key are the same. Their programs live as long
            as the process, or as long as the `Store` that is the key's first part.
        jit_compile: `True` for XLA, `"native"`, `False`, or `"auto"`: the native build
            if it can make the update, otherwise XLA where it works.
        one_program: Whether the steps are compiled as one program. If a step needs what
            the step before stored in a narrower dtype, it should read it back: in one
            program XLA would hold it in the wider dtype as well.
        method: The method's name in `native/update.cc`, or `None`.
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


def refuse(variables, reason):
    """Raises an error for `jit_compile="native"` where the build cannot be used."""
    raise ValueError(
        f'jit_compile="native" cannot update {variables[0].name}: {reason}. Use '
        '"auto", which leaves to XLA what the native build cannot do.'
    )


def is_compiled(kernel, variables):
    """Returns whether XLA compiles a kernel for these variables."""
    if kernel.jit_compile == "native":
        refuse(variables, "its gradient is sparse, or each replica has its own")
    return kernel.jit_compile is True or (
        kernel.jit_compile == "auto" and _xla_serves(variables)
    )


def compiled_in_place(kernel, variables, gradient, scalars):
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


def run_for_values(kernel, gradient, scalars, values):
    """Runs compiled programs; returns new values, `None` for unchanged ones."""
    changed = [False] * len(values)
    for program in _compiled_for_values(kernel, values, gradient, scalars):
        new = program(gradient, scalars, *values)
        changed = [c or x is not None for c, x in zip(changed, new)]
        values = [x if y is None else y for x, y in zip(values, new)]
    return [x if c else None for x, c in zip(values, changed)]


def _specs(*tensors):
    return tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), tensors)


def _stored(kernel, key, compile_program):
    """Returns a kernel's programs, from a store or newly compiled."""
    owner, *rest = kernel.key
    compiled = owner.compiled if isinstance(owner, Store) else COMPILED
    key = (*(rest if isinstance(owner, Store) else kernel.key), *key)
    with _LOCK:
        if key not in compiled:
            programs = [kernel.rule] if kernel.one_program else kernel.steps
            made = [compile_program(p) for p in programs]
            if compiled is COMPILED and any(p.captured_inputs for p in made):
                raise ValueError(
                    f"The rule of {owner.__name__} reads a variable or a tensor of one "
                    "optimizer, and its kernel serves them all. A rule must compute "
                    "with its arguments and with plain attributes."
                )
            compiled[key] = made
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
    return PROGRAMS.setdefault((digest, str(specs)), traced)


def _xla_serves(variables):
    """Returns whether XLA can compile the update of a variable and its slots."""
    return (
        len({v.device for v in variables}) == 1
        and variables[0].shape.is_fully_defined()
        and xla_compiles_for(device_type(variables[0]))
    )


def device_type(variable):
    """Returns "CPU", "GPU" or another type of device."""
    return tf.DeviceSpec.from_string(variable.device).device_type or "CPU"


@functools.cache
def xla_compiles_for(device_type):
    try:
        with tf.init_scope(), tf.device(f"/{device_type}:0"):
            return bool(tf.function(lambda x: x == x, jit_compile=True)(tf.ones(())))
    except (tf.errors.OpError, ValueError):
        return False
