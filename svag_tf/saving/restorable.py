"""An optimizer whose state is saved and restored by the paths of its variables."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import keras

from svag_tf import internals
from svag_tf.optional import tensorflow as tf
from svag_tf.saving.optimizer_state import OptimizerState

checkpoints: Any = None
if keras.backend.backend() == "tensorflow":
    from svag_tf.saving import checkpoints


def _restoring_at_the_end(build):
    """Wraps a `build`; the outermost call restores, once all variables exist."""

    @functools.wraps(build)
    def wrapped(self, *args, **kwargs):
        outermost, self._is_building = not self._is_building, True
        try:
            build(self, *args, **kwargs)
        finally:
            self._is_building = not outermost
        if outermost:
            self._restore_waiting()

    return wrapped


class RestorableOptimizer(internals.HookedOptimizer):
    """Base class that saves to, and restores from, Keras' files and checkpoints."""

    # Whether `build` is running, its own or that of a subclass.
    _is_building = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "build" in vars(cls):
            cls.build = _restoring_at_the_end(cls.build)  # type: ignore[method-assign]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._state = OptimizerState(self)
        self._record = self._guard = None
        if checkpoints:
            self._record = checkpoints.Record(self, self._state)
            self._guard = internals.StringState()

    def _restore_waiting(self):
        """Restores into newly created variables what was loaded before."""
        # In the graph of a training step this would run at every step.
        with tf.init_scope() if checkpoints else nullcontext(), self._state.at_build():
            self._state.restore_waiting()
            if self._record is not None:
                self._record.restore_waiting()

    def save_own_variables(self, store):
        """Writes the state to a store of Keras, with a record of what it belongs to.

        Args:
            store: The store that Keras' `model.save` passes, or a dict.
        """
        self._state.save(store)

    def load_own_variables(self, store):
        """Restores the state from a store of Keras; at `build`, if not built yet.

        State is matched with variables by path and shape. A variable without saved
        state starts afresh, at t = 1.

        Args:
            store: A store that `save_own_variables` has filled.

        Warns:
            OptimizerStateWarning: If not everything was restored.

        Raises:
            ValueError: If the saved state is damaged. The optimizer is then unchanged.
        """
        self._state.load(store)

    def keep_random_states(self, variables):
        """Saves these variables along with its own; see `svag_tf.keep_random_state`."""
        self._state.keep_random_states(variables)
        if checkpoints:  # TensorFlow saves and restores what is in this list.
            self._random_states = [v.value for v in variables]

    def saved_children(self, children):
        """Returns what a checkpoint holds of the optimizer, by name."""
        random_states = children.get(checkpoints.RANDOM_STATES)
        return checkpoints.children(
            self._state, self._record, self._guard, random_states
        )

    def restored_child(self, name, children):
        """Returns the child to restore under a name; `None` lets it wait."""
        return checkpoints.child(name, children, self._state)
