"""Checks gradients and variables."""

import keras
from keras import ops

from svag_tf.optimizers.arguments import STATE_DTYPES


def check_variable(variable):
    """Raises an error if a variable cannot be optimized."""
    path = getattr(variable, "path", variable.name)
    try:
        dtype = keras.backend.standardize_dtype(variable.dtype)
    except ValueError:  # One that Keras does not know.
        dtype = getattr(variable.dtype, "name", str(variable.dtype))
    if dtype not in STATE_DTYPES:
        remedy = "Give the optimizer the model's trainable variables alone."
        if dtype.startswith("complex"):
            remedy = (
                "Keep its real and its imaginary part as two real variables, and make "
                "the complex number of them in the model."
            )
        dtypes = ", ".join(STATE_DTYPES)
        raise ValueError(
            f"A variable must be of one of the dtypes {dtypes}. "
            f"Received: the variable {path} of dtype {dtype}. {remedy}"
        )
    shape = variable.shape
    if getattr(shape, "rank", 0) is None or any(n is None for n in shape):
        raise ValueError(
            "A variable must have a fully known shape, as its slots have the same. "
            f"Received: the variable {path} of shape {shape}"
        )


def check_gradient(gradient, variable):
    """Raises an error if a gradient's known shape is not that of its variable."""
    expected = tuple(variable.shape)
    _check_fits("a gradient", gradient, expected, variable)
    values = getattr(gradient, "values", None)
    if values is not None and not callable(values):
        rows = (None, *expected[1:])
        _check_fits("a sparse gradient with values", values, rows, variable)


def _check_fits(what, tensor, expected, variable):
    shape = getattr(tensor, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return
    shape = tuple(shape)
    fits = len(shape) == len(expected) and all(
        a == b or a is None or b is None for a, b in zip(shape, expected)
    )
    if not fits:
        raise ValueError(
            f"The gradient of variable {variable.name} must have the variable's shape, "
            f"{tuple(variable.shape)}. Received: {what} of shape {shape}"
        )


def densified(gradient, variable):
    """Returns `gradient` as a dense tensor, the rows of repeated indices summed.

    A sparse gradient (`tf.IndexedSlices`, as an embedding has) has `indices` and
    `values`; every other tensor is returned unchanged.
    """
    if not (hasattr(gradient, "indices") and hasattr(gradient, "values")):
        return gradient
    if callable(gradient.values):  # A sparse torch.Tensor: these are methods.
        return gradient.to_dense() if gradient.is_sparse else gradient
    return ops.segment_sum(
        gradient.values, gradient.indices, num_segments=variable.shape[0]
    )
