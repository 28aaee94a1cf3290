"""M-SVAS: stochastic variance-adapted sign descent with momentum."""

import keras
from keras import ops

from svag_tf import rules
from svag_tf.optimizers.sign_adapted import SignAdaptedOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class MSVAS(SignAdaptedOptimizer):
    """M-SVAS: stochastic variance-adapted sign descent with momentum.

    Each element of the averaged gradient's sign is damped by how likely it is to be
    right: rho s is the variance of m, and for Gaussian noise
    gamma = 2 P[sign(m) is right] - 1 = erf(1/(sqrt(2) eta)) with eta^2 = rho s/m^2.
    Adam's own factor is another approximation of it.

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        m~ <- beta m~ + (1 - beta) g             v~ <- beta v~ + (1 - beta) g^2
        m  =  m~ / (1 - beta^t)                  v  =  v~ / (1 - beta^t)
        rho = (1 - beta)(1 + beta^t) / ((1 + beta)(1 - beta^t))
        s   = (v - m^2) / (1 - rho)
        gamma = erf(|m| / sqrt(2 rho s))         (adaptation="gaussian")
        gamma = (1 + (v - m^2)/m^2)^(-1/2)       (adaptation="adam")
        theta <- theta - learning_rate * gamma * sign(m)

    gamma is 1 at t = 1, and 0 where m = 0. With `adaptation="adam"` the update is
    m/sqrt(v): Adam with beta_1 = beta_2 = beta and epsilon = 0.

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
    >>> optimizer = svag_tf.MSVAS(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.0742 3.    ]

    In training: `model.compile(optimizer=svag_tf.MSVAS(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, sections 2 and 3.3.
    """

    slots = ("m_tilde", "v_tilde")
    counts_updates = True

    def direction(self, g, m, v, factor):
        """Returns gamma * sign(m); see the class."""
        gamma = self.gamma(*rules.signal_and_noise(m, v, factor))
        # After a long run of zero gradients v~ underflows before m~ does: an old
        # gradient has faded out, which does not mean that it had no noise.
        forgotten = ops.logical_and(v == 0.0, g == 0.0)
        return ops.where(forgotten, ops.zeros_like(m), gamma * ops.sign(m))

    def noise_factor(self, t):
        """Returns rho / (1 - rho), which makes v - m^2 rho s, or 1 with "adam"."""
        if self.adaptation == "adam":
            return rules.has_history(t, self.beta)
        return rules.mean_variance_factor(t, self.beta)
