"""Finds what an exported model's data is like: from the caller, training or model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from svag_tf.optional import tensorflow as tf
from svag_tf.saving.trained_data import (
    NAMES,
    Form,
    Kind,
    general,
    leaves,
    map_leaves,
    shown,
)


def of_batch_size(batch_size: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the specs of arguments in batches of one size."""
    x = {"x": given["x"]}
    known = {leaf.shape[0] for leaf in leaves(x) if leaf.shape.rank}
    if type(batch_size) is not int or batch_size < 1 or known - {None, batch_size}:
        raise ValueError(
            "Argument `batch_size` must be an integer >= 1 and agree with the model's "
            f"inputs where they fix it. Received: batch_size={batch_size!r}, "
            f"{shown(x)}"
        )

    def sized(spec):
        if not spec.shape.rank or spec.shape[0] is not None:
            return spec
        return tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype)

    return map_leaves(sized, given)


def specified_by(x: Any, y: Any, sample_weight: Any) -> dict[str, Any]:
    """Returns, for each argument that the caller gave, its specs or its existence."""
    specified = {}
    for name, like in zip(NAMES, (x, y, sample_weight)):
        whether: dict[str, tuple[bool, ...]]
        whether = {"x": (), "y": (False,), "sample_weight": (False, True)}
        if isinstance(like, bool) and like in whether[name]:
            specified[name] = like
        elif like is not None:
            specified[name] = _specs(name, like)
    return specified


def _specs(argument, like):
    def spec(leaf):
        if isinstance(leaf, tf.TensorSpec):
            return tf.TensorSpec(leaf.shape, leaf.dtype)
        leaf = tf.convert_to_tensor(leaf)
        return tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype)

    try:
        if isinstance(like, bool):
            raise TypeError("A bool does not say what the data is like.")
        specs = keras.tree.map_structure(spec, like)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `{argument}` must be an array, a tensor, a tf.TensorSpec or a "
            f"structure of them. Received: {argument}={like!r}"
        ) from error
    if any(leaf.shape.rank is None for leaf in keras.tree.flatten(specs)):
        raise ValueError(
            f"Argument `{argument}` must say how many dimensions there are. Received: "
            f"{argument}={like!r}"
        )
    return specs


def inputs_of(model: keras.Model, specified: dict[str, Any], kind: Kind | None) -> Any:
    """Returns the specs of the model's input."""
    if "x" in specified:
        return specified["x"]
    known = _inputs(model)
    if kind is not None:
        return general(kind, "x", known)
    if known is None:
        raise ValueError(
            "What the model takes is not known: it "
            + ("must be built, " if not model.built else "has no inputs of its own, ")
            + "and has made no training step since `compile`, or one that leaves no "
            "record: with run_eagerly=True, or on data of unknown rank. Give a batch "
            "or a tf.TensorSpec: export_trainable(model, path, x=..., y=...)."
        )
    return known


def _inputs(model):
    """Returns the specs of the model's inputs, if it knows them."""
    if not getattr(model, "inputs", None):
        return None
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    for leaf in keras.tree.flatten(inputs):
        if getattr(leaf, "sparse", False) or getattr(leaf, "ragged", False):
            raise ValueError(
                "The model's inputs must be dense. Received: the sparse or ragged "
                f"input {leaf.name}. Make it dense: use keras.Input(...) without "
                "`sparse` or `ragged`, and give the model dense data."
            )
    return keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)


def arguments_for(
    model: keras.Model,
    specified: dict[str, Any],
    kind: Kind | None,
    x: Any,
    outputs: Callable[[], Any],
) -> dict[str, Any]:
    """Returns the specs of all arguments of a training step.

    Args:
        model: Compiled model.
        specified: What the caller specified of them.
        kind: What the model was trained on, if it was.
        x: Specs of its input.
        outputs: Returns the model's output for it, or raises a `ValueError`.
    """
    trained = {} if kind is None else kind.steps[0]
    y = specified.get("y", "y" in trained or (kind is None and model.loss is not None))
    if y is True:
        y = _trained_targets(model, kind, outputs) or targets(model, outputs())
    weight = specified.get("sample_weight", "sample_weight" in trained)
    if weight is True and kind is not None and "sample_weight" in trained:
        weight = general(kind, "sample_weight", None)
    elif weight is True:
        weight = tf.TensorSpec(leaves(x)[0].shape[:1])
    parts = zip(NAMES, (x, y, weight))
    return {name: like for name, like in parts if like is not False}


def _trained_targets(model, kind, outputs):
    """Returns the specs of the targets in training; None if there were none."""
    if kind is None or "y" not in kind.steps[0]:
        return None
    known = None
    if model.loss is not None:
        with contextlib.suppress(ValueError):  # The targets in training suffice.
            known = targets(model, outputs())
    return general(kind, "y", known)


def form_for(kind: Kind | None, given: dict[str, Any]) -> Form:
    """Returns the form in which `fit` passes such data to the model."""

    def paths(arguments):
        return [path for path, _ in keras.tree.flatten_with_path(arguments)]

    if kind is None or kind.made_here or paths(kind.steps[0]) != paths(given):
        return Form.of(given)
    return kind.form


def targets(model: keras.Model, outputs: Any) -> Any:
    """Returns specs of the targets for the model's losses, nested like its outputs."""
    loss = model.loss
    if not keras.tree.is_nested(outputs):
        (loss,) = keras.tree.flatten(loss)
        return _target(loss, outputs)
    if isinstance(loss, dict):
        if not isinstance(outputs, dict):
            outputs = dict(zip(model.output_names, keras.tree.flatten(outputs)))
        return {
            key: _target(one, outputs[key])
            for key, one in loss.items()
            if one is not None and key in outputs
        }
    if keras.tree.is_nested(loss):
        pairs = zip(keras.tree.flatten(outputs), loss)
        return [_target(one, output) for output, one in pairs if one is not None]
    return keras.tree.map_structure(lambda output: _target(loss, output), outputs)


def _target(loss, output):
    try:
        loss = keras.losses.get(loss)
    except ValueError as error:
        raise ValueError(
            f"The targets for the loss {loss!r} are not known. Give a batch of them "
            "or a tf.TensorSpec: export_trainable(model, path, y=...)."
        ) from error
    sparse = keras.losses.SparseCategoricalCrossentropy
    if isinstance(loss, sparse) or loss is keras.losses.sparse_categorical_crossentropy:
        return tf.TensorSpec(output.shape[:-1], tf.int64)
    dtype = keras.config.floatx() if output.dtype.is_floating else output.dtype
    return tf.TensorSpec(output.shape, dtype)
