"""TensorFlow: optimizers on the replicas of a tf.distribute strategy.

Under `MirroredStrategy` and `MultiWorkerMirroredStrategy` every replica has a copy of
every variable and its own gradient, that of its part of the batch. Gradients are
summed over the replicas before anything else is done with them: clipping,
accumulation, averages and the update itself then see the gradient of the whole batch,
and every replica makes the same update to its own copy. After the sum the replicas do
not need one another, so the update may be inside a `tf.cond`.
"""

from svag_tf.replicas.exchange import (
    MeanAndVariance,
    Payload,
    majority,
    mean_and_variance,
    summed,
    vote_digits,
)
from svag_tf.replicas.keras_fit import patch_keras_fit
from svag_tf.replicas.strategy import (
    check_mirrored,
    check_strategy,
    context,
    eager_variables,
    local,
    mirrored_scope,
)

__all__ = [
    "MeanAndVariance",
    "Payload",
    "check_mirrored",
    "check_strategy",
    "context",
    "eager_variables",
    "local",
    "majority",
    "mean_and_variance",
    "mirrored_scope",
    "patch_keras_fit",
    "summed",
    "vote_digits",
]
