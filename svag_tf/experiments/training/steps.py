"""The steps of a run, on one device or on many.

A run on one device is `Distribution` itself. On several, every batch is cut into equal
consecutive parts, one per replica, and padded with examples of weight 0 if it does not
divide evenly; the weights of the others make up for it, so that the loss is the mean
over the examples of the whole batch. All processes make the same batches from the same
seed, and each takes the rows of its own replicas.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from svag_tf import internals
from svag_tf.distribution import LossScaleOptimizer, processes, set_local_state
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training.run_folder import LOCAL, MODEL, RunFolder, State


class Distribution:
    """A run on one device.

    Attributes:
        chief: whether this process writes the results.
    """

    chief = True

    def scope(self) -> contextlib.AbstractContextManager:
        """Returns the context in which model and optimizer are made."""
        return contextlib.nullcontext()

    def prepare(self, model: keras.Model, batch_size: int) -> None:
        """Makes layers that use other examples use the whole batch."""

    def optimizer(self, optimizer: Any, dtype_policy: str) -> Any:
        """Returns the optimizer to compile with."""
        return optimizer

    def metrics(self, names: list[str]) -> dict[str, list[str]]:
        """Returns the metrics as arguments of `compile`."""
        return {"metrics": names}

    def fit(
        self,
        model: keras.Model,
        batches: Any,
        epochs: int,
        initial_epoch: int,
        callbacks: Sequence[Any],
        verbose: int = 0,
    ) -> None:
        """Calls `model.fit` on batches, in their given order."""
        model.fit(
            self._rows(model, batches),
            shuffle=False,  # or Keras would shuffle the batches a second time
            epochs=epochs,
            initial_epoch=initial_epoch,
            callbacks=list(callbacks),
            verbose=verbose,
        )

    def evaluate(self, model: keras.Model, batches: Any) -> dict[str, float]:
        """Returns loss and metrics on all examples."""
        # On TensorFlow `model.evaluate` would build a pipeline each time.
        numbers, results = range(len(batches)), []
        for k in numbers:
            model.reset_metrics()  # `test_on_batch` of Keras 3.10 does not.
            results.append(model.test_on_batch(*batches[k], return_dict=True))
        sizes = [batches.size(k) for k in numbers]
        return {
            name: np.average([result[name] for result in results], weights=sizes)
            for name in results[0]
        }

    def _rows(self, model: keras.Model, batches: Any) -> Any:
        """Returns this process's part of the training batches."""
        return batches

    def everywhere(self, model: keras.Model, fact: bool) -> bool:
        """Returns whether something holds on the chief."""
        return _from_chief(self, model, b"1" if fact else b"0") == b"1"

    def restore(self, model: keras.Model, folder: RunFolder, state: State) -> State:
        """Gives the new model of every process the values of the last commit.

        Only the chief reads the folder and needs the state; returns the chief's state.
        """
        here = processes.replicas_here(model)
        if here.number == here.total:
            _restore(model, folder, state)
            return state
        # All at once: on JAX all processes must assign to a variable together.
        state = State(**json.loads(_from_chief(self, model, _json(state))))
        commit = folder.checkpoint(state).parent
        with tempfile.TemporaryDirectory() as temporary:
            copy = RunFolder(temporary)
            copied = copy.checkpoint(state).parent
            copied.mkdir(parents=True)
            for name in (MODEL, LOCAL) if state.epoch >= 0 else ():
                path = commit / name
                content = path.read_bytes() if self.chief and path.exists() else b""
                content = _from_chief(self, model, content)
                if content:
                    (copied / name).write_bytes(content)
            _restore(model, copy, state)
        return state


class Shards(keras.utils.PyDataset):
    """The rows of this process's replicas, from batches that all processes make.

    Batch k becomes (x, y, sample weights). With n replicas and B examples, replica r
    gets the rows r b, ..., (r + 1) b - 1 with b = ceil(B / n); rows beyond the batch
    are copies of its first example with weight 0. The others' weight makes the mean
    over the n b rows the mean over the real ones: of the batch, or with `evaluation`
    of all batches.

    Args:
        batches: has `len`, `size(k)` and `part(k, positions)`, as `training.Batches`.
        here: the replicas of this process.
        evaluation: whether the weights are for means over all batches.
    """

    def __init__(
        self, batches: Any, here: processes.LocalReplicas, evaluation: bool = False
    ):
        super().__init__()
        self._batches, self._here = batches, here
        self._weight: float | None = None
        if evaluation:
            sizes = [batches.size(k) for k in range(len(batches))]
            padded = sum(self._rows(size) * here.total for size in sizes)
            self._weight = padded / sum(sizes)

    def __len__(self) -> int:
        return len(self._batches)

    def _rows(self, size: int) -> int:
        return math.ceil(size / self._here.total)

    def part(self, k: int, replica: int, count: int = 1) -> tuple[np.ndarray, ...]:
        """Returns the rows of `count` replicas from `replica` on."""
        size = self._batches.size(k)
        rows = self._rows(size)
        positions = np.arange(replica * rows, (replica + count) * rows)
        real = positions < size
        weight = self._weight or rows * self._here.total / size
        x, y = self._batches.part(k, np.where(real, positions, 0))
        return x, y, np.where(real, weight, 0.0).astype(np.float32)

    def __getitem__(self, k: int) -> tuple[np.ndarray, ...]:
        return self.part(k, self._here.first, self._here.number)


class Replicated(Distribution):
    """A run on several replicas, each with its rows of every batch."""

    def metrics(self, names: list[str]) -> dict[str, list[str]]:
        return {"weighted_metrics": names}

    def evaluate(self, model: keras.Model, batches: Any) -> dict[str, float]:
        rows = self._rows(model, batches, evaluation=True)
        return model.evaluate(rows, verbose=0, return_dict=True)

    def _rows(self, model: keras.Model, batches: Any, evaluation: bool = False) -> Any:
        return Shards(batches, processes.replicas_here(model), evaluation)


class Mirrored(Replicated):
    """A run under a tf.distribute strategy."""

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self._steps: dict[str, Any] = {}
        resolver = getattr(strategy, "cluster_resolver", None)
        if resolver is not None and resolver.task_type == "worker":
            has_chief = "chief" in resolver.cluster_spec().as_dict()
            self.chief = not has_chief and resolver.task_id == 0

    def scope(self) -> contextlib.AbstractContextManager:
        return self.strategy.scope()

    def prepare(self, model: keras.Model, batch_size: int) -> None:
        import tensorflow as tf

        def real(rows: Any) -> Any:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return tf.clip_by_value(batch_size - replica * rows, 0, rows)

        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
                _normalize_real_rows(layer, real)
            elif type(layer) is keras.layers.Dropout:
                _drop_as_one_batch(layer)

    def optimizer(self, optimizer: Any, dtype_policy: str) -> Any:
        if dtype_policy != "mixed_float16":
            return optimizer
        return LossScaleOptimizer(optimizer)

    def fit(
        self,
        model: keras.Model,
        batches: Any,
        epochs: int,
        initial_epoch: int,
        callbacks: Sequence[Any],
        verbose: int = 0,
    ) -> None:
        shards = self._rows(model, batches)
        called = keras.callbacks.CallbackList(
            list(callbacks),
            model=model,
            verbose=verbose,
            epochs=epochs,
            steps=len(shards),
        )
        model.stop_training = False
        called.on_train_begin()
        logs: dict[str, float] = {}
        for epoch in range(initial_epoch, epochs):
            model.reset_metrics()
            called.on_epoch_begin(epoch)
            for k in range(len(shards)):
                called.on_train_batch_begin(k)
                logs = self._step(model, "train_step", shards, k)
                called.on_train_batch_end(k, logs)
                if model.stop_training:
                    break
            called.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        called.on_train_end(logs)

    def evaluate(self, model: keras.Model, batches: Any) -> dict[str, float]:
        shards = self._rows(model, batches, evaluation=True)
        model.reset_metrics()
        for k in range(len(shards)):
            self._step(model, "test_step", shards, k)
        return {name: float(v) for name, v in model.get_metrics_result().items()}

    def _step(
        self, model: keras.Model, name: str, shards: Shards, k: int
    ) -> dict[str, float]:
        """Makes a step on all replicas; returns the metrics, equal on all processes."""
        import tensorflow as tf

        strategy = self.strategy
        if name not in self._steps:

            @tf.function(reduce_retracing=True)
            def step(data: Any) -> Any:
                logs = strategy.run(getattr(model, name), args=(data,))
                return {
                    key: strategy.reduce("MEAN", value, axis=None)
                    for key, value in logs.items()
                }

            self._steps[name] = step

        def part(context: Any) -> Any:
            arrays = shards.part(k, context.replica_id_in_sync_group)
            return tuple(tf.convert_to_tensor(a) for a in arrays)

        data = strategy.experimental_distribute_values_from_function(part)
        return {key: float(v) for key, v in self._steps[name](data).items()}


class JaxProcesses(Replicated):
    """A run on JAX: data parallel over the devices of all processes."""

    def __init__(self) -> None:
        import jax

        self.chief = jax.process_index() == 0

    def prepare(self, model: keras.Model, batch_size: int) -> None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                # The layer sees the whole batch, whose last rows are padding.
                _normalize_real_rows(layer, lambda rows: batch_size)


def _normalize_real_rows(
    layer: keras.layers.BatchNormalization, real: Callable[[Any], Any]
) -> None:
    """Makes a layer take its statistics from a training batch without the padding.

    `real` returns how many rows, from the first on, are examples, given the number of
    all rows.
    """
    moments = internals.moments_of(layer)

    def of_real_rows(inputs: Any, mask: Any) -> Any:
        return moments(inputs[: real(keras.ops.shape(inputs)[0])], mask)

    internals.set_moments(layer, of_real_rows)


def _drop_as_one_batch(layer: keras.layers.Dropout) -> None:
    """Makes a dropout layer draw for the whole batch and take its replica's rows.

    So the mask is that of a run on one device, and replicas drop different units.
    """
    import tensorflow as tf

    def call(inputs: Any, training: bool = False) -> Any:
        if not training or layer.rate == 0:
            return inputs
        context = tf.distribute.get_replica_context()
        rows, rest = tf.shape(inputs)[0], inputs.shape[1:]
        shape = [rows * context.num_replicas_in_sync, *rest]
        kept = keras.random.dropout(
            tf.ones(shape, inputs.dtype),
            layer.rate,
            noise_shape=layer.noise_shape,
            seed=layer.seed_generator,
        )
        first = context.replica_id_in_sync_group * rows
        return inputs * tf.ensure_shape(kept[first : first + rows], inputs.shape)

    layer.call = call


def _json(state: State) -> bytes:
    return json.dumps(vars(state)).encode()


def _from_chief(
    distribution: Distribution, model: keras.Model, content: bytes
) -> bytes:
    return processes.broadcast(model, content if distribution.chief else None)


def _restore(model: keras.Model, folder: RunFolder, state: State) -> None:
    if state.epoch < 0:
        return
    folder.restore(state, model)
    local = folder.read_local_state(state)
    if not local:
        return
    try:
        set_local_state(model, local)
    except ValueError as error:
        raise ExperimentError(
            f"The run was made by {len(local[0])} replicas, and these are "
            f"{processes.replicas_here(model).total}: each continues with its own "
            "momentum. Start as many."
        ) from error
