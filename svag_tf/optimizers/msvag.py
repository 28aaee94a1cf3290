"""M-SVAG: stochastic variance-adapted gradient with momentum."""

import keras

from svag_tf import rules
from svag_tf.optimizers.replica_variance import ReplicaVarianceOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class MSVAG(ReplicaVarianceOptimizer):
    """M-SVAG: stochastic variance-adapted gradient with momentum.

    Each element of the averaged gradient is damped by its own noise: rho s is the
    variance of m, and gamma = 1/(1 + eta^2), with the noise-to-signal ratio
    eta^2 = rho s/m^2, is the factor that brings m closest to the true gradient.

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
    gamma = staticmethod(rules.gamma_gradient)
    damping = "gradient"

    def direction(self, g, m, v, factor):
        """Returns gamma * m; see the class."""
        return self.gamma(*self.signal_and_noise(m, v, factor)) * m

    def noise_factor(self, t):
        """Returns rho / (1 - rho), which makes v - m^2 rho s, or rho for c."""
        if self._uses_replica_variance:
            return rules.mean_variance_ratio(t, self.beta)
        return rules.mean_variance_factor(t, self.beta)
