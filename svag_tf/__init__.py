"""M-SVAG, SVAG and the sign methods of "Dissecting Adam" for Keras 3.

The seven optimizers of the grid of Balles & Hennig (ICML 2018):

| direction | plain  | variance-adapted |
| --------- | ------ | ---------------- |
| gradient  | `MSGD` | `SVAG`, `MSVAG`  |
| sign      | `SSD`, `MSSD` | `SVAS`, `MSVAS` |

Each is a `keras.optimizers.Optimizer`:

```python
model.compile(optimizer=svag_tf.MSVAG(learning_rate=0.1), loss="mse")
```

Importing this package tells Keras their names, so that `keras.models.load_model` finds
them, and `keras.optimizers.get("svag_tf>MSVAG")`.

`gradient_statistics` computes what they estimate: the exact gradient and its variance.
"""

import sys as _sys
import warnings as _warnings

from svag_tf import backend as _backend

__version__ = "0.2.0"

__all__ = [
    "MSGD",
    "MSSD",
    "MSVAG",
    "MSVAS",
    "SSD",
    "SVAG",
    "SVAS",
    "GradientStatistics",
    "OptimizerStateWarning",
    "__version__",
    "callbacks",
    "convert",
    "distribution",
    "export_trainable",
    "gradient_statistics",
    "keep_random_state",
    "native",
    "restore_latest",
    "restore_trained",
]

try:
    _backend.check()
except ImportError as _error:
    # `svag_tf.report` reads files and needs no Keras, and Python imports this package
    # before it. So this only warns, and using a missing name raises the error. With
    # `python -m svag_tf.report`, during whose import argv begins with "-m", no warning.
    if _sys.argv[:1] != ["-m"]:
        if not isinstance(_error, _backend.MissingError):
            raise
        _warnings.warn(str(_error), stacklevel=2)
    globals()["__getattr__"] = _backend.lacking(_error, __all__)
else:
    from svag_tf import callbacks, convert, distribution, native
    from svag_tf.noise.gradients import GradientStatistics, gradient_statistics
    from svag_tf.optimizers import MSGD, MSSD, MSVAG, MSVAS, SSD, SVAG, SVAS
    from svag_tf.saving.backup import restore_latest
    from svag_tf.saving.export import export_trainable, restore_trained
    from svag_tf.saving.mismatch import OptimizerStateWarning
    from svag_tf.saving.model_state import keep_random_state
