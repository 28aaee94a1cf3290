"""M-SGD: descent along the averaged gradient."""

import keras

from svag_tf.optimizers.base import MomentOptimizer


@keras.saving.register_keras_serializable(package="svag_tf")
class MSGD(MomentOptimizer):
    """M-SGD: descent along the averaged gradient.

    The gradient's exponential moving average, corrected for its start at zero. This
    is SGD with momentum, in the normalisation in which the learning rate keeps its
    meaning: Keras' `SGD(learning_rate * (1 - beta), momentum=beta)` moves the same
    way once the average has warmed up. With `beta=0` it is plain SGD.

    Equation, element-wise, for the updates t = 1, 2, 3, ... made to a variable theta
    with gradient g:

        m~ <- beta m~ + (1 - beta) g
        m  =  m~ / (1 - beta^t)
        theta <- theta - learning_rate * m

    Slots: `m_tilde`: list with the m~ of every variable. `v_tilde` is empty.

    Args:
        learning_rate: Float >= 0, a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable that
            takes no argument and returns the learning rate. Defaults to
            `0.1`. One that suits Keras' or PyTorch's `SGD` with momentum has to be
            divided by 1 - momentum, as they sum gradients and this averages them: it
            is ten times as large for 0.9.
        beta: Float in [0, 1), the decay of the average m~. Defaults to `0.9`.
        {{keras_arguments}}

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument is of the wrong type, or unknown.

    Example:

    >>> import keras
    >>> import svag_tf
    >>> theta = keras.Variable([1.0, 2.0])
    >>> optimizer = svag_tf.MSGD(learning_rate=0.5)
    >>> optimizer.apply([keras.ops.array([1.0, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.5 2.5]
    >>> optimizer.apply([keras.ops.array([0.2, -1.0])], [theta])
    >>> print(theta.numpy().round(4))
    [0.2105 3.    ]

    In training: `model.compile(optimizer=svag_tf.MSGD(), loss="mse")`.

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 1.2.
    """

    slots = ("m_tilde",)
    counts_updates = True

    def direction(self, g, m, v, factor):
        """Returns m; see the class."""
        return m
