"""SSD: stochastic sign descent."""

import keras
from keras import ops

from svag_tf.optimizers.sign_descent import SignDescentOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class SSD(SignDescentOptimizer):
    """SSD: stochastic sign descent.

    Every weight moves by exactly the learning rate, against the sign of its
    gradient; where the gradient is 0 it stays.

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        theta <- theta - learning_rate * sign(g)

    Slots: none; `m_tilde` and `v_tilde` are empty.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable that
            takes no argument and returns the learning rate. Defaults to
            `0.001`: every weight moves by the whole learning rate in each step.
            Start with a quarter of one that suits Adam: Adam's steps are shorter where
            gradients are noisy.
        beta: Float in [0, 1). Has no effect, as SSD averages nothing; it exists so that
            all methods can be given one. Defaults to `0.9`.
        {{keras_arguments}}
        aggregation: `"mean"` or `"majority_vote"`: what several replicas of
            tf.distribute do with their gradients. `"mean"`: one step along the sign of
            the mean gradient. `"majority_vote"` (signSGD): each replica sends only the
            sign of its own gradient, packed to a few bits, and the step is along the
            sign of the sum of these votes. A vote is 0 where its value is 0, and where
            the votes are tied the step is 0. Clipping applies to each replica's own
            gradient. A value that is not finite, on any replica, makes the variable
            NaN. With one replica both are the same. Defaults to `"mean"`.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of the wrong type, or unknown.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> theta = keras.Variable([1.0, 2.0])
    >>> optimizer = svag_tf.SSD(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0. 3.]

    In training: `model.compile(optimizer=svag_tf.SSD(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 1.2.

        J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD:
        Compressed Optimisation for Non-Convex Problems", ICML 2018 (the majority vote).
    """

    def direction(self, g, m, v, factor):
        """Returns sign(g); see the class."""
        return ops.sign(g)
