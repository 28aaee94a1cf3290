"""The rows of a JAX process: Keras optimizers on the JAX backend, optax, the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from svag_tf.experiments.benchmark.cases import Case
from svag_tf.experiments.benchmark.keras_rows import UpdateRows, jitted
from svag_tf.experiments.benchmark.serving import Step
from svag_tf.optional import jax, optax


def jax_meter() -> Callable[[], int | None]:
    """Returns a `serving.Meter`. On the CPU memory goes back to the system."""
    return lambda: 0 if jax.default_backend() == "cpu" else None


class JaxRows:
    """Builds the rows by name; `keras_rows` builds those of Keras optimizers."""

    def __init__(self, case: Case, keras_rows: Callable[[str], Step]):
        self.case = case
        self.keras_rows = keras_rows

    def __call__(self, name: str) -> Step:
        if name == "limit":
            return self._limit()
        if not name.startswith("optax-"):
            return self.keras_rows(name)
        method = optax.adam(1e-3) if name == "optax-adam" else optax_msvag(1e-3)

        def apply(state: Any, gradients: Any) -> Any:
            parameters, moments = state
            updates, moments = method.update(gradients, moments, parameters)
            return optax.apply_updates(parameters, updates), moments

        parameters = [
            jax.numpy.zeros(shape, jax.numpy.float32) for shape in self.case.shapes
        ]
        assert isinstance(self.keras_rows, UpdateRows)
        gradients = [gradient.value for gradient in self.keras_rows.gradients]
        state = (parameters, method.init(parameters))
        return jitted(jax.jit(apply, donate_argnums=0), state, gradients)

    def _limit(self) -> Step:
        """Adds 1 to a vector in place: 4 bytes read and 4 written per element.

        With 3.5 elements per parameter it moves M-SVAG's 28 bytes per parameter.
        """
        x = jax.numpy.zeros(7 * self.case.parameters // 2, jax.numpy.float32)
        return jitted(jax.jit(lambda x, _: x + 1, donate_argnums=0), x, None)


class _MSVAGState(NamedTuple):
    count: Any
    m_tilde: Any
    v_tilde: Any


def optax_msvag(learning_rate: float, beta: float = 0.9) -> Any:
    """Returns M-SVAG as a gradient transformation in optax's style."""

    def init(parameters: Any) -> _MSVAGState:
        # Separate buffers, so that they can be donated.
        m, v = (jax.tree.map(jax.numpy.zeros_like, parameters) for _ in range(2))
        return _MSVAGState(jax.numpy.zeros((), jax.numpy.int32), m, v)

    def update(gradients: Any, state: _MSVAGState, parameters: Any = None) -> Any:
        count = state.count + 1
        power = jax.numpy.float32(beta) ** count
        rho = (1 - beta) * (1 + power) / ((1 + beta) * (1 - power))
        m_tilde = jax.tree.map(
            lambda m, g: beta * m + (1 - beta) * g, state.m_tilde, gradients
        )
        v_tilde = jax.tree.map(
            lambda v, g: beta * v + (1 - beta) * g * g, state.v_tilde, gradients
        )

        def step(m: Any, v: Any) -> Any:
            m, v = m / (1 - power), v / (1 - power)
            s = jax.numpy.maximum(v - m * m, 0) / jax.numpy.maximum(1 - rho, 1e-4)
            noise = m * m + rho * s
            gamma = jax.numpy.where(
                noise > 0, m * m / jax.numpy.where(noise > 0, noise, 1), 0
            )
            return -learning_rate * gamma * m

        updates = jax.tree.map(step, m_tilde, v_tilde)
        return updates, _MSVAGState(count, m_tilde, v_tilde)

    return optax.GradientTransformation(init, update)
