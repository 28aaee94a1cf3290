"""Sign descent on many workers: the choice that SSD and M-SSD share."""

import functools

import keras
from keras import ops

from svag_tf import internals, replicas
from svag_tf.optimizers.arguments import check_choice
from svag_tf.optimizers.base import MomentOptimizer
from svag_tf.optimizers.update import (
    decays,
    note_update,
    run_rule,
    slots_rule,
    theta_rule,
)
from svag_tf.replicas import uneven_batches


class SignDescentOptimizer(MomentOptimizer):
    """Base class of the plain sign methods: argument `aggregation`."""

    def __init__(
        self,
        learning_rate=0.001,
        beta=0.9,
        state_dtype=None,
        jit_compile="auto",
        sparse_updates="exact",
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name=None,
        aggregation="mean",
    ):
        check_choice("aggregation", aggregation, ("mean", "majority_vote"))
        if aggregation == "majority_vote" and gradient_accumulation_steps:
            raise ValueError(
                "Argument `gradient_accumulation_steps` must be None with "
                'aggregation="majority_vote": replicas exchange votes, and there is no '
                "common gradient to accumulate. Use a larger batch. Received: "
                f"gradient_accumulation_steps={gradient_accumulation_steps!r}"
            )
        super().__init__(
            learning_rate=learning_rate,
            beta=beta,
            state_dtype=state_dtype,
            jit_compile=jit_compile,
            sparse_updates=sparse_updates,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.aggregation = aggregation

    @property
    def _votes(self):
        return self.aggregation == "majority_vote"

    @property
    def local_variables(self):
        """The slots that differ between replicas: m~ under a majority vote."""
        return tuple(self.m_tilde) if self._votes else ()

    def build(self, variables):
        """Creates the slots, all zero.

        Args:
            variables: List of the model's trainable variables.
        """
        distribution = keras.distribution.distribution()
        devices = getattr(distribution, "device_mesh", None)
        if self._votes and devices is not None and devices.devices.size > 1:
            raise ValueError(
                'aggregation="majority_vote" needs the gradient of each replica, which '
                "tf.distribute provides and keras.distribution does not. Use the "
                'TensorFlow backend, or aggregation="mean".'
            )
        super().build(variables)

    def _takes_sparse_gradients(self):
        return super()._takes_sparse_gradients() and not self._votes

    def reduced(self, grads, variables):
        """Returns the replica's own gradients, if it is a majority vote."""
        if not self._votes:
            return super().reduced(grads, variables)
        self._check_replicas(variables)
        # Keras divides the loss of each of n replicas by n, so that the gradients sum
        # up to their mean. A single one has to be multiplied by n again.
        n = replicas.context().num_replicas_in_sync
        grads = uneven_batches.zero_if_empty(grads)
        return [None if g is None else g * ops.cast(n, g.dtype) for g in grads]

    def _update_replica(self, grads, variables, learning_rate):
        if not self._votes:
            super()._update_replica(grads, variables, learning_rate)
            return
        ballots = [
            self._ballot(g, replicas.local(v), learning_rate)
            for g, v in zip(grads, variables)
        ]
        votes, self.payload = replicas.majority(ballots)
        for vote, variable in zip(votes, variables):
            index = internals.variable_index(self, variable)
            variable = replicas.local(variable)
            rule = functools.partial(self._vote_rule, decays=decays(self, variable))
            run_rule(self, rule, "vote", [variable], vote, learning_rate, index)
            note_update(self, index)

    def _ballot(self, gradient, variable, learning_rate):
        """Returns the tensor whose sign is this replica's vote: g, or its own m~."""
        if not self.slots:
            return gradient
        index = internals.variable_index(self, variable)
        slots = [getattr(self, name)[index] for name in self.slots]
        stored = [variable, *slots]
        rule = functools.partial(slots_rule, self)
        run_rule(self, rule, "slots", stored, gradient, learning_rate, index)
        return ops.convert_to_tensor(replicas.local(slots[0]))

    def _vote_rule(self, vote, scalars, theta, dtype, decays):
        """Returns the variable's new value, with the vote in place of g and m."""
        slots = [vote] * len(self.slots)
        return theta_rule(
            self, vote, scalars, theta, *slots, dtype=dtype, decays=decays
        )[:1]
