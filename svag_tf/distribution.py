"""Training on many devices: loss scaling, and replicas that stay equal.

On TensorFlow the optimizers of svag_tf run under tf.distribute's `MirroredStrategy` and
`MultiWorkerMirroredStrategy`, on JAX under `keras.distribution`; docs/distribution.md
says how. What is here serves both:

- `check_replicas` and the callback `ReplicaCheck`: that all replicas are bitwise equal.
- `LossScaleOptimizer`: Keras' dynamic loss scaling, right on several replicas.
- `local_state`, `set_local_state`: the averages that a majority vote keeps on each
  replica, for a checkpoint.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import Any, NamedTuple

import keras
import numpy as np

from svag_tf.optimizer_state import RECORD
from svag_tf.optimizers.arguments import names
from svag_tf.optimizers.base import MomentOptimizer

parts: Any = None
replicas: Any = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from svag_tf import parts, replicas

__all__ = [
    "LossScaleOptimizer",
    "ReplicaCheck",
    "ReplicasDifferError",
    "check_replicas",
    "local_state",
    "set_local_state",
]


class ReplicasDifferError(RuntimeError):
    """Variables that must be the same on all replicas are not.

    Attributes:
        variables: Paths of these variables.
    """

    def __init__(self, variables: list[str]):
        self.variables = variables
        shown = ", ".join(variables[:5]) + (", ..." if len(variables) > 5 else "")
        super().__init__(
            f"{len(variables)} variables differ between the replicas: {shown}. Go back "
            "to the last checkpoint. What makes replicas differ: BatchNormalization "
            "without synchronized=True, a variable assigned to on one replica only, a "
            "device that computes wrongly."
        )


def check_replicas(model: keras.Model) -> int:
    """Checks that all replicas hold the same values, bit for bit.

    Compared are the model's and its optimizer's variables, but for metrics and for the
    optimizer's `local_variables`. All processes of a run must call it at the same time;
    each sends 8 bytes a variable.

    Args:
        model: `keras.Model`, made under a tf.distribute strategy or a
            `keras.distribution`. Without one there is nothing to compare.

    Returns:
        The number of replicas compared.

    Raises:
        ReplicasDifferError: on every process, naming the variables.

    Example:

    >>> import keras
    >>> from svag_tf import distribution
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> distribution.check_replicas(model)
    1
    """
    optimizer = getattr(model, "optimizer", None)
    inner = _inner(optimizer)
    left_out = [*model.metrics_variables, *getattr(inner, "local_variables", ())]
    ids = {id(v) for v in left_out}
    variables = {id(v): v for v in model.variables if id(v) not in ids}
    for variable in optimizer.variables if optimizer else ():
        if id(variable) not in ids:
            variables[id(variable)] = variable
    checked = list(variables.values())
    if not checked:
        return 1
    digests = _digests(model, checked)  # (replicas, variables, 2)
    differs = (digests != digests[:1]).any(axis=(0, 2))
    if differs.any():
        paths = (v.path for v, wrong in zip(checked, differs) if wrong)
        raise ReplicasDifferError(list(paths))
    return len(digests)


class ReplicaCheck(keras.callbacks.Callback):
    """Ends a training with an error as soon as its replicas differ.

    Args:
        every: Integer >= 1 or `None`: check after so many batches, or, with `None`,
            after every epoch. Defaults to `None`.

    Raises:
        ReplicasDifferError: in `fit`, on every process; see `check_replicas`.

    Example: `model.fit(x, y, callbacks=[svag_tf.distribution.ReplicaCheck()])`.
    """

    def __init__(self, every: int | None = None):
        super().__init__()
        if every is not None and (
            isinstance(every, bool) or not isinstance(every, int) or every < 1
        ):
            raise ValueError(
                "Argument `every` must be an integer >= 1 or None. Received: "
                f"every={every!r}"
            )
        self.every = every
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches += 1
        if self.every is not None and self._batches % self.every == 0:
            check_replicas(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.every is None:
            check_replicas(self.model)


@keras.saving.register_keras_serializable(package="svag_tf")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scaling, for several replicas of tf.distribute as well.

    Keras' own looks for infinite gradients on the first replica only, and cannot be
    traced under `MirroredStrategy`. This one sums the gradients over the replicas
    first; where the sum is finite it is applied and otherwise the step is left out, on
    all replicas alike. Without several replicas it is Keras' own.

    Args:
        inner_optimizer: An optimizer of svag_tf.
        initial_scale: Float, the loss scale at first. Defaults to `2.0**15`.
        dynamic_growth_steps: Integer, the scale is doubled after so many finite steps.
            Defaults to `2000`.
        **kwargs: As for `keras.optimizers.LossScaleOptimizer`.

    Raises:
        TypeError: `inner_optimizer` is none of svag_tf's, or an argument is unknown.

    Example:

    >>> import svag_tf
    >>> from svag_tf import distribution
    >>> optimizer = distribution.LossScaleOptimizer(svag_tf.MSVAG(learning_rate=0.1))
    >>> print(optimizer.initial_scale)
    32768.0

    Reference: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """

    # From old files Keras takes those of all optimizers, if they are at their defaults.
    _arguments = {
        "dynamic", *names(keras.optimizers.LossScaleOptimizer)
    } - {"learning_rate"}  # fmt: skip

    def __init__(self, inner_optimizer: Any, *args: Any, **kwargs: Any):
        if not isinstance(inner_optimizer, MomentOptimizer):
            raise TypeError(
                "Argument `inner_optimizer` must be an optimizer of svag_tf. Received: "
                f"{inner_optimizer!r}"
            )
        if getattr(inner_optimizer, "variance", "time") == "replicas":
            raise ValueError(
                'An optimizer with variance="replicas" cannot be used with loss '
                "scaling, which changes its variances. Use mixed_bfloat16."
            )
        for name in kwargs.keys() - self._arguments:
            raise TypeError(
                f"{type(self).__name__} has no argument `{name}`. Besides "
                "initial_scale, dynamic_growth_steps and name all are those of the "
                f"optimizer in it: {type(inner_optimizer).__name__}({name}=...)"
            )
        super().__init__(inner_optimizer, *args, **kwargs)
        inner_optimizer.scaled_by_keras = False
        self._waiting: dict[str, np.ndarray] = {}

    def build(self, var_list: Any) -> None:
        """Creates the variables, and restores what was loaded before.

        Args:
            var_list: List of the model's trainable variables.
        """
        with replicas.eager_variables() if replicas else nullcontext():
            super().build(var_list)
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self.load_own_variables(waiting)

    def load_own_variables(self, store: Any) -> None:
        """Takes the loss scale from a store of Keras; at `build`, if not built before.

        The inner optimizer takes its state by itself. A file of an optimizer without
        loss scaling has no scale, and that begins with its initial value.

        Args:
            store: What `save_own_variables` has filled.
        """
        keys = store.keys()
        if RECORD in keys or "0" not in keys:
            return
        if not self.built:
            self._waiting = {key: np.asarray(store[key]) for key in keys}
            return
        for i, variable in enumerate(self._variables):  # Not the inner optimizer's.
            variable.assign(store[str(i)])

    def scale_loss(self, loss: Any) -> Any:
        """The scaled loss; on several replicas, weighted by the part of the batch.

        Args:
            loss: Scalar tensor.
        """
        if parts:
            loss = parts.of_whole_batch(loss)
        return super().scale_loss(loss)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Makes one update, or leaves it out if a gradient is not finite.

        Args:
            grads: List of the scaled loss's gradients.
            trainable_variables: List of the variables that they belong to.
        """
        here = replicas.context() if replicas else None
        if here is None:
            super().apply(grads, trainable_variables)
            return
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        if not self.built:
            self.build(trainable_variables)
        inner = self.inner_optimizer
        variables = trainable_variables or inner._trainable_variables
        grads = inner.reduced(list(grads), variables)
        finite = [
            tf.reduce_all(tf.math.is_finite(g.values if hasattr(g, "values") else g))
            for g in grads
            if g is not None
        ]
        # One replica's own gradient may be infinite where the others' are not.
        wrong = tf.cast(tf.logical_not(tf.reduce_all(finite)), tf.float32)
        wrong = here.all_reduce(tf.distribute.ReduceOp.SUM, wrong)

        def step(grads: Any) -> None:
            scale = tf.convert_to_tensor(self.dynamic_scale)
            own = [getattr(v, "overwrite_with_gradient", False) for v in variables]
            unscaled = [
                g if g is None or o else g / tf.cast(scale, g.dtype)
                for g, o in zip(grads, own)
            ]
            inner.apply_reduced(unscaled, trainable_variables)

        # The branches are chosen outside of the replicas: what happens in a replica may
        # need the others, and cannot stand in a `tf.cond` of that replica.
        def choose(strategy: Any, grads: Any, wrong: Any) -> None:
            fine = strategy.experimental_local_results(wrong)[0] == 0.0
            count = tf.convert_to_tensor(self.step_counter)
            scale = tf.convert_to_tensor(self.dynamic_scale)
            grown = tf.equal(count, self.dynamic_growth_steps - 1)

            def apply() -> None:
                strategy.run(step, args=(grads,))
                next_count = tf.where(grown, tf.zeros_like(count), count + 1)
                self.step_counter.assign(next_count)
                self.dynamic_scale.assign(tf.where(grown, 2.0 * scale, scale))

            def leave_out() -> None:
                self.step_counter.assign(tf.zeros_like(count))
                self.dynamic_scale.assign(0.5 * scale)

            tf.cond(fine, apply, leave_out)

        here.merge_call(choose, args=(grads, wrong))


def local_state(model: keras.Model) -> list[np.ndarray]:
    """What each replica's optimizer has of its own: the m~ of a majority vote.

    `model.save` and checkpoints hold the first replica's only. All processes of a run
    must call it at the same time.

    Args:
        model: `keras.Model`, compiled, its optimizer built.

    Returns:
        An array for each of the optimizer's `local_variables`, of the shape (replicas,
        *shape of the variable).

    Example:

    >>> import keras
    >>> import svag_tf
    >>> from svag_tf import distribution
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSSD(aggregation="majority_vote"))
    >>> model.optimizer.build(model.trainable_variables)
    >>> [array.shape for array in distribution.local_state(model)]
    [(1, 2, 1), (1, 1)]
    """
    variables = getattr(_inner(model.optimizer), "local_variables", ())
    states = []
    for variable in variables:
        copies = np.stack([keras.ops.convert_to_numpy(c) for c in _copies(variable)])
        states.append(_gathered(model, copies))
    return states


def set_local_state(model: keras.Model, states: list[np.ndarray]) -> None:
    """Gives each replica the state that `local_state` returned.

    Args:
        model: `keras.Model`, compiled, its optimizer built.
        states: What `local_state` returned, for the same number of replicas.

    Raises:
        ValueError: Arrays are missing, or not of the shapes that are needed.
    """
    variables = getattr(_inner(model.optimizer), "local_variables", ())
    here = replicas_here(model)
    expected = [(here.total, *v.shape) for v in variables]
    received = [tuple(np.shape(s)) for s in states]
    if received != expected:
        raise ValueError(
            f"Argument `states` must hold arrays of the shapes {expected}: (replicas, "
            f"*shape of the variable). Received: {received}"
        )
    for variable, state in zip(variables, states):
        for copy, value in zip(_copies(variable), state[here.first :]):
            copy.assign(value)


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _copies(variable: Any) -> list:
    """A variable's copies on the replicas of this process; one without replicas."""
    value = variable.value
    if replicas is not None:
        strategy = getattr(value, "distribute_strategy", tf.distribute.get_strategy())
        return list(strategy.experimental_local_results(value))
    if keras.backend.backend() != "jax" or not value.is_fully_replicated:
        return [value]
    if len(value.sharding.addressable_devices) == 1:
        return [np.asarray(value)]
    return [shard.data for shard in value.addressable_shards]


def _digests(model: keras.Model, variables: list) -> np.ndarray:
    """Digests of all variables on all replicas: int32, (replicas, variables, 2)."""
    here = replicas_here(model)
    digests = np.zeros((here.number, len(variables), 2), np.int32)
    for i, variable in enumerate(variables if here.total > 1 else ()):
        copies = [keras.ops.convert_to_numpy(c) for c in _copies(variable)]
        hashed = [_digest(c) for c in copies]
        digests[:, i] = hashed if len(hashed) == here.number else hashed[0]
    return _gathered(model, digests)


def _digest(array: np.ndarray) -> np.ndarray:
    content = np.ascontiguousarray(array).tobytes()
    return np.frombuffer(hashlib.sha256(content).digest()[:8], np.int32)


class Here(NamedTuple):
    """The replicas of this process: `first`, ..., `first + number - 1` of `total`."""

    first: int
    number: int
    total: int


def replicas_here(model: keras.Model) -> Here:
    """Which of the replicas that train a model are this process's."""
    if replicas:
        numbers: list[int] = []

        def note(context: Any) -> Any:
            numbers.append(context.replica_id_in_sync_group)
            return tf.zeros(())

        strategy = model.distribute_strategy
        strategy.experimental_distribute_values_from_function(note)
        return Here(min(numbers), len(numbers), strategy.num_replicas_in_sync)
    distribution = keras.distribution.distribution()
    if keras.backend.backend() != "jax" or distribution is None:
        return Here(0, 1, 1)
    import jax

    count = jax.local_device_count()
    total = distribution.device_mesh.devices.size
    return Here(jax.process_index() * count, min(count, total), total)


def _gathered(model: keras.Model, array: np.ndarray) -> np.ndarray:
    """Arrays (replicas here, ...) of all processes as one (all replicas, ...)."""
    here = replicas_here(model)
    if here.number == here.total:
        return array
    everything = np.zeros((here.total, *array.shape[1:]), array.dtype)
    everything[here.first : here.first + here.number] = array
    words = _summed(model, _words(everything.tobytes()))
    content = words.tobytes()[: everything.nbytes]
    return np.frombuffer(content, array.dtype).reshape(everything.shape)


def broadcast(model: keras.Model, content: bytes | None) -> bytes:
    """What the first process has, on all; the others' `content` is not looked at.

    Args:
        model: `keras.Model` that the processes train.
        content: Bytes, needed on the first process.
    """
    here = replicas_here(model)
    if here.number == here.total:
        return content or b""
    mine = content if here.first == 0 and content is not None else b""
    length = int(_summed(model, np.array([len(mine)], np.int32))[0])
    words = np.zeros(-(-length // 4), np.int32)
    if mine:
        words = _words(mine)
    return _summed(model, words).tobytes()[:length]


def _words(content: bytes) -> np.ndarray:
    return np.frombuffer(content + b"\0" * (-len(content) % 4), np.int32)


def _summed(model: keras.Model, words: np.ndarray) -> np.ndarray:
    """int32 arrays of all processes, of one shape, added up."""
    if not replicas:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(words)).sum(0, np.int32)
    strategy = model.distribute_strategy
    first = replicas_here(model).first

    def part(context: Any) -> Any:
        mine = context.replica_id_in_sync_group == first
        return tf.constant(words if mine else np.zeros_like(words))

    values = strategy.experimental_distribute_values_from_function(part)
    return strategy.reduce("SUM", values, axis=None).numpy()
