"""Checks a problem's data and model before anything is trained on them."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.errors import ExperimentError, place_and_reason
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.problems.problem import Problem

_BUILT: Any = weakref.WeakSet()
# Losses of Keras whose labels do not have the shape of the outputs.
_OTHER_SHAPES = ("CTC", "ctc", "Circle", "circle")
_BINARY = ("BinaryCrossentropy", "binary_crossentropy")
EXAMPLES = 32  # in the batch that is tried, if the model takes any number


def load(name: str, problem: Problem, data_dir: str | None) -> Data:
    """Loads the data of a problem.

    Raises:
        ExperimentError: if the problem's function fails or returns something invalid.
    """
    with explained(f"load() of the problem '{name}' failed"):
        loaded = problem.load(data_dir)
    if not isinstance(loaded, tuple | list) or len(loaded) != len(Data._fields):
        found = type(loaded).__name__
        if isinstance(loaded, tuple | list):
            found += f" of {len(loaded)}"
        raise ExperimentError(
            f"load() of the problem '{name}' must return Data(x_train, y_train, "
            f"x_test, y_test), four arrays. Received: {found}"
        )
    with explained(f"load() of the problem '{name}' returned no arrays"):
        data = Data(*map(np.asarray, loaded))
    for field, array in data._asdict().items():
        what = f"{field} of the problem '{name}'"
        _check_array(what, array)
        if field.startswith("y") and not np.can_cast(array.dtype, "float64"):
            raise ExperimentError(
                f"{what} must hold real numbers. Received: {array.dtype}, such as "
                f"{array.flat[0]!r}"
            )
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if len(x) != len(y):
            raise ExperimentError(
                f"x_{part} and y_{part} of the problem '{name}' must have the same "
                f"length. Received: {len(x)} inputs and {len(y)} labels"
            )
    return data


def build(name: str, problem: Problem) -> keras.Model:
    """Builds a new model of a problem.

    Raises:
        ExperimentError: if the problem's function fails or returns something invalid.
    """
    with explained(f"build() of the problem '{name}' failed"):
        model = problem.build()
    if not isinstance(model, keras.Model):
        raise ExperimentError(
            f"build() of the problem '{name}' must return a keras.Model. Received: "
            f"{type(model).__name__}"
        )
    if not model.built:
        raise ExperimentError(
            f"build() of the problem '{name}' must return a model that has its "
            "weights. Start it with a keras.Input, or call it on an example"
        )
    if model in _BUILT:
        raise ExperimentError(
            f"build() of the problem '{name}' must return a new model at each call: a "
            "run would continue from what the previous one has learned"
        )
    _BUILT.add(model)
    if not model.trainable_variables:
        raise ExperimentError(
            f"build() of the problem '{name}' must return a model with weights to "
            "train. Received: one without"
        )
    return model


def loss(name: str, problem: Problem) -> Any:
    """Returns a new loss of a problem, a `keras.Loss` or a function; or raises."""
    with explained(
        f"The loss of the problem '{name}' must be a function without arguments that "
        "returns a loss, such as Problem(load, build, loss=lambda: "
        "keras.losses.MeanSquaredError()). Received: a function that failed"
    ):
        found = keras.losses.get(problem.loss())
        if found is None:
            raise ValueError("the loss is None")
    return found


def try_batches(name: str, problem: Problem, model: keras.Model, data: Data) -> float:
    """Puts a batch of each part through a compiled model, which stays unchanged.

    Returns:
        The loss of the first training examples.

    Raises:
        ExperimentError: if data, model and loss do not fit together.
    """
    left = [v for v in model.variables if not v.trainable]
    kept = [keras.ops.convert_to_numpy(v).copy() for v in left]
    try:
        losses = [
            _tried(name, problem, model, data, part) for part in ("train", "test")
        ]
    finally:
        for variable, value in zip(left, kept, strict=True):
            variable.assign(value)
    return losses[0]


def _tried(
    name: str, problem: Problem, model: keras.Model, data: Data, part: str
) -> float:
    x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
    of = f"of the problem '{name}'"
    fixed = _batch_size(model)
    examples = fixed or EXAMPLES
    inputs, labels = x[:examples], y[:examples]
    prepare = problem.prepare_train if part == "train" else problem.prepare_test
    if prepare is not None:
        with explained(f"prepare_{part} {of} failed"):
            inputs = prepare(inputs, np.random.default_rng(0))
    if fixed and len(inputs) < fixed:
        return math.nan  # No batch to try.
    shape = f"inputs of shape {inputs.shape} and dtype {inputs.dtype} (x_{part})"
    with explained(f"The model {of} does not take {shape}"):
        for training in (True, False):
            output = model(keras.ops.convert_to_tensor(inputs), training=training)
    outputs = keras.tree.flatten(output)
    if len(outputs) != 1:
        raise ExperimentError(
            f"The model {of} must have one output. Received: {len(outputs)}"
        )
    _check_labels(problem, of, part, y, tuple(outputs[0].shape))
    shape = f"labels of shape {labels.shape} and outputs of shape {outputs[0].shape}"
    with explained(f"The loss {of} does not take {shape}"):
        loss = model.compute_loss(x=inputs, y=labels, y_pred=output)
        loss = float(keras.ops.convert_to_numpy(loss))
    if not math.isfinite(loss):
        raise ExperimentError(
            f"The loss {of} must be finite before training. Received: {loss} for the "
            f"first {len(labels)} examples of x_{part}"
        )
    return loss


def _batch_size(model: keras.Model) -> int | None:
    """Returns the batch size that the model fixes; None if it takes any."""
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or ())
    return inputs[0].shape[0] if inputs else None


def _check_array(what: str, array: np.ndarray) -> None:
    if array.dtype == object or array.ndim == 0:
        raise ExperimentError(
            f"{what} must be an array with the examples along its first axis, all of "
            f"one shape. Received: shape {array.shape}, dtype {array.dtype}"
        )
    if not len(array):
        raise ExperimentError(f"{what} must not be empty. Received: {array.shape}")
    if array.dtype.kind not in "fc":
        return
    fine = np.isfinite(array)
    if not fine.all():
        where = tuple(int(i) for i in np.argwhere(~fine)[0])
        raise ExperimentError(
            f"{what} must be finite. Received: {array[where]} at {list(where)}, and "
            f"{np.count_nonzero(~fine):,} such numbers in all"
        )


def _check_labels(
    problem: Problem, of: str, part: str, y: np.ndarray, output: tuple[int, ...]
) -> None:
    """Checks what the loss does not: it may broadcast, or read beyond the classes."""
    loss = keras.losses.get(problem.loss())
    whole = y.dtype.kind in "iub" or bool((y == np.round(y)).all())
    sparse = isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or (
        loss is keras.losses.sparse_categorical_crossentropy
    )
    shape = y.shape[1:]
    if sparse:
        if shape not in (output[1:-1], (*output[1:-1], 1)):
            raise ExperimentError(
                f"y_{part} {of} must hold the number of a class for each output, in "
                f"the shape {_shown(output[1:-1])}. Received: {y.shape}. Labels that "
                "are vectors need another loss, such as Problem(load, build, loss="
                "lambda: keras.losses.CategoricalCrossentropy(from_logits=True))"
            )
        ignored = getattr(loss, "ignore_class", None)
        counted = y if ignored is None else y[y != ignored]
        low, high = (counted.min(), counted.max()) if counted.size else (0, 0)
        if not whole or low < 0 or high >= output[-1]:
            raise ExperimentError(
                f"y_{part} {of} must hold whole numbers in [0, {output[-1] - 1}]: the "
                f"model has {output[-1]} outputs. Received: numbers in [{low}, {high}]"
                + ("" if whole else ", not all whole")
            )
        return
    kind = getattr(loss, "__name__", type(loss).__name__)
    if loss.__module__.partition(".")[0] == "keras" and kind not in _OTHER_SHAPES:
        # Keras adds and drops a last axis of length 1, and broadcasts others.
        a, b = (s[:-1] if s[-1:] == (1,) else s for s in (shape, output[1:]))
        if a != b:
            raise ExperimentError(
                f"y_{part} {of} must have the shape of the outputs, "
                f"{_shown(output[1:])}. Received: {y.shape}"
            )
    if kind in _BINARY and not 0 <= y.min() <= y.max() <= 1:
        raise ExperimentError(
            f"y_{part} {of} must hold numbers in [0, 1] for this loss, {kind}. "
            f"Received: numbers in [{y.min()}, {y.max()}]"
        )
    if problem.accuracy and not whole and shape in ((), (1,)):
        raise ExperimentError(
            f"y_{part} {of} must hold classes, since the problem has an accuracy. For "
            "labels that are quantities say Problem(load, build, ..., accuracy=False). "
            f"Received: numbers that are not whole, such as {y[y != np.round(y)][0]:g}"
        )


def _shown(shape: tuple[int, ...]) -> str:
    """Formats the shape of n examples of this shape."""
    return f"({', '.join(map(str, ('n', *shape)))})"


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns errors of the user's code into an `ExperimentError` of one line."""
    try:
        yield
    except ExperimentError:
        raise
    except (Exception, SystemExit) as error:
        raise ExperimentError(f"{what}{place_and_reason(error)}") from error
