"""Names and describes saved state, so that it is not restored into another model."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any

import keras

from svag_tf import internals


def class_of(optimizer: keras.optimizers.Optimizer) -> str:
    """Returns the name of an optimizer's class, with that of an inner optimizer."""
    name = keras.saving.get_registered_name(type(optimizer))
    inner = getattr(optimizer, "inner_optimizer", None)
    return name if inner is None else f"{name}({class_of(inner)})"


def stable_paths(variables: Iterable[Any]) -> list[str]:
    """Returns paths that do not depend on other models of the process."""
    return renumbered([path_of(v) for v in variables])


def renumbered(
    paths: Iterable[str], automatic: Container[str] | None = None
) -> list[str]:
    """Returns paths with their automatic numbers recounted.

    Keras numbers the names that it makes: the layers `dense_4` and `dense_5` of one
    process are `dense` and `dense_1` in the next. Here the lowest number of a name is
    dropped, the second lowest becomes 1, and so on.

    Args:
        paths: Paths of variables.
        automatic: Names of classes, in lower case and without "_", that Keras uses as
            numbered names. Defaults to `None`: all names that end with a number.
    """
    split = [
        [_base_and_number(part, automatic) for part in re.split("[/:]", path)]
        for path in paths
    ]
    numbers: dict[str, set[int]] = {}
    for parts in split:
        for base, number in parts:
            numbers.setdefault(base, set()).add(number)
    ranks = {
        (base, number): rank
        for base, found in numbers.items()
        for rank, number in enumerate(sorted(found))
    }
    return [
        "/".join(base + (f"_{ranks[base, n]}" if ranks[base, n] else "")
                 for base, n in parts)
        for parts in split
    ]  # fmt: skip


def paths_in(model: keras.Model) -> dict[int, str]:
    """Returns the path of each variable below the model, by the variable's `id`.

    It has the names of the layers that hold the variable. Keras' own paths depend on
    how the model was made: `keras.models.load_model` builds each layer by itself, so
    that the names of the models around it are missing.
    """
    paths: dict[int, str] = {}
    seen: set[int] = set()

    def visit(layer: Any, above: str) -> None:
        seen.add(id(layer))
        for part in internals.sublayers_of(layer):
            if id(part) not in seen:
                visit(part, f"{above}{part.name}/")
        for variable in layer.variables:  # Those of its parts have their paths.
            paths.setdefault(id(variable), above + variable.name)

    visit(model, "")
    return paths


def path_of(variable: Any) -> str:
    """Returns a variable's path, or its name if it has none (`tf.Variable`)."""
    return getattr(variable, "path", None) or variable.name


def shape_and_dtype(variable: Any) -> list[Any]:
    """Returns a variable's shape and dtype in a form that JSON preserves."""
    return [list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def state_of(model: keras.Model) -> dict[str, Any]:
    """Returns all variables from which training resumes, by name.

    An optimizer that is not built has not been used, and is left out unless it wraps
    others that are built.
    """
    own = _own_state(model)
    for path, variables in _optimizer_variables(model).items():
        own |= {f"{path}/{i}": v for i, v in enumerate(variables)}
    return own


def _own_state(model: keras.Model) -> dict[str, Any]:
    """Returns the part of the state that does not belong to optimizers."""
    metrics = {id(v) for v in model.metrics_variables}
    own = [v for v in model.variables if id(v) not in metrics] + _rnn_states(model)
    known = paths_in(model)
    paths = renumbered([known.get(id(v)) or path_of(v) for v in own])
    return {f"model/{i}/{path}": v for i, (path, v) in enumerate(zip(paths, own))}


def optimizers_of(model: keras.Model) -> dict[str, Any]:
    """Returns all optimizers that a model trains with, by name.

    `optimizer` is the one that the model was compiled with. The others are attributes
    of it or of its layers, also in lists and dicts: `optimizer/d_optimizer`.
    """
    first = {} if model.optimizer is None else {"optimizer": model.optimizer}
    others = {
        f"optimizer/{path}": found
        for path, found in parts_of(model, keras.optimizers.Optimizer).items()
        if found is not model.optimizer
    }
    return first | others


def parts_of(whole: Any, kind: type) -> dict[str, Any]:
    """Returns the objects of a class that a model or an optimizer holds, by path.

    Searches its attributes and those of its layers and optimizers, also in lists and
    dicts. `whole` itself may be such an object.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def visit(path: tuple[str, ...], value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, kind):
            found["/".join(path)] = value
        if isinstance(value, keras.Layer | keras.optimizers.Optimizer):
            children = vars(value)
        elif isinstance(value, dict):
            children = value
        elif isinstance(value, list | tuple):
            children = dict(enumerate(value))
        else:
            return
        by_name = {str(name): child for name, child in children.items()}
        # User-named attributes come first: Keras' own lists repeat the same objects.
        for name in sorted(by_name, key=lambda name: (name.startswith("_"), name)):
            visit((*path, name), by_name[name])

    visit((), whole)
    return found


def _optimizer_variables(model: keras.Model) -> dict[str, list[Any]]:
    """Returns the variables of the optimizers in use, each variable once.

    An optimizer that wraps others may have their variables too, and need not be built.
    """
    seen: set[int] = set()
    result = {}
    for path, optimizer in optimizers_of(model).items():
        if not any(
            o.built for o in parts_of(optimizer, keras.optimizers.Optimizer).values()
        ):
            continue
        variables = [v for v in optimizer.variables if id(v) not in seen]
        seen |= {id(v) for v in variables}
        if variables:
            result[path] = variables
    return result


def _rnn_states(model: keras.Model) -> list[Any]:
    """Returns the states of stateful layers, which Keras does not list as variables."""
    return [
        state
        for layer in internals.layers_of(model)
        if isinstance(layer, keras.layers.RNN) and layer.stateful
        for state in keras.tree.flatten(layer.states)
    ]


def description_of(model: keras.Model) -> dict[str, Any]:
    """Describes, as plain JSON, what must agree before a state is restored.

    That is each optimizer's class and the variables it is built on, and the name, shape
    and dtype of each variable.
    """
    names = {id(v): name for name, v in _own_state(model).items()}
    optimizers = optimizers_of(model)
    return {
        "optimizers": {
            path: {
                "class": class_of(optimizers[path]),
                "variables": [
                    names.get(id(v), path_of(v))
                    for v in internals.trained_variables(optimizers[path])
                ],
            }
            for path in _optimizer_variables(model)
        },
        "variables": {n: shape_and_dtype(v) for n, v in state_of(model).items()},
    }


def build_optimizers(model: keras.Model, description: dict[str, Any]) -> None:
    """Builds the model's optimizers like those whose state is to be restored.

    Args:
        model: Compiled, with its layers built.
        description: `description_of` the model that was saved.
    """
    own = _own_state(model)
    optimizers = optimizers_of(model)
    for path, saved in description.get("optimizers", {}).items():
        optimizer = optimizers.get(path)
        if optimizer is None or optimizer.built or not saved["variables"]:
            continue
        if path == "optimizer" and type(model).train_step is keras.Model.train_step:
            optimizer.build(model.trainable_variables)
        elif all(name in own for name in saved["variables"]):
            optimizer.build([own[name] for name in saved["variables"]])


def first_difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Says where two descriptions differ, for a message."""
    if "optimizers" not in found:
        return "It was written by an earlier version of svag_tf."
    said = "Expected {}: {}. Found: {}".format(*_difference(found, expected))
    own = [
        sum(name.startswith("model/") for name in description["variables"])
        for description in (found, expected)
    ]
    if own[0] <= own[1]:
        return said
    return (
        f"{said}. If layers of this model are not built yet, build them first: call "
        "them on a batch of data."
    )


def _difference(found, expected):
    """Returns what differs, what was expected, and what was found."""
    a, b = (
        {path: one["class"] for path, one in description["optimizers"].items()}
        for description in (expected, found)
    )
    if a != b:
        return "optimizers", _classes(a), _classes(b)
    name, a, b = next(
        (name, expected[part].get(name), found[part].get(name))
        for part in ("variables", "optimizers")
        for name in sorted(expected[part].keys() | found[part].keys())
        if expected[part].get(name) != found[part].get(name)
    )
    return f"of {name}", a or "no such variable", b or "no such variable"


def _classes(by_path: dict[str, str]) -> str:
    return ", ".join(f"{path}: {name}" for path, name in by_path.items()) or "none"


def _base_and_number(part: str, automatic: Container[str] | None) -> tuple[str, int]:
    match = re.fullmatch(r"(.+?)_(\d{1,9})", part)
    if match and (automatic is None or match[1].replace("_", "") in automatic):
        return match[1], int(match[2])
    return part, 0


def keep_random_state(model: keras.Model) -> None:
    """Makes the model's optimizer save the random states of dropout and the like.

    Keras does not save them, so a model with dropout would not continue from a file or
    checkpoint as it would have without it. After this call they are saved with the
    optimizer, in `.keras` and `.weights.h5` files and in `tf.train.Checkpoint`, and
    restored with it. Call it before saving, and for a new model before restoring; after
    `keras.models.load_model`, call it with the loaded model.

    Args:
        model: Compiled and built, with an optimizer of this package, also within a
            `LossScaleOptimizer`.

    Raises:
        ValueError: If it has another optimizer.

    Example:

    >>> import keras, svag_tf
    >>> layers = [keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    >>> model = keras.Sequential(layers)
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> svag_tf.keep_random_state(model)
    """
    optimizer: Any = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(optimizer, "keep_random_states"):
        raise ValueError(
            "The model must be compiled with an optimizer of svag_tf. Received: the "
            f"optimizer {optimizer!r}"
        )
    optimizer.keep_random_states(random_states(model))


def random_states(model: keras.Model) -> list[Any]:
    """Returns the variables of the model's random generators."""
    others = {id(v) for v in (*model.weights, *model.metrics_variables)}
    return [v for v in model.variables if id(v) not in others]
