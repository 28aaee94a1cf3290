"""The rows that are Keras optimizers, on the TensorFlow or the JAX backend."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

import svag_tf
from svag_tf.experiments.benchmark.cases import Case
from svag_tf.experiments.benchmark.plain import PlainMSVAG
from svag_tf.experiments.benchmark.rows import LARGE
from svag_tf.experiments.benchmark.serving import Step, timed
from svag_tf.experiments.optimizers import METHODS
from svag_tf.experiments.problems import fmnist_2c2d

JAX = keras.backend.backend() == "jax"
COMPILED, XLA = "-compiled", "-xla"
NOISE, NOISE_FIT = "noise-", "noise-fit"

_OURS = {name: method.create for name, method in METHODS.items() if method.is_ours}
_RATE = 1e-3


def optimizer_of(name: str) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a row."""
    name = "msvag" if name.startswith(NOISE) else name.removesuffix(COMPILED)
    if name in _OURS:
        return _OURS[name](learning_rate=_RATE)
    if name in ("msvag-dense", "msvag-jax"):
        return svag_tf.MSVAG(learning_rate=_RATE)
    if name == "msvag-bfloat16":
        return svag_tf.MSVAG(learning_rate=_RATE, state_dtype="bfloat16")
    if name == "msvag-portable":
        return svag_tf.MSVAG(learning_rate=_RATE, jit_compile=False)
    if name.endswith(XLA):
        return _OURS[name.removesuffix(XLA)](learning_rate=_RATE, jit_compile=True)
    if name == "msvag-lazy":
        return _OURS["msvag"](learning_rate=_RATE, sparse_updates="lazy")
    if name == "plain":
        return PlainMSVAG(learning_rate=_RATE)
    if name == "keras-adam":
        return keras.optimizers.Adam(_RATE)
    if name == "keras-sgd":
        return keras.optimizers.SGD(_RATE, momentum=0.9)
    if name == "keras-lion":
        return keras.optimizers.Lion(_RATE)
    raise ValueError(f"There is no row {name!r}.")


class UpdateRows:
    """Steps that update a case's variables, given their gradients.

    Each row has its own variables and slots; the gradients are shared by all.
    """

    def __init__(self, case: Case):
        self.case = case
        generator = keras.random.SeedGenerator(0)
        # Variables, as constant gradients would be folded.
        self.gradients = [
            keras.Variable(
                keras.random.normal(shape, stddev=0.01, seed=generator),
                trainable=False,
            )
            for shape in ([] if case.indices and not JAX else case.shapes)
        ]
        if case.indices:
            rows, width = case.shapes[0]
            rng = np.random.default_rng(0)
            self.indices = rng.integers(0, rows, case.indices)
            self.values = keras.Variable(
                keras.random.normal((case.indices, width), stddev=0.01, seed=generator),
                trainable=False,
            )

    def __call__(self, name: str) -> Step:
        optimizer = optimizer_of(name)
        variables = [
            keras.Variable(np.zeros(shape, np.float32)) for shape in self.case.shapes
        ]
        optimizer.build(variables)
        return (self._jax if JAX else self._tensorflow)(name, optimizer, variables)

    def _tensorflow(
        self, name: str, optimizer: keras.optimizers.Optimizer, variables: list[Any]
    ) -> Step:
        import tensorflow as tf

        sparse = self.case.indices and name != "msvag-dense"
        if self.case.indices and not sparse:
            dense = np.zeros(self.case.shapes[0], np.float32)
            np.add.at(dense, self.indices, self.values.numpy())
            gradients = [keras.Variable(dense, trainable=False)]
        else:
            gradients = self.gradients
        indices = tf.constant(self.indices) if sparse else None

        # What `fit` runs on the TensorFlow backend, without computing gradients.
        @tf.function(jit_compile=True if name.endswith(COMPILED) else None)
        def apply() -> None:
            if sparse:
                shape = tf.constant(self.case.shapes[0])
                values = self.values.value.read_value()
                grads = [tf.IndexedSlices(values, indices, shape)]
            else:
                grads = [gradient.value.read_value() for gradient in gradients]
            optimizer.apply(grads, variables)

        return timed(apply)

    def _jax(
        self, name: str, optimizer: keras.optimizers.Optimizer, variables: list[Any]
    ) -> Step:
        import jax

        def apply(state: Any, gradients: list[Any]) -> Any:
            return optimizer.stateless_apply(state[1], gradients, state[0])

        gradients = [gradient.value for gradient in self.gradients]
        state = (
            [variable.value for variable in variables],
            [variable.value for variable in optimizer.variables],
        )
        return jitted(jax.jit(apply, donate_argnums=0), state, gradients)


def jitted(apply: Callable[[Any, Any], Any], state: Any, gradients: Any) -> Step:
    """Returns a step of a jitted function that passes on its state, buffers donated."""
    import jax

    held = [state]
    del state

    def step() -> None:
        # Nothing else may hold donated buffers.
        held.append(jax.block_until_ready(apply(held.pop(), gradients)))

    return timed(step)


def tensorflow_meter() -> Callable[[], int]:
    """Returns the memory of TensorFlow's CPU allocator: see `serving.Meter`.

    With oneDNN it has a pool and counts; without it, memory goes back to the system.
    """
    import tensorflow as tf

    device = "CPU:0"
    try:
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
    except ValueError:  # no counts
        return lambda: 0
    return lambda: tf.config.experimental.get_memory_info(device)["peak"] - before


class FitRows:
    """Whole steps of `fit`: forward, backward, update, metrics, all that Keras does.

    A step is the mean over a short epoch, from its first batch to its end. With
    GradientNoise it is the time of all callbacks in an epoch with one measurement.
    """

    def __init__(self, case: Case):
        self.steps = case.fit_steps
        rng = np.random.default_rng(0)
        build, batch = _MODELS[case.model]
        large = case.model in LARGE
        self.batch = 8 if case.quick else batch
        self.build = functools.partial(build, case.quick) if large else build
        model = self.build()
        shape = (self.batch * self.steps, *model.input_shape[1:])
        outputs = model.output_shape[-1]
        if model.inputs[0].dtype == "float32":
            self.x = rng.random(shape, np.float32)
        else:
            self.x = rng.integers(0, VOCABULARY, shape).astype(np.int32)
        self.y = rng.integers(0, outputs, (len(self.x), *model.output_shape[1:-1]))

    def __call__(self, name: str) -> Step:
        model = self.build()
        model.compile(
            optimizer=optimizer_of(name),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True if name.endswith(COMPILED) else "auto",
        )
        clock: Any = _Clock()
        callbacks: Any = [clock]
        steps = self.steps
        if name != NOISE_FIT and name.startswith(NOISE):
            folder = tempfile.TemporaryDirectory()  # removed with the callback
            noise = svag_tf.callbacks.GradientNoise(
                steps, name.removeprefix(NOISE), folder.name
            )
            noise.folder = folder
            clock = callbacks = _TimedCallbacks([noise], add_history=True, model=model)
            steps = 1

        def step() -> float:
            model.fit(
                self.x,
                self.y,
                batch_size=self.batch,
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
            return clock.seconds / steps

        return step


class _Clock(keras.callbacks.Callback):
    """Measures the time from the first batch of an epoch to its end.

    There the logs are numbers, so the device is done.
    """

    seconds = 0.0
    _start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        float(logs["loss"])
        self.seconds = time.perf_counter() - self._start


class _TimedCallbacks(keras.callbacks.CallbackList):
    """Measures the time of callbacks in an epoch: logs become numbers, all callbacks
    are called for every batch, and the epoch's logs go to `History`."""

    seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seconds = 0.0
        self._timed(super().on_epoch_begin, epoch, logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._timed(super().on_train_batch_begin, batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])  # the device is done
        self._timed(super().on_train_batch_end, batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._timed(super().on_epoch_end, epoch, logs)

    def _timed(self, function: Callable[..., None], *arguments: Any) -> None:
        begin = time.perf_counter()
        function(*arguments)
        self.seconds += time.perf_counter() - begin


VOCABULARY, LENGTH, WIDTH = 10_000, 64, 128


def _transformer() -> keras.Model:
    """Builds two encoder blocks that label every token."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, WIDTH // 4)(y, y)])
        y = layers.LayerNormalization()(x)
        y = layers.Dense(4 * WIDTH, activation="gelu")(y)
        x = layers.Add()([x, layers.Dense(WIDTH)(y)])
    return keras.Model(tokens, layers.Dense(100)(layers.LayerNormalization()(x)))


def _table(quick: bool) -> keras.Model:
    """Builds a table of 250,000 x 64 whose rows are averaged and classified."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY if quick else 25 * VOCABULARY, 64)(tokens)
    return keras.Model(tokens, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def _dense(quick: bool) -> keras.Model:
    """Builds two dense layers of 4096 x 4096, and one that classifies."""
    width = 64 if quick else 4096
    hidden = [layers.Dense(width, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((width,)), *hidden, layers.Dense(10)])


# How to build each model, and its batch size.
_MODELS: dict[str, tuple[Callable[..., keras.Model], int]] = {
    "cnn": (fmnist_2c2d, 128),
    "noise": (fmnist_2c2d, 128),
    "transformer": (_transformer, 32),
    "table": (_table, 32),
    "dense": (_dense, 32),
}
