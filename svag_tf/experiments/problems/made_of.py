"""Describes a run's data and model in a form that can be compared.

A run's config only names the problem. A digest of what its `load` and `build` return
shows whether they are still the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from svag_tf import internals
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import PROBLEMS, Prepare, checks
from svag_tf.experiments.problems.data import Data
from svag_tf.saving.model_state import stable_paths

_LOSS = "loss before training"
_TOLERANCE = 1e-3  # relative, of that loss: devices and thread counts round differently

MadeOf = dict[str, str]


def made_of(
    name: str, data: Data, model: keras.Model, try_batches: bool = True
) -> MadeOf:
    """Describes a run's data and compiled model, part by part.

    The result is the same in every process: automatic numbers in names are ignored.
    With `try_batches`, which needs a model on one device, a batch is put through it.

    Raises:
        ExperimentError: if data and model do not fit together.
    """
    problem = PROBLEMS[name]
    tried = None
    if try_batches:
        tried = checks.try_batches(name, problem, model, data)
    parts = {field: _array(array) for field, array in data._asdict().items()}
    for part in ("train", "test"):
        prepare = getattr(problem, f"prepare_{part}")
        if prepare is not None:
            x = getattr(data, f"x_{part}")[: checks.EXAMPLES]
            parts[f"prepare_{part}"] = _prepared(prepare, x)
    layers = internals.layers_of(model)[1:]
    names = {layer.name: f"layer {i}" for i, layer in enumerate(layers)}
    for i, layer in enumerate(layers):
        kind = type(layer).__name__
        parts[f"model, layer {i}"] = f"{kind} {_config(layer, names)}"
    paths = stable_paths(model.weights)
    weights = [
        [path, list(v.shape), str(v.dtype), v.trainable]
        for path, v in zip(paths, model.weights)
    ]
    parts["model, its weights"] = f"{len(weights)} {_digest(weights)}"
    parts["model, its structure"] = _structure(model, names)
    loss = checks.loss(name, problem)
    kind = getattr(loss, "__name__", type(loss).__name__)
    parts["loss"] = f"{kind} {_config(loss, {})}"
    if not problem.accuracy:
        parts["accuracy"] = "none"
    if tried is not None:
        parts[_LOSS] = f"{tried:.6g}"
    return parts


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Returns the parts in which two runs differ, as lines `part: old -> new`."""
    lines = []
    for part in dict.fromkeys((*new, *old)):
        before, after = old.get(part), new.get(part)
        if part == _LOSS and before and after:
            a, b = float(before), float(after)
            if math.isclose(a, b, rel_tol=_TOLERANCE) or math.isnan(a + b):
                continue
        if before != after:
            lines.append(f"{part}: {before or '(absent)'} -> {after or '(absent)'}")
    return lines


def differ(old: Mapping[str, str] | None, new: Mapping[str, str]) -> bool:
    """Returns whether something was made of other data or another model, or unknown."""
    return not old or bool(differences(old, new))


def refuse(what: str, old: Mapping[str, str] | None, new: Mapping[str, str]) -> None:
    """Raises an error with the differences if data or model are not those of before.

    Args:
        what: "The workdir runs/mine holds a run".
        old: `made_of` what is there; None or empty if unknown.
        new: `made_of` what would be used now.
    """
    remedy = (
        "Start afresh (--fresh), which deletes it; or name another --workdir; or undo "
        "the change"
    )
    if not old:
        raise ExperimentError(
            f"{what} that does not say which data and model it was made from: it "
            f"comes from an earlier version of svag_tf. {remedy}."
        )
    changed = differences(old, new)
    if changed:
        raise ExperimentError(
            f"{what} of other data or another model: load() or build() of the problem "
            "has changed, or load() does not return the same each time. "
            f"{remedy} (was -> is):\n  " + "\n  ".join(changed)
        )


def _array(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array).view(np.uint8)
    digest = hashlib.blake2b(content.data, digest_size=6).hexdigest()
    return f"{array.dtype} {list(array.shape)} {digest}"


def _prepared(prepare: Prepare, x: np.ndarray) -> str:
    """Returns a digest of `prepare` on some examples, if its result is reproducible."""
    first, second = (_array(prepare(x, np.random.default_rng(0))) for _ in range(2))
    return first if first == second else "random"


def _config(thing: Any, names: Mapping[str, str]) -> str:
    """Returns a digest of the arguments of a layer or a loss."""
    try:
        config = keras.saving.serialize_keras_object(thing)
    except Exception:  # A user's class without a `get_config`: many kinds.
        config = type(thing).__name__
    return _digest(_plain(config, names))


def _structure(model: keras.Model, names: Mapping[str, str]) -> str:
    """Returns a digest of how the layers are connected."""
    kind = type(model).__name__
    try:
        config = model.get_config()
    except Exception:  # As above.
        return kind
    nodes = [layer.get("inbound_nodes") for layer in config.get("layers", ())]
    others = {key: value for key, value in config.items() if key != "layers"}
    return f"{kind} {_digest(_plain([nodes, others], names))}"


def _plain(value: Any, names: Mapping[str, str]) -> Any:
    """Returns a config without names, without None values, and without compiled code.

    The first depend on the process's other models and on where a file lies, the second
    on the version of Keras, the third on the lines of a file.
    """
    if isinstance(value, Mapping):
        if value.get("class_name") == "__lambda__":
            return "lambda"
        return {
            key: _plain(part, names)
            for key, part in value.items()
            if part is not None and key not in ("name", "module", "registered_name")
        }
    if isinstance(value, list | tuple):
        return [_plain(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda x: type(x).__name__)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
