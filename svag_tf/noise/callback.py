"""Measures how noisy the gradients are while a model trains: `GradientNoise`."""

import collections
import math
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from svag_tf.files import make_writable
from svag_tf.noise.files import OVERALL, RANGES, Files
from svag_tf.noise.slots import slots_of
from svag_tf.noise.statistics import (
    compiled_for,
    histograms_of_variables,
    noise_scale,
    quotient,
    sums_of_variables,
)

PRESETS = ("economy", "business", "full")
WINDOW = 10  # measurements whose mean makes the noise scale


class GradientNoise(keras.callbacks.Callback):
    """Measures the gradients' noise while a model trains, from the optimizer's slots.

    The optimizer's slots m~ and v~ give every element's averaged gradient m, its noise
    s and the factor gamma that damps its step. Every `every` batches this callback
    sums these up, for each layer and for all layers ("all"):

    Equation, with sums over the elements and rho s the variance of m:

        eta2 = sum(s) / sum(m^2 - rho s)        noise-to-signal ratio of a mini-batch's
                                                gradient; the numerator and the
                                                denominator are unbiased; inf where
                                                there is no signal
        gamma = mean of gamma over the elements that have received a gradient
        m = sqrt(sum(m^2))                      norm of the averaged gradient
        sqrt_s = sqrt(sum(s))                   deviation of a mini-batch's gradient
        update_to_weight = |update| / |theta|   without weight decay; for SVAG, whose
                                                update depends on the batch, its
                                                expected size sqrt(sum(gamma^2 v))
        noise_scale = batch size * sum(s) / sum(m^2 - rho s)
                                                both sums averaged over the last ten
                                                measurements: the simple noise scale

    The noise scale is the batch size at which noise and signal are equal, and
    `critical_batch_size` is the same in whole examples. Far below it, doubling the
    batch size saves almost half of the steps; far above it, almost none (McCandlish et
    al.). `noise_scale_error` is its standard error, from the scatter of those
    measurements, and NaN before the third.

    The results go to `logs`: after each measured batch the overall values, as
    "noise/eta2", and at the end of each epoch also those of the layers, as
    "noise/conv2d/eta2". Progress bar and `History` show them; put this callback
    before others that read `logs`, such as `CSVLogger`. An epoch with fewer than
    `every` batches is measured at its end.

    The training step is unchanged: nothing is retraced. Under a strategy, on every
    backend, the slots are those of the reduced gradient, and the noise is that of the
    whole batch.

    Args:
        every: Integer >= 1, batches between two measurements. Defaults to `100`.
        preset: `"economy"`: eta2, gamma, m, sqrt_s, and the noise scale of all layers
            together. `"business"`: also update_to_weight, and the noise scale of each
            layer. `"full"`: also histograms of gamma and of eta2 over the elements,
            in files only. Defaults to `"economy"`.
        log_dir: Folder for `noise.csv`, one line per layer and measurement, for
            `noise_histograms.csv` and for TensorBoard's event files
            (`tensorboard/noise/`); they need TensorFlow and tensorboard. A resumed
            training (its optimizer has made updates) keeps the lines up to that
            point; otherwise the files are created anew. (The mean behind the noise
            scale always starts anew.) Defaults to `None`: no files.
        batch_size: Examples in a batch. Defaults to `None`: as counted by `fit`.

    Raises:
        ValueError: An argument is out of range; or, when training starts, the
            optimizer does not hold the two averages that are needed.
        TypeError: An argument is of the wrong type.
        OSError: When training starts, if `log_dir` is not a writable folder; later, if
            the disk is full; names the file.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import svag_tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.01), "mse")
    >>> x, y = np.random.normal(size=(64, 3)), np.random.normal(size=(64, 1))
    >>> noise = svag_tf.callbacks.GradientNoise(every=4)
    >>> history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[noise])
    >>> 0 <= history.history["noise/gamma"][0] <= 1
    True

    Reference:
        L. Balles, P. Hennig, "Dissecting Adam: The Sign, Magnitude and Variance of
        Stochastic Gradients", ICML 2018, sections 3.3 and 4. S. McCandlish, J. Kaplan,
        D. Amodei and others, "An Empirical Model of Large-Batch Training", 2018,
        section 2.2 and appendix A.1.
    """

    def __init__(self, every=100, preset="economy", log_dir=None, batch_size=None):
        super().__init__()
        self.every = _whole("every", every)
        if preset not in PRESETS:
            raise ValueError(
                f"Argument `preset` must be one of {', '.join(map(repr, PRESETS))}. "
                f"Received: preset={preset!r}"
            )
        self.preset = preset
        if log_dir is not None and not isinstance(log_dir, str | os.PathLike):
            raise TypeError(
                "Argument `log_dir` must be a path or None. "
                f"Received: log_dir={log_dir!r} of type {type(log_dir).__name__}"
            )
        if log_dir is not None and not os.fspath(log_dir):
            raise ValueError(
                "Argument `log_dir` must be the path of a folder, or None for no "
                "files. Received: log_dir=''"
            )
        self.log_dir = None if log_dir is None else Path(log_dir)
        self.batch_size = (
            None if batch_size is None else _whole("batch_size", batch_size)
        )
        self._slots: Any = None
        self._files: Any = None
        self._batches = self._first = self._in_epoch = self._epoch = 0
        self._latest: dict[str, dict[str, float]] = {}
        self._measured_in_epoch = False
        self._windows: Any = collections.defaultdict(
            lambda: collections.deque(maxlen=WINDOW)
        )

    def on_train_begin(self, logs=None):
        """Finds the optimizer's slots, and opens the files."""
        model = self.model
        self._slots = slots_of(getattr(model, "optimizer", None))
        gamma, damping = self._slots.gamma, self._slots.damping
        shapes = tuple(tuple(v.shape) for v in model.trainable_variables)
        self._sums = compiled_for(
            sums_of_variables, shapes, gamma, damping, self.preset != "economy"
        )
        self._histograms = compiled_for(histograms_of_variables, shapes, gamma)
        optimizer = self._slots.optimizer
        updates = int(ops.convert_to_numpy(optimizer.iterations))
        if not self._batches:  # So a resumed training measures at the same batches.
            self._batches = updates * (optimizer.gradient_accumulation_steps or 1)
        self._begin = time.monotonic()
        self._latest = {}
        self._windows.clear()
        if self.log_dir is not None and _writes_files(model):
            make_writable("log_dir", self.log_dir)
            self._files = Files(self.log_dir, updates)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._in_epoch, self._measured_in_epoch = epoch, 0, False

    def on_train_batch_begin(self, batch, logs=None):
        self._first = batch

    def on_train_batch_end(self, batch, logs=None):
        """Measures, if this batch is due."""
        # With `steps_per_execution` several batches end at once.
        before, done = self._batches, batch - self._first + 1
        self._batches, self._in_epoch = before + done, self._in_epoch + done
        if before // self.every != self._batches // self.every:
            self._measure(logs)
            if logs is not None:
                logs.update(self._log_entries((OVERALL,)))

    def on_epoch_end(self, epoch, logs=None):
        if not self._measured_in_epoch:
            self._measure(logs)
        if logs is not None:
            logs.update(self._log_entries(self._latest))

    def on_train_end(self, logs=None):
        if self._files is not None:
            self._files.close()
            self._files = None

    def _log_entries(self, layers):
        return {
            "/".join(["noise", *([] if layer == OVERALL else [layer]), name]): value
            for layer in layers
            for name, value in self._latest[layer].items()
        }

    def _measure(self, logs):
        model = self.model  # On JAX this brings the variables up to date.
        slots = self._slots
        arguments = slots.arguments(model)
        sums = np.asarray(
            [ops.convert_to_numpy(row) for row in self._sums(*arguments)], np.float64
        )
        sums, scale = sums[:, :-1], sums[:, -1:]
        sums[:, 1:4] /= scale**2
        if slots.damping != "sign":
            sums[:, 5:6] /= scale**2
        rate = float(ops.convert_to_numpy(slots.optimizer.learning_rate))
        batch_size = self._examples(model) * (
            slots.optimizer.gradient_accumulation_steps or 1
        )
        groups = _groups(model)
        self._latest = {
            layer: self._values(layer, sums[members].sum(0), rate, batch_size)
            for layer, members in groups.items()
        }
        self._measured_in_epoch = True
        if self._files is None:
            return
        step = int(ops.convert_to_numpy(slots.optimizer.iterations))
        about = [
            step,
            self._epoch + 1,
            round(time.monotonic() - self._begin, 3),
            rate,
            float((logs or {}).get("loss", math.nan)),
        ]
        self._files.write(about, self._latest)
        if self.preset == "full":
            counts = self._histograms(*arguments)
            counts = {
                name: np.stack([ops.convert_to_numpy(row) for row in rows])
                for name, rows in counts.items()
            }
            self._files.write_histograms(
                step,
                {
                    (layer, name): counts[name][members].sum(0)
                    for layer, members in groups.items()
                    for name in RANGES
                },
            )

    def _values(self, layer, sums, rate, batch_size):
        """Returns a layer's quantities from the sums over its variables."""
        alive, m2, s, rho_s, gamma, step2, theta2 = sums
        signal = m2 - rho_s
        window = self._windows[layer]
        window.append((batch_size * s, signal))
        values = {
            "eta2": quotient(s, signal),
            "gamma": float(gamma / alive) if alive else float(gamma),  # 0 or NaN
            "m": math.sqrt(m2),
            "sqrt_s": math.sqrt(s),
        }
        if self.preset != "economy":
            update = rate * math.sqrt(step2)
            values["update_to_weight"] = (
                update / math.sqrt(theta2) if theta2 else math.nan
            )
        if self.preset != "economy" or layer == OVERALL:
            scale, error = noise_scale(window)
            values["noise_scale"], values["noise_scale_error"] = scale, error
            values["critical_batch_size"] = (
                float(math.ceil(scale)) if math.isfinite(scale) else scale
            )
        return values

    def _examples(self, model):
        """Returns this epoch's mean number of examples in a batch; NaN if unknown."""
        if self.batch_size is not None:
            return self.batch_size
        for metric in model.metrics:
            if metric.name == "loss" and hasattr(metric, "count"):
                count = float(ops.convert_to_numpy(metric.count))
                # A user's own training step may not update it.
                return count / self._in_epoch if count else math.nan
        return math.nan


def _groups(model):
    """Returns the indices of each layer's variables by its path, and of all of them."""
    groups: dict[str, list[int]] = {}
    seen: collections.Counter = collections.Counter()
    for i, variable in enumerate(model.trainable_variables):
        path = variable.path.removeprefix(f"{model.name}/")
        layer = path.rpartition("/")[0] or path
        if seen[path] or layer == OVERALL:  # Another layer has this name.
            layer = f"{layer}_{seen[path]}"
        seen[path] += 1
        groups.setdefault(layer, []).append(i)
    return {**groups, OVERALL: list(range(len(model.trainable_variables)))}


def _writes_files(model):
    """Returns whether this process is the one that writes files."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        strategy = getattr(model, "distribute_strategy", None)
        strategy = strategy or tf.distribute.get_strategy()
        return strategy.extended.should_save_summary
    if keras.backend.backend() == "jax":
        import jax

        return jax.process_index() == 0
    return True


def _whole(name, value):
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"Argument `{name}` must be an integer >= 1. "
            f"Received: {name}={value!r} of type {type(value).__name__}"
        )
    if value < 1:
        raise ValueError(
            f"Argument `{name}` must be an integer >= 1. Received: {name}={value}"
        )
    return int(value)
