"""`python -m svag_tf.optimizers.known_answer LIBRARY`: tries a native build.

Every method makes some updates with the build and with the XLA kernel, on gradients of
all kinds. Prints which rules give the same bits, and which do not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from svag_tf import native, optimizers
from svag_tf.optional import tensorflow as tf

SIZE = 8003  # Not divisible by what machines compute at a time.
STEPS = 30
# The methods by their names in update.cc: class and arguments.
METHODS: dict[str, tuple[type, dict[str, str]]] = {
    "msgd": (optimizers.MSGD, {}),
    "ssd": (optimizers.SSD, {}),
    "mssd": (optimizers.MSSD, {}),
    "svag": (optimizers.SVAG, {}),
    "msvag": (optimizers.MSVAG, {}),
    "svas_gaussian": (optimizers.SVAS, {"adaptation": "gaussian"}),
    "svas_adam": (optimizers.SVAS, {"adaptation": "adam"}),
    "msvas_gaussian": (optimizers.MSVAS, {"adaptation": "gaussian"}),
    "msvas_adam": (optimizers.MSVAS, {"adaptation": "adam"}),
}
SLOT_DTYPES = ("float32", "bfloat16")
RULES = [native.rule_name(m, dtype) for m in METHODS for dtype in SLOT_DTYPES]


def gradients(size: int, steps: int = STEPS) -> Iterator[np.ndarray]:
    """Yields gradients: ordinary, tiny, huge, zero, rare, and not finite."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-44, 38.5, size)
    kind = rng.integers(0, 8, size)
    if half := size // 128 * 64:
        # Here 64 neighbours are of one kind: the build has a shorter path for 64
        # ordinary elements.
        for each in (scale, kind):
            each[half:] = np.repeat(each[: half // 64 + 2], 64)[: size - half]
    for t in range(steps):
        noise, chance = rng.normal(size=size), rng.random(size)
        kinds = [
            noise,
            1 + 1e-3 * noise,
            scale * noise,
            scale,
            np.where(t < 5, scale * noise, -0.0),
            np.where(chance < 0.1, noise, 0.0),
            np.where(chance < 0.2, np.sign(noise) * 3.4e38, noise),
            np.where(chance < 0.01, np.sign(noise) * np.inf, noise),
        ]
        with np.errstate(over="ignore"):
            yield np.choose(kind, kinds).astype("float32")


def state_after(method: str, shape: tuple[int, ...] = (SIZE,), **arguments):
    """Returns the bytes of a variable and its slots after the updates."""
    cls, own = METHODS[method]
    optimizer = cls(**own, **arguments)
    size = int(np.prod(shape))
    start = np.random.default_rng(1).normal(size=size).reshape(shape)
    theta = keras.Variable(start.astype("float32"))
    optimizer.build([theta])

    @tf.function(autograph=False)
    def step(gradient):
        optimizer.apply([gradient], [theta])

    for gradient in gradients(size):
        step(tf.constant(gradient.reshape(shape)))
    state = [theta, *optimizer.m_tilde, *optimizer.v_tilde]
    values = [tf.cast(v.value, tf.float32).numpy() for v in state]
    # All NaNs count as equal.
    return [np.where(np.isnan(v), np.float32(np.nan), v).tobytes() for v in values]


def is_equal(method: str, shape: tuple[int, ...] = (SIZE,), **arguments) -> bool:
    """Returns whether the build gives the bits of the XLA kernel."""
    first, second = (
        state_after(method, shape, jit_compile=kernel, **arguments)
        for kernel in (True, "native")
    )
    return first == second


def main(library: str) -> None:
    """Prints a JSON object of the rules: "equal" and "different"."""
    tried = native.operation_of(Path(library))
    native.use(native.Build(tried, frozenset(RULES), "being tried"))
    answers: dict[str, list[str]] = {"equal": [], "different": []}
    for method in METHODS:
        for dtype in SLOT_DTYPES:
            equal = all(
                is_equal(method, state_dtype=dtype, weight_decay=decay)
                for decay in (None, 0.05)
            )
            rule = native.rule_name(method, dtype)
            answers["equal" if equal else "different"].append(rule)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
