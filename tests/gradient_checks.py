"""Exact gradient statistics against closed forms, on every backend: run by
`test_gradients.py` here, and by `noise_checks.py` under another KERAS_BACKEND."""

import keras
import numpy as np

import svag_tf

CLASSES = 3


def linear_data(n=70, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, rng.integers(CLASSES, size=n).astype("int32")


def linear_model(dtype="float32"):
    model = keras.Sequential(
        [keras.Input((4,), dtype=dtype), keras.layers.Dense(CLASSES, dtype=dtype)]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=v.shape) for v in model.weights])
    return model


def linear_gradients(model, x, y):
    """Gradients of every example's cross-entropy, in float64: (x p', p), p -= y."""
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_weights())
    logits = x.astype(np.float64) @ kernel + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return x[:, :, None].astype(np.float64) * p[:, None, :], p


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def assert_equal(result, gradients, rtol=1e-5):
    """`result` holds mean and variance of `gradients`, one array a variable."""
    for mean, variance, g in zip(result.gradient, result.variance, gradients):
        assert mean.dtype == variance.dtype == np.float64
        scale = np.abs(g).max()
        np.testing.assert_allclose(mean, g.mean(0), rtol, rtol * scale)
        np.testing.assert_allclose(variance, g.var(0), rtol, rtol * scale**2)


def check_closed_form():
    """In any number of chunks and batches, with and without vectorisation."""
    model, (x, y) = linear_model(), linear_data()
    gradients = linear_gradients(model, x, y)
    needed = 15 * (3 * 8 + 4)
    for arguments in (
        {},
        {"memory": 16 * needed},  # chunks of 16 and a remainder
        {"memory": needed},
        {"vectorized": False},
    ):
        result = svag_tf.gradient_statistics(
            model, cross_entropy(), (x, y), verbose=False, **arguments
        )
        assert result.examples == 70
        assert result.names == tuple(v.path for v in model.trainable_variables)
        assert_equal(result, gradients)


def check_float64_sums():
    """A mean 3e4 times the deviation: float32 sums of squares would hold nothing."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    x = (1.0 + 2.0**-15 * np.random.default_rng(0).integers(-3, 4, (3000, 1))).astype(
        "float32"
    )
    result = svag_tf.gradient_statistics(
        model,
        lambda y, output: output,
        (x, x),
        memory=28 * 100,
        verbose=False,
    )
    assert_equal(result, [x.astype(np.float64)[..., None]], 1e-12)


def check_convolutions():
    """Convolution, pooling, embedding-free: one vectorised pass equals the loop."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="relu", kernel_regularizer="l2"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(0)
    data = rng.normal(size=(9, 6, 6, 1)).astype("float32"), rng.normal(size=(9, 2))
    fast, slow = (
        svag_tf.gradient_statistics(model, "mse", data, vectorized=v, verbose=False)
        for v in (True, False)
    )
    for name in ("gradient", "variance"):
        for a, b in zip(getattr(fast, name), getattr(slow, name)):
            assert np.abs(b).max() > 0
            np.testing.assert_allclose(a, b, 1e-4, 1e-5 * np.abs(b).max())
    assert abs(fast.loss - slow.loss) < 1e-5


CHECKS = [check_closed_form, check_float64_sums, check_convolutions]
