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

`gradient_statistics` computes what they estimate: the exact gradient and its variance.
"""

__version__ = "0.1.0"

_OLDEST_KERAS = (3, 10)

try:
    import keras as _keras
except ImportError as _error:
    if (_error.name or "").partition(".")[0] not in (
        "keras",
        "tensorflow",
        "jax",
        "torch",
    ):
        raise
    raise ImportError(
        "svag_tf needs Keras 3 and one of its backends, and "
        f"`import keras` failed: {_error}. Install a backend: "
        "`pip install tensorflow` (the default; or tensorflow-cpu), "
        "`pip install jax keras` and set KERAS_BACKEND=jax, or "
        "`pip install torch keras` and set KERAS_BACKEND=torch.",
        name=_error.name,
    ) from _error

if tuple(int(part) for part in _keras.__version__.split(".")[:2]) < _OLDEST_KERAS:
    raise ImportError(
        f"svag_tf needs Keras {'.'.join(map(str, _OLDEST_KERAS))} or later. "
        f"Found: keras {_keras.__version__}. Run `pip install --upgrade keras`."
    )


from svag_tf import callbacks, convert, distribution  # noqa: E402
from svag_tf.export import export_trainable, restore_trained  # noqa: E402
from svag_tf.gradients import GradientStatistics, gradient_statistics  # noqa: E402
from svag_tf.optimizer_state import OptimizerStateWarning  # noqa: E402
from svag_tf.optimizers import MSGD, MSSD, MSVAG, MSVAS, SSD, SVAG, SVAS  # noqa: E402
from svag_tf.saved_state import keep_random_state, restore_latest  # noqa: E402

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
    "restore_latest",
    "restore_trained",
]
