"""Checks the model and the loss, and splits the data into batches of examples."""

import math

import keras
import ml_dtypes
import numpy as np
from keras import ops, tree

LARGEST_CHUNK = 256  # examples whose activations are in memory at a time
# Besides each element of an example's gradient: float64 copies of it, of its difference
# from the mean and of that squared.
_FLOAT64_COPIES = 3


class _MeanOf(keras.losses.Loss):
    """Wraps a function of labels and output as a loss."""

    def __init__(self, function, dtype):
        super().__init__(dtype=dtype)
        self._function = function

    def call(self, y_true, y_pred):
        return self._function(y_true, y_pred)


def checked_loss(model, loss):
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


def check_model(model, training):
    if not model.built:
        raise ValueError(
            "Argument `model` must be built: give it a keras.Input, or call it on an "
            f"example once. Received: the model '{model.name}', not built"
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


def chunk_size(model, memory):
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


def batches_of(data):
    """Returns an iterable of (x, y, weight), its length or None, and the unit of it."""
    if isinstance(data, tuple):
        batch = _checked_batch(data)
        return [batch], size_of(batch), "example"
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


def size_of(batch):
    """Returns the number of examples."""
    return tree.flatten(batch)[0].shape[0]


def parts_of(batch, chunk):
    """Splits the batch into parts of at most `chunk` examples."""
    for start in range(0, size_of(batch), chunk):
        yield tree.map_structure(lambda p, i=start: p[i : i + chunk], batch)
