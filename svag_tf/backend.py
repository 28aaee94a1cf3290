"""Checks Keras and its backend when svag_tf is imported."""

import contextlib
import difflib
import os
import warnings
from collections.abc import Callable, Collection
from importlib import metadata
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
_OLDEST_KERAS = (3, 10)
_OTHER_NAMES = {"pytorch": "torch", "tf": "tensorflow"}


class MissingError(ImportError):
    """Keras, or the backend that it is to use, is not installed."""


def check() -> None:
    """Imports Keras.

    Raises:
        MissingError: It cannot be imported.
        ImportError: It is too old, or set to use a backend that it does not have.

    Warns:
        UserWarning: tf.keras is set to be Keras 2.
    """
    with contextlib.suppress(metadata.PackageNotFoundError):
        # Before the import: Keras 2 with a newer TensorFlow may fail in many ways.
        _check_version(metadata.version("keras"))
    try:
        import keras
    except ImportError as error:
        raise MissingError(
            "svag_tf needs Keras 3 and one of its backends, and "
            f"`import keras` failed: {error}. Install a backend: "
            "`pip install tensorflow` (the default; or tensorflow-cpu), "
            "`pip install jax keras` and set KERAS_BACKEND=jax, or "
            "`pip install torch keras` and set KERAS_BACKEND=torch.",
            name=error.name,
        ) from error
    except ValueError as error:
        reason, _, name = str(error).rpartition(" : ")
        if reason != "Unable to import backend":
            raise
        raise ImportError(_unknown_backend(name)) from error
    _check_version(keras.__version__)
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    if legacy in ("1", "true", "True") and keras.backend.backend() == "tensorflow":
        warnings.warn(
            f"TF_USE_LEGACY_KERAS={legacy} makes tf.keras Keras 2, and the optimizers "
            "of svag_tf are for models of Keras 3. Make models with `import keras`, "
            "or unset TF_USE_LEGACY_KERAS before TensorFlow is imported.",
            stacklevel=3,
        )


def _check_version(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_KERAS:
        raise ImportError(
            f"svag_tf needs Keras {'.'.join(map(str, _OLDEST_KERAS))} or later. "
            f"Found: keras {version}. Run `pip install --upgrade keras`; with the "
            "TensorFlow backend `pip install --upgrade keras tensorflow`."
        )


def _unknown_backend(name: str) -> str:
    if os.environ.get("KERAS_BACKEND"):
        where = "KERAS_BACKEND"
    else:
        where = "`backend` in Keras' file keras.json"
    known = {**{backend: backend for backend in BACKENDS}, **_OTHER_NAMES}
    meant = difflib.get_close_matches(name.lower(), known, 1)
    return (
        f"svag_tf needs one of Keras' backends: {where} must be one of "
        f"{', '.join(BACKENDS)}. Received: {name}."
        + "".join(f" Did you mean {known[one]}?" for one in meant)
    )


def lacking(error: ImportError, names: Collection[str]) -> Callable[[str], Any]:
    """Returns the package's `__getattr__` for when Keras cannot be used.

    Args:
        error: The reason.
        names: The names that need Keras.
    """

    def __getattr__(name: str) -> Any:
        if name in names:
            raise ImportError(str(error), name=error.name) from error
        raise AttributeError(f"module 'svag_tf' has no attribute {name!r}")

    return __getattr__
