"""TensorFlow only: an optimizer's state in `tf.train.Checkpoint`.

TensorFlow restores the children of an object by their names. Those of an optimizer are
the entries of its state ("m_tilde/3"). Only the record that is saved with them tells
which variable an entry belongs to. So all entries wait until the record has been read
and the optimizer is built: TensorFlow keeps values for children that do not exist yet.
"""

from __future__ import annotations

import json
from typing import Any

from svag_tf import internals
from svag_tf.saving.matching import COUNTS
from svag_tf.saving.mismatch import all_or_error, resuming
from svag_tf.saving.optimizer_state import OptimizerState

# A string is saved where other optimizers expect their step count. A number has the
# same name in all optimizers: they would restore it, and silently ignore the rest.
COUNT = internals.STEP_COUNT
# This name appears in TensorFlow's message when another optimizer meets the string.
GUARD = "this_is_the_state_of_an_optimizer_of_svag_tf_and_not_of_this_class"
_RECORD = "svag_tf"
RANDOM_STATES = "_random_states"
_DIRECT = (GUARD, COUNT, _RECORD, RANDOM_STATES)


class Record(internals.PythonState):
    """Saved with an optimizer; TensorFlow reads it before it restores any value."""

    def __init__(self, optimizer: Any, state: OptimizerState):
        super().__init__()
        self._optimizer, self._state = optimizer, state
        self._waiting: tuple[dict[str, Any], bool] | None = None

    def serialize(self) -> str:
        """Returns the record, with the counts, which are not entries of their own."""
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
            self._state.restore_early(record, self._restore_entry)
            self._waiting = record, resuming()

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
            internals.waiting_value(self._optimizer, name)
        if not complete:
            self._state.begin_accumulation()

    def _restore_entry(self, name: str, variable: Any) -> None:
        value = internals.waiting_value(self._optimizer, name)
        if value is not None:
            internals.restore_value(value, variable)


def children(
    state: OptimizerState, record: Record, guard: Any, random_states: Any
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
    if name == internals.VARIABLES:
        state.start_afresh(
            "The checkpoint holds the state of another class of optimizer"
        )
    return present.get(name) if name in _DIRECT else None
