"""The models are those of the papers."""

import keras
import numpy as np
import pytest

from svag_tf.experiments.problems import PROBLEMS

SIZES = {"digits": ((8, 8, 1), 85_066), "fmnist_2c2d": ((28, 28, 1), 3_274_634)}


def test_every_problem_has_a_row_here():
    assert SIZES.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    shape, parameters = SIZES[name]
    model = PROBLEMS[name].build()
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 10)
    assert model.count_params() == parameters
    logits = keras.ops.convert_to_numpy(model(np.zeros((2, *shape), np.float32)))
    assert logits.dtype == np.float32


def test_fmnist_2c2d_is_that_of_deepobs():
    model = PROBLEMS["fmnist_2c2d"].build()
    shapes = [layer.output.shape[1:] for layer in model.layers]
    assert shapes == [
        (28, 28, 32), (14, 14, 32), (14, 14, 64), (7, 7, 64), (3136,), (1024,), (10,)
    ]  # fmt: skip
    kernels = [w for w in model.weights if len(w.shape) > 1]
    assert [tuple(k.shape) for k in kernels] == [
        (5, 5, 1, 32), (5, 5, 32, 64), (3136, 1024), (1024, 10)
    ]  # fmt: skip
    for kernel in kernels:
        values = keras.ops.convert_to_numpy(kernel)
        # Cut at two deviations of 0.05, which leaves a deviation of 0.88 * 0.05.
        assert 0.08 < np.abs(values).max() <= 0.1
        assert values.std() == pytest.approx(0.044, rel=0.1)
    for bias in (w for w in model.weights if len(w.shape) == 1):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(bias), np.float32(0.05)
        )
    assert not model.losses  # no regularisation
    activations = [getattr(layer, "activation", None) for layer in model.layers]
    names = [a.__name__ for a in activations if a]
    assert names == ["relu", "relu", "relu", "linear"]
