"""The noise of an averaged gradient, from past gradients or from several replicas."""

from keras import ops

from svag_tf import internals, replicas, rules
from svag_tf.optimizers.arguments import check_choice
from svag_tf.optimizers.base import MomentOptimizer
from svag_tf.optimizers.update import run_rule, saturating_cast, unpacked


class ReplicaVarianceOptimizer(MomentOptimizer):
    """Base class of M-SVAG: argument `variance`."""

    def __init__(
        self,
        learning_rate=0.1,
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
        variance="time",
    ):
        check_choice("variance", variance, ("time", "replicas"))
        if variance == "replicas":
            _refuse(
                clipnorm=clipnorm,
                clipvalue=clipvalue,
                global_clipnorm=global_clipnorm,
                loss_scale_factor=loss_scale_factor,
                gradient_accumulation_steps=gradient_accumulation_steps,
                sparse_updates=None if sparse_updates == "exact" else sparse_updates,
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
        self.variance = variance
        if self._uses_replica_variance:
            self.slots = ("m_tilde", "c_tilde")
            self.second_slot = "c_tilde"

    @property
    def _uses_replica_variance(self):
        return self.variance == "replicas"

    def _takes_sparse_gradients(self):
        return super()._takes_sparse_gradients() and not self._uses_replica_variance

    def scale_loss(self, loss):
        """Returns the loss whose gradients `apply` is given; see the base class."""
        # Parts of a batch of different sizes have different variances.
        return loss if self._uses_replica_variance else super().scale_loss(loss)

    def _exchange(self, grads):
        if not self._uses_replica_variance:
            return super()._exchange(grads)
        if replicas.context().num_replicas_in_sync < 2:
            raise ValueError(_NEEDS_REPLICAS)
        return replicas.mean_and_variance(grads)

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its slots, given its gradient.

        Args:
            gradient: As in the base class; with `variance="replicas"` a
                `MeanAndVariance`.
            variable: As in the base class.
            learning_rate: As in the base class.
        """
        if self._uses_replica_variance:
            if not isinstance(gradient, replicas.MeanAndVariance):
                raise ValueError(_NEEDS_REPLICAS)
            gradient, variance = gradient
            index = internals.variable_index(self, variable)
            slots = [self.c_tilde[index]]
            run_rule(self, self._c_rule, "c", slots, variance, learning_rate, index)
        super().update_step(gradient, variable, learning_rate)

    def _c_rule(self, variance, scalars, c, dtype):
        scalars = unpacked(self, scalars, dtype)
        average = rules.moving_average(
            ops.cast(c, dtype),
            ops.cast(variance, dtype),
            self.beta,
            (scalars.beta, scalars.one_minus_beta),
        )
        return [saturating_cast(average, c.dtype)]

    def new_averages(self, g, slots, betas=None):
        """Returns the slots' new values; c~ already has its new value."""
        if not self._uses_replica_variance:
            return super().new_averages(g, slots, betas)
        return [rules.moving_average(slots[0], g, self.beta, betas), slots[1]]

    def signal_and_noise(self, m, v, factor):
        """Returns m^2 and the variance of m, scaled alike, from v or from c."""
        if self._uses_replica_variance:
            return rules.signal_and_variance(m, v, factor)
        return rules.signal_and_noise(m, v, factor)


_NEEDS_REPLICAS = (
    'variance="replicas" needs the gradients of at least two replicas: the strategy '
    'MirroredStrategy or MultiWorkerMirroredStrategy of tf.distribute. Use "time", or '
    "make the model and the optimizer in the strategy's scope."
)


def _refuse(**arguments):
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f'Argument `{name}` cannot be used with variance="replicas", which '
                f"measures the variance of unmodified gradients. Received: "
                f"{name}={value!r}"
            )
