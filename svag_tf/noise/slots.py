"""Reads an optimizer's averages and their factors for `GradientNoise`."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from svag_tf import internals, rules

SUPPORTED = (
    "svag_tf's MSVAG (variance='time'), SVAG, MSVAS and SVAS with beta > 0, and Keras' "
    "Adam and AdamW with beta_1 > 0"
)


class Slots:
    """Reads an optimizer's averages and their factors for the callback.

    Args:
        optimizer: A built optimizer.
        m, v: Functions without arguments that return the averages' variables.
        betas: Decay of m and of v.
        gamma: The factor that damps each element, a function of signal and noise.
        damping: What it damps: "gradient" for m, "sampled" for g, "sign".
    """

    def __init__(self, optimizer, m, v, betas, gamma, damping):
        self.optimizer, self.gamma, self.damping = optimizer, gamma, damping
        self._m, self._v, self._betas = m, v, betas

    def arguments(self, model):
        """Returns for each variable theta, m~, v~ and factors, as lists of tensors."""
        optimizer, variables = self.optimizer, model.trainable_variables
        # The optimizer may hold more: variables of layers that were frozen later.
        at = [internals.variable_index(optimizer, v) for v in variables]
        m, v = self._m(), self._v()
        lists = [variables, [m[i] for i in at], [v[i] for i in at]]
        tensors = [[ops.convert_to_tensor(v.value) for v in part] for part in lists]
        factors = []
        rows = getattr(optimizer, "row_update_counts", ())
        updates = getattr(optimizer, "update_counts", None)
        if updates is None:  # One of Keras' own.
            counts = ops.broadcast_to(optimizer.iterations, (len(at),))
        else:
            counts = ops.take(updates, at)
        shared = np.stack(
            [ops.convert_to_numpy(f) for f in self._factors(counts)], axis=1
        )
        for i, theta in enumerate(tensors[0]):
            if rows and rows[at[i]] is not None:  # Each row has its own t.
                by_row = self._factors(rows[at[i]].value)
                shape = (-1, *[1] * (len(theta.shape) - 1))
                factors.append([ops.reshape(f, shape) for f in by_row])
            else:
                factors.append([ops.convert_to_tensor(f) for f in shared[i]])
        return *tensors, factors

    def _factors(self, counts):
        """Returns 1/(1 - beta^t) for m and v, 1/(1 - rho), rho/(1 - rho), gamma's."""
        t = ops.cast(ops.maximum(counts, 1), "float32")
        first, second = self._betas
        variance = rules.variance_factor(t, first)
        mean_variance = rules.mean_variance_factor(t, first)
        if hasattr(self.optimizer, "noise_factor"):
            factor = self.optimizer.noise_factor(t)
        else:
            factor = ops.ones_like(t)
        correction = rules.bias_correction(t, first), rules.bias_correction(t, second)
        return *correction, variance, mean_variance, factor


def slots_of(optimizer):
    """Returns the averages that an optimizer keeps; raises an error if it has none."""
    if optimizer is None:
        raise ValueError(
            "GradientNoise reads the slots of the model's optimizer, but the model is "
            "not compiled. Call model.compile first."
        )
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # Loss scaling.
    damping = getattr(optimizer, "damping", None)
    if damping and optimizer.beta > 0 and "v_tilde" in optimizer.slots:
        return Slots(
            optimizer,
            lambda: optimizer.m_tilde,
            lambda: optimizer.v_tilde,
            (optimizer.beta, optimizer.beta),
            optimizer.gamma,
            damping,
        )
    if isinstance(optimizer, keras.optimizers.Adam) and optimizer.beta_1 > 0:
        return Slots(
            optimizer,
            lambda: internals.averages_of_adam(optimizer)[0],
            lambda: internals.averages_of_adam(optimizer)[1],
            (optimizer.beta_1, optimizer.beta_2),
            rules.gamma_sign_adam,
            "sign",
        )
    adaptive = damping or isinstance(optimizer, keras.optimizers.Adam)
    settings = [
        f", {name}={getattr(optimizer, name)!r}"
        for name in ("beta", "beta_1", "variance")
        if adaptive and hasattr(optimizer, name)
    ]
    raise ValueError(
        "GradientNoise needs the averages of the gradient and of its square, and the "
        "factor that damps a step, and this optimizer does not have all three. "
        f"It can measure {SUPPORTED}. For any other, "
        "svag_tf.gradient_statistics computes gradient and variance from the data. "
        f"Received: {type(optimizer).__name__}{''.join(settings)}"
    )
