"""M-SVAG written plainly in keras.ops, for comparison."""

from typing import Any

import keras
from keras import ops

from svag_tf import internals


class PlainMSVAG(keras.optimizers.Optimizer):
    """The paper's equations, one operation after the other."""

    def __init__(self, learning_rate: float = 0.1, beta: float = 0.9, **kwargs: Any):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta = beta

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._m = [self.add_variable_from_reference(v, "m") for v in variables]
        self._v = [self.add_variable_from_reference(v, "v") for v in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        beta = self.beta
        index = internals.variable_index(self, variable)
        m_tilde, v_tilde = self._m[index], self._v[index]
        g = ops.cast(gradient, variable.dtype)
        t = ops.cast(self.iterations + 1, variable.dtype)
        power = ops.power(ops.cast(beta, variable.dtype), t)
        # Functions, as operators do not accept the sparse gradient of an embedding.
        self.assign_add(m_tilde, ops.multiply(ops.subtract(g, m_tilde), 1 - beta))
        self.assign_add(
            v_tilde, ops.multiply(ops.subtract(ops.square(g), v_tilde), 1 - beta)
        )
        m = m_tilde / (1 - power)
        v = v_tilde / (1 - power)
        rho = (1 - beta) * (1 + power) / ((1 + beta) * (1 - power))
        s = ops.maximum(v - ops.square(m), 0.0) / ops.maximum(1 - rho, 1e-4)
        gamma = ops.divide_no_nan(ops.square(m), ops.square(m) + rho * s)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * gamma * m)
