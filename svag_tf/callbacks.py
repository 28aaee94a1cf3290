"""Callbacks for `fit`.

- `GradientNoise`: how noisy the gradients are, how strongly steps are damped.
- `BackupAndRestore`: a training goes on where it was interrupted, whatever fails.
"""

from svag_tf.noise.callback import GradientNoise
from svag_tf.saving.backup import BackupAndRestore

__all__ = ["BackupAndRestore", "GradientNoise"]
