"""TensorFlow only: what guards an optimizer's state in `tf.train.Checkpoint`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from svag_tf.optional import tensorflow as tf
from svag_tf.saved_state import check_class, check_record

try:
    PythonState: Any = tf.train.experimental.PythonState
except ImportError:  # Nor is there then a checkpoint of TensorFlow to guard.
    PythonState = object

# The child under which Keras' optimizers keep all their variables by their number.
# Ours are under their names, so that none is restored from one of another meaning.
NUMBERED = "_variables"
# Where they keep the step count. We keep ours elsewhere, and a `Guard` there.
COUNT, OWN_COUNT = "_iterations", "step_count"
# Part of TensorFlow's message when another optimizer reads the guard.
GUARD = "this_is_the_state_of_an_optimizer_of_svag_tf_and_not_of_this_class"


class Record(PythonState):
    """Saved with an optimizer; TensorFlow reads it before any number is restored.

    Args:
        describe: Returns the optimizer's record as it is at present.
        is_new: Returns whether it has made no updates.
    """

    def __init__(
        self, describe: Callable[[], dict[str, Any]], is_new: Callable[[], bool]
    ):
        super().__init__()
        self._describe, self._is_new = describe, is_new
        self._found: dict[str, Any] | None = None

    def serialize(self) -> str:
        """The record that goes into the checkpoint."""
        return json.dumps(self._describe())

    def deserialize(self, string_value: bytes) -> None:
        """Raises an error if the record in a checkpoint is that of another."""
        found, expected = json.loads(string_value), self._describe()
        if "variables" in expected:
            check_record(found, expected, self._is_new())
        else:
            check_class(found, expected)
            self._found = found  # TensorFlow keeps the numbers until there are slots.

    def check_before_build(self, expected: dict[str, Any]) -> None:
        """Raises an error if waiting numbers are not for what is about to be built."""
        if self._found is not None and "variables" in self._found:
            check_record(self._found, expected, new=True)
        self._found = None


class Guard(PythonState):
    """Saved as a string where other optimizers expect their step count, a number.

    Without it they take what happens to have the same name, the step count, and say
    nothing about the rest. TensorFlow refuses to read a string as a number.
    """

    def serialize(self) -> str:
        """What nobody reads."""
        return ""

    def deserialize(self, string_value: bytes) -> None:
        """Does nothing."""

    def _serialize_to_tensors(self) -> dict[str, Any]:
        (value,) = super()._serialize_to_tensors().values()
        return {"VARIABLE_VALUE": value}

    def _restore_from_tensors(self, restored_tensors: dict[str, Any]) -> None:
        pass


def check_child(name: str) -> None:
    """Raises an error if a checkpoint has a child that our optimizers do not have."""
    if name == NUMBERED:
        raise ValueError(
            "The checkpoint does not hold the state of an optimizer of svag_tf, but "
            "that of another. To restore the model's weights alone, restore them "
            "before the model is compiled."
        )
