"""Callbacks for `fit`.

- `GradientNoise`: how noisy the gradients are, how strongly steps are damped.
- `BackupAndRestore`: training resumes where it was interrupted, whatever failed.
"""

from svag_tf.noise.callback import GradientNoise
from svag_tf.saving.backup import BackupAndRestore

__all__ = ["BackupAndRestore", "GradientNoise"]
