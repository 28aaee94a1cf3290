"""Computes the gradients of single examples, and their moments."""

import contextlib
import functools
import importlib
import warnings

import keras
import numpy as np
from keras import ops, tree

from svag_tf.noise.examples import size_of


class Computation:
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
            for i in range(size_of(x))
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
                for i in range(size_of(batch))
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
