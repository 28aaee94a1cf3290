"""M-SSD: stochastic sign descent with momentum."""

import keras
from keras import ops

from svag_tf.optimizers.sign_descent import SignDescentOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class MSSD(SignDescentOptimizer):
    """M-SSD: stochastic sign descent with momentum.

    Every weight moves by exactly the learning rate, against the sign of its averaged
    gradient. (Signum, in Bernstein et al., ICML 2018.)

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        m~ <- beta m~ + (1 - beta) g
        theta <- theta - learning_rate * sign(m~)

    Slots: `m_tilde`: list with the m~ of every variable. `v_tilde` is empty.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable that
            takes no argument and returns the learning rate. Defaults to
            `0.001`: every weight moves by the whole learning rate in each step.
            Start with a quarter of one that suits Adam: Adam's steps are shorter where
            gradients are noisy.
        beta: Float in [0, 1), the decay of the average m~. Defaults to `0.9`.
        {{keras_arguments}}
        aggregation: `"mean"` or `"majority_vote"`: what several replicas of
            tf.distribute do with their gradients. `"mean"`: one step along the sign of
            the averaged mean gradient. `"majority_vote"` (signSGD): each replica sends
            only the sign of its own average m~, packed to a few bits, and the step is
            along the sign of the sum of these votes. A vote is 0 where its value is 0,
            and where the votes are tied the step is 0. Each replica keeps the average
            of its own gradients (Signum); `m_tilde` and what is saved are the first
            replica's, see `svag_tf.distribution.local_state`. Clipping applies to each
            replica's own gradient. A value that is not finite, on any replica, makes
            the variable NaN. With one replica both are the same. Defaults to `"mean"`.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of the wrong type, or unknown.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> theta = keras.Variable([1.0, 2.0])
    >>> optimizer = svag_tf.MSSD(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0. 3.]

    In training: `model.compile(optimizer=svag_tf.MSSD(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 1.2.

        J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD:
        Compressed Optimisation for Non-Convex Problems", ICML 2018 (the majority vote).
    """

    slots = ("m_tilde",)

    def direction(self, g, m, v, factor):
        """Returns sign(m); see the class."""
        return ops.sign(m)
