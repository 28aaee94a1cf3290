"""Updates variables: computes the scalars that the rules need, and runs kernels."""

import collections
import contextlib
import functools
import threading
from typing import Any, NamedTuple

import keras
from keras import ops

from svag_tf import internals, rules
from svag_tf.optimizers import arguments
from svag_tf.optimizers.replicated import local

kernels: Any = None
if keras.backend.backend() == "tensorflow":
    from svag_tf import kernels


class Scalars(NamedTuple):
    """The numbers that a variable's update needs, in float32 or wider.

    Attributes:
        learning_rate: Scalar.
        decay: Learning rate times weight decay.
        beta: Scalar; an input, so that one kernel serves all values.
        one_minus_beta: Scalar, likewise.
        correction: 1 / (1 - beta^t) for the count t of this update; 1 for methods that
            do not count.
        factor: The method's `noise_factor(t)`; 0 for methods that do not count.
    """

    learning_rate: Any
    decay: Any
    beta: Any
    one_minus_beta: Any
    correction: Any
    factor: Any


class ModelUpdate(NamedTuple):
    """The update of a whole model that a thread is making.

    Attributes:
        optimizer: The optimizer that makes it.
        graph: The graph in which it is made; `None` on other backends than TensorFlow.
        learning_rate: Scalar tensor.
        scalars: For each dtype, the list of the variables' `Scalars` as tensors.
        made: Counts the updates that each variable was given, by its index.
        counted: Indices of variables whose counts have changed since `scalars`.
    """

    optimizer: Any
    graph: Any
    learning_rate: Any
    scalars: dict[str, list[Any]]
    made: collections.Counter[int]
    counted: set[int]


class _Thread(threading.local):
    current: ModelUpdate | None = None


_THREAD = _Thread()


@contextlib.contextmanager
def model_update(optimizer, learning_rate):
    """Computes the scalars of all variables at once, for the updates made within."""
    learning_rate = ops.convert_to_tensor(learning_rate)
    variables = internals.trained_variables(optimizer)
    dtypes = {compute_dtype(optimizer, v) for v in variables}
    scalars = {d: _scalars_of_variables(optimizer, learning_rate, d) for d in dtypes}
    outer = _THREAD.current
    _THREAD.current = ModelUpdate(
        optimizer,
        _current_graph(),
        learning_rate,
        scalars,
        made=collections.Counter(),
        counted=set(),
    )
    try:
        yield _THREAD.current
    finally:
        _THREAD.current = outer


def note_update(optimizer, index):
    """Notes an update of a variable; returns whether it is counted with the model's.

    It is not where no model is being updated, nor within a branch or a loop in
    `update_step`: that is a graph of its own, and it is not known whether it will run.
    """
    current = _THREAD.current
    if current is None or current.optimizer is not optimizer:
        return False
    if current.graph is _current_graph():
        current.made[index] += 1
        return True
    current.counted.add(index)
    return False


def _current_graph():
    return kernels and kernels.current_graph()


def _scalars_of(optimizer, index, learning_rate, dtype):
    """Returns one variable's scalars, if possible those of `model_update`."""
    current = _THREAD.current
    if current is None or current.optimizer is not optimizer:
        return _scalars_of_variables(optimizer, learning_rate, dtype)[index]
    made = current.made[index]
    unchanged = not made and index not in current.counted
    if current.learning_rate is learning_rate and unchanged:
        return current.scalars[dtype][index]
    return _scalars_of_variables(optimizer, learning_rate, dtype, made)[index]


def _scalars_of_variables(optimizer, learning_rate, dtype, made=0):
    """Returns a tensor of `Scalars` for each variable.

    `made` is the number of updates that are not in `update_counts` yet.
    """
    t = ops.cast(local(optimizer.update_counts), dtype) + (made + 1.0)
    learning_rate = ops.cast(learning_rate, dtype)
    betas = [
        ops.convert_to_tensor(x, dtype=dtype)
        for x in (optimizer.beta, 1.0 - optimizer.beta)
    ]
    of_count = ops.ones((), dtype), ops.zeros((), dtype)
    if optimizer.counts_updates:
        of_count = _scalars_of_count(optimizer, t, dtype)
    decay = learning_rate * (optimizer.weight_decay or 0.0)
    shape = (len(internals.trained_variables(optimizer)),)
    columns = [learning_rate, decay, *betas, *of_count]  # As in `Scalars`.
    return ops.unstack(ops.stack([ops.broadcast_to(c, shape) for c in columns], 1))


def _scalars_of_count(optimizer, t, dtype):
    """Returns 1 / (1 - beta^t) and `noise_factor(t)`, of t's shape."""
    t = ops.cast(ops.maximum(t, 1), dtype)
    return rules.bias_correction(t, optimizer.beta), optimizer.noise_factor(t)


def unpacked(optimizer, scalars, dtype):
    """Returns the scalars that a kernel gives a rule, as `Scalars`.

    Args:
        optimizer: The optimizer that the rule belongs to.
        scalars: A tensor of them; or a pair of it and the counts of rows, if each row
            has its own correction and factor.
        dtype: The dtype of the computation.
    """
    if not isinstance(scalars, tuple):
        return Scalars(*ops.unstack(scalars))
    scalars, counts = scalars
    correction, factor = _scalars_of_count(optimizer, counts, dtype)
    return unpacked(optimizer, scalars, dtype)._replace(
        correction=correction, factor=factor
    )


def compute_dtype(optimizer, variable):
    """Returns the widest of float32, the variable's and its slots' dtype."""
    dtypes = [keras.backend.standardize_dtype(variable.dtype)]
    if optimizer.slots:
        dtypes.append(slot_dtype(optimizer, variable))
    # Keras' own result_type turns float64 into float32 on some backends.
    return "float64" if "float64" in dtypes else "float32"


def slot_dtype(optimizer, variable):
    """Returns the slots' dtype: the variable's, but half precision only on request."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return optimizer.state_dtype or (
        "float32" if dtype in ("float16", "bfloat16") else dtype
    )


def decays(optimizer, variable):
    """Returns whether weight decay applies to a variable."""
    return bool(optimizer.weight_decay) and internals.decays(optimizer, variable)


def update_variable(optimizer, gradient, variable, learning_rate):
    """Updates a variable and its slots by the optimizer's rules.

    Args:
        optimizer: A built `MomentOptimizer`.
        gradient: Dense tensor of the variable's shape, or `tf.IndexedSlices`.
        variable: One of its variables.
        learning_rate: Scalar tensor.
    """
    index = internals.variable_index(optimizer, variable)
    dtype = compute_dtype(optimizer, variable)
    scalars = _scalars_of(optimizer, index, learning_rate, dtype)
    decay = decays(optimizer, variable)
    stored = [variable, *(getattr(optimizer, name)[index] for name in optimizer.slots)]
    steps = [functools.partial(theta_rule, optimizer, dtype=dtype, decays=decay)]
    if optimizer.slots:
        steps.insert(0, functools.partial(slots_rule, optimizer, dtype=dtype))
    if kernels is None:
        for rule in steps:
            for part, value in zip(stored, rule(gradient, scalars, *stored)):
                if value is not None:
                    optimizer.assign(part, value)
        return
    kernel = kernels.Kernel(
        steps=tuple(steps),
        key=(*_rule_key(optimizer), dtype, decay),
        jit_compile=optimizer.jit_compile,
        one_program=not optimizer.slots or slot_dtype(optimizer, variable) == dtype,
        method=native_method(optimizer),
        decays=decay,
    )
    # Without slots and weight decay, rows without a gradient do not change.
    lazy = optimizer.sparse_updates == "lazy" or not (optimizer.slots or decay)
    if lazy and len(variable.shape) >= 2:
        counts = optimizer.row_update_counts[index] if optimizer.counts_rows else None
        kernels.update_lazily(kernel, stored, gradient, counts, scalars)
    else:
        kernels.schedule_update(kernel, stored, gradient, scalars)


def slots_rule(optimizer, gradient, scalars, theta, *slots, dtype):
    """Returns the slots' new values, as they are stored."""
    scalars = unpacked(optimizer, scalars, dtype)
    averages = optimizer.new_averages(
        ops.cast(gradient, dtype),
        [ops.cast(slot, dtype) for slot in slots],
        (scalars.beta, scalars.one_minus_beta),
    )
    return [None, *(saturating_cast(x, s.dtype) for x, s in zip(averages, slots))]


def theta_rule(optimizer, gradient, scalars, theta, *slots, dtype, decays):
    """Returns the variable's new value, from the slots as they are stored."""
    scalars = unpacked(optimizer, scalars, dtype)
    new = optimizer.new_theta(
        ops.cast(theta, dtype),
        ops.cast(gradient, dtype),
        [ops.cast(slot, dtype) for slot in slots],
        scalars.learning_rate,
        scalars.decay if decays else None,
        scalars.correction,
        scalars.factor,
    )
    return [ops.cast(new, theta.dtype), *[None] * len(slots)]


def saturating_cast(x, dtype):
    """Casts x to dtype; finite values stay finite, at most its largest number."""
    dtype = keras.backend.standardize_dtype(dtype)
    if keras.backend.standardize_dtype(x.dtype) == dtype:
        return x
    limit = rules.largest(dtype)
    return ops.cast(ops.where(ops.isfinite(x), ops.clip(x, -limit, limit), x), dtype)


def run_rule(optimizer, rule, name, variables, gradient, learning_rate, index):
    """Runs one rule with its own kernel.

    Args:
        optimizer: A built `MomentOptimizer`.
        rule: Function of a gradient, scalars and the variables, for their new values.
        name: Distinguishes this rule from the optimizer's others.
        variables: List of the variables that it reads and writes.
        gradient: Tensor.
        learning_rate: Scalar tensor.
        index: Index of the variable that is being updated.
    """
    variable = internals.trained_variables(optimizer)[index]
    dtype = compute_dtype(optimizer, variable)
    rule = functools.partial(rule, dtype=dtype)
    key = (*_rule_key(optimizer), dtype, name, decays(optimizer, variable))
    kernel = kernels.Kernel((rule,), key, optimizer.jit_compile, True)
    scalars = _scalars_of(optimizer, index, learning_rate, dtype)
    kernels.update(kernel, variables, gradient, scalars)


def native_method(optimizer):
    """Returns the name of an optimizer's method in `native/update.cc`, or `None`.

    The native methods average as for beta >= 0.5, and estimate the noise from v~.
    """
    cls = _rule_class(optimizer)
    if cls is None or optimizer.beta < 0.5 or optimizer.second_slot != "v_tilde":
        return None
    names = (cls.__name__.lower(), getattr(optimizer, "adaptation", None))
    return "_".join(name for name in names if name)


def package_class(optimizer):
    """Returns the class of this package that an optimizer is of, or derived from."""
    classes = type(optimizer).__mro__
    return next(c for c in classes if c.__module__.startswith("svag_tf."))


def _rule_class(optimizer):
    """Returns the class of this package that has the rule; `None` if overridden."""
    cls, ours = type(optimizer), package_class(optimizer)
    for name in _rule_methods(ours):
        if name in vars(optimizer) or getattr(cls, name) is not getattr(ours, name):
            return None
    return ours


def _rule_key(optimizer):
    """Returns a hashable tuple that identifies an optimizer's rule.

    It has the values of all constructor arguments except the learning rate, which is an
    input. XLA compiles once for all values that make the same program. An optimizer has
    kernels of its own if one of its values is not plain, or if its rule is that of a
    user's subclass, which may depend on anything.
    """
    ours = _rule_class(optimizer)
    if ours is not None:
        values = [getattr(optimizer, name) for name in _rule_arguments(ours)]
        if all(map(_is_plain, values)):
            return (ours, optimizer.slots, *map(repr, values))
    return (optimizer._own_kernels,)


def _is_plain(value):
    """Returns whether values with the same `repr` are the same."""
    if isinstance(value, dict):
        return _is_plain([*value, *value.values()])
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return type(value) in (bool, int, float, str, type(None))


@functools.cache
def _rule_methods(cls):
    """Returns the names of a class's methods that make the update of one variable."""
    names = (
        *("new_averages", "new_theta", "direction"),
        *("noise_factor", "signal_and_noise", "gamma"),
    )
    return [n for n in dir(cls) if n in names or n.endswith("_rule")]


@functools.cache
def _rule_arguments(cls):
    return [n for n in arguments.names(cls) if n not in ("learning_rate", "name")]
