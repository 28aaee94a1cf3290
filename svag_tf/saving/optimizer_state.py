"""Saves and restores an optimizer's state by the variables that it belongs to.

Slots, averages and counts are saved with the path and the shape of the model's variable
that they belong to, and are restored by path and shape: variables in both file and
model continue exactly, a variable that is not in the file starts afresh at t = 1, and
state of variables that the model no longer has is dropped. Keras' own optimizers go by
position.

Loading never fails for lack of a match: one `OptimizerStateWarning` says what was not
restored. Within `all_or_error`, for resuming, that is an error. Damage is always one.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import sys
import uuid
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from svag_tf import internals
from svag_tf.saving.model_state import class_of, path_of, renumbered

# The key of our record in a store of Keras, beside the variables "0", "1", ...
RECORD = "svag_tf"
# The version of the record.
_FORMAT = 2
_SHOWN = 8  # Variables in a message.
_SCALARS = ("iterations", "learning_rate")
# Vectors with a number for each variable.
COUNTS = ("update_counts", "has_average")
_TITLES = {
    "average": "the averages of the weights (use_ema)",
    "accumulated_gradient": "half-accumulated gradients",
}
# Names that Keras gives and numbers, in the form that `renumbered` takes.
_LAYERS = {"variable", *(name.lower() for name in dir(keras.layers))}
_LAYERS |= {"functional", "sequential"}
# Tells in a record which process made it.
_PROCESS = uuid.uuid4().hex
_all_or_error = contextvars.ContextVar("all_or_error", default=False)


class OptimizerStateWarning(UserWarning):
    """An optimizer's saved state could not be restored, or not all of it.

    The message says what was restored, what starts afresh, and why. As with all
    warnings, a filter can make it an error; the optimizer is then unchanged.

    Example:

    >>> import warnings
    >>> import svag_tf
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", svag_tf.OptimizerStateWarning)
    ...     # model.load_weights("pretrained.weights.h5")
    """


def resuming() -> bool:
    """Returns whether this is within `all_or_error`."""
    return _all_or_error.get()


@contextlib.contextmanager
def all_or_error() -> Iterator[None]:
    """Raises a `ValueError` for any state within it that is not restored as a whole."""
    token = _all_or_error.set(True)
    try:
        yield
    finally:
        _all_or_error.reset(token)


class Identity(NamedTuple):
    """Identifies a variable in another model or process.

    Attributes:
        path: Its path in Keras.
        in_model: The same with automatic numbers counted anew among all variables of
            the model, also those of frozen layers; `None` if the model is not known.
        below_model: The same without the model's name at the start.
        shape: List of integers.
    """

    path: str
    in_model: str | None
    below_model: str | None
    shape: list[int]


class Match(NamedTuple):
    """Matches a file's variables with an optimizer's.

    Attributes:
        sources: Maps the index of a variable here to its index in the file.
        message: What is not restored, and why; empty if everything is.
    """

    sources: dict[int, int]
    message: str


class OptimizerState:
    """Saves and restores the state of one optimizer, which holds it.

    Args:
        optimizer: A `MomentOptimizer`.
    """

    def __init__(self, optimizer: Any):
        self._optimizer = optimizer
        self._identities: list[Identity] | None = None
        # The variables of the model that was loaded before the optimizer was built.
        self._of_loaded_model: dict[int, tuple[Any, Identity]] = {}
        # A record and its arrays, read before the optimizer was built.
        self._waiting: tuple[dict[str, Any], dict[str, np.ndarray]] | None = None
        self._said = ""
        self._random_states: list[Any] = []
        self._waiting_random_states: list[list[Any]] = []

    def entries(self) -> dict[str, Any]:
        """Returns the optimizer's variables by name, in Keras' order.

        The names of those that belong to the model's variable i end with "/i".
        """
        optimizer = self._optimizer
        kinds = {name: getattr(optimizer, name) for name in optimizer.slots}
        kinds |= {
            "average": internals.weight_averages(optimizer),
            "accumulated_gradient": internals.accumulated_gradients(optimizer),
            "row_update_counts": optimizer.row_update_counts,
        }
        names = {
            id(variable): f"{kind}/{i}"
            for kind, variables in kinds.items()
            for i, variable in enumerate(variables)
        }
        names[id(internals.step_count(optimizer))] = "iterations"
        names[id(internals.rate_or_schedule(optimizer))] = "learning_rate"
        names |= {id(getattr(optimizer, name)): name for name in COUNTS}
        others = iter(range(len(optimizer.variables)))  # Added by a subclass.
        return {
            names.get(id(v)) or f"other_{next(others)}": v for v in optimizer.variables
        }

    def record(self) -> dict[str, Any]:
        """Returns a description of the saved numbers, as plain JSON."""
        optimizer = self._optimizer
        return {
            "format": _FORMAT,
            "class": class_of(optimizer),
            "process": _PROCESS,
            "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
            "variables": self._known_identities() if optimizer.built else None,
            "entries": list(self.entries()),
        }

    def save(self, store: Any) -> None:
        """Puts the state into a store of Keras, with a record and a checksum."""
        if self._waiting is None:
            record = self.record()
            arrays = {name: _to_numpy(v) for name, v in self.entries().items()}
            record["random_states"] = [_to_json(v) for v in self._random_states]
        else:  # Loaded, but not built yet.
            record, arrays = self._waiting
            record = {k: v for k, v in record.items() if k != "crc32"}
        record["crc32"] = _crc32(record, arrays.values())
        for i, array in enumerate(arrays.values()):
            store[str(i)] = array
        store[RECORD] = np.frombuffer(json.dumps(record).encode(), np.uint8)

    def load(self, store: Any) -> None:
        """Restores the state from a store of Keras; at `build`, if not built yet."""
        store = _entry_with_record(store)
        keys = list(store.keys())
        if RECORD not in keys:
            self.start_afresh(
                "What was loaded holds the state of another class of optimizer"
                if keys
                else "What was loaded holds no state of an optimizer"
            )
            return
        record, arrays = self._read(store)
        if not self._fits(record):
            return
        if self._optimizer.built:
            self._restore(record, arrays)
        else:
            self.announce(record)
            self._waiting = record, arrays
            for name, variable in self.early_places(record):
                variable.assign(arrays[name])
        self._waiting_random_states = record["random_states"]
        if self._random_states:
            self.keep_random_states(self._random_states)

    def restore_waiting(self) -> None:
        """Restores what was loaded before the optimizer was built."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._restore(*waiting)
        self._said = ""

    def keep_random_states(self, variables: Sequence[Any]) -> None:
        """Saves these variables too, and restores what was loaded for them."""
        waiting, self._waiting_random_states = self._waiting_random_states, []
        if waiting and len(waiting) != len(variables):
            raise ValueError(
                f"What was saved has {len(waiting)} random states, and the model has "
                f"{len(variables)}."
            )
        self._random_states = list(variables)
        for variable, (values, dtype) in zip(variables, waiting):
            variable.assign(np.array(values, dtype))

    # For checkpoints of TensorFlow, which reads the numbers itself.

    def announce(self, record: dict[str, Any]) -> None:
        """Warns of what `build` will not restore, if the model is already known."""
        model = _model_being_loaded(self._optimizer)
        if model is not None and model.built:
            variables = model.variables
            identities = identities_of(variables, model)
            self._of_loaded_model = {
                id(v): (v, identity) for v, identity in zip(variables, identities)
            }
            trained = [
                self._of_loaded_model[id(v)][1] for v in model.trainable_variables
            ]
            self._say(self._match(record, trained).message)

    def early_places(self, record: dict[str, Any]) -> list[tuple[str, Any]]:
        """Returns places as `places` does, of the scalars of an unbuilt optimizer."""
        here = self.entries()
        fits = record.get("class") == class_of(self._optimizer)
        return [
            (name, here[name])
            for name in _SCALARS
            if fits and name in here and name in record["entries"]
        ]

    def places(self, record: dict[str, Any]) -> tuple[list[tuple[str, Any]], bool]:
        """Finds where a record's entries belong; all variables not in it start afresh.

        Returns:
            Pairs of the name of an entry and the optimizer's variable for its value,
            and whether these are all entries and all variables.
        """
        if not self._fits(record):
            return [], False
        match = self._match(record, self._known_identities())
        self._say(match.message)
        return self._place(match, record), not match.message

    def _read(self, store: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Reads a record and its arrays; raises an error if they are damaged."""
        name = self._optimizer.name
        try:
            record = dict(json.loads(np.asarray(store[RECORD]).tobytes()))
            if record.get("format") != _FORMAT:
                return record, {}
            crc32 = record.pop("crc32")
            arrays = {
                entry: np.asarray(store[str(i)])
                for i, entry in enumerate(record["entries"])
            }
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"The saved state of the optimizer {name} is damaged: {error!r}"
            ) from error
        if crc32 != _crc32(record, arrays.values()):
            raise ValueError(
                f"The saved state of the optimizer {name} is damaged: its checksum is "
                "not the one that was saved with it."
            )
        return record, arrays

    def _fits(self, record: dict[str, Any]) -> bool:
        """Returns whether a record is of this class and version; warns if not."""
        if record.get("format") != _FORMAT:
            self.start_afresh("What was loaded is of another version of svag_tf")
            return False
        expected = class_of(self._optimizer)
        if record["class"] != expected:
            self.start_afresh(
                f"What was loaded holds the state of another class of optimizer, "
                f"{record['class']}, and this is {expected}"
            )
            return False
        return True

    def start_afresh(self, why: str) -> None:
        """Warns why nothing is restored, and drops the state of the old weights."""
        self._say(
            f"{why}: the state of the optimizer {self._optimizer.name} was not "
            "restored, and it starts afresh."
        )
        self._waiting = None
        if self._optimizer.built:
            self._place(Match({}, why), {"entries": []})
            self.begin_accumulation()

    def _restore(self, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        match = self._match(record, self._known_identities())
        self._say(match.message)
        placed = self._place(match, {**record, **arrays})
        for name, variable in placed:
            variable.assign(arrays[name])
        if match.message:
            self.begin_accumulation()

    def begin_accumulation(self) -> None:
        """Restarts accumulation: how much of a gradient was accumulated is unknown."""
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps
        if steps:
            steps_made = internals.step_count(optimizer)
            count = int(ops.convert_to_numpy(steps_made))
            steps_made.assign(count - count % steps)
            for accumulated in internals.accumulated_gradients(optimizer):
                if accumulated is not None:
                    accumulated.assign(ops.zeros_like(accumulated))

    def _place(self, match: Match, record: dict[str, Any]) -> list[tuple[str, Any]]:
        """Returns pairs as `places` does; restores the counts, which are vectors."""
        length = len(internals.trained_variables(self._optimizer))
        counts = {name: np.zeros(length, "int64") for name in COUNTS}
        for name in COUNTS:
            saved = record.get(name)
            if saved is not None:
                for here, there in match.sources.items():
                    counts[name][here] = saved[there]
        placed = []
        for name, variable in self.entries().items():
            kind, _, i = name.partition("/")
            source = f"{kind}/{match.sources.get(int(i))}" if i else name
            if kind in COUNTS:
                variable.assign(counts[kind])
            elif kind.startswith("other") and match.message:
                continue  # What it depends on is unknown.
            elif source in record["entries"]:
                placed.append((source, variable))
            elif kind == "row_update_counts":
                count = counts["update_counts"][int(i)]
                variable.assign(np.full(variable.shape, count))
            elif i:
                variable.assign(ops.zeros(variable.shape, variable.dtype))
        return placed

    def _match(self, record: dict[str, Any], here: list[Identity]) -> Match:
        """Matches a record's variables with these, and says what is missing."""
        optimizer = self._optimizer
        if record["variables"] is None:
            if self._is_new():
                return Match({}, "")
            record = {**record, "variables": []}
        there = [Identity(*each) for each in record["variables"]]
        sources = matched(there, here, record["process"] == _PROCESS)
        left = {v.in_model or v.path: v for i, v in enumerate(there)}
        for source in sources.values():
            left.pop(there[source].in_model or there[source].path, None)
        fresh = []
        for i, each in enumerate(here):
            if i not in sources:
                other = left.pop(each.in_model or each.path, None)
                fresh.append(each.path)
                if other is not None:
                    shapes = f"{tuple(each.shape)}, in the file {tuple(other.shape)}"
                    fresh[-1] += f" (its shape is {shapes})"
        dropped = [each.path for each in left.values()]
        kinds = [{n.partition("/")[0] for n in record["entries"] if n not in COUNTS}]
        kinds.append({n.partition("/")[0] for n in self._expected_entries()})
        only_there = [t for k, t in _TITLES.items() if k in kinds[0] - kinds[1]]
        only_here = [t for k, t in _TITLES.items() if k in kinds[1] - kinds[0]]
        steps = [
            record["gradient_accumulation_steps"],
            optimizer.gradient_accumulation_steps,
        ]
        if steps[0] and steps[1] and steps[0] != steps[1]:
            only_there.append(_TITLES["accumulated_gradient"])
        if "learning_rate" in kinds[0] - kinds[1]:
            only_there.append("the learning rate, which is a schedule here")
        if any(kind.startswith("other") for kind in kinds[0] ^ kinds[1]):
            only_there.append("variables that the class has added")
        if not (fresh or dropped or only_there or only_here):
            return Match(sources, "")
        kept = [here[i].path for i in sources]
        parts = [
            f"The state of the optimizer {optimizer.name} was restored in part.",
            f"Restored: {_listed(kept)}.",
            f"Starts afresh, as its state is not in the file: {_listed(fresh)}.",
            f"Left out, as the model does not train it: {_listed(dropped)}.",
            f"Not restored: {', '.join(only_there)}.",
            f"Not in the file: {', '.join(only_here)}.",
        ]
        wanted = [True, kept, fresh, dropped, only_there, only_here]
        return Match(sources, " ".join(p for p, w in zip(parts, wanted) if w))

    def _expected_entries(self) -> Iterable[str]:
        """Returns the names that `entries` has, or will have after `build`."""
        optimizer = self._optimizer
        names = list(self.entries())
        if not optimizer.built:
            names += optimizer.slots
            names += ["average"] if optimizer.use_ema else []
            if optimizer.gradient_accumulation_steps:
                names.append("accumulated_gradient")
        return names

    def _known_identities(self) -> list[Identity]:
        """Returns its variables' identities, noted while the model was known."""
        known = self._identities
        if known is None or any(each.in_model is None for each in known):
            variables = internals.trained_variables(self._optimizer)
            known = identities_of(variables, _model_of(variables))
            self._identities = known
        return known

    def note_variables(self, variables: Sequence[Any]) -> None:
        """Notes at `build` the identities of the optimizer's variables."""
        loaded, self._of_loaded_model = self._of_loaded_model, {}
        if all(id(v) in loaded for v in variables):
            self._identities = [loaded[id(v)][1] for v in variables]
        else:
            self._identities = identities_of(variables, _model_of(variables))

    def _is_new(self) -> bool:
        counts = self._optimizer.update_counts
        return counts is None or not ops.convert_to_numpy(counts).any()

    def _say(self, message: str) -> None:
        if not message or message == self._said:
            return
        if resuming():
            raise ValueError(
                f"{message} To resume from part of it, load the model's weights or "
                "restore a tf.train.Checkpoint without assert_consumed()."
            )
        warnings.warn(message, OptimizerStateWarning, stacklevel=2)
        self._said = message


def identities_of(
    variables: Sequence[Any], model: keras.Model | None
) -> list[Identity]:
    """Returns the identities of a model's variables; `None` is an unknown model."""
    paths = [path_of(v) for v in variables]
    stable: dict[str, str] = {}
    name = ""
    if model is not None:
        everything = [path_of(v) for v in model.variables]
        classes = {type(layer).__name__.lower() for layer in internals.layers_of(model)}
        *new, name = renumbered([*everything, model.name], classes | {"variable"})
        stable = dict(zip(everything, new))
    return [
        Identity(
            path,
            stable.get(path),
            stable[path].removeprefix(f"{name}/") if path in stable else None,
            list(variable.shape),
        )
        for path, variable in zip(paths, variables)
    ]


def matched(
    there: list[Identity], here: list[Identity], same_process: bool = False
) -> dict[int, int]:
    """Maps the index of each variable here to that of the same variable there.

    In one process paths are unique: the same path means the same variable. Otherwise
    variables are the same if their paths in their models and their shapes are. If a
    model is not known, automatic numbers say little: then all paths of one side must
    equal those of the other, numbered anew, or else single ones must be identical.
    """
    sources: dict[int, int] = {}

    def join(theirs: Sequence[str | None], ours: Sequence[str | None]) -> bool:
        """Joins variables of the same key and shape; returns whether that is all."""
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

    if same_process and (join_by("path") or sources):
        return sources
    if all(each.in_model is not None for each in (*there, *here)):
        if not join_by("in_model"):
            join_by("below_model")
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


def _below_model(paths: list[str]) -> list[str]:
    """Returns paths without the name that all of them start with, the model's."""
    below = [path.partition("/")[2] for path in paths]
    one = len({path.partition("/")[0] for path in paths}) == 1
    return below if one and all(below) else paths


# Keras tells an optimizer neither its model nor the frozen variables, and without them
# the automatic names of layers (dense_4) mean nothing in another model. But methods of
# the model usually build, save and load its optimizer, so the model is in a Keras
# function on the call stack. Other functions are left alone: up to Python 3.12, looking
# at their variables keeps these alive.


def _models_on_stack() -> Iterator[keras.Model]:
    frame: Any = sys._getframe(1)
    seen = set()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("keras."):
            for value in list(frame.f_locals.values()):
                if issubclass(type(value), keras.Model) and id(value) not in seen:
                    seen.add(id(value))
                    yield value
        frame = frame.f_back


def _model_of(variables: Sequence[Any]) -> keras.Model | None:
    """Returns the largest model on the stack that has all these variables, if any."""
    ids = {id(v) for v in variables}
    models = [m for m in _models_on_stack() if ids <= {id(v) for v in m.variables}]
    return max(models, key=lambda m: len(m.variables), default=None)


def _model_being_loaded(optimizer: Any) -> keras.Model | None:
    """Returns the model on the stack that is compiled with an optimizer, if any."""
    for model in _models_on_stack():
        own = getattr(model, "optimizer", None)
        if optimizer in (own, getattr(own, "inner_optimizer", None)):
            return model
    return None


def _entry_with_record(store: Any) -> Any:
    """Returns a store, or the inner or outer optimizer's if that has our record.

    A file may have been saved with a `LossScaleOptimizer` and be loaded without one, or
    the other way round. Keras' class for HDF5 files gives access to other entries.
    """
    path = internals.path_in_file(store)
    if path is None or RECORD in store:
        return store
    inner = "inner_optimizer"
    for other in (f"{path}/{inner}".lstrip("/"), path.removesuffix(inner).rstrip("/")):
        if other != path and RECORD in store.get(other):
            return store
    return store.get(path)


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _to_numpy(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable)


def _to_json(variable: Any) -> list[Any]:
    array = _to_numpy(variable)
    return [array.tolist(), array.dtype.name]


def _crc32(record: dict[str, Any], arrays: Iterable[np.ndarray]) -> int:
    """Returns a checksum of a record and of the values of arrays."""
    checksum = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
