"""CIFAR: bytes read correctly, images changed as in DeepOBS, networks as specified."""

import colorsys
import dataclasses
import itertools

import keras
import numpy as np
import pytest
from keras import ops
from resuming import Killed, kill_at_replacement, outcome

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import PROBLEMS, cifar
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.training.train import train


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


def record(labels, image):
    planes = [image[..., channel].tobytes() for channel in range(3)]
    return bytes(labels) + b"".join(planes)


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10 in its binary version: ten training images and three test images."""
    x, y = images(13), [*range(10), 9, 0, 5]
    for i in range(5):
        content = b"".join(record([y[j]], x[j]) for j in (2 * i, 2 * i + 1))
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(content)
    content = b"".join(record([y[j]], x[j]) for j in (10, 11, 12))
    (tmp_path / "test_batch.bin").write_bytes(content)
    return tmp_path


def test_cifar10_from_a_folder(folder):
    for place in (folder, folder.parent / "above"):
        if place != folder:
            place.mkdir()
            folder.rename(place / "cifar-10-batches-bin")
        data = cifar.load_cifar10(str(place))
        assert data.x_train.dtype == np.uint8 and data.y_train.dtype == np.int32
        np.testing.assert_array_equal(data.x_train, images(13)[:10])
        np.testing.assert_array_equal(data.x_test, images(13)[10:])
        assert data.y_train.tolist() == list(range(10))
        assert data.y_test.tolist() == [9, 0, 5]


def test_cifar100_has_fine_labels(tmp_path):
    x = images(3)
    (tmp_path / "train.bin").write_bytes(record([3, 99], x[0]) + record([1, 0], x[1]))
    (tmp_path / "test.bin").write_bytes(record([19, 42], x[2]))
    data = cifar.load_cifar100(str(tmp_path))
    np.testing.assert_array_equal(data.x_train, x[:2])
    assert data.y_train.tolist() == [99, 0] and data.y_test.tolist() == [42]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda good: good[:-1], r"whole records of 3073 bytes. Found: 6145 bytes"),
        (lambda good: good + b"\x00", r"Found: 6147 bytes"),
        (lambda good: b"", r"Found: 0 bytes"),
        (lambda good: b"\x0a" + good[1:], r"labels must be in 0..9. Found: 10"),
    ],
)
def test_a_corrupt_file_is_named(folder, change, message):
    path = folder / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ExperimentError, match=rf"data_batch_3.bin.*{message}"):
        cifar.load_cifar10(str(folder))


def test_a_missing_file_is_named(folder):
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(ExperimentError, match=r"data_batch_4.bin is missing"):
        cifar.load_cifar10(str(folder))


def test_folders_that_hold_no_cifar(tmp_path):
    with pytest.raises(ExperimentError, match="nowhere does not exist"):
        cifar.load_cifar10(str(tmp_path / "nowhere"))
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ExperimentError, match=r"binary version: data_batch_1\.bin"):
        cifar.load_cifar10(str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_keras_downloader(name, monkeypatch):
    x = images(3)
    downloaded = ((x[:2], np.array([[1], [2]])), (x[2:], np.array([[3]])))
    load = getattr(cifar, f"load_{name}")
    dataset = getattr(keras.datasets, name)
    monkeypatch.setattr(dataset, "load_data", lambda: downloaded)
    data = load()
    np.testing.assert_array_equal(data.x_train, x[:2])
    assert data.y_train.tolist() == [1, 2] and data.y_train.dtype == np.int32
    assert data.y_test.tolist() == [3]

    def offline():
        raise OSError("no route to host")

    monkeypatch.setattr(dataset, "load_data", offline)
    with pytest.raises(ExperimentError) as error:
        load()
    for part in ("--config.data_dir", "Keras' downloader", "no route", ".bin"):
        assert part in str(error.value)


def standardised(image):
    image = image.astype(float)
    return (image - image.mean()) / max(image.std(), 1 / np.sqrt(32 * 32 * 3))


def test_standardised():
    x = images(3)
    x[1] = 7  # no deviation
    x[2] = 7
    x[2, 0, 0, 0] = 8  # less than the least one
    expected = [standardised(image) for image in x]
    result = cifar.standardised(x)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert not result[1].any()
    assert result[2].max() == pytest.approx((1 - 1 / 3072) * np.sqrt(3072), rel=1e-4)
    np.testing.assert_array_equal(cifar.prepare_test(x, None), result)


def saturated(image, factor):
    """Pixel by pixel, through hue, saturation and value."""
    result = np.empty(image.shape)
    for i, j in itertools.product(*map(range, image.shape[:2])):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, image[i, j]))
        saturation = min(saturation * factor, 1) if value > 0 else 0
        result[i, j] = colorsys.hsv_to_rgb(hue, saturation, value)
    return result


def augmented(x, rng):
    """The specification, step by step in float64, with the same random numbers."""
    n = len(x)
    top, left = rng.integers(0, 5, (2, n))
    flip = rng.random(n) < 0.5
    brightness, saturation, contrast = (
        rng.uniform(low, high, n)
        for low, high in ((-63 / 255, 63 / 255), (0.5, 1.5), (0.2, 1.8))
    )
    result = []
    for i, image in enumerate(x):
        padded = np.zeros((36, 36, 3))
        padded[2:34, 2:34] = image
        image = padded[top[i] : top[i] + 32, left[i] : left[i] + 32]
        image = image[:, ::-1] if flip[i] else image
        image = saturated(image + brightness[i], saturation[i])
        mean = image.mean((0, 1))
        result.append(standardised((image - mean) * contrast[i] + mean))
    return np.array(result)


def test_augmented():
    x = images(12)
    x[3] = 200  # grey
    result = cifar.augmented(x, np.random.default_rng(1))
    assert result.dtype == np.float32
    expected = augmented(x, np.random.default_rng(1))
    np.testing.assert_allclose(result, expected, atol=2e-5)
    np.testing.assert_array_equal(x[:3], images(3))  # the data is unchanged


def test_each_image_is_changed_in_its_own_way():
    x = np.repeat(images(1), 40, axis=0)
    result = cifar.augmented(x, np.random.default_rng(0))
    assert len({image.tobytes() for image in result}) == 40


def test_saturation_is_that_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    x = images(4).astype(np.float32) - 20  # values below 0 too
    x[0] = 0
    for factor in (0.5, 1.0, 1.5):
        factors = np.full((4, 1, 1, 1), factor, np.float32)
        expected = tf.image.adjust_saturation(x, factor)
        np.testing.assert_allclose(cifar.saturated(x, factors), expected, atol=1e-3)


def kernels(model):
    return [w for w in model.trainable_variables if len(w.shape) > 1]


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor).astype(float)


def check_regulariser(model, factor):
    squares = sum((numbers(kernel) ** 2).sum() for kernel in kernels(model))
    total = float(sum(numbers(loss) for loss in model.losses))
    assert total == pytest.approx(factor * squares / 2, rel=1e-5)


def test_cifar10_3c3d_is_that_of_deepobs():
    model = PROBLEMS["cifar10_3c3d"].build()
    assert [layer.output.shape[1:] for layer in model.layers] == [
        (28, 28, 64), (14, 14, 64), (12, 12, 96), (6, 6, 96), (6, 6, 128),
        (3, 3, 128), (1152,), (512,), (256,), (10,),
    ]  # fmt: skip
    activations = [getattr(layer, "activation", None) for layer in model.layers]
    assert [a.__name__ for a in activations if a] == ["relu"] * 5 + ["linear"]
    check_regulariser(model, 0.002)
    # By hand: the expected sum of squares is, over the kernels, size * 2/(in + out).
    assert float(sum(numbers(loss) for loss in model.losses)) == pytest.approx(
        0.001 * (5.73 + 76.8 + 109.7 + 708.9 + 341.3 + 19.2), rel=0.01
    )
    fans = [(75, 1600), (576, 864), (864, 1152), (1152, 512), (512, 256), (256, 10)]
    for kernel, (fan_in, fan_out) in zip(kernels(model), fans, strict=True):
        values, deviation = numbers(kernel), np.sqrt(2 / (fan_in + fan_out))
        assert values.std() == pytest.approx(deviation, rel=0.04)
        # Normal: cut at two deviations of what is cut. Uniform: sqrt(3) deviations.
        # A quantile, for Keras on PyTorch lets one in 200,000 values be larger.
        limit = 2 / 0.8796 if values.ndim == 4 else np.sqrt(3)
        largest = np.quantile(np.abs(values), 0.999) / deviation
        assert 0.97 * limit < largest < 1.0001 * limit
    for bias in (w for w in model.weights if len(w.shape) == 1):
        assert not numbers(bias).any()


def creation(layer):
    """conv2d, conv2d_1, conv2d_2, ...: the order in which they were made."""
    number = layer.name.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


def test_cifar100_wrn404_is_that_of_deepobs():
    """The model against the specification, written independently."""
    model = PROBLEMS["cifar100_wrn404"].build()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1:  # so that batch norms and biases count
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    parts = {"conv": [], "batch": [], "dense": []}
    for layer in model.layers:
        for kind in parts:
            if layer.name.startswith(kind):
                parts[kind].append(layer)
    for layers in parts.values():
        layers.sort(key=creation)
    assert [len(layers) for layers in parts.values()] == [1 + 36 + 3, 37, 1]
    for layer in parts["batch"]:
        assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
    for layer in parts["conv"]:
        assert not layer.use_bias
    convolutions, norms = iter(parts["conv"]), iter(parts["batch"])

    def convolution(x, size, filters, strides=1):
        kernel = next(convolutions).kernel
        assert tuple(kernel.shape) == (size, size, x.shape[-1], filters)
        return ops.conv(x, kernel, strides, "same")

    def activated(x):
        norm = next(norms)
        scale = norm.gamma / ops.sqrt(norm.moving_variance + 1e-5)
        return ops.maximum((x - norm.moving_mean) * scale + norm.beta, 0)

    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    x = convolution(images, 3, 16)
    for stage, filters in enumerate((64, 128, 256)):
        for unit in range(6):
            strides = 2 if unit == 0 and stage > 0 else 1
            if unit == 0:
                x = activated(x)
                shortcut = convolution(x, 1, filters, strides)
            else:
                shortcut, x = x, activated(x)
            x = convolution(x, 3, filters, strides)
            x = convolution(activated(x), 3, filters) + shortcut
    x = ops.mean(activated(x), axis=(1, 2))
    expected = ops.matmul(x, parts["dense"][0].kernel) + parts["dense"][0].bias
    np.testing.assert_allclose(
        numbers(model(images)), numbers(expected), rtol=1e-4, atol=1e-4
    )
    check_regulariser(model, 0.0005)
    for kernel in kernels(model):
        shape = kernel.shape
        limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        assert 0.95 * limit < np.abs(numbers(kernel)).max() <= 1.0001 * limit


def small(monkeypatch, name, n, n_test, classes):
    """The problem with a few images that can be told apart."""
    y = np.arange(n + n_test, dtype=np.int32) % classes
    x = images(n + n_test) // 4
    x[np.arange(len(x)), :, y % 32] += 150
    data = Data(x[:n], y[:n], x[n:], y[n:])
    monkeypatch.setitem(
        PROBLEMS, name, dataclasses.replace(PROBLEMS[name], load=lambda folder: data)
    )
    return data


@pytest.mark.exhaustive
def test_cifar10_3c3d_trains_and_goes_on_bit_for_bit(
    monkeypatch, tmp_path, load_config
):
    data = small(monkeypatch, "cifar10_3c3d", 64, 32, 4)
    config = load_config("cifar10_3c3d")
    config.batch_size, config.epochs, config.optimizer.name = 16, 2, "adam"
    config.optimizer.learning_rate = 3e-4
    rows = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 10, after=False)  # before epoch 2 is committed
        train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert rows[2]["train_loss"] < rows[0]["train_loss"] - 0.3
    # What is reported: the mean loss on standardised test images and the regulariser.
    model = keras.models.load_model(tmp_path / "whole" / "model.keras")
    logits = numbers(model(np.array([standardised(x) for x in data.x_test], "float32")))
    entropy = np.log(np.exp(logits).sum(-1)) - logits[np.arange(32), data.y_test]
    squares = sum((numbers(kernel) ** 2).sum() for kernel in kernels(model))
    expected = entropy.mean() + 0.002 * squares / 2
    assert rows[2]["test_loss"] == pytest.approx(expected, rel=1e-4)
    accuracy = (logits.argmax(-1) == data.y_test).mean()
    assert rows[2]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.exhaustive
def test_cifar100_wrn404_trains(monkeypatch, tmp_path, load_config):
    small(monkeypatch, "cifar100_wrn404", 16, 4, 2)
    config = load_config("cifar100_wrn404")
    config.batch_size, config.epochs = 4, 1
    config.optimizer.name, config.optimizer.learning_rate = "momentum", 0.01
    rows = train(config, tmp_path)
    assert np.isfinite(rows[1]["test_loss"])
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
