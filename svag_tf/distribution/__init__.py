"""Training on many devices: loss scaling, and checks that replicas stay equal.

On TensorFlow the optimizers of svag_tf run under tf.distribute's `MirroredStrategy` and
`MultiWorkerMirroredStrategy`, on JAX under `keras.distribution`; see
docs/distribution.md. This package works with both:

- `check_replicas` and the callback `ReplicaCheck`: check that all replicas are bitwise
  equal.
- `LossScaleOptimizer`: Keras' dynamic loss scaling, corrected for several replicas.
- `local_state`, `set_local_state`: the averages that a majority vote keeps on each
  replica, for a checkpoint.
"""

from svag_tf.distribution.local_state import local_state, set_local_state
from svag_tf.distribution.loss_scaling import LossScaleOptimizer
from svag_tf.distribution.replica_check import (
    ReplicaCheck,
    ReplicasDifferError,
    check_replicas,
)

__all__ = [
    "LossScaleOptimizer",
    "ReplicaCheck",
    "ReplicasDifferError",
    "check_replicas",
    "local_state",
    "set_local_state",
]
