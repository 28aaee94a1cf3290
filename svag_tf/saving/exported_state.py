"""The state of an exported model, and the operations that write and read it."""

from __future__ import annotations

from typing import Any

import keras

from svag_tf import internals
from svag_tf.optional import tensorflow as tf
from svag_tf.saving.model_state import description_of, shape_and_dtype, state_of

UNSEEDED = "random/shared"
DESCRIPTION = "svag_tf_description"  # Its name in a checkpoint.
_UNREADABLE = (
    "cannot be restored: it is missing, damaged or not the checkpoint of an exported "
    "model. The log has TensorFlow's own message."
)


def tf_variable(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def state_and_description(
    model: keras.Model, unseeded: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the state of training by its names in a checkpoint, and a description.

    Args:
        model: Compiled and completely built.
        unseeded: Whether the model draws random numbers without a seed of its own.
    """
    state = {name: tf_variable(v) for name, v in state_of(model).items()}
    description = description_of(model)
    if unseeded:
        state[UNSEEDED] = internals.shared_seed()
        description["variables"][UNSEEDED] = shape_and_dtype(state[UNSEEDED])
    return state, description


def write_checkpoint(path, variables, description):
    """Returns the operations that write variables to a TensorFlow checkpoint."""
    index = tf.data.Dataset.from_tensors(tf.strings.join([path, ".index"]))
    there = index.map(tf.io.read_file).ignore_errors()
    taken = there.reduce(False, lambda *_: True)
    checks = [
        tf.debugging.Assert(
            path != "", ["The path of a checkpoint must not be empty."]
        ),
        tf.debugging.Assert(
            ~taken, ["A checkpoint is not overwritten. Save to another path than", path]
        ),
    ]
    with tf.control_dependencies(checks):
        operation = tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=[DESCRIPTION, *variables],
            shape_and_slices=[""] * (1 + len(variables)),
            tensors=[description, *(v.read_value() for v in variables.values())],
        )
    return [operation]


def read_checkpoint(path, variables, description):
    """Returns the operations that assign variables their values in a checkpoint."""
    dtypes = [v.dtype for v in variables.values()]
    found = _reading(path, [DESCRIPTION], [tf.string])
    readable = tf.debugging.Assert(found != "", [path, _UNREADABLE])
    with tf.control_dependencies([readable]):
        same = tf.debugging.Assert(
            found == description,
            [path, "is the checkpoint of another model or optimizer. Expected",
             description, "Found", found],
        )  # fmt: skip
    with tf.control_dependencies([same]):
        found = _reading(path, [DESCRIPTION, *variables], [tf.string, *dtypes])
        whole = tf.debugging.Assert(found != "", [path, _UNREADABLE])
    with tf.control_dependencies([whole]):
        values = _restored(path, list(variables), dtypes)
    values = [
        tf.ensure_shape(value, variable.shape)
        for value, variable in zip(values, variables.values())
    ]
    with tf.control_dependencies(values):  # All are read, or none is assigned.
        return [
            variable.assign(value, read_value=False)
            for value, variable in zip(values, variables.values())
        ]


def _reading(path, names, dtypes):
    """Reads strings and tensors of a checkpoint; returns the first, or "" on failure.

    TensorFlow's own errors do not always name the file, so they are caught, which only
    a data set can do.
    """
    read = tf.data.Dataset.from_tensors(path).map(
        lambda path: _restored(path, names, dtypes)[0]
    )
    return read.ignore_errors(log_warning=True).reduce("", lambda _, found: found)


def _restored(path, names, dtypes):
    return tf.raw_ops.RestoreV2(
        prefix=path,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        dtypes=dtypes,
    )
