"""M-SVAG: stochastic variance-adapted gradient with momentum."""

import types

import keras
from keras import ops

from svag_tf import replicas, rules
from svag_tf.optimizers.arguments import check_choice
from svag_tf.optimizers.base import MomentOptimizer, saturating_cast
from svag_tf.optimizers.update import Scalars, run_rule


@keras.saving.register_keras_serializable(package="svag_tf")
class MSVAG(MomentOptimizer):
    """M-SVAG: stochastic variance-adapted gradient with momentum.

    Each element of the averaged gradient is damped by its own noise: rho s is the
    variance of m, and gamma = 1/(1 + eta^2) with the noise-to-signal ratio
    eta^2 = rho s/m^2 is the factor that brings m closest to the true gradient.

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        m~ <- beta m~ + (1 - beta) g             v~ <- beta v~ + (1 - beta) g^2
        m  =  m~ / (1 - beta^t)                  v  =  v~ / (1 - beta^t)
        rho = (1 - beta)(1 + beta^t) / ((1 + beta)(1 - beta^t))
        s   = (v - m^2) / (1 - rho)
        gamma = m^2 / (m^2 + rho s)              (1 at t = 1; 0 where m = 0)
        theta <- theta - learning_rate * gamma * m

    Slots: `m_tilde` and `v_tilde`: lists with the m~ and the v~ of every variable.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable that
            takes no argument and returns the learning rate. Defaults to
            `0.1`. One that suits Keras' or PyTorch's `SGD` with momentum has to be
            divided by 1 - momentum, as they sum gradients and this averages them: it
            is ten times as large for 0.9.
        beta: Float in [0, 1), the decay of both averages. One beta serves both; that
            is what makes s unbiased. With 0 there is no averaging: gamma = 1.
            Defaults to `0.9`.
        {{keras_arguments}}
        variance: `"time"` or `"replicas"`: how the noise is estimated on several
            replicas of tf.distribute. `"time"`: as s, from past mean gradients, as on
            one device. `"replicas"`: as the variance of that mean between replicas,
            c = sum_i (g_i - g)^2 / (n (n - 1)) for the gradients g_i of n replicas and
            their mean g, averaged with beta like g. It is unbiased even while the
            gradient changes, less noisy with more replicas, and valid from t = 1 on;
            but a step exchanges twice the bytes. Its average is the slot `c_tilde`,
            which replaces `v_tilde`. Needs at least two replicas and excludes
            clipping, accumulation, loss scaling and lazy updates. Defaults to
            `"time"`.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of the wrong type, or unknown.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> theta = keras.Variable([1.0, 2.0])
    >>> optimizer = svag_tf.MSVAG(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.3042 3.    ]

    In training: `model.compile(optimizer=svag_tf.MSVAG(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 4, algorithm 1.
    """

    slots = ("m_tilde", "v_tilde")
    counts_updates = True
    damping = "gradient"

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
        self._replica_variances = types.SimpleNamespace(variances={})
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
        if (
            self._uses_replica_variance
        ):  # Parts of different size have different variances.
            return loss
        return super().scale_loss(loss)

    def reduced(self, grads, variables):
        """Sums gradients; with `variance="replicas"`, also notes their variances."""
        mean = super().reduced(grads, variables)
        if not self._uses_replica_variance:
            return mean
        n = replicas.context().num_replicas_in_sync
        if n < 2:
            raise ValueError(_NEEDS_REPLICAS)
        # The loss of a replica is divided by their number: n g is its own gradient.
        squares = [
            None if g is None else ops.square(g * n - total) / (n * (n - 1))
            for g, total in zip(grads, mean)
        ]
        squares, payload = replicas.summed(squares)
        self.exchanged = payload._replace(bytes=2 * payload.bytes)
        for variable, square in zip(variables, squares):
            if square is not None:
                self._replica_variances.variances[id(replicas.local(variable))] = square
        return mean

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable and its slots, given its gradient."""
        if self._uses_replica_variance:
            across = self._replica_variances.variances.pop(id(variable), None)
            if across is None:
                raise ValueError(_NEEDS_REPLICAS)
            index = self._get_variable_index(variable)
            slots = [self.c_tilde[index]]
            run_rule(self, self._c_rule, "c", slots, across, learning_rate, index)
        super().update_step(gradient, variable, learning_rate)

    def _c_rule(self, across, scalars, c, dtype):
        scalars = Scalars(*ops.unstack(scalars))
        average = rules.moving_average(
            ops.cast(c, dtype),
            ops.cast(across, dtype),
            self.beta,
            (scalars.beta, scalars.one_minus_beta),
        )
        return [saturating_cast(average, c.dtype)]

    def new_averages(self, g, slots, betas=None):
        """Returns the slots' new values; c~ already has its new value."""
        if not self._uses_replica_variance:
            return super().new_averages(g, slots, betas)
        return [rules.moving_average(slots[0], g, self.beta, betas), slots[1]]

    def direction(self, g, m, v, factor):
        """Returns gamma * m; see the class."""
        if self._uses_replica_variance:
            noise = rules.signal_and_variance(m, v, factor)
        else:
            noise = rules.signal_and_noise(m, v, factor)
        return rules.gamma_gradient(*noise) * m

    def noise_factor(self, t):
        """Returns rho / (1 - rho), which makes v - m^2 rho s, or rho for c."""
        if self._uses_replica_variance:
            return rules.mean_variance_ratio(t, self.beta)
        return rules.mean_variance_factor(t, self.beta)

    def get_config(self):
        """Returns the arguments that make an equal optimizer, for `from_config`."""
        return {**super().get_config(), "variance": self.variance}


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
