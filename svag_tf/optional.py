"""Packages that may be missing: each is imported when it is first used.

So every module of svag_tf can be imported without them, and using a missing one raises
an error that says how to install it.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING, Any

_EXPERIMENTS = (
    'pip install "svag-tf[experiments]" (in a clone: pip install ".[experiments]")'
)


class _Optional(ModuleType):
    """Stands for a package; the package is imported when an attribute is read."""

    def __init__(self, name: str, remedy: str = _EXPERIMENTS):
        super().__init__(name)
        self._remedy = remedy
        self._module: ModuleType | None = None

    def _load(self) -> ModuleType:
        if self._module is not None:
            return self._module
        name = self.__name__
        try:
            self._module = importlib.import_module(name)
            return self._module
        except ModuleNotFoundError as error:
            if error.name != name:  # Installed, but one of its own imports fails.
                raise
            raise ImportError(
                f"{name} is not installed. Remedy: {self._remedy}", name=name
            ) from error

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # inspect and doctest look for such names.
            raise AttributeError(attribute)
        module = self._load()
        try:
            return getattr(module, attribute)
        except AttributeError:
            submodule = f"{self.__name__}.{attribute}"
            if importlib.util.find_spec(submodule) is None:
                raise
            return importlib.import_module(submodule)


def require(*packages: ModuleType) -> None:
    """Raises an ImportError that names the remedy if a package is missing.

    For long work that would otherwise fail only at its end, when it draws plots.

    Args:
        packages: Packages of this module, such as `optional.matplotlib`.
    """
    for package in packages:
        package._load()


if TYPE_CHECKING:
    import filelock
    import jax
    import jax.numpy
    import matplotlib.axes
    import matplotlib.axis
    import matplotlib.figure
    import matplotlib.lines
    import matplotlib.patches
    import matplotlib.ticker
    import optax
    import optuna
    import platformdirs
    import plotly
    import pytorch_optimizer
    import scipy
    import scipy.stats
    import sqlalchemy
    import tensorflow
    import torch
else:
    filelock = _Optional("filelock")
    jax = _Optional("jax", "pip install jax")
    matplotlib = _Optional("matplotlib")
    optax = _Optional("optax", "pip install optax")
    optuna = _Optional("optuna")
    platformdirs = _Optional("platformdirs", "pip install platformdirs")
    plotly = _Optional("plotly", 'pip install "svag-tf[report]"')
    pytorch_optimizer = _Optional("pytorch_optimizer", "pip install pytorch_optimizer")
    scipy = _Optional("scipy")
    sqlalchemy = _Optional("sqlalchemy")
    tensorflow = _Optional("tensorflow", "pip install tensorflow (or tensorflow-cpu)")
    torch = _Optional("torch", "pip install torch")
