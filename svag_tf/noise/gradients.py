"""Exact gradients and their exact element-wise variance, from per-example gradients."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from svag_tf.noise.examples import (
    batches_of,
    check_model,
    checked_loss,
    chunk_size,
    parts_of,
)
from svag_tf.noise.per_example import Computation


@dataclasses.dataclass(frozen=True)
class GradientStatistics:
    """Mean and variance of the gradients of single examples.

    Attributes:
        names: Path of every trainable variable.
        gradient: For every variable, the gradient of the mean loss over all examples,
            a float64 array of the variable's shape.
        variance: For every variable, the element-wise variance over the examples of
            the gradient of one example's loss: a mean of squares, divided by the number
            of examples. Likewise float64.
        loss: Mean loss over all examples, regularisation included.
        examples: Number of examples.
    """

    names: tuple[str, ...]
    gradient: tuple[np.ndarray, ...]
    variance: tuple[np.ndarray, ...]
    loss: float
    examples: int

    def mini_batch_variance(self, batch_size, replacement=False):
        """Returns the element-wise variance of a random mini-batch's gradient.

        Equation, with the variance V of n single examples: V / b for b examples drawn
        with replacement, and V / b * (n - b) / (n - 1) for b different ones, which is
        what a batch of a shuffled epoch holds.

        Args:
            batch_size: Integer in [1, n], or >= 1 with replacement: b.
            replacement: Whether an example can be drawn twice. Defaults to `False`.

        Returns:
            A tuple of float64 arrays, one for every variable, of its shape.

        Raises:
            ValueError: `batch_size` is out of range.
        """
        n, b = self.examples, batch_size
        if not 1 <= b <= (math.inf if replacement else n):
            raise ValueError(
                f"Argument `batch_size` must be in [1, {n}], the number of examples, "
                f"or >= 1 with replacement=True. Received: batch_size={batch_size!r}"
            )
        share = 1.0 if replacement else (n - b) / max(n - 1, 1)
        return tuple(variance * (share / b) for variance in self.variance)

    @property
    def simple_noise_scale(self):
        """Returns the sum of variances over the gradient's squared norm, a float.

        The batch size at which noise and signal are equal (McCandlish et al. 2018,
        "An Empirical Model of Large-Batch Training", section 2.2: B_simple).
        """
        noise = sum(float(v.sum()) for v in self.variance)
        signal = sum(float(np.square(g).sum()) for g in self.gradient)
        return noise / signal if signal else math.inf


def gradient_statistics(
    model, loss, data, training=False, memory=2**30, vectorized="auto", verbose=True
):
    """Computes the exact full-batch gradient and its exact element-wise variance.

    Equation, with the gradients g_1, ..., g_n of the n examples' losses:

        gradient = (g_1 + ... + g_n) / n
        variance = ((g_1 - gradient)^2 + ... + (g_n - gradient)^2) / n

    The gradients of a chunk of examples are computed at once but separately, in the
    model's own precision, and added up in float64: memory does not grow with the number
    of examples. The two averages of `svag_tf.MSVAG` estimate these values while it
    trains: m the gradient, and s the variance of a mini-batch's gradient,
    `mini_batch_variance(batch_size)` of the result.

    Each example must have a loss of its own. In training mode this rules out
    `BatchNormalization`, whose output depends on the other examples, and dropout, whose
    output is random. In inference mode they are fine.

    Args:
        model: Built `keras.Model`, on any backend.
        loss: A `keras.losses.Loss`, its name, or a function of the labels and the
            model's output. `None` takes the one that the model was compiled with.
            All values that it returns for an example are averaged; losses that layers
            add, such as weight decay, are included.
        data: A tuple `(x, y)` or `(x, y, sample_weight)` of arrays with the examples
            along their first axis (x and y may be dicts or lists of such arrays); or
            a `keras.utils.PyDataset`, a `tf.data.Dataset` or another iterable of such
            tuples, which are batches: each example once.
        training: Whether layers run in training mode. Defaults to `False`.
        memory: Integer, bytes that the gradients of a chunk may take. The model, its
            activations for at most 256 examples, and the sums (16 bytes a parameter,
            twice) come on top. Defaults to `2**30`.
        vectorized: `"auto"`, `True` or `False`: whether the gradients of a chunk are
            computed in one vectorised pass or in a loop. `"auto"` falls back to the
            loop, with a warning, if the backend cannot vectorise the model. Defaults to
            `"auto"`.
        verbose: Whether to show a progress bar. Defaults to `True`.

    Returns:
        A `GradientStatistics`: `names`, `gradient`, `variance`, `loss`, `examples`.

    Raises:
        ValueError: An argument is out of range, there are no examples, or the loss of
            a batch is not the mean of the losses of its examples.
        TypeError: An argument is of the wrong type.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import svag_tf
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.array([[1.0]]), np.array([0.0])])
    >>> x, y = np.array([[1.0], [3.0]]), np.array([[0.0], [0.0]])
    >>> result = svag_tf.gradient_statistics(model, "mse", (x, y), verbose=False)
    >>> print(result.gradient[0], result.variance[0])  # of the losses x^2 theta^2
    [[10.]] [[64.]]

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, section 1.1: the gradient and the variance
        that section 3.3 estimates.
    """
    loss_of = checked_loss(model, loss)
    check_model(model, training)
    if vectorized not in ("auto", True, False):
        raise ValueError(
            "Argument `vectorized` must be 'auto', True or False. "
            f"Received: vectorized={vectorized!r}"
        )
    chunk = chunk_size(model, memory)
    batches, total, unit = batches_of(data)
    compute = Computation(model, loss_of, bool(training), vectorized)
    bar = keras.utils.Progbar(total, unit_name=unit) if verbose else None
    examples, loss_sum, moments = 0, 0.0, None
    for i, batch in enumerate(batches):
        for part in parts_of(batch, chunk):
            if moments is None:
                compute.check(part)
                moments = compute.zeros()
            gradients, losses = compute.gradients(part)
            moments = compute.merge(moments, gradients, float(examples))
            examples += len(losses)
            loss_sum += float(losses.sum())
            if bar is not None and unit == "example":
                bar.update(examples)
        if bar is not None and unit == "batch":
            bar.update(i + 1)
    if moments is None:
        raise ValueError("Argument `data` must hold at least one example.")
    if bar is not None and total is None:
        bar.update(i + 1, finalize=True)
    means, squares = ([ops.convert_to_numpy(v) for v in part] for part in moments)
    return GradientStatistics(
        tuple(v.path for v in model.trainable_variables),
        tuple(means),
        tuple(np.maximum(s, 0.0) / examples for s in squares),
        loss_sum / examples,
        examples,
    )
