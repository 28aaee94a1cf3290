"""An optimizer whose state is saved and restored by the paths of its variables."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras

from svag_tf.saving.optimizer_state import OptimizerState

checkpoints: Any = None
if keras.backend.backend() == "tensorflow":
    from svag_tf.saving import checkpoints


class RestorableOptimizer(keras.optimizers.Optimizer):
    """Base class: Keras' files and TensorFlow's checkpoints, by an `OptimizerState`."""

    # TensorFlow has no public name for _trackable_children and _lookup_dependency.

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._state = OptimizerState(self)
        self._record = self._guard = None
        if checkpoints:
            self._record = checkpoints.Record(self, self._state)
            self._guard = checkpoints.Guard()

    def _restore_waiting(self):
        """Restores into newly created variables what was loaded before."""
        # In the graph of a training step this would run at every step.
        with checkpoints.tf.init_scope() if checkpoints else nullcontext():
            self._state.restore_waiting()
            if self._record is not None:
                self._record.restore_waiting()

    def save_own_variables(self, store):
        """Puts the state into a store of Keras, with a record of what it belongs to.

        Args:
            store: The store that Keras' `model.save` passes, or a dict.
        """
        self._state.save(store)

    def load_own_variables(self, store):
        """Restores the state from a store of Keras; at `build`, if not built yet.

        State goes to the variables that it belongs to, by their paths and shapes. A
        variable whose state is not there starts afresh, at t = 1.

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

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        children = super()._trackable_children(save_type, **kwargs)
        if save_type != "checkpoint":
            return children
        random_states = children.get(checkpoints.RANDOM_STATES)
        return checkpoints.children(
            self._state, self._record, self._guard, random_states
        )

    def _lookup_dependency(self, name, cached_dependencies=None):
        if cached_dependencies is None:
            return super()._lookup_dependency(name)
        return checkpoints.child(name, cached_dependencies, self._state)
