"""An optimizer on several replicas: their gradients are summed before anything else."""

from __future__ import annotations

from typing import Any

import keras

from svag_tf import internals, replicas
from svag_tf.replicas import uneven_batches
from svag_tf.saving.restorable import RestorableOptimizer

_ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def is_replicated() -> bool:
    """Returns whether this runs on a replica of a tf.distribute strategy."""
    return _ON_TENSORFLOW and replicas.context() is not None


def local(variable: Any) -> Any:
    """Returns this replica's copy of a variable."""
    return replicas.local(variable) if _ON_TENSORFLOW else variable


class ReplicatedOptimizer(RestorableOptimizer):
    """Base class: sums gradients over replicas and updates each replica's copies."""

    # What the last update sent to other replicas; variables that differ between them.
    payload: Any = None
    local_variables: Any = ()
    # Whether Keras' own LossScaleOptimizer wraps it.
    scaled_by_keras = False

    def __init__(self, **kwargs):
        if _ON_TENSORFLOW and replicas.mirrored_scope(2):
            replicas.patch_keras_fit()
        super().__init__(**kwargs)

    def __setattr__(self, name, value):
        # A LossScaleOptimizer resets it in the optimizer that it wraps.
        if name == "loss_scale_factor" and value is None and hasattr(self, name):
            self.scaled_by_keras = True
        super().__setattr__(name, value)

    def scale_loss(self, loss):
        """Returns the loss whose gradients `apply` is given; `fit` calls this.

        Args:
            loss: Scalar tensor. On one of several replicas, the loss of its part of the
                batch, which `fit` weights by the size of that part.
        """
        if _ON_TENSORFLOW:
            loss = uneven_batches.weighted_loss(loss)
        return super().scale_loss(loss)

    def reduced(self, grads, variables):
        """Returns the gradients summed over the replicas, for a replica's update.

        Args:
            grads: List of this replica's gradients, or `None`.
            variables: List of the variables that they belong to.
        """
        self._check_replicas(variables)
        # The "gradient" of a variable to be overwritten is its new value.
        own = [getattr(v, "overwrite_with_gradient", False) for v in variables]
        given = [
            None if o else g for g, o in zip(uneven_batches.zero_if_empty(grads), own)
        ]
        if all(g is None for g in given):
            return grads  # Keras warns about it, or raises an error.
        reduced, self.payload = self._exchange(given)
        return [g if o else r for g, o, r in zip(grads, own, reduced)]

    def _exchange(self, grads):
        """Returns what `update_step` takes as gradients, and the `Payload`."""
        return replicas.summed(grads)

    def _check_replicas(self, variables):
        replicas.check_mirrored([internals.step_count(self), *variables])
        if self.scaled_by_keras:
            raise ValueError(
                "keras.optimizers.LossScaleOptimizer looks for infinite gradients on "
                "the first replica only, and misses those of others. Compile with "
                "svag_tf.distribution.LossScaleOptimizer(optimizer), which looks at "
                "all; with a mixed_float16 policy, `compile` adds Keras' own."
            )

    def _update_replica(self, grads, variables, learning_rate):
        """Updates this replica's copies of the variables."""
        for gradient, variable in zip(grads, variables):
            self.update_step(gradient, replicas.local(variable), learning_rate)

    def accumulate_gradients(self, grads, accumulated):
        """Adds gradients to the variables that accumulate them."""
        if not is_replicated():
            super().accumulate_gradients(grads, accumulated)
            return
        for gradient, variable in zip(grads, accumulated):
            replicas.local(variable).assign_add(gradient)
