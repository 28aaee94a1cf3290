"""Keras' dynamic loss scaling, corrected for several replicas."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from svag_tf import internals
from svag_tf.optimizers.arguments import names
from svag_tf.optimizers.base import MomentOptimizer
from svag_tf.saving.stores import RECORD

replicas: Any = None
uneven_batches: Any = None
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    from svag_tf import replicas
    from svag_tf.replicas import uneven_batches


@keras.saving.register_keras_serializable(package="svag_tf")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scaling, also for several replicas of tf.distribute.

    Keras' own class looks for infinite gradients on the first replica only, and cannot
    be traced under `MirroredStrategy`. This one first sums the gradients over the
    replicas. If the sum is finite it is applied; otherwise all replicas skip the step.
    With a single replica it does the same as Keras' class.

    Args:
        inner_optimizer: An optimizer of svag_tf.
        initial_scale: Float, the initial loss scale. Defaults to `2.0**15`.
        dynamic_growth_steps: Integer, the number of finite steps after which the scale
            is doubled. Defaults to `2000`.
        **kwargs: As for `keras.optimizers.LossScaleOptimizer`.

    Raises:
        TypeError: If `inner_optimizer` is not of svag_tf, or an argument is unknown.

    Example:

    >>> import svag_tf
    >>> from svag_tf import distribution
    >>> optimizer = distribution.LossScaleOptimizer(svag_tf.MSVAG(learning_rate=0.1))
    >>> print(optimizer.initial_scale)
    32768.0

    Reference: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """

    # Old files hold every optimizer's arguments; Keras accepts them at their defaults.
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
                "scaling, which changes its variances. Use the policy mixed_bfloat16."
            )
        for name in kwargs.keys() - self._arguments:
            raise TypeError(
                f"{type(self).__name__} has no argument `{name}`. All arguments but "
                "initial_scale, dynamic_growth_steps and name belong to the inner "
                f"optimizer: {type(inner_optimizer).__name__}({name}=...)"
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
        """Restores the loss scale from a store of Keras; at `build`, if not built yet.

        The inner optimizer restores its own state. A file of an optimizer without loss
        scaling has no scale, which then starts at its initial value.

        Args:
            store: A store that `save_own_variables` has filled.
        """
        keys = store.keys()
        if RECORD in keys or "0" not in keys:
            return
        if not self.built:
            self._waiting = {key: np.asarray(store[key]) for key in keys}
            return
        inner = {id(v) for v in self.inner_optimizer.variables}
        own = [v for v in self.variables if id(v) not in inner]
        for i, variable in enumerate(own):
            variable.assign(store[str(i)])

    def scale_loss(self, loss: Any) -> Any:
        """Scales the loss; on several replicas, also weights it by its part's size.

        Args:
            loss: Scalar tensor.
        """
        if uneven_batches:
            loss = uneven_batches.weighted_loss(loss)
        return super().scale_loss(loss)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Makes one update, or skips it if a gradient is not finite.

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
        variables = trainable_variables or internals.trained_variables(inner)
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

        # The branch is chosen outside of the replicas: code that exchanges data with
        # other replicas cannot be inside a `tf.cond` of one of them.
        def choose(strategy: Any, grads: Any, wrong: Any) -> None:
            is_finite = strategy.experimental_local_results(wrong)[0] == 0.0
            count = tf.convert_to_tensor(self.step_counter)
            scale = tf.convert_to_tensor(self.dynamic_scale)
            grown = tf.equal(count, self.dynamic_growth_steps - 1)

            def apply() -> None:
                strategy.run(step, args=(grads,))
                next_count = tf.where(grown, tf.zeros_like(count), count + 1)
                self.step_counter.assign(next_count)
                self.dynamic_scale.assign(tf.where(grown, 2.0 * scale, scale))

            def skip() -> None:
                self.step_counter.assign(tf.zeros_like(count))
                self.dynamic_scale.assign(0.5 * scale)

            tf.cond(is_finite, apply, skip)

        here.merge_call(choose, args=(grads, wrong))
