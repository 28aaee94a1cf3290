"""The state of one optimizer: what is saved of it, and to which variable it belongs.

State belongs to variables. Slots, averages and counts are saved with the path and the
shape of the model's variable that they belong to, and are restored by path and shape:
what file and model both have goes on exactly, a variable that the file does not know
starts afresh at t = 1, and what the model no longer has is dropped. Keras' own
optimizers go by position.

Loading never fails for want of a match: one `OptimizerStateWarning` says what was not
restored. Within `all_or_error`, for resuming, that is an error. Damage always is one.
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

from svag_tf.saving.model_state import class_of, path_of, renumbered

# What a store of Keras holds besides the variables "0", "1", ...
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
# What Keras names and numbers by itself, as `renumbered` takes it.
_LAYERS = {"variable", *(name.lower() for name in dir(keras.layers))}
_LAYERS |= {"functional", "sequential"}
# Says in a record which process made it.
_PROCESS = uuid.uuid4().hex
_all_or_error = contextvars.ContextVar("all_or_error", default=False)


class OptimizerStateWarning(UserWarning):
    """An optimizer's saved state could not be restored, or not all of it.

    The message says what was restored, what starts afresh, and why. As for all
    warnings, a filter makes it an error; the optimizer is then as it was.

    Example:

    >>> import warnings
    >>> import svag_tf
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", svag_tf.OptimizerStateWarning)
    ...     # model.load_weights("pretrained.weights.h5")
    """


def resuming() -> bool:
    """Whether this is within `all_or_error`."""
    return _all_or_error.get()


@contextlib.contextmanager
def all_or_error() -> Iterator[None]:
    """Within it, state that cannot be restored as a whole is a `ValueError`."""
    token = _all_or_error.set(True)
    try:
        yield
    finally:
        _all_or_error.reset(token)


class Identity(NamedTuple):
    """What a variable is known by in another model or process.

    Attributes:
        path: Its path, as Keras gives it.
        in_model: The same with automatic numbers counted anew among all variables of
            the model, also those of frozen layers; `None` if the model is not known.
        below_model: The same without the name of the model in front.
        shape: List of integers.
    """

    path: str
    in_model: str | None
    below_model: str | None
    shape: list[int]


class Match(NamedTuple):
    """Which of a file's variables are which of an optimizer's.

    Attributes:
        sources: For the index of a variable here, its index in the file.
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
        # A record and its arrays, read before the optimizer was built.
        self._waiting: tuple[dict[str, Any], dict[str, np.ndarray]] | None = None
        self._said = ""
        self._random_states: list[Any] = []
        self._waiting_random_states: list[list[Any]] = []

    def entries(self) -> dict[str, Any]:
        """The optimizer's variables by name, in Keras' order.

        The name of one that belongs to the model's variable i ends with "/i".
        """
        optimizer = self._optimizer
        kinds = {name: getattr(optimizer, name) for name in optimizer.slots}
        kinds |= {
            "average": getattr(optimizer, "_model_variables_moving_average", ()),
            "accumulated_gradient": getattr(optimizer, "_accumulated_gradients", ()),
            "row_update_counts": optimizer.row_update_counts,
        }
        names = {
            id(variable): f"{kind}/{i}"
            for kind, variables in kinds.items()
            for i, variable in enumerate(variables)
        }
        names[id(optimizer._iterations)] = "iterations"
        names[id(optimizer._learning_rate)] = "learning_rate"
        names |= {id(getattr(optimizer, name)): name for name in COUNTS}
        others = iter(range(len(optimizer.variables)))  # What a subclass has added.
        return {
            names.get(id(v)) or f"other_{next(others)}": v for v in optimizer.variables
        }

    def record(self) -> dict[str, Any]:
        """What saved numbers are the numbers of: plain JSON."""
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
        else:  # Loaded, and not built since.
            record, arrays = self._waiting
            record = {k: v for k, v in record.items() if k != "crc32"}
        record["crc32"] = _crc32(record, arrays.values())
        for i, array in enumerate(arrays.values()):
            store[str(i)] = array
        store[RECORD] = np.frombuffer(json.dumps(record).encode(), np.uint8)

    def load(self, store: Any) -> None:
        """Takes the state from a store of Keras; at `build`, if not built before."""
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
        """Saves these variables as well; gives them what was loaded for them."""
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
        """Says what will not be restored at `build`, if the model is known by now."""
        model = _model_being_loaded(self._optimizer)
        if model is not None and model.built:
            identities = identities_of(model.trainable_variables, model)
            self._say(self._match(record, identities).message)

    def early_places(self, record: dict[str, Any]) -> list[tuple[str, Any]]:
        """The same for an optimizer that is not built: of its scalars."""
        here = self.entries()
        fits = record.get("class") == class_of(self._optimizer)
        return [
            (name, here[name])
            for name in _SCALARS
            if fits and name in here and name in record["entries"]
        ]

    def places(self, record: dict[str, Any]) -> tuple[list[tuple[str, Any]], bool]:
        """Where the entries of a record belong; whatever is not in it starts afresh.

        Returns:
            Pairs of the name of an entry and one of the optimizer's variables, which
            is to have its value; and whether that is all of both.
        """
        if not self._fits(record):
            return [], False
        match = self._match(record, self._known_identities())
        self._say(match.message)
        return self._place(match, record), not match.message

    def _read(self, store: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """A record and its arrays, or an error if they are damaged."""
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
        """Whether a record is one of this class and version; says if it is not."""
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
        """Says why nothing is restored, and drops the state of the old weights."""
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
        """Begins to accumulate anew: a gradient in part is not to be told apart."""
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps
        if steps:
            count = int(ops.convert_to_numpy(optimizer._iterations))
            optimizer._iterations.assign(count - count % steps)
            for accumulated in optimizer._accumulated_gradients:
                if accumulated is not None:
                    accumulated.assign(ops.zeros_like(accumulated))

    def _place(self, match: Match, record: dict[str, Any]) -> list[tuple[str, Any]]:
        """See `places`. The counts, which are vectors, are restored here."""
        length = len(self._optimizer._trainable_variables)
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
                continue  # It is not known what it depends on.
            elif source in record["entries"]:
                placed.append((source, variable))
            elif kind == "row_update_counts":
                count = counts["update_counts"][int(i)]
                variable.assign(np.full(variable.shape, count))
            elif i:
                variable.assign(ops.zeros(variable.shape, variable.dtype))
        return placed

    def _match(self, record: dict[str, Any], here: list[Identity]) -> Match:
        """Which variables of a record are which of these, and what is missing."""
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
        """Names of entries as `entries` has them, or will have after `build`."""
        optimizer = self._optimizer
        names = list(self.entries())
        if not optimizer.built:
            names += optimizer.slots
            names += ["average"] if optimizer.use_ema else []
            if optimizer.gradient_accumulation_steps:
                names.append("accumulated_gradient")
        return names

    def _known_identities(self) -> list[Identity]:
        """Those of the optimizer's variables, from a moment when the model is known."""
        known = self._identities
        if known is None or any(each.in_model is None for each in known):
            variables = self._optimizer._trainable_variables
            known = identities_of(variables, _model_of(variables))
            self._identities = known
        return known

    def note_variables(self, variables: Sequence[Any]) -> None:
        """Notes at `build` what the optimizer's variables are known by."""
        self._identities = identities_of(variables, _model_of(variables))

    def _is_new(self) -> bool:
        counts = self._optimizer.update_counts
        return counts is None or not ops.convert_to_numpy(counts).any()

    def _say(self, message: str) -> None:
        if not message or message == self._said:
            return
        if resuming():
            raise ValueError(
                f"{message} To go on from a part of it, load the model's weights or "
                "restore a tf.train.Checkpoint without assert_consumed()."
            )
        warnings.warn(message, OptimizerStateWarning, stacklevel=2)
        self._said = message


def identities_of(
    variables: Sequence[Any], model: keras.Model | None
) -> list[Identity]:
    """What variables are known by, of a model or, with `None`, of an unknown one."""
    paths = [path_of(v) for v in variables]
    stable: dict[str, str] = {}
    name = ""
    if model is not None:
        everything = [path_of(v) for v in model.variables]
        classes = {type(layer).__name__.lower() for layer in model._flatten_layers()}
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
    """For the index of a variable here, that of the same variable there.

    In one process paths are unique: what has the same path is the same variable. Else
    variables are the same if their paths in their models are, and their shapes. If a
    model is not known, automatic numbers say little: then the paths of one side must be
    those of the other as a whole, numbered anew, or else be the same to the letter.
    """
    sources: dict[int, int] = {}

    def join(theirs: Sequence[str | None], ours: Sequence[str | None]) -> bool:
        """Joins what has the same key and shape; returns whether that is all."""
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
    """Paths without the name in front that all of them have, that of the model."""
    below = [path.partition("/")[2] for path in paths]
    one = len({path.partition("/")[0] for path in paths}) == 1
    return below if one and all(below) else paths


# Keras tells an optimizer neither of which model it is nor what the frozen variables
# are, without which the automatic names of layers (dense_4) mean nothing in another
# model. But what builds, saves and loads an optimizer is mostly a method of its model:
# the model is in a function of Keras that is on the call stack. Other functions are
# left alone, as up to Python 3.12 to look at their variables keeps those alive.


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
    """The largest model at work that has all these variables, if there is one."""
    ids = {id(v) for v in variables}
    models = [m for m in _models_on_stack() if ids <= {id(v) for v in m.variables}]
    return max(models, key=lambda m: len(m.variables), default=None)


def _model_being_loaded(optimizer: Any) -> keras.Model | None:
    """The model at work that is compiled with an optimizer, if there is one."""
    for model in _models_on_stack():
        own = getattr(model, "optimizer", None)
        if optimizer in (own, getattr(own, "inner_optimizer", None)):
            return model
    return None


def _entry_with_record(store: Any) -> Any:
    """A store of Keras; that of the inner or outer optimizer, if that has our record.

    A file may have been made with a `LossScaleOptimizer` around, and be loaded without,
    or the other way round. Keras' class for HDF5 files can give other entries.
    """
    path = getattr(store, "_h5_entry_path", None)
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
    """A checksum of a record and of arrays: of values, not of where they lie."""
    checksum = zlib.crc32(json.dumps(record, sort_keys=True).encode())
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
