"""What is written beside saved numbers, so that they are not read for others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import keras


def class_of(optimizer: keras.optimizers.Optimizer) -> str:
    """The name of an optimizer's class, of the inner one as well."""
    name = keras.saving.get_registered_name(type(optimizer))
    inner = getattr(optimizer, "inner_optimizer", None)
    return name if inner is None else f"{name}({class_of(inner)})"


def stable_paths(variables: Iterable[Any]) -> list[str]:
    """The paths of variables, without what depends on what else a process has made.

    Keras numbers the names that it gives: the layers `dense_4` and `dense_5` of one
    process are `dense` and `dense_1` in the next. Here the lowest number of a name is
    left out, the second lowest is 1, and so on.
    """
    paths = [
        [_base_and_number(part) for part in re.split("[/:]", path_of(v))]
        for v in variables
    ]
    numbers: dict[str, set[int]] = {}
    for path in paths:
        for base, number in path:
            numbers.setdefault(base, set()).add(number)
    ranks = {
        (base, number): rank
        for base, found in numbers.items()
        for rank, number in enumerate(sorted(found))
    }
    return [
        "/".join(base + (f"_{ranks[base, n]}" if ranks[base, n] else "")
                 for base, n in path)
        for path in paths
    ]  # fmt: skip


def path_of(variable: Any) -> str:
    """A variable's path, or its name where it has none (`tf.Variable`)."""
    return getattr(variable, "path", None) or variable.name


def shape_and_dtype(variable: Any) -> list[Any]:
    """In a form that JSON keeps."""
    return [list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def _base_and_number(part: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+?)_(\d{1,9})", part)
    return (match[1], int(match[2])) if match else (part, 0)
