"""The moving averages of the weights that `use_ema` asks for."""

from typing import Any

from keras import ops

from svag_tf import internals
from svag_tf.optimizers.replicated import ReplicatedOptimizer, local


class AveragingOptimizer(ReplicatedOptimizer):
    """Base class: each variable's moving average begins with its own first step."""

    # Whether each variable's average holds a value: 0 or 1.
    has_average: Any = None

    def update_averages(self, variables):
        """Updates moving averages; each begins when its `has_average` is still 0."""
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
        """Gives variables the values of their moving averages, once they have begun."""
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
