"""Continues runs of other implementations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from svag_tf.optimizers import MSVAG, SVAG
from svag_tf.optional import tensorflow as tf
from svag_tf.saving.model_state import path_of


def from_tf1_checkpoint(
    path: str | os.PathLike[str],
    model: keras.Model,
    names: Mapping[str, str] | None = None,
) -> None:
    """Continues a run of the authors' TensorFlow 1 package where it stopped.

    Reads a checkpoint that `tf.train.Saver` wrote of a model trained with `msvag`'s
    `MSVAGOptimizer` or `SVAGOptimizer`: the weights, the slots `m_tilde` and `v_tilde`
    and `beta_power`, which is beta^(t + 1) after t updates and gives the count t.

    For a variable `w`, the slots have the names that TensorFlow 1 gave them,
    `w/MSVAG` (m~) and `w/MSVAG_1` (v~) with the optimizer's name, or `w/m_tilde` and
    `w/v_tilde`. Where beta_power has underflowed to 0, t is taken from `global_step`,
    or is the smallest that underflows: the bias corrections are 1 either way.

    Args:
        path: The checkpoint, without `.index` or `.meta`; or a folder, for its latest.
        model: Compiled and built, with `svag_tf.MSVAG` or `svag_tf.SVAG` and the beta
            of the run. The learning rate is not in a checkpoint.
        names: The checkpoint's name for each of the model's weights, by the weight's
            `path`. Defaults to `None`: the path itself, or the path without the model's
            name.

    Raises:
        ValueError: If the checkpoint is damaged or incomplete, has other shapes, or if
            beta_power is not a power of beta. The model is then unchanged.

    Example:

    >>> import os, tempfile
    >>> import keras, svag_tf, tensorflow as tf
    >>> with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    ...     for name, value in {
    ...         "dense/kernel": [[1.0]],
    ...         "dense/kernel/MSVAG": [[0.5]],
    ...         "dense/kernel/MSVAG_1": [[0.25]],
    ...         "beta_power": 0.9**3,
    ...     }.items():
    ...         _ = tf.compat.v1.get_variable(name, initializer=tf.constant(value))
    ...     session.run(tf.compat.v1.global_variables_initializer())
    ...     path = os.path.join(tempfile.mkdtemp(), "model.ckpt")
    ...     path = tf.compat.v1.train.Saver().save(session, path, 2)
    >>> dense = keras.layers.Dense(1, use_bias=False, name="dense")
    >>> model = keras.Sequential([keras.Input((1,)), dense])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> svag_tf.convert.from_tf1_checkpoint(path, model)
    >>> int(model.optimizer.iterations), float(model.optimizer.m_tilde[0][0, 0])
    (2, 0.5)
    """
    optimizer = _optimizer_of(model)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    path = os.fspath(path)
    try:
        arrays = _read(path)
    except Exception as error:  # TensorFlow raises many kinds.
        raise ValueError(f"The checkpoint {path} cannot be read: {error}") from error
    try:
        values = _values(arrays, model, optimizer, names or {})
        updates = _updates(arrays, optimizer.beta)
    except ValueError as error:
        raise ValueError(f"The checkpoint {path} does not fit. {error}") from error
    for variable, value in values:
        variable.assign(value)
    steps = optimizer.gradient_accumulation_steps or 1
    optimizer.variables[0].assign(updates * steps)  # The count of steps.
    optimizer.update_counts.assign([updates] * len(optimizer.m_tilde))


def _optimizer_of(model: keras.Model) -> Any:
    optimizer: Any = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(optimizer, MSVAG | SVAG):
        raise ValueError(
            "The model must be compiled with svag_tf.MSVAG or svag_tf.SVAG, the "
            f"methods of the authors' package. Received: the optimizer {optimizer!r}"
        )
    if optimizer.use_ema or optimizer.counts_rows or not model.built:
        raise ValueError(
            "The model must be built, and its optimizer without use_ema and "
            "sparse_updates='lazy', whose state the checkpoint does not contain."
        )
    return optimizer


def _read(path: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(path)
    return {
        name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
    }


def _values(
    arrays: Mapping[str, np.ndarray],
    model: keras.Model,
    optimizer: Any,
    names: Mapping[str, str],
) -> list[tuple[Any, np.ndarray]]:
    """Returns the weights and slots, each with its new value."""
    unknown = sorted(set(names) - {path_of(v) for v in model.weights})
    if unknown:
        raise ValueError(
            "The keys of `names` must be paths of weights: "
            f"{', '.join(path_of(v) for v in model.weights)}. "
            f"Received: {', '.join(unknown)}"
        )
    found = {id(v): _name_of(v, arrays, names) for v in model.weights}
    pairs = [(v, found[id(v)]) for v in model.weights]
    for i, variable in enumerate(model.trainable_variables):
        name = found[id(variable)]
        m, v = _slots_of(name, arrays)
        pairs += [(optimizer.m_tilde[i], m), (optimizer.v_tilde[i], v)]
    for variable, name in pairs:
        if arrays[name].shape != tuple(variable.shape):
            raise ValueError(
                f"Expected of {name}: shape {tuple(variable.shape)}. "
                f"Found: {arrays[name].shape}"
            )
        if arrays[name].dtype.kind not in "fiuV":  # V: bfloat16.
            raise ValueError(
                f"Expected of {name}: real numbers. Found: {arrays[name].dtype}"
            )
    return [(variable, arrays[name]) for variable, name in pairs]


def _name_of(
    variable: Any, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> str:
    path = path_of(variable)
    candidates = [path, path.partition("/")[2]]
    if path in names:
        candidates = [names[path]]
    for name in candidates:
        if name in arrays:
            return name
    raise ValueError(
        f"It has no variable {' or '.join(filter(None, candidates))} for the weight "
        f"{path}. Give its name in the argument `names`. Found: "
        f"{', '.join(sorted(arrays))}"
    )


def _slots_of(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """Returns the names of m~ and v~ of a variable."""
    inside = [other for other in arrays if other.startswith(f"{name}/")]
    pairs = [
        (m, v)
        for m in inside
        for v in inside
        if v == f"{m}_1"
        or (m.endswith("/m_tilde") and v == f"{m.removesuffix('m_tilde')}v_tilde")
    ]
    if len(pairs) != 1:
        raise ValueError(
            f"It must have one pair of slots of {name}, such as {name}/MSVAG and "
            f"{name}/MSVAG_1, or {name}/m_tilde and {name}/v_tilde. Found: "
            f"{', '.join(sorted(inside)) or 'none'}"
        )
    return pairs[0]


def _updates(arrays: Mapping[str, np.ndarray], beta: float) -> int:
    """Returns the count t of updates, from beta_power = beta^(t + 1)."""
    keys = [key for key in arrays if key.split("/")[-1] == "beta_power"]
    if len(keys) != 1:
        raise ValueError(
            f"It must have one beta_power. Found: {', '.join(keys) or 'none'}"
        )
    power = _scalar(keys[0], arrays)
    beta = float(np.float32(beta))
    if beta == 0.0 or power == 0.0:
        if "global_step" in arrays:
            return int(_scalar("global_step", arrays))
        smallest = float(np.finfo(np.float32).smallest_subnormal)
        return 1 if beta == 0.0 else math.ceil(math.log(smallest) / math.log(beta))
    if 0.0 < power < 1.0:
        t = math.log(power) / math.log(beta) - 1
        # Allows for rounding errors of t float32 products, and of tiny ones.
        subnormal = power < float(np.finfo(np.float32).tiny)
        if round(t) >= 0 and (abs(t - round(t)) < 0.01 + 1e-4 * t or subnormal):
            return round(t)
    raise ValueError(
        f"{keys[0]} must be a power of beta={beta:g}, at least the first. Was the run "
        f"made with another beta? Found: {power!r}"
    )


def _scalar(name: str, arrays: Mapping[str, np.ndarray]) -> float:
    array = np.asarray(arrays[name])
    if array.size == 1 and array.dtype.kind in "fiuV" and array.astype(float) >= 0.0:
        return float(array.astype(float).item())
    raise ValueError(f"Expected of {name}: a number >= 0. Found: {array!r}")
