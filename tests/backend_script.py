"""Run by `test_backends.py` under KERAS_BACKEND=jax or torch: all methods, and `fit`.

Runs all checks; prints the traceback of each that fails, and exits with 1 if any did.
"""

import sys
import traceback

import keras
import numpy as np
import restoring_checks
import table
from oracle import Oracle

import svag_tf
from svag_tf.distribution import check_replicas
from svag_tf.experiments.training.distributed import started
from svag_tf.experiments.training.train import Batches

STEPS = 25


def check_table(dtype):
    """The rows of the table that these backends have: eager, dense."""
    betas = table.BETAS if dtype == "float32" else (0.9,)
    for variant in table.VARIANTS:
        for beta in betas:
            (record,) = table.run(variant, beta, "eager", [(dtype, False)], STEPS)
            table.compare(record, variant, beta, dtype)


def check_batch_normalization_without_the_padding():
    """10 rows on 3 devices, padded to 12, against one device."""
    x = np.random.default_rng(3).normal(2.0, 3.0, (10, 4)).astype("float32")
    weights = []
    for name in ("jax", "none"):  # In this order: the first one sets the devices.
        with started(name, 3) as used:
            keras.utils.set_random_seed(0)
            layers = [keras.layers.BatchNormalization(), keras.layers.Dense(2)]
            model = keras.Sequential([keras.Input((4,)), *layers])
            used.prepare(model, 10)
            model.compile(svag_tf.MSVAG(0.1), "mse", **used.metrics([]))
            used.fit(model, Batches(x, x[:, :2], 10), 3, 0, [])
            weights.append(model.get_weights())
            assert check_replicas(model) == (3 if name == "jax" else 1)
    for a, b in zip(*weights):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def check_jit():
    """`stateless_apply` under jax.jit, which is how `fit` calls an optimizer."""
    import jax

    for variant in table.VARIANTS:
        theta = keras.Variable(np.zeros(4, np.float32))
        optimizer = table.make(variant, 0.9, 0.25)
        optimizer.build([theta])
        step = jax.jit(optimizer.stateless_apply)
        thetas, state = [theta.value], [v.value for v in optimizer.variables]
        oracle, expected = Oracle(variant, 0.25, 0.9, (4,)), 0.0
        for t in range(STEPS):
            g = 0.4 + np.random.default_rng(t).normal(size=4).astype(np.float32)
            thetas, state = step(state, [jax.numpy.array(g)], thetas)
            expected = expected - oracle.update(g)
        np.testing.assert_allclose(thetas[0], expected, 1e-5, 1e-6)
        assert step._cache_size() == 1, "retraced"


def check_sparse_torch():
    """torch's sparse gradients, as nn.Embedding(sparse=True) has them."""
    import torch

    for variant in table.VARIANTS:
        theta = keras.Variable(np.zeros((5, 2), np.float32))
        optimizer = table.make(variant, 0.9, 0.25)
        optimizer.build([theta])
        oracle, expected = Oracle(variant, 0.25, 0.9, (5, 2)), 0.0
        for t in range(6):
            values = np.random.default_rng(t).normal(size=(3, 2)).astype(np.float32)
            rows = [3, 0, 3]
            g = torch.sparse_coo_tensor([rows], torch.from_numpy(values), (5, 2))
            optimizer.apply([g], [theta])
            dense = np.zeros((5, 2))
            np.add.at(dense, rows, values.astype(np.float64))
            expected = expected - oracle.update(dense)
        np.testing.assert_allclose(table.to_numpy(theta), expected, 1e-5, 1e-6)


def check_not_finite():
    for variant in table.VARIANTS:
        theta = keras.Variable(np.zeros(3, np.float32))
        optimizer = table.make(variant)
        optimizer.apply([keras.ops.array([np.nan, np.inf, 1.0], "float32")], [theta])
        assert np.isnan(table.to_numpy(theta)).tolist() == [True, True, False]


def check_fit_and_resume(folder):
    """A loss linear in the weights: the oracle knows where `fit` must end."""
    rng = np.random.default_rng(0)
    x = rng.choice([-0.25, 0.5, 0.75, 1.0], size=(12, 3)).astype("float32")
    y = rng.choice([1.0, 0.5, -0.25], size=(12, 1)).astype("float32")
    for variant in table.VARIANTS:
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(1, use_bias=False)]
        )
        model.compile(table.make(variant, 0.9, 0.25), "mean_absolute_error")
        target = np.full((12, 1), -1e4, np.float32)  # |p - y| = p - y, everywhere.
        oracle = Oracle(variant, 0.25, 0.9, (3, 1))
        expected = model.get_weights()[0].astype(np.float64)
        for _ in range(4):
            for i in range(0, 12, 4):
                g = np.mean(x[i : i + 4] * y[i : i + 4], axis=0)[:, None]
                expected = expected - oracle.update(g)
        # Sample weights make the gradient mean(x y).
        arguments = {"sample_weight": y[:, 0], "shuffle": False, "verbose": 0}
        model.fit(x, target, 4, 2, **arguments)
        model.save(f"{folder}/{variant}.keras")
        model.fit(x, target, 4, 2, **arguments)
        np.testing.assert_allclose(model.get_weights()[0], expected, 1e-5, 1e-6)
        resumed = keras.models.load_model(f"{folder}/{variant}.keras")
        resumed.fit(x, target, 4, 2, **arguments)
        np.testing.assert_array_equal(resumed.get_weights()[0], model.get_weights()[0])


def checks(folder, files):
    """The checks of this backend or, if `files`, of files: each with its argument."""
    if files:
        for check in restoring_checks.CHECKS:
            yield check, folder
        return
    if keras.backend.backend() == "jax":
        yield check_batch_normalization_without_the_padding, ()
    for dtype in ("float16", "bfloat16", "float32"):
        yield check_table, dtype
    yield check_not_finite, ()
    if keras.backend.backend() == "jax":  # float64 is off by default there.
        yield check_jit, ()
    else:
        yield check_table, "float64"
        yield check_sparse_torch, ()
    yield check_fit_and_resume, folder
    yield restoring_checks.check_mixed_precision, folder
    yield restoring_checks.check_ema_and_fit_twice, folder


def main(folder, files=False):
    failed = False
    for check, argument in checks(folder, files):
        try:
            check(argument) if argument else check()
        except Exception:
            failed = True
            print(f"{check.__name__}({argument}) failed:", file=sys.stderr)
            traceback.print_exc()
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
