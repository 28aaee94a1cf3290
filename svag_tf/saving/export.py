"""Exports a model as a SavedModel that can be trained further with TensorFlow alone."""

from __future__ import annotations

import json
import os
from typing import Any

import keras
import numpy as np

from svag_tf import internals, native
from svag_tf.files import whole_folder
from svag_tf.optional import tensorflow as tf
from svag_tf.saving.exported_data import specified_by
from svag_tf.saving.exported_functions import functions_of
from svag_tf.saving.exported_state import (
    DESCRIPTION,
    UNSEEDED,
    state_and_description,
    tf_variable,
)
from svag_tf.saving.model_state import (
    build_optimizers,
    first_difference,
    optimizers_of,
    shape_and_dtype,
)


def export_trainable(
    model: keras.Model,
    path: str | os.PathLike[str],
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int | None = None,
) -> None:
    """Writes a SavedModel that continues a model's training.

    `tf.saved_model.load`, `saved_model_cli` and TensorFlow's C API run it, without
    Keras and without this package. Its signatures:

    | signature | takes | does and returns |
    | --- | --- | --- |
    | `train` | `x`, `y` | one step of training; `loss` and the metrics |
    | `infer` | `x` | `output` of the model |
    | `evaluate` | `x`, `y` | `loss` and the metrics |
    | `save` | `path` | writes the state to a checkpoint; `step` |
    | `restore` | `path` | reads it back; `step` |
    | `train_from` | `path`, `x`, `y`, `to` | `restore`, `train` and `save` in one |

    `step` is the optimizer's count of updates. Loss and metrics are those of the batch
    alone. A model's own `train_step` gets data in the form in which `fit` passes it:
    `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`; data in other forms counts as `x`.
    There is no `infer` if the model has no `call`, and no `evaluate` if it has no loss
    in `compile`, unless it has a `predict_step` or `test_step` of its own. The batch
    dimension is as free as that of the model's inputs. k steps of `train` give the same
    weights, bit for bit, as k steps of the model in Python on the same machine.

    A step for one known batch size and a step for any batch size can differ in the last
    bits, because TensorFlow optimizes them differently. Which of them Keras has depends
    on its first call. The export has those that the model was trained with since
    `compile`. If the model was not trained, the export has a step for any batch size,
    and Keras then uses the same step; as after a first step, later changes in Python,
    such as of a layer's `trainable`, then need `compile`. See `batch_size` for a model
    that is trained elsewhere, and docs/saving.md for which results are equal.

    The state is everything that training continues from: weights, random states such as
    those of dropout, and the variables of all optimizers that are attributes of the
    model or of its layers (slots, step counts, averages, accumulated gradients, loss
    scale). Metrics are left out. `save` does not overwrite a checkpoint, so an earlier
    one survives a failed save. `restore` changes nothing unless it can read all of the
    state. `train_from` starts from the exported state if `path` is empty.

    If an input, target or output is a dict or a list, each part has a name: `x_left`
    and `x_right`, `y_0` and `y_1`, `output_0` and `output_1`, and the keys of an output
    that is a dict. Any character but an ASCII letter, a digit or `_` becomes `_`:
    `x_image_encoded`. Each signature is also a function of the loaded object, which
    takes and returns the structures: `loaded.train(x=..., y=...)`.

    Args:
        model: Compiled `keras.Model` on the TensorFlow backend, with any Keras
            optimizers. Parts that are not built yet are built here.
        path: Folder to write: a new one, or an empty one. It appears when it is
            complete, or not at all.
        x: What `x` is like: an array, a tensor or a `tf.TensorSpec`, or a structure of
            them; the first dimension of arrays and tensors is taken as free. Defaults
            to `None`: what the model has been trained on since `compile`; otherwise
            the inputs of a functional or sequential model.
        y: What `y` is like, likewise; `False` for none. Defaults to `None`: what the
            model has been trained on; otherwise int64 labels without the last axis for
            a sparse cross-entropy, or like the model's output, with floats of Keras'
            `floatx()`; no `y` for a model without a loss.
        sample_weight: What `sample_weight`, a further argument of `train`, `evaluate`
            and `train_from`, is like; `True` for one float per example, or as in
            training; `False` for none. Defaults to `None`: there is one if the model
            has been trained with it and not without.
        batch_size: Examples in a batch, at least 1. Batches of this size get a training
            step of their own, as in Python if the first batch of `train_on_batch`, or
            all batches of `fit`, have this size. Other sizes remain possible. Defaults
            to `None`: the sizes for which the model already has a step of its own.

    Raises:
        ValueError: If the model cannot be exported, if an argument is not as above, or
            if it is unknown what the data is like: the model was not trained and its
            inputs do not tell, or it was trained on several kinds of data. Nothing is
            written.
        FileExistsError: If `path` exists and is not an empty folder.

    Warns:
        UserWarning: If `infer` or `evaluate` is missing because it fails on such data.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np, svag_tf, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> folder = os.path.join(tempfile.mkdtemp(), "exported")
    >>> svag_tf.export_trainable(model, folder)
    >>> loaded = tf.saved_model.load(folder)
    >>> x, y = np.eye(4, 3, dtype="float32"), np.ones((4, 1), "float32")
    >>> logs = loaded.signatures["train"](x=x, y=y)
    >>> list(logs)
    ['loss']
    >>> float(logs["loss"]) == model.train_on_batch(x, y)
    True
    """
    _check_model(model)
    # The SavedModel runs without this package: both trace.
    with native.turned_off(), whole_folder(path) as folder:
        specified = specified_by(x, y, sample_weight)
        module, signatures = functions_of(model, specified, batch_size)
        # If a model's own step is a tf.function, TensorFlow fails to save the gradients
        # of the optimizers' sums over replicas. Nothing needs them.
        options = tf.saved_model.SaveOptions(
            experimental_custom_gradients=not hasattr(
                model.train_step, "python_function"
            )
        )
        try:
            tf.saved_model.save(module, str(folder), signatures, options)
        except AssertionError as error:  # A resource that is not a variable or table.
            raise ValueError(f"The model cannot be exported: {error}") from error


def restore_trained(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Restores into a model the state that its exported copy has saved.

    Args:
        model: Compiled model like the one that was given to `export_trainable`, with
            optimizers of the same classes. Its layers must be built; its optimizers
            need not be.
        path: The path that the exported model's `save` was given.

    Raises:
        ValueError: If the checkpoint is damaged or not of such a model; names it. The
            model is then unchanged.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np, svag_tf, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> folder = tempfile.mkdtemp()
    >>> svag_tf.export_trainable(model, os.path.join(folder, "exported"))
    >>> loaded = tf.saved_model.load(os.path.join(folder, "exported"))
    >>> x, y = np.eye(4, 3, dtype="float32"), np.ones((4, 1), "float32")
    >>> _ = loaded.train(x=x, y=y)
    >>> _ = loaded.save(path=os.path.join(folder, "trained"))
    >>> svag_tf.restore_trained(model, os.path.join(folder, "trained"))
    >>> int(model.optimizer.iterations)
    1
    """
    _check_model(model)
    path = os.fspath(path)
    try:
        reader = tf.train.load_checkpoint(path)
        found = json.loads(reader.get_tensor(DESCRIPTION))
        values = {n: np.asarray(reader.get_tensor(n)) for n in dict(found["variables"])}
        kinds = {name: shape_and_dtype(value) for name, value in values.items()}
    except Exception as error:  # The reader raises many kinds.
        raise ValueError(
            f"{path} is damaged, or not a checkpoint of an exported model: {error}"
        ) from error
    build_optimizers(model, found)
    unseeded = UNSEEDED in found["variables"]
    state, expected = state_and_description(model, unseeded)
    if found != expected:
        raise ValueError(
            f"The checkpoint {path} is that of another model or optimizer. "
            f"{first_difference(found, expected)}"
        )
    if kinds != expected["variables"]:
        raise ValueError(f"The checkpoint {path} is damaged: it contradicts itself.")
    for name, variable in state.items():
        variable.assign(values[name])


def _check_model(model):
    """Raises an error if a model evidently cannot be exported."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"Argument `model` must be a keras.Model. Received: {model!r}")
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "A SavedModel that trains needs Keras' TensorFlow backend. Received: the "
            f"backend {keras.backend.backend()!r}. Save the model as a `.keras` file, "
            "load that with KERAS_BACKEND=tensorflow and export it there."
        )
    if not model.compiled or not optimizers_of(model):
        raise ValueError(
            "The model must be compiled with an optimizer: model.compile(optimizer, "
            "loss)."
        )
    if not internals.is_default(model.distribute_strategy) or not all(
        isinstance(tf_variable(v), tf.Variable) for v in model.variables
    ):
        raise ValueError(
            "The model must not be distributed. Received: a model made under "
            f"{type(model.distribute_strategy).__name__}. Save it as a `.keras` file "
            "and load that outside of the strategy's scope."
        )
