"""TensorFlow only: an optimizer's state in `tf.train.Checkpoint`.

TensorFlow restores the children of an object by their names. Those of an optimizer are
the entries of its state ("m_tilde/3"). Which variable an entry belongs to is known only
when the record saved with them has been read. So all of them wait until then, or until
the optimizer is built, as TensorFlow lets children wait that do not exist yet.
"""

from __future__ import annotations

import json
from typing import Any

from svag_tf.optional import tensorflow as tf
from svag_tf.saving.optimizer_state import (
    COUNTS,
    OptimizerState,
    all_or_error,
    resuming,
)

try:
    PythonState: Any = tf.train.experimental.PythonState
except ImportError:  # Then there are no TensorFlow checkpoints to guard either.
    PythonState = object

# The child under which Keras' optimizers keep all their variables by their number.
NUMBERED = "_variables"
# Where they keep the step count. We put a `Guard` there.
COUNT = "_iterations"
# Part of TensorFlow's message when another optimizer reads the guard.
GUARD = "this_is_the_state_of_an_optimizer_of_svag_tf_and_not_of_this_class"
_RECORD = "svag_tf"
RANDOM_STATES = "_random_states"
_DIRECT = (GUARD, COUNT, _RECORD, RANDOM_STATES)


class Record(PythonState):
    """Saved with an optimizer; TensorFlow reads it before it restores any number."""

    def __init__(self, optimizer: Any, state: OptimizerState):
        super().__init__()
        self._optimizer, self._state = optimizer, state
        self._waiting: tuple[dict[str, Any], bool] | None = None

    def serialize(self) -> str:
        """Returns the record, with the numbers that have no variable of their own."""
        counts = {
            name: getattr(self._optimizer, name).numpy().tolist()
            for name in COUNTS
            if self._optimizer.built and getattr(self._optimizer, name) is not None
        }
        return json.dumps({**self._state.record(), **counts})

    def deserialize(self, string_value: bytes) -> None:
        """Restores the numbers of a record, or lets them wait for `build`."""
        record = json.loads(string_value)
        if self._optimizer.built:
            self._restore(record)
        else:
            self._state.announce(record)
            self._waiting = record, resuming()
            for name, variable in self._state.early_places(record):
                self._restore_entry(name, variable)

    def restore_waiting(self) -> None:
        """Restores what was read before the optimizer was built."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        record, strict = waiting
        if strict:
            with all_or_error():
                self._restore(record)
        else:
            self._restore(record)

    def _restore(self, record: dict[str, Any]) -> None:
        places, complete = self._state.places(record)
        for name, variable in places:
            self._restore_entry(name, variable)
        for name in record.get("entries", ()):  # Their file may soon be deleted.
            self._optimizer._deferred_dependencies.pop(name, None)
        if not complete:
            self._state.begin_accumulation()

    def _restore_entry(self, name: str, variable: Any) -> None:
        positions = self._optimizer._deferred_dependencies.pop(name, ())
        if not positions:
            return
        newest = max(positions, key=lambda p: p.restore_uid)
        (value,) = newest.value_tensors().values()
        if value.dtype == variable.dtype:
            newest.restore(variable)
        elif newest.bind_object(variable):  # With another `state_dtype`.
            variable.assign(tf.cast(value, variable.dtype))
            variable._update_uid = newest.restore_uid


class Guard(PythonState):
    """Saved as a string where other optimizers expect their step count, a number.

    Without it they would restore the step count, which has the same name, and silently
    ignore the rest. TensorFlow refuses to read a string as a number.
    """

    def serialize(self) -> str:
        """Returns an empty string: only its type matters."""
        return ""

    def deserialize(self, string_value: bytes) -> None:
        """Does nothing."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        (value,) = super()._serialize_to_tensors().values()
        return {"VARIABLE_VALUE": value}

    def _restore_from_tensors(self, restored_tensors: dict[str, Any]) -> None:
        pass


def children(
    state: OptimizerState, record: Record, guard: Guard, random_states: Any
) -> dict[str, Any]:
    """Returns an optimizer's children in a checkpoint, by name."""
    entries = {n: v for n, v in state.entries().items() if n not in COUNTS}
    # TensorFlow's message shows the first of the guard's names.
    own = {GUARD: guard, COUNT: guard, _RECORD: record}
    if random_states is not None:
        own[RANDOM_STATES] = random_states
    return own | entries


def child(name: str, present: dict[str, Any], state: OptimizerState) -> Any:
    """Returns the child to restore under a name; `None` if it has to wait."""
    if name == NUMBERED:
        state.start_afresh(
            "The checkpoint holds the state of another class of optimizer"
        )
    return present.get(name) if name in _DIRECT else None
