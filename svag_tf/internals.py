"""Names of Keras and TensorFlow outside their public API that the package needs.

No other module uses one. Each stands here with the reason why no public name serves;
`tests/test_internals.py` names those that a new version takes away.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

tf: Any = None
PythonState: Any = object
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf  # type: ignore[no-redef]

    PythonState = tf.train.experimental.PythonState

# Children of Keras' optimizers in a checkpoint of TensorFlow, in files of others: all
# their variables by their number, and the step count.
VARIABLES, STEP_COUNT = "_variables", "_iterations"
# Methods of `keras.Model` that fail under tf.distribute: one makes a function of a
# training step, the other builds the model from the first batch.
MAKE_FUNCTION, SYMBOLIC_BUILD = "_make_function", "_maybe_symbolic_build"


class HookedOptimizer(keras.optimizers.Optimizer):
    """Keras' optimizer, with names of our own for what its `apply` calls."""

    def _apply_weight_decay(self, variables):
        """Does nothing: weight decay is folded into the update."""

    # Clipping comes after accumulation, in the middle of `apply`.
    def _clip_gradients(self, grads):
        return self.clip_gradients(grads)

    def clip_gradients(self, grads):
        """Returns clipped gradients."""
        return super()._clip_gradients(grads)

    # There is no public hook around the updates of all variables.
    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        self.update_variables(grads, trainable_variables, learning_rate)

    def update_variables(self, grads, variables, learning_rate):
        """Updates all variables, each by `update_step`."""
        super()._backend_update_step(grads, variables, learning_rate)

    # Under tf.distribute Keras adds in a merge call, which a `tf.cond` forbids.
    def _backend_increment_gradient_accumulators(self, grads, acc_grads):
        self.accumulate_gradients(grads, acc_grads)

    def accumulate_gradients(self, grads, accumulated):
        """Adds gradients to the variables that accumulate them."""
        super()._backend_increment_gradient_accumulators(grads, accumulated)

    # Keras begins all averages at the first step, also those of restored variables.
    def _update_model_variables_moving_average(self, trainable_variables):
        self.update_averages(trainable_variables)

    def update_averages(self, variables):
        """Updates the moving averages of variables (`use_ema`)."""
        super()._update_model_variables_moving_average(variables)

    # Keras does this in a merge call too, and JAX gets two names for one buffer.
    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        self.overwrite_with_averages(trainable_variables)

    def overwrite_with_averages(self, variables):
        """Gives variables the values of their moving averages."""
        super()._overwrite_model_variables_with_average_value(variables)

    # TensorFlow asks an object for its children, to save and to restore them.
    def _trackable_children(self, save_type="checkpoint", **kwargs):
        children = super()._trackable_children(save_type, **kwargs)
        return self.saved_children(children) if save_type == "checkpoint" else children

    def saved_children(self, children):
        """Returns what a checkpoint holds of the optimizer, by name."""
        return children

    def _lookup_dependency(self, name, cached_dependencies=None):
        if cached_dependencies is None:
            return super()._lookup_dependency(name)
        return self.restored_child(name, cached_dependencies)

    def restored_child(self, name, children):
        """Returns the child to restore under a name; `None` lets it wait."""
        return children.get(name)


# Optimizers. Their public `variables` are their own, not those that they train.


def trained_variables(optimizer: Any) -> list[Any]:
    """Returns the variables that an optimizer was built on."""
    return optimizer._trainable_variables


def variable_index(optimizer: Any, variable: Any) -> int:
    """Returns the place of a variable among those that an optimizer was built on."""
    return optimizer._get_variable_index(variable)


def decays(optimizer: Any, variable: Any) -> bool:
    """Returns whether a variable is not excluded by `exclude_from_weight_decay`."""
    return optimizer._use_weight_decay(variable)


def step_count(optimizer: Any) -> Any:
    """Returns the count of all steps; `iterations` does not count accumulating ones."""
    return optimizer._iterations


def rate_or_schedule(optimizer: Any) -> Any:
    """Returns the learning rate's variable, or a schedule without calling it."""
    return optimizer._learning_rate


def weight_averages(optimizer: Any) -> Sequence[Any]:
    """Returns the variables' moving averages; none without `use_ema`."""
    return getattr(optimizer, "_model_variables_moving_average", ())


def accumulated_gradients(optimizer: Any) -> Sequence[Any]:
    """Returns the accumulated gradients; none without accumulation."""
    return getattr(optimizer, "_accumulated_gradients", ())


def averages_of_adam(optimizer: Any) -> list[list[Any]]:
    """Returns the averages of gradients and of squares; Adam has no public name."""
    return [
        [v for v in optimizer.variables if v.path.endswith(f"_{name}")]
        for name in ("momentum", "velocity")
    ]


# Models, layers and variables.


def layers_of(model: keras.Model) -> list[Any]:
    """Returns a model and all its layers; `Model.layers` leaves out nested ones."""
    return model._flatten_layers()


def sublayers_of(layer: keras.Layer) -> list[Any]:
    """Returns the layers that a layer holds itself; not all of them have `layers`."""
    return layer._flatten_layers(include_self=False, recursive=False)


def set_first_epoch(model: keras.Model, epoch: int) -> None:
    """Sets the epoch at which `fit` begins, from within `fit`."""
    model._initial_epoch = epoch


def mask_of(output: Any) -> Any:
    """Returns the mask that a layer put on its output, as only Keras' losses see it."""
    return getattr(output, "_keras_mask", None)


def layout_of(variable: Any) -> Any:
    """Returns where keras.distribution puts a variable; Keras gives it to slots too."""
    return getattr(variable, "_layout", None)


def moments_of(layer: keras.layers.BatchNormalization) -> Callable:
    """Returns the method for mean and variance, to leave padding out of them."""
    return layer._moments


def set_moments(layer: keras.layers.BatchNormalization, method: Callable) -> None:
    """Replaces that method."""
    layer._moments = method


def models_on_stack() -> Iterator[keras.Model]:
    """Yields the models in Keras' functions on the call stack.

    Keras tells an optimizer neither its model nor the frozen variables. But usually a
    method of the model builds, saves or loads its optimizer. Only Keras' functions are
    searched: up to Python 3.12, reading a function's local variables keeps them alive.
    """
    frame: Any = sys._getframe(1)
    seen = set()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("keras."):
            for value in list(frame.f_locals.values()):
                if issubclass(type(value), keras.Model) and id(value) not in seen:
                    seen.add(id(value))
                    yield value
        frame = frame.f_back


# In the name of every random generator's state.
SEED = "seed_generator_state"


def shared_seed() -> Any:
    """Returns the state of the generator that `keras.random` uses without a seed.

    Tracing a function reveals it, and draws no numbers.
    """
    draw = tf.function(lambda: keras.random.uniform(()))
    (state,) = draw.get_concrete_function().graph.variables
    return state


def path_in_file(store: Any) -> str | None:
    """Returns an entry's path in a file of Keras, to look at the entries beside it."""
    return getattr(store, "_h5_entry_path", None)


# tf.distribute.


def has_many_workers(strategy: Any) -> bool:
    """Returns whether this is a `MultiWorkerMirroredStrategy` of several processes."""
    many = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return many and strategy.extended._in_multi_worker_mode()


def is_default(strategy: Any) -> bool:
    """Returns whether a model's strategy stands for none; its class is private."""
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


# The data that Keras traced functions for.


def training_steps(model: keras.Model) -> Iterator[Any]:
    """Yields what Keras' training step was traced to; only a closure holds it."""
    parts = [model.train_function]
    if inspect.isfunction(model.train_function):  # A model may have made its own.
        parts += inspect.getclosurevars(model.train_function).nonlocals.values()
    for each in parts:
        for function in (each, getattr(each, "__wrapped__", None)):
            yield from concrete_functions(function)


def concrete_functions(function: Any) -> list[Any]:
    """Returns all that a `tf.function` was traced to; nothing of other functions."""
    name = "_list_all_concrete_functions_for_serialization"
    return getattr(function, name, list)()


def element_spec(spec: Any) -> Any:
    """Returns the spec of what an iterator yields; any other spec unchanged."""
    return getattr(spec, "_element_spec", spec)


# Graphs that XLA compiles as a whole. TensorFlow has no public name for their contexts.


def xla_contexts() -> Any:
    """Returns the module of these contexts."""
    from tensorflow.python.ops import control_flow_ops

    return control_flow_ops


def is_in_xla() -> bool:
    """Returns whether a graph is being made that XLA compiles as a whole."""
    return xla_contexts().get_enclosing_xla_context() is not None


def retrace_within_xla() -> None:
    """Makes TensorFlow trace a function again that a compiled one calls.

    The earlier trace might contain an operation that XLA cannot compile.
    """
    context = xla_contexts().XLAControlFlowContext
    context.RequiresUniqueFunctionRetracing = lambda self: True


# Checkpoints of TensorFlow, whose values wait for an optimizer's variables.


def waiting_value(optimizer: Any, name: str) -> Any:
    """Takes the last value that waits to be restored under a name, or `None`."""
    positions = optimizer._deferred_dependencies.pop(name, ())
    return max(positions, key=lambda p: p.restore_uid, default=None)


def restore_value(position: Any, variable: Any) -> None:
    """Restores such a value into a variable, which may have another dtype."""
    (value,) = position.value_tensors().values()
    if value.dtype == variable.dtype:
        position.restore(variable)
    elif position.bind_object(variable):
        variable.assign(tf.cast(value, variable.dtype))
        variable._update_uid = position.restore_uid


class StringState(PythonState):
    """A string, saved in place of a variable; restoring it as a number is an error."""

    def serialize(self) -> str:
        """Returns an empty string: only its type matters."""
        return ""

    def deserialize(self, string_value: bytes) -> None:
        """Does nothing."""

    # The name of a variable's value, in place of `PythonState`'s own.
    def _serialize_to_tensors(self) -> dict[str, Any]:
        (value,) = super()._serialize_to_tensors().values()
        return {"VARIABLE_VALUE": value}

    def _restore_from_tensors(self, restored_tensors: dict[str, Any]) -> None:
        pass
