"""`GradientNoise` against a slow twin; also run as a script on other backends and under
a strategy."""

import functools
import os
import sys
import tempfile
import warnings
from pathlib import Path

if sys.argv[1:] == ["jax"]:  # Before JAX is imported.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import gradient_checks
import keras
import numpy as np
import table
from oracle import METHODS, Method, adam_factor, signed

import svag_tf
from svag_tf.noise import files as noise_files


def twin(kind, theta, gradients, rate, beta=0.9, second=None, batch_size=1.0):
    """The quantities after the last of `gradients`, in float64, from the definitions.

    Args:
        kind: One of `OPTIMIZERS`.
        theta: Weights, shape (n,).
        gradients: Shape (t, n).
        rate: Learning rate.
    """
    g = np.asarray(gradients, np.float64)
    t = len(g)
    second = beta if second is None else second
    weights = (1 - beta) * beta ** np.arange(t)[::-1] / (1 - beta**t)
    weights_2 = (1 - second) * second ** np.arange(t)[::-1] / (1 - second**t)
    m, v = weights @ g, weights_2 @ g**2
    rho = np.sum(weights**2)
    s = np.maximum(v - m**2, 0) / (1 - rho)
    method = METHODS.get(kind, ADAM)
    noises = {"s": s, "rho s": rho * s, "v - m^2": np.maximum(v - m**2, 0)}
    gamma = method.factor(m, noises[method.noise])
    update = method.form(gamma, {"m": m, "g": np.sqrt(v)}[method.step])
    signal = np.sum(m**2 - rho * s)
    eta2 = s.sum() / signal if signal > 0 else np.inf
    return {
        "eta2": eta2,
        "gamma": gamma.mean(),
        "m": np.linalg.norm(m),
        "sqrt_s": np.sqrt(s.sum()),
        "update_to_weight": rate * np.linalg.norm(update) / np.linalg.norm(theta),
        "noise_scale": batch_size * eta2,
    }


ADAM = Method("Adam", "m", signed, "v - m^2", adam_factor)
OPTIMIZERS = {
    **{
        name: functools.partial(table.make, name, learning_rate=0.01)
        for name, method in METHODS.items()
        if method.is_measured
    },
    "adam": lambda: keras.optimizers.Adam(0.01, beta_2=0.99, epsilon=0.0),
}


def check_fit(optimizer="msvag", strategy=None):
    """A loss linear in the weights, whose gradients are known, through `fit`."""
    rng = np.random.default_rng(0)
    x = (1 + rng.normal(size=(48, 3))).astype("float32")
    noise = svag_tf.callbacks.GradientNoise(every=5, preset="business")

    def compiled():
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(1, use_bias=False, name="dense")]
        )
        model.compile(OPTIMIZERS[optimizer](), lambda y, output: output)
        return model

    if strategy is None:
        model = compiled()
    else:
        with strategy.scope():
            model = compiled()
    history = model.fit(
        x, np.zeros((48, 1)), batch_size=4, shuffle=False, verbose=0, callbacks=[noise]
    )
    gradients = x.reshape(12, 4, 3).mean(1)[:10]  # measured after 5 and 10 of 12
    theta = model.get_weights()[0].ravel()
    expected = twin(optimizer, theta, gradients, 0.01, batch_size=4, second=(
        0.99 if optimizer == "adam" else None
    ))  # fmt: skip
    del expected["update_to_weight"]  # The weights have moved on since.
    five = twin(optimizer, theta, gradients[:5], 0.01, batch_size=4, second=(
        0.99 if optimizer == "adam" else None
    ))  # fmt: skip
    assert np.isfinite(five["eta2"]) and np.isfinite(expected["eta2"])
    del expected["noise_scale"]
    values = history.history
    for name, value in expected.items():
        for key in (f"noise/{name}", f"noise/dense/{name}"):
            np.testing.assert_allclose(values[key], [value], 2e-4, err_msg=key)


def check_files():
    """The histograms of preset "full", counted by NumPy from the same averages."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="dense")])
    model.compile(svag_tf.MSVAG(0.01), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 3)), rng.normal(size=(32, 4))
    model.set_weights([rng.normal(size=w.shape) for w in model.weights])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No TensorBoard files")
        noise = svag_tf.callbacks.GradientNoise(8, "full", folder)
        model.fit(x, y, 4, verbose=0, callbacks=[noise])
        path = Path(folder, "noise_histograms.csv")
        rows = noise_files.read_table(path, noise_files.HISTOGRAM_COLUMNS)
    moments = zip(model.optimizer.m_tilde, model.optimizer.v_tilde)
    gamma, eta2 = [], []
    for first, second in moments:
        m, v = (
            keras.ops.convert_to_numpy(a).astype(np.float64).ravel() / (1 - 0.9**8)
            for a in (first, second)
        )
        rho = 0.1 * (1 + 0.9**8) / (1.9 * (1 - 0.9**8))
        s = np.maximum(v - m**2, 0) / (1 - rho)
        gamma += [*(m**2 / (m**2 + rho * s))]
        eta2 += [*np.log10(s / m**2)]
    bins = noise_files.BINS
    expected = {
        "gamma": np.histogram(gamma, bins, (0, 1))[0],
        # What lies outside is counted in the first and the last bin.
        "log10_eta2": np.histogram(np.clip(eta2, -5, 5), bins, (-5, 5))[0],
    }
    assert len(rows) == 4
    for row in rows:
        counts = [int(row[f"bin_{i}"]) for i in range(bins)]
        assert counts == expected[row["quantity"]].tolist(), row


def main(mode):
    if mode == "mirrored":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        configuration = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, configuration)
        check_fit(strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    else:
        check_fit()
        check_fit("adam")
        check_files()
        for check in gradient_checks.CHECKS:
            check()
    if mode == "jax":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
        check_fit()


if __name__ == "__main__":
    main(sys.argv[1])
