"""SVAG: stochastic variance-adapted gradient."""

import keras

from svag_tf import rules
from svag_tf.optimizers.base import MomentOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class SVAG(MomentOptimizer):
    """SVAG: stochastic variance-adapted gradient.

    Each element of the gradient is damped by its own noise: gamma = 1/(1 + eta^2)
    with the noise-to-signal ratio eta^2 = s/m^2 is the factor that brings the
    stochastic gradient closest to the true one.

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        m~ <- beta m~ + (1 - beta) g             v~ <- beta v~ + (1 - beta) g^2
        m  =  m~ / (1 - beta^t)                  v  =  v~ / (1 - beta^t)
        rho = (1 - beta)(1 + beta^t) / ((1 + beta)(1 - beta^t))
        s   = (v - m^2) / (1 - rho)
        gamma = m^2 / (m^2 + s)                  (1 at t = 1; 0 where m = 0)
        theta <- theta - learning_rate * gamma * g

    Slots: `m_tilde` and `v_tilde`: lists with the m~ and the v~ of every variable.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable that
            takes no argument and returns the learning rate. Defaults to
            `0.1`. Start with one that suits plain SGD, which is that of Keras' or
            PyTorch's `SGD` with momentum divided by 1 - momentum, and try larger ones.
        beta: Float in [0, 1), the decay of both averages. One beta serves both; that
            is what makes s unbiased. With 0 there is no averaging: gamma = 1.
            Defaults to `0.9`.
        {{keras_arguments}}

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of the wrong type, or unknown.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> theta = keras.Variable([1.0, 2.0])
    >>> optimizer = svag_tf.SVAG(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.4488 3.    ]

    In training: `model.compile(optimizer=svag_tf.SVAG(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 3.2.
    """

    slots = ("m_tilde", "v_tilde")
    counts_updates = True
    gamma = staticmethod(rules.gamma_gradient)
    damping = "sampled"

    def direction(self, g, m, v, factor):
        """Returns gamma * g; see the class."""
        return self.gamma(*rules.signal_and_noise(m, v, factor)) * g

    def noise_factor(self, t):
        """Returns 1 / (1 - rho), which makes v - m^2 s, the variance of g."""
        return rules.variance_factor(t, self.beta)
