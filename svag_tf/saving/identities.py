"""Identifies a model's variables, to find them again in another model or process."""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from svag_tf import internals
from svag_tf.saving.model_state import path_of, paths_in, renumbered

# Names that Keras gives and numbers, in the form that `renumbered` takes.
_LAYERS = {"variable", *(name.lower() for name in dir(keras.layers))}
_LAYERS |= {"functional", "sequential"}


class Identity(NamedTuple):
    """Identifies a variable in another model or process.

    Attributes:
        path: Its path in Keras.
        in_model: Its path below the model, with automatic numbers recounted among all
            variables, including those of frozen layers; `None` if the model is unknown.
        shape: List of integers.
        token: Marks the variable object itself, to recognize it in the same process.
    """

    path: str
    in_model: str | None
    shape: list[int]
    token: str | None = None


def _token_of(variable: Any) -> str:
    if not hasattr(variable, "_svag_tf_token"):
        variable._svag_tf_token = uuid.uuid4().hex
    return variable._svag_tf_token


def identities_of(
    variables: Sequence[Any], model: keras.Model | None
) -> list[Identity]:
    """Returns the identities of variables; `model` is `None` if it is unknown."""
    stable: dict[int, str] = {}
    if model is not None:
        paths = paths_in(model)
        classes = {type(layer).__name__.lower() for layer in internals.layers_of(model)}
        new = renumbered(paths.values(), classes | {"variable"})
        seen: dict[str, int] = defaultdict(int)
        for each, path in zip(paths, new):
            seen[path] += 1  # A layer may hold several of the same name.
            stable[each] = path + (f"#{seen[path]}" if seen[path] > 1 else "")
    return [
        Identity(path_of(v), stable.get(id(v)), list(v.shape), _token_of(v))
        for v in variables
    ]


def identity_from(saved: Sequence[Any]) -> Identity:
    """Returns an identity from a record; those of svag_tf 0.2.0 have one path more."""
    return Identity(saved[0], *saved[-3:])


def matched(there: list[Identity], here: list[Identity]) -> dict[int, int]:
    """Maps the index of each variable here to that of the same variable there.

    If some variables are the same objects, as in a model that contains layers of the
    saved one, all others are new, except those whose names the user chose and kept.
    Otherwise variables match if their paths in their models and their shapes are equal.
    If a model is unknown, automatic numbers mean little: then either all recounted
    paths of one side must equal those of the other, or single paths must be identical.
    """
    sources: dict[int, int] = {}

    def join(theirs: Sequence[str | None], ours: Sequence[str | None]) -> bool:
        """Matches variables of equal key and shape; returns whether none is left."""
        places: list[dict[Any, list[int]]] = []
        for keys, side, taken in (
            (theirs, there, set(sources.values())),
            (ours, here, set(sources)),
        ):
            place: dict[Any, list[int]] = defaultdict(list)
            for i, key in enumerate(keys):
                if i not in taken and key is not None:
                    place[key, *side[i].shape].append(i)
            places.append(place)
        for key, indices in places[1].items():
            if len(indices) == len(places[0].get(key, ())):
                sources.update(zip(indices, places[0][key]))
        return len(sources) == len(here) == len(there)

    def join_by(key: str) -> bool:
        return join([getattr(v, key) for v in there], [getattr(v, key) for v in here])

    if join_by("token"):
        return sources
    if sources:
        join(*([_chosen(each.path) for each in side] for side in (there, here)))
        return sources
    if all(each.in_model is not None for each in (*there, *here)):
        join_by("in_model")
        return sources
    paths = [[each.path for each in side] for side in (there, here)]
    anew = [renumbered(side, _LAYERS) for side in paths]
    for theirs, ours in (anew, map(_below_model, anew)):
        if join(theirs, ours):
            return sources
        sources.clear()
    join(*paths)
    if not sources:
        join(*map(_below_model, paths))
    return sources


def _chosen(path: str) -> str | None:
    """Returns the path if the user chose all its names; `None` if Keras made one."""
    *layers, _ = path.split("/")
    given = any(re.sub(r"_\d+$|_", "", layer) in _LAYERS for layer in layers)
    return None if given else path


def _below_model(paths: list[str]) -> list[str]:
    """Returns paths without the model's name, if all of them start with it."""
    below = [path.partition("/")[2] for path in paths]
    one = len({path.partition("/")[0] for path in paths}) == 1
    return below if one and all(below) else paths


# Without the model, the automatic names of layers (dense_4) mean nothing elsewhere.


def model_of(variables: Sequence[Any]) -> keras.Model | None:
    """Returns the largest model on the call stack that has all these variables."""
    ids = {id(v) for v in variables}
    found = internals.models_on_stack()
    models = [m for m in found if ids <= {id(v) for v in m.variables}]
    return max(models, key=lambda m: len(m.variables), default=None)


def model_being_loaded(optimizer: Any) -> keras.Model | None:
    """Returns the model on the call stack that is compiled with this optimizer."""
    for model in internals.models_on_stack():
        own = getattr(model, "optimizer", None)
        if optimizer in (own, getattr(own, "inner_optimizer", None)):
            return model
    return None
