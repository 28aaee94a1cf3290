"""Saves and restores an optimizer's state by the variables that it belongs to.

Slots, averages and counts are saved with the path and the shape of the model's variable
that they belong to, and are restored by path and shape. Variables in both file and
model continue exactly, variables that are not in the file start afresh at t = 1, and
the state of variables that the model no longer has is dropped. Keras' own optimizers
match by position.

Loading never fails because something does not match: one `OptimizerStateWarning` says
what was not restored. Within `all_or_error`, for resuming, a mismatch is an error.
Damage is always an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from svag_tf import internals
from svag_tf.saving import stores
from svag_tf.saving.identities import (
    Identity,
    identities_of,
    identity_from,
    matched,
    model_being_loaded,
    model_of,
)
from svag_tf.saving.mismatch import tell
from svag_tf.saving.model_state import class_of

_SHOWN = 8  # Variables in a message.
_SCALARS = ("iterations", "learning_rate")
# Vectors with a number for each variable.
COUNTS = ("update_counts", "has_average")
_TITLES = {
    "average": "the averages of the weights (use_ema)",
    "accumulated_gradient": "half-accumulated gradients",
}


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
        # Scalars restored before `build`: their variable, and its values before and
        # after that.
        self._early: dict[str, tuple[Any, np.ndarray, np.ndarray]] = {}
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
            "format": stores.FORMAT,
            "class": class_of(optimizer),
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
            early = {n: _to_numpy(v) for n, v in self.early_places(record)}
            arrays = {**arrays, **early}
        stores.write(store, record, arrays)

    def load(self, store: Any) -> None:
        """Restores the state from a store of Keras; at `build`, if not built yet."""
        store = stores.entry_with_record(store)
        keys = list(store.keys())
        if stores.RECORD not in keys:
            self.start_afresh(
                "What was loaded holds the state of another class of optimizer"
                if keys
                else "What was loaded holds no state of an optimizer"
            )
            return
        record, arrays = stores.read(store, self._optimizer.name)
        if not self._fits(record):
            return
        random_states = record["random_states"]
        _check_random_states(random_states, self._random_states)
        if self._optimizer.built:
            self._restore(record, arrays)
        else:
            self.announce(record)
            self.restore_early(record, lambda name, v: _assign(v, arrays[name]))
            self._waiting = record, arrays
        self._waiting_random_states = random_states
        if self._random_states:
            self.keep_random_states(self._random_states)

    @contextlib.contextmanager
    def at_build(self) -> Iterator[None]:
        """Takes back what was restored early, if its body cannot restore the rest."""
        early, self._early = self._early, {}
        try:
            yield
        except BaseException:
            for variable, before, restored in early.values():
                if np.array_equal(_to_numpy(variable), restored):  # Not set since.
                    variable.assign(before)
            raise

    def restore_waiting(self) -> None:
        """Restores what was loaded before the optimizer was built."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            # What was restored early may have changed since.
            early = [name for name, _ in self.early_places(waiting[0])]
            self._restore(*waiting, early)
        self._said = ""

    def keep_random_states(self, variables: Sequence[Any]) -> None:
        """Saves these variables too, and restores what was loaded for them."""
        _check_random_states(self._waiting_random_states, variables)
        waiting, self._waiting_random_states = self._waiting_random_states, []
        self._random_states = list(variables)
        for variable, (values, dtype) in zip(variables, waiting):
            variable.assign(np.array(values, dtype))

    # For checkpoints of TensorFlow, which reads the numbers itself.

    def announce(self, record: dict[str, Any]) -> None:
        """Warns of what `build` will not restore, if the model is already known."""
        model = model_being_loaded(self._optimizer)
        if model is not None and model.built and model.trainable_variables:
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
        """Returns pairs as `places` does, for the scalars of an unbuilt optimizer."""
        here = self.entries()
        fits = record.get("class") == class_of(self._optimizer)
        return [
            (name, here[name])
            for name in _SCALARS
            if fits and name in here and name in record["entries"]
        ]

    def restore_early(
        self, record: dict[str, Any], restore: Callable[[str, Any], None]
    ) -> None:
        """Calls `restore` with each of the `early_places`; `at_build` may undo it."""
        for name, variable in self.early_places(record):
            before = np.array(_to_numpy(variable))
            restore(name, variable)
            _, before, _ = self._early.get(name, (variable, before, None))
            self._early[name] = variable, before, np.array(_to_numpy(variable))

    def places(self, record: dict[str, Any]) -> tuple[list[tuple[str, Any]], bool]:
        """Finds where a record's entries belong; all other variables start afresh.

        Returns:
            Pairs of the name of an entry and the optimizer's variable for its value,
            and whether these are all entries and all variables.
        """
        if not self._fits(record):
            return [], False
        match = self._match(record, self._known_identities())
        self._say(match.message)
        return self._place(match, record), not match.message

    def _fits(self, record: dict[str, Any]) -> bool:
        """Returns whether a record is of this class and version; warns if not."""
        if record.get("format") != stores.FORMAT:
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

    def _restore(
        self,
        record: dict[str, Any],
        arrays: dict[str, np.ndarray],
        restored: Sequence[str] = (),
    ) -> None:
        match = self._match(record, self._known_identities())
        self._say(match.message)
        placed = self._place(match, {**record, **arrays})
        for name, variable in placed:
            if name not in restored:
                _assign(variable, arrays[name])
        if match.message:
            self.begin_accumulation()

    def begin_accumulation(self) -> None:
        """Restarts accumulation, as it is unknown how much was accumulated."""
        optimizer = self._optimizer
        steps = optimizer.gradient_accumulation_steps
        if steps:
            steps_made = internals.step_count(optimizer)
            count = int(_to_numpy(steps_made))
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
                _assign(variable, counts[kind])
            elif kind.startswith("other") and match.message:
                continue  # What it depends on is unknown.
            elif source in record["entries"]:
                placed.append((source, variable))
            elif kind == "row_update_counts":
                count = counts["update_counts"][int(i)]
                _assign(variable, np.full(variable.shape, count))
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
        there = [identity_from(each) for each in record["variables"]]
        sources = matched(there, here)
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
        others = any(kind.startswith("other") for kind in kinds[0] ^ kinds[1])
        if others and optimizer.built:  # A subclass may add them in `build`.
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
        """Returns the variables' identities, recorded while the model was known."""
        known = self._identities
        if known is None or any(each.in_model is None for each in known):
            variables = internals.trained_variables(self._optimizer)
            known = identities_of(variables, model_of(variables))
            self._identities = known
        return known

    def remember_variables(self, variables: Sequence[Any]) -> None:
        """Records at `build` the identities of the optimizer's variables."""
        loaded, self._of_loaded_model = self._of_loaded_model, {}
        if all(id(v) in loaded for v in variables):
            self._identities = [loaded[id(v)][1] for v in variables]
        else:
            self._identities = identities_of(variables, model_of(variables))

    def _is_new(self) -> bool:
        counts = self._optimizer.update_counts
        return counts is None or not _to_numpy(counts).any()

    def _say(self, message: str) -> None:
        if not message or message == self._said:
            return
        tell(message)
        self._said = message


def _check_random_states(there: Sequence[Any], here: Sequence[Any]) -> None:
    """Raises an error if both are known, and their numbers differ."""
    if there and here and len(there) != len(here):
        raise ValueError(
            f"What was saved has {len(there)} random states, and the model has "
            f"{len(here)}."
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _to_numpy(variable: Any) -> np.ndarray:
    # `ops.convert_to_numpy` makes NumPy warn about TensorFlow's arrays.
    return np.asarray(variable.numpy())


def _assign(variable: Any, value: np.ndarray) -> None:
    """Assigns a saved value; a count too large for its variable becomes its largest."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if "int" in dtype:
        value = np.minimum(value, np.iinfo(dtype).max)
    variable.assign(value)


def _to_json(variable: Any) -> list[Any]:
    array = _to_numpy(variable)
    return [array.tolist(), array.dtype.name]
