"""SVAS: stochastic variance-adapted sign descent."""

import keras
from keras import ops

from svag_tf import rules
from svag_tf.optimizers.sign_adapted import SignAdaptedOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class SVAS(SignAdaptedOptimizer):
    """SVAS: stochastic variance-adapted sign descent.

    Each element of the gradient's sign is damped by how likely it is to be right:
    for Gaussian noise gamma = 2 P[sign(g) is right] - 1 = erf(1/(sqrt(2) eta)) with
    the noise-to-signal ratio eta^2 = s/m^2.

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        m~ <- beta m~ + (1 - beta) g             v~ <- beta v~ + (1 - beta) g^2
        m  =  m~ / (1 - beta^t)                  v  =  v~ / (1 - beta^t)
        rho = (1 - beta)(1 + beta^t) / ((1 + beta)(1 - beta^t))
        s   = (v - m^2) / (1 - rho)
        gamma = erf(|m| / sqrt(2 s))             (adaptation="gaussian")
        gamma = (1 + s/m^2)^(-1/2)               (adaptation="adam")
        theta <- theta - learning_rate * gamma * sign(g)

    gamma is 1 at t = 1, and 0 where m = 0.

    Slots: `m_tilde` and `v_tilde`: lists with the m~ and the v~ of every variable.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable that
            takes no argument and returns the learning rate. Defaults to
            `0.001`: every weight moves by at most the learning rate in each step.
            Start with one that suits Adam.
        beta: Float in [0, 1), the decay of both averages. One beta serves both; that
            is what makes s unbiased. With 0 there is no averaging: gamma = 1.
            Defaults to `0.9`.
        adaptation: `"gaussian"`, the optimal factor for Gaussian noise, or `"adam"`,
            its approximation in Adam. Defaults to `"gaussian"`.
        {{keras_arguments}}

    Raises:
        ValueError: An argument is out of range, unknown `adaptation`.
        TypeError: An argument is of the wrong type, or unknown.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> theta = keras.Variable([1.0, 2.0])
    >>> optimizer = svag_tf.SVAS(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.153 3.   ]

    In training: `model.compile(optimizer=svag_tf.SVAS(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 3.3.
    """

    slots = ("m_tilde", "v_tilde")
    counts_updates = True

    def direction(self, g, m, v, factor):
        """Returns gamma * sign(g); see the class."""
        return self.gamma(*rules.signal_and_noise(m, v, factor)) * ops.sign(g)

    def noise_factor(self, t):
        """Returns 1 / (1 - rho), which makes v - m^2 s, the variance of g."""
        return rules.variance_factor(t, self.beta)
