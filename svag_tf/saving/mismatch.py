"""Reports state that is not restored: with a warning, or an error when resuming."""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator

_all_or_error = contextvars.ContextVar("all_or_error", default=False)


class OptimizerStateWarning(UserWarning):
    """Warns that an optimizer's saved state was not restored, or only in part.

    The message says what was restored, what starts afresh, and why. A warning filter
    can turn it into an error; the optimizer is then unchanged.

    Example:

    >>> import warnings
    >>> import svag_tf
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", svag_tf.OptimizerStateWarning)
    ...     # model.load_weights("pretrained.weights.h5")
    """


def resuming() -> bool:
    """Returns whether this is called within `all_or_error`."""
    return _all_or_error.get()


@contextlib.contextmanager
def all_or_error() -> Iterator[None]:
    """Raises a `ValueError` if any state in its body is not restored completely."""
    token = _all_or_error.set(True)
    try:
        yield
    finally:
        _all_or_error.reset(token)


def tell(message: str) -> None:
    """Warns of a mismatch; raises a `ValueError` within `all_or_error`."""
    if resuming():
        raise ValueError(
            f"{message} To resume from part of it, load the model's weights or "
            "restore a tf.train.Checkpoint without assert_consumed()."
        )
    warnings.warn(message, OptimizerStateWarning, stacklevel=3)
