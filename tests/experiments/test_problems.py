"""The models are those of the papers, and each has a config."""

import keras
import numpy as np
import pytest

from svag_tf.experiments.problems import PROBLEMS
from svag_tf.experiments.training.config import checked

LSTM = 4 * ((128 + 128) * 128 + 128)


def wide_resnet():
    """Convolutions, the two weights of each batch norm, and a dense layer."""
    size = 3 * 3 * 3 * 16
    before = 16
    for filters in (64, 128, 256):
        size += 2 * before + 3 * 3 * before * filters  # the stage's first unit ...
        size += 2 * filters + 3 * 3 * filters * filters
        size += before * filters  # ... and its shortcut
        size += 5 * 2 * (2 * filters + 3 * 3 * filters * filters)
        before = filters
    return size + 2 * 256 + 256 * 100 + 100


# Input, output, trainable parameters.
SIZES = {
    "digits": ((None, 8, 8, 1), (None, 10), 85_066),
    "digits_label_noise": ((None, 8, 8, 1), (None, 10), 26_122),
    "fmnist_2c2d": ((None, 28, 28, 1), (None, 10), 3_274_634),
    "cifar10_3c3d": (
        (None, 32, 32, 3),
        (None, 10),
        (5 * 5 * 3 + 1) * 64
        + (3 * 3 * 64 + 1) * 96
        + (3 * 3 * 96 + 1) * 128
        + (3 * 3 * 128 + 1) * 512
        + (512 + 1) * 256
        + (256 + 1) * 10,
    ),
    "cifar100_wrn404": ((None, 32, 32, 3), (None, 100), wide_resnet()),
    "tolstoi_char_rnn": (
        (50, 50),
        (50, 50, 83),
        83 * 128 + 2 * LSTM + (128 + 1) * 83,
    ),
    "quadratic_deep": ((None, 100), (None, 1), 100),
}
CONFIGS = {  # epochs, batch size
    "digits": (30, 32),
    "digits_label_noise": (40, 16),
    "fmnist_2c2d": (100, 128),
    "cifar10_3c3d": (100, 128),
    "cifar100_wrn404": (200, 128),
    "tolstoi_char_rnn": (200, 50),
    "quadratic_deep": (100, 128),
}


def test_every_problem_has_a_row_here():
    assert SIZES.keys() == PROBLEMS.keys() == CONFIGS.keys()


def test_sizes_are_those_that_are_known():
    known = {"cifar10_3c3d": 895_210, "cifar100_wrn404": 8_972_340,
             "tolstoi_char_rnn": 284_499}  # fmt: skip
    assert {name: SIZES[name][2] for name in known} == known


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    shape, output, parameters = SIZES[name]
    model = PROBLEMS[name].build()
    assert model.input_shape == shape
    assert model.output_shape == output
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == parameters
    batch = np.zeros([size or 2 for size in shape], np.float32)
    logits = keras.ops.convert_to_numpy(model(batch))
    assert logits.dtype == np.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name, load_config):
    config = checked(load_config(name))
    assert config.problem == name
    assert (config.epochs, config.batch_size) == CONFIGS[name]


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
        # Cut at two deviations of 0.05, which leaves a deviation of 0.88 * 0.05. (A
        # quantile, for Keras on PyTorch lets one in 200,000 values be larger.)
        assert 0.08 < np.quantile(np.abs(values), 0.999) <= 0.1
        assert values.std() == pytest.approx(0.044, rel=0.1)
    for bias in (w for w in model.weights if len(w.shape) == 1):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(bias), np.float32(0.05)
        )
    assert not model.losses  # no regularisation
    activations = [getattr(layer, "activation", None) for layer in model.layers]
    names = [a.__name__ for a in activations if a]
    assert names == ["relu", "relu", "relu", "linear"]
