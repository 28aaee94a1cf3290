"""Embedding gradients: `tf.IndexedSlices` have the same effect as dense gradients."""

import keras
import numpy as np
import pytest
import table
from oracle import Oracle

tf = pytest.importorskip("tensorflow")

ROWS, WIDTH = 7, 3
MODES = ("eager", "graph", "xla")
# Indices of each step: repeated, unsorted, all the same, every row, some untouched.
INDICES = (
    [3, 0, 3, 1],
    [6, 6, 6, 6],
    [5, 4, 1, 0],
    [2, 2, 0, 0],
    [1, 6, 0, 3],
    [3, 0, 3, 1],
)


def slices(t, inner=(WIDTH,), dtype="float32", index_dtype="int32", seed=0):
    """Returns the gradient of step t, and its dense form, in float64."""
    indices = INDICES[t % len(INDICES)]
    rng = np.random.default_rng([seed, t])
    values = (0.5 + rng.normal(size=(len(indices), *inner))).astype(dtype)
    dense = np.zeros((ROWS, *inner))
    np.add.at(dense, indices, values.astype(np.float64))
    return indexed_slices(values, tf.constant(indices, index_dtype), inner), dense


def indexed_slices(values, indices, inner=(WIDTH,)):
    return tf.IndexedSlices(tf.constant(values), indices, tf.constant((ROWS, *inner)))


def stepper(variant, shape=(ROWS, WIDTH), mode="eager", beta=0.9, **arguments):
    theta = keras.Variable(np.ones(shape, np.float32))
    optimizer = table.make(variant, beta, 0.25, **arguments)
    optimizer.build([theta])

    def apply(g):
        optimizer.apply([g], [theta])

    if mode != "eager":
        apply = tf.function(apply, jit_compile=mode == "xla", autograph=False)
    return theta, apply


@pytest.mark.parametrize("inner", [(), (WIDTH,), (2, 2)])
@pytest.mark.parametrize("variant", ["ssd", "mssd", "msvag", "svas_gaussian"])
def test_dimensions(variant, inner):
    theta, apply = stepper(variant, (ROWS, *inner), "graph")
    oracle, expected = Oracle(variant, 0.25, 0.9, (ROWS, *inner)), 1.0
    for t in range(12):
        sparse, dense = slices(t, inner)
        apply(sparse)
        expected = expected - oracle.update(dense)
    np.testing.assert_allclose(table.to_numpy(theta), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index_dtype", ["int32", "int64"])
def test_index_dtypes(index_dtype, mode):
    theta, apply = stepper("msvag", mode=mode)
    oracle, expected = Oracle("msvag", 0.25, 0.9, (ROWS, WIDTH)), 1.0
    for t in range(6):
        sparse, dense = slices(t, index_dtype=index_dtype)
        apply(sparse)
        expected = expected - oracle.update(dense)
    np.testing.assert_allclose(table.to_numpy(theta), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("sparse_updates", ["exact", "lazy"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["ssd", "msgd", "msvag", "svas_gaussian"])
def test_without_any_row(variant, mode, sparse_updates):
    """A batch without a token: a gradient of zeros."""
    theta, apply = stepper(variant, mode=mode, sparse_updates=sparse_updates)
    apply(slices(0)[0])
    before = table.to_numpy(theta)
    apply(indexed_slices(np.zeros((0, WIDTH), np.float32), tf.zeros(0, tf.int32)))
    if sparse_updates == "lazy":
        np.testing.assert_array_equal(table.to_numpy(theta), before)
        return
    oracle = Oracle(variant, 0.25, 0.9, (ROWS, WIDTH))
    expected = 1.0 - oracle.update(slices(0)[1])
    expected -= oracle.update(np.zeros((ROWS, WIDTH)))
    np.testing.assert_allclose(table.to_numpy(theta), expected, 1e-5, 1e-6)


def test_number_of_rows_may_change():
    """As with batches of unlike length; one trace serves all."""
    theta, _ = stepper("msvag")
    optimizer = table.make("msvag", 0.9, 0.25)
    optimizer.build([theta])
    oracle, expected = Oracle("msvag", 0.25, 0.9, (ROWS, WIDTH)), 1.0

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec((None, WIDTH), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ],
    )
    def apply(values, indices):
        slices = tf.IndexedSlices(values, indices, (ROWS, WIDTH))
        optimizer.apply([slices], [theta])

    for n in (1, 5, 0, 9):
        indices = np.random.default_rng(n).integers(ROWS, size=n)
        values = np.random.default_rng(n).normal(size=(n, WIDTH)).astype(np.float32)
        apply(values, indices.astype(np.int32))
        dense = np.zeros((ROWS, WIDTH))
        np.add.at(dense, indices, values.astype(np.float64))
        expected = expected - oracle.update(dense)
    np.testing.assert_allclose(table.to_numpy(theta), expected, 1e-5, 1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"clipnorm": 1.0},
        {"clipvalue": 0.5},
        {"global_clipnorm": 1.0},
        {"loss_scale_factor": 4.0},
        {"gradient_accumulation_steps": 2},
        {"weight_decay": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"jit_compile": False},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
@pytest.mark.parametrize("mode", MODES)
def test_arguments_with_sparse_gradients(arguments, mode):
    """As with the dense gradient, whose arguments have their own test."""
    theta, apply = stepper("msvag", mode=mode, **arguments)
    dense_theta, dense_apply = stepper("msvag", mode=mode, **arguments)
    for t in range(6):
        sparse, dense = slices(t)
        apply(sparse)
        dense_apply(tf.constant(dense, tf.float32))
        np.testing.assert_allclose(theta.numpy(), dense_theta.numpy(), 1e-5, 1e-6)
    assert np.abs(theta.numpy() - 1).max() > 1e-1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_lazy_updates_leave_other_rows_alone(variant, mode):
    """Each row is a variable of its own, whose t counts the updates made to it."""
    theta, apply = stepper(variant, mode=mode, sparse_updates="lazy")
    oracles = [Oracle(variant, 0.25, 0.9, (WIDTH,)) for _ in range(ROWS)]
    expected = np.ones((ROWS, WIDTH))
    for t in range(12):
        sparse, dense = slices(t)
        apply(sparse)
        for row in set(INDICES[t % len(INDICES)]):
            expected[row] -= oracles[row].update(dense[row])
        np.testing.assert_allclose(table.to_numpy(theta), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_lazy_with_dense_gradients_is_exact(variant):
    lazy, lazy_apply = stepper(variant, sparse_updates="lazy")
    exact, exact_apply = stepper(variant)
    for t in range(6):
        for apply in (lazy_apply, exact_apply):
            apply(tf.constant(slices(t)[1], tf.float32))
    # Up to the last bit of a theta of 1: only one compiles the counts' factors.
    np.testing.assert_allclose(lazy.numpy(), exact.numpy(), 1e-6, 2e-7)


@pytest.mark.parametrize(
    "variant, jit_compile",
    [(v, "auto") for v in table.VARIANTS] + [("msvag", True), ("msvag", False)],
)
def test_embedding_in_fit(variant, jit_compile):
    """A loss that is linear in the output: its gradient counts tokens, exactly."""
    tokens = np.random.default_rng(0).integers(ROWS, size=(12, 5))
    targets = np.where(tokens % 2, 1.0, -0.5)[..., None] * [1.0, 2.0, -1.0]
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), keras.layers.Embedding(ROWS, WIDTH)]
    )
    model.compile(
        table.make(variant, 0.9, 0.25),
        loss=lambda y, output: keras.ops.mean(y * output, axis=(1, 2)),
        jit_compile=jit_compile,
    )
    expected = np.array(model.get_weights()[0], np.float64)
    oracle = Oracle(variant, 0.25, 0.9, (ROWS, WIDTH))
    for _ in range(3):
        for batch in range(0, 12, 4):
            g = np.zeros((ROWS, WIDTH))
            np.add.at(
                g, tokens[batch : batch + 4], targets[batch : batch + 4] / (4 * 5 * 3)
            )
            expected -= oracle.update(g)
    model.fit(tokens, targets.astype("float32"), 4, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], expected, 1e-5, 1e-6)
