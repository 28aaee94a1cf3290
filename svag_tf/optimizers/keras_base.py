"""Keras' base class, with averages, norms and counts that are right in all cases."""

import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from svag_tf import internals
from svag_tf.optimizers import arguments
from svag_tf.optimizers.replicated import ReplicatedOptimizer, local


class KerasOptimizer(ReplicatedOptimizer):
    """Keras' base class, with corrections.

    Learning rates are checked. The norms of half-precision gradients do not overflow,
    the step count does not wrap, and with `use_ema` the moving average of each variable
    starts at its own first update.
    """

    # Whether each variable's average holds a value: 0 or 1.
    has_average: Any = None

    @property
    def learning_rate(self):
        """The current learning rate; assign a number to change it."""
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        if isinstance(value, (str, bytes, bool, type(None), numbers.Number)):
            value = arguments.check_learning_rate(value)
        keras.optimizers.Optimizer.learning_rate.fset(self, value)

    def clip_gradients(self, grads):
        """Returns clipped gradients; those in half precision become float32."""
        if self.clipnorm or self.clipvalue or self.global_clipnorm:
            # The sum of squares of a float16 gradient overflows at a norm of 256.
            grads = [
                ops.cast(g, "float32")
                if keras.backend.standardize_dtype(g.dtype) in ("float16", "bfloat16")
                else g
                for g in grads
            ]
        return super().clip_gradients(grads)

    def hold_step_count(self):
        """Keeps the step count within int32; JAX and PyTorch would let it wrap around.

        A schedule would then see a negative step. The count goes back by whole periods,
        so that accumulation and overwriting with averages stay in phase.
        """
        count = internals.step_count(self)
        if keras.backend.standardize_dtype(count.dtype) == "int32":
            period = self.gradient_accumulation_steps or 1
            period *= self.ema_overwrite_frequency or 1
            at_end = count > np.iinfo("int32").max - period
            self.assign(count, count - period * ops.cast(at_end, "int32"))

    def update_averages(self, variables):
        """Updates moving averages; one without a value takes its variable's."""
        if not self.use_ema:
            return
        begun = ops.unstack(local(self.has_average) > 0)
        averages = internals.weight_averages(self)
        for variable, average, has_average in zip(variables, averages, begun):
            if average is not None:
                has_average = ops.cast(has_average, variable.dtype)
                momentum = ops.multiply(has_average, self.ema_momentum)
                old = ops.multiply(momentum, average)
                average.assign(old + ops.multiply(ops.subtract(1, momentum), variable))
        ones = ops.ones(self.has_average.shape, self.has_average.dtype)
        self.assign(local(self.has_average), ones)

    def overwrite_with_averages(self, variables):
        """Overwrites variables with their moving averages, where these have a value."""
        averages = internals.weight_averages(self)
        begun = ops.unstack(local(self.has_average) > 0)
        for variable in variables:
            index = internals.variable_index(self, variable)
            if averages[index] is not None:
                # A new tensor: in `fit`, JAX donates a variable's buffer, and a buffer
                # that two variables share can be donated only once.
                values = [
                    ops.convert_to_tensor(local(v)) for v in (averages[index], variable)
                ]
                self.assign(local(variable), ops.where(begun[index], *values))
