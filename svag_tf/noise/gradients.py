"""Exact gradients and their exact element-wise variance, from per-example gradients."""

import contextlib
import dataclasses
import functools
import importlib
import math
import warnings

import keras
import ml_dtypes
import numpy as np
from keras import ops, tree

LARGEST_CHUNK = 256  # examples whose activations are in memory at a time
# Besides each element of an example's gradient: float64 copies of it, of its difference
# from the mean and of that squared.
_FLOAT64_COPIES = 3


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
    loss_of = _checked_loss(model, loss)
    _check_model(model, training)
    if vectorized not in ("auto", True, False):
        raise ValueError(
            "Argument `vectorized` must be 'auto', True or False. "
            f"Received: vectorized={vectorized!r}"
        )
    chunk = _chunk_size(model, memory)
    batches, total, unit = _batches(data)
    compute = _Computation(model, loss_of, bool(training), vectorized)
    bar = keras.utils.Progbar(total, unit_name=unit) if verbose else None
    examples, loss_sum, moments = 0, 0.0, None
    for i, batch in enumerate(batches):
        for part in _parts(batch, chunk):
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


class _Computation:
    """Computes per-example gradients and their sums, on any backend."""

    def __init__(self, model, loss_of, training, vectorized):
        self._model, self._loss_of, self._training = model, loss_of, training
        self._vectorized = vectorized
        self._backend = keras.backend.backend()
        if self._backend not in ("tensorflow", "jax", "torch"):
            raise ValueError(
                "Keras' backend must be tensorflow, jax or torch. "
                f"Received: {self._backend}"
            )
        self._compiled = {}
        self._add = compiled(_add)

    def zeros(self):
        """Returns means and sums of squared differences before the first example."""
        with self._float64():
            return [
                [ops.zeros(v.shape, "float64") for v in self._model.trainable_variables]
                for _ in range(2)
            ]

    def merge(self, moments, gradients, examples):
        """Returns the moments of `examples` examples and those of `gradients`."""
        with self._float64():
            count = ops.convert_to_tensor(examples, "float64")
            return self._add(moments, gradients, count)

    def check(self, batch):
        """Raises an error unless each example has a loss of its own.

        Args:
            batch: The first examples; at most eight are used.
        """
        model = self._model
        values, state = self._values()
        x, y, _ = tree.map_structure(lambda part: part[:8], batch)
        _, new, _ = self._call(values, state, _tensors(x))
        changed = {
            id(variable)
            for variable, old, now in zip(model.non_trainable_variables, state, new)
            if not np.array_equal(ops.convert_to_numpy(old), ops.convert_to_numpy(now))
        }
        if changed:
            owners = [
                layer.name
                for layer in model.layers
                if changed & {id(v) for v in layer.non_trainable_variables}
            ]
            raise ValueError(
                "The gradient of an example must depend on nothing but the example. "
                "Layers that drop out at random, normalise over the batch or keep a "
                "state cannot be used "
                + ("with training=True. " if self._training else "here. ")
                + "Received: a state that changes when the model is called, of "
                + (", ".join(owners) or model.name)
            )
        whole = self._mean_loss(values, state, x, y)
        each = [
            self._mean_loss(
                values, state, *tree.map_structure(lambda p, i=i: p[i : i + 1], (x, y))
            )
            for i in range(_size(x))
        ]
        precise = model.compute_dtype in ("float32", "float64")
        if (
            abs(whole - np.mean(each))
            > (1e-3 if precise else 3e-2) * np.abs(each).max()
        ):
            raise ValueError(
                "The loss of a batch must be the mean of the losses of its examples: "
                "layers, losses and masks that mix examples cannot be used. Received: "
                f"{whole:g} for a batch of {len(each)}, {np.mean(each):g} as the mean "
                "of its examples"
            )

    def _mean_loss(self, values, state, x, y):
        loss = self._loss(values, state, _tensors(x), _tensors(y), 1.0)
        return float(ops.convert_to_numpy(loss))

    def gradients(self, batch):
        """Returns gradients of shape (n, *variable.shape) and losses of shape (n,)."""
        batch = _tensors(batch)
        if self._vectorized != "auto":
            gradients, losses = self._run(batch, self._vectorized)
        else:
            try:
                gradients, losses = self._run(batch, True)
                self._vectorized = True
            except Exception as error:  # each backend raises its own, of many kinds
                gradients, losses = self._run(batch, False)
                self._vectorized = False
                warnings.warn(
                    "This model's per-example gradients cannot be vectorised on the "
                    f"{self._backend} backend, and are computed in a loop, which is "
                    f"slower: {type(error).__name__}: {str(error)[:200]}",
                    stacklevel=4,
                )
        return gradients, ops.convert_to_numpy(losses).astype(np.float64)

    def _run(self, batch, vectorized):
        if vectorized not in self._compiled:
            make = getattr(self, f"_on_{self._backend}")
            self._compiled[vectorized] = make(vectorized)
        return self._compiled[vectorized](batch)

    def _on_tensorflow(self, vectorized):
        import tensorflow as tf

        def of_one(values, state, example):
            one = _alone(example)
            with tf.GradientTape() as tape:
                tape.watch(values)
                loss = self._loss(values, state, *one)
            gradients = tape.gradient(loss, values, unconnected_gradients="zero")
            return [tf.convert_to_tensor(g) for g in gradients], loss

        def of_all(batch):
            one = functools.partial(of_one, *self._values())
            if vectorized:
                return tf.vectorized_map(one, batch)
            dtypes = [v.dtype for v in self._model.trainable_variables]
            signature = (dtypes, self._loss_of.dtype)
            return tf.map_fn(one, batch, fn_output_signature=signature)

        # As in `compiled`: each call of gradient_statistics traces a function anew.
        of_all = functools.partial(of_all)
        return tf.function(of_all, autograph=False, reduce_retracing=True)

    def _on_jax(self, vectorized):
        import jax

        def of_one(values, state, example):
            one = _alone(example)
            loss, gradients = jax.value_and_grad(self._loss)(values, state, *one)
            return gradients, loss

        def of_all(values, state, batch):
            if vectorized:
                return jax.vmap(of_one, (None, None, 0))(values, state, batch)
            return jax.lax.map(lambda example: of_one(values, state, example), batch)

        compiled = jax.jit(of_all)
        return lambda batch: compiled(*self._values(), batch)

    def _on_torch(self, vectorized):
        import torch

        def of_one(values, state, example):
            one = _alone(example)
            gradients, loss = torch.func.grad_and_value(self._loss)(values, state, *one)
            return gradients, loss

        def of_all(batch):
            values, state = self._values()
            if vectorized:
                return torch.vmap(of_one, (None, None, 0))(values, state, batch)
            each = [
                of_one(values, state, tree.map_structure(lambda p, i=i: p[i], batch))
                for i in range(_size(batch))
            ]
            columns = [
                torch.stack(c) for c in zip(*(gradients for gradients, _ in each))
            ]
            return columns, torch.stack([loss for _, loss in each])

        return of_all

    def _values(self):
        model = self._model
        lists = model.trainable_variables, model.non_trainable_variables
        if self._backend == "torch":
            return [[v.value.detach() for v in variables] for variables in lists]
        return [[ops.convert_to_tensor(v.value) for v in part] for part in lists]

    def _call(self, values, state, x):
        """Returns output, state and added losses of the model with these variables.

        Not `stateless_call`: that bypasses `__call__`, which passes `training` on to
        inner layers even if the model's own `call` has no such argument.
        """
        model = self._model
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        mapping = list(zip(variables, [*values, *state]))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            output = model(x, training=self._training)
            added = model.losses
        new = [scope.get_current_value(v) for v in model.non_trainable_variables]
        return output, new, added

    def _loss(self, values, state, x, y, weight):
        """Returns the mean loss of a batch times `weight`, plus layers' losses."""
        output, _, added = self._call(values, state, x)
        loss = ops.mean(self._loss_of(y, output))
        loss = loss * ops.cast(ops.squeeze(weight), loss.dtype)
        return sum((ops.cast(term, loss.dtype) for term in added), loss)

    @contextlib.contextmanager
    def _float64(self):
        """Enables float64 in JAX, which otherwise turns it into float32."""
        if self._backend != "jax":
            yield
            return
        import jax

        try:
            enable = jax.enable_x64
        except AttributeError:  # before JAX 0.8
            enable = importlib.import_module("jax.experimental").enable_x64
        with enable(True):
            yield


def compiled(function):
    """Compiles `function` so that it allocates nothing of a variable's size."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # TensorFlow warns if several functions with the same code are traced for the
        # first time; a partial has no code of its own.
        function = functools.partial(function)
        return tf.function(function, autograph=False, jit_compile=True)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def _add(moments, gradients, examples):
    """Adds a chunk of per-example gradients to the moments of `examples` others.

    Taking the mean so far as the origin avoids cancellation; it is 0 at first.
    """
    means, squares = [], []
    for mean, square, gradient in zip(*moments, gradients):
        difference = ops.cast(gradient, "float64") - mean
        total = ops.sum(difference, axis=0)
        count = examples + gradient.shape[0]
        means.append(mean + total / count)
        squares.append(
            square + ops.sum(difference * difference, axis=0) - total * total / count
        )
    return means, squares


def _tensors(batch):
    return tree.map_structure(ops.convert_to_tensor, batch)


def _alone(example):
    """Returns an example as a batch of one."""
    return tree.map_structure(lambda part: part[None], example)


def _size(batch):
    """Returns the number of examples."""
    return tree.flatten(batch)[0].shape[0]


def _parts(batch, chunk):
    """Splits the batch into parts of at most `chunk` examples."""
    for start in range(0, _size(batch), chunk):
        yield tree.map_structure(lambda p, i=start: p[i : i + chunk], batch)


class _MeanOf(keras.losses.Loss):
    """Wraps a function of labels and output as a loss."""

    def __init__(self, function, dtype):
        super().__init__(dtype=dtype)
        self._function = function

    def call(self, y_true, y_pred):
        return self._function(y_true, y_pred)


def _checked_loss(model, loss):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `model` must be a keras.Model. "
            f"Received: model={model!r} of type {type(model).__name__}"
        )
    if loss is None:
        loss = getattr(model, "loss", None)
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not callable(loss):
        raise TypeError(
            "Argument `loss` must be a keras.losses.Loss, the name of one, a function "
            "of labels and output, or None for the loss of a compiled model. "
            f"Received: loss={loss!r}"
        )
    if not isinstance(loss, keras.losses.Loss):
        double = model.compute_dtype == "float64"
        return _MeanOf(loss, "float64" if double else "float32")
    if loss.reduction not in ("sum_over_batch_size", "mean", "none", None):
        raise ValueError(
            "Argument `loss` must have the reduction 'sum_over_batch_size', 'mean' or "
            "None: the gradient is that of a mean over the examples. "
            f"Received: reduction={loss.reduction!r}"
        )
    return loss


def _check_model(model, training):
    if not model.built:
        raise ValueError(
            "Argument `model` must be built: give it a keras.Input, or call it on an "
            f"example once. Received: the model '{model.name}', which is not"
        )
    if not model.trainable_variables:
        raise ValueError(
            "Argument `model` must have trainable variables. "
            f"Received: the model '{model.name}', which has none"
        )
    stateful = [layer.name for layer in model.layers if getattr(layer, "stateful", 0)]
    if stateful:
        raise ValueError(
            "The gradient of an example must depend on nothing but the example, and "
            "layers with stateful=True remember earlier ones. "
            f"Received: the layers {', '.join(stateful)}"
        )
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if replicas > 1:
            raise ValueError(
                "gradient_statistics must be called outside of a strategy's scope: "
                "Keras divides losses by the number of replicas there. "
                f"Received: a scope of {replicas} replicas"
            )
    if not isinstance(training, bool):
        raise TypeError(
            "Argument `training` must be True or False. "
            f"Received: training={training!r} of type {type(training).__name__}"
        )


def _chunk_size(model, memory):
    if isinstance(memory, bool) or not isinstance(memory, int | np.integer):
        raise TypeError(
            "Argument `memory` must be an integer, a number of bytes. "
            f"Received: memory={memory!r} of type {type(memory).__name__}"
        )
    needed = sum(
        math.prod(v.shape)
        * (np.dtype("float64").itemsize * _FLOAT64_COPIES + _item_size(v))
        for v in model.trainable_variables
    )
    if memory < needed:
        raise ValueError(
            f"Argument `memory` must be at least {needed}, the size of the gradient of "
            f"one example of this model. Received: memory={memory}"
        )
    return min(int(memory // needed), LARGEST_CHUNK)


def _item_size(variable):
    return ml_dtypes.finfo(keras.backend.standardize_dtype(variable.dtype)).bits // 8


def _batches(data):
    """Returns an iterable of (x, y, weight), its length or None, and the unit of it."""
    if isinstance(data, tuple):
        batch = _checked_batch(data)
        return [batch], _size(batch), "example"
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(
            "Argument `data` must be a tuple (x, y) or (x, y, sample_weight) of arrays "
            f"or an iterable of such batches. Received: {type(data).__name__}"
        )
    batches, total = data, None
    if isinstance(data, keras.utils.PyDataset):
        total = data.num_batches
        if total is None:
            raise ValueError(
                "Argument `data` must be finite. Received: a PyDataset without a length"
            )
        batches = (data[i] for i in range(total))
    elif hasattr(data, "cardinality"):  # a tf.data.Dataset
        cardinality = int(data.cardinality())
        if cardinality == -1:
            raise ValueError(
                "Argument `data` must be finite. Received: a data set that repeats "
                "forever"
            )
        total = None if cardinality < 0 else cardinality
    elif hasattr(data, "__len__"):
        total = len(data)
    return (_checked_batch(batch) for batch in batches), total, "batch"


def _checked_batch(batch):
    """Returns (x, y, weight) as arrays; the weight is 1 where none is given."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise ValueError(
            "Argument `data` must hold (x, y) or (x, y, sample_weight). Received: "
            + (
                f"{len(batch)} parts"
                if isinstance(batch, tuple | list)
                else type(batch).__name__
            )
        )
    x, y = (tree.map_structure(_array, part) for part in batch[:2])
    weight = batch[2] if len(batch) == 3 else None
    sizes = [np.shape(part)[:1] for part in tree.flatten((x, y))]
    if len(set(sizes)) != 1 or sizes[0] == ():
        raise ValueError(
            "Argument `data` must hold arrays with equally many examples along their "
            "first axis. Received: the shapes "
            + ", ".join(str(np.shape(part)) for part in tree.flatten((x, y)))
        )
    if weight is None:
        weight = np.ones(sizes[0], np.float32)
    weight = np.asarray(_array(weight), np.float32)
    if weight.shape != sizes[0]:
        raise ValueError(
            f"The sample weights must have the shape {sizes[0]}, one for each example. "
            f"Received: {weight.shape}"
        )
    return x, y, weight


def _array(values):
    """Converts a tensor, or anything like an array, to NumPy."""
    return values if isinstance(values, np.ndarray) else ops.convert_to_numpy(values)
