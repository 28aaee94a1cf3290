"""Data sets are read correctly, or refused with the file's name."""

import gzip
import struct

import keras
import numpy as np
import pytest

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import data

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (6, 28, 28)),
        np.array([0, 1, 9, 3, 4, 5]),
        rng.integers(0, 256, (2, 28, 28)),
        np.array([7, 8]),
    ]


def write(folder, arrays, zipped=True):
    for name, array in zip(NAMES, arrays, strict=True):
        content = idx(array)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_from_a_folder(tmp_path, arrays, zipped):
    write(tmp_path, arrays, zipped)
    x_train, y_train, x_test, y_test = data.load_fashion_mnist(str(tmp_path))
    assert x_train.shape == (6, 28, 28, 1) and x_train.dtype == np.float32
    np.testing.assert_allclose(x_train[..., 0], arrays[0] / 255, rtol=1e-6)
    np.testing.assert_allclose(x_test[..., 0], arrays[2] / 255, rtol=1e-6)
    np.testing.assert_array_equal(y_train, arrays[1])
    np.testing.assert_array_equal(y_test, arrays[3])


@pytest.mark.parametrize("missing", NAMES)
def test_a_missing_file_is_named(tmp_path, arrays, missing):
    write(tmp_path, arrays)
    (tmp_path / f"{missing}.gz").unlink()
    with pytest.raises(ExperimentError, match=f"holds neither {missing}"):
        data.load_fashion_mnist(str(tmp_path))


def test_a_missing_folder_is_an_error_and_no_other_source_is_tried(tmp_path):
    with pytest.raises(ExperimentError, match=r"nowhere does not exist"):
        data.load_fashion_mnist(str(tmp_path / "nowhere"))


BROKEN = {
    "not gzip": lambda good: b"<html>not found</html>",
    "empty": lambda good: b"",
    "truncated gzip": lambda good: gzip.compress(good)[:-20],
    "flipped gzip byte": lambda good: (
        gzip.compress(good)[:40] + b"\x00\xff\x00" + gzip.compress(good)[43:]
    ),
    "truncated content": lambda good: gzip.compress(good[:-1]),
    "too long": lambda good: gzip.compress(good + b"\x00"),
    "only a header": lambda good: gzip.compress(good[:6]),
    "wrong magic": lambda good: gzip.compress(b"\x00\x00\x09" + good[3:]),
    "wrong axes": lambda good: gzip.compress(good[:3] + b"\x02" + good[4:]),
    "huge announced": lambda good: gzip.compress(good[:4] + b"\xff" * 4 + good[8:]),
}


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("how", BROKEN)
def test_a_corrupt_file_is_named(tmp_path, arrays, name, how):
    write(tmp_path, arrays)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(BROKEN[how](idx(arrays[NAMES.index(name)])))
    with pytest.raises(ExperimentError, match=f"{name}.gz"):
        data.load_fashion_mnist(str(tmp_path))


@pytest.mark.parametrize(
    "index, array, message",
    [
        (1, np.zeros(5), "6 images and 5 labels"),
        (1, np.array([0, 1, 2, 3, 4, 10]), "labels must be in 0..9. Found: 10"),
        (0, np.zeros((6, 27, 28)), "must be 28x28. Found: 27x28"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, arrays, index, array, message):
    arrays[index] = array
    write(tmp_path, arrays)
    with pytest.raises(ExperimentError, match=message):
        data.load_fashion_mnist(str(tmp_path))


def test_no_examples(tmp_path, arrays):
    write(tmp_path, [arrays[0][:0], arrays[1][:0], *arrays[2:]])
    with pytest.raises(ExperimentError, match="holds no examples"):
        data.load_fashion_mnist(str(tmp_path))


def test_debian_comes_before_the_downloader(tmp_path, arrays, monkeypatch):
    write(tmp_path, arrays)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", lambda: 1 / 0)
    assert len(data.load_fashion_mnist().x_train) == 6


def test_the_downloader_comes_last(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    split = [a.astype(np.uint8) for a in arrays]
    monkeypatch.setattr(
        keras.datasets.fashion_mnist, "load_data", lambda: (split[:2], split[2:])
    )
    loaded = data.load_fashion_mnist()
    np.testing.assert_allclose(loaded.x_train[..., 0], arrays[0] / 255, rtol=1e-6)
    assert loaded.y_test.tolist() == [7, 8]


def test_no_source_names_all_three(tmp_path, monkeypatch):
    def offline():
        raise OSError("no route to host")

    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", offline)
    with pytest.raises(ExperimentError) as error:
        data.load_fashion_mnist()
    for part in (
        "--config.data_dir",
        "dataset-fashion-mnist",
        "Keras' downloader",
        "no route",
    ):
        assert part in str(error.value)


@pytest.mark.skipif(
    not data.DEBIAN_FASHION_MNIST.is_dir(), reason="needs dataset-fashion-mnist"
)
def test_the_real_fashion_mnist():
    loaded = data.load_fashion_mnist()
    assert loaded.x_train.shape == (60000, 28, 28, 1)
    assert loaded.x_test.shape == (10000, 28, 28, 1)
    assert np.bincount(loaded.y_train).tolist() == [6000] * 10
    assert loaded.x_train.min() == 0 and loaded.x_train.max() == 1


def test_digits():
    loaded = data.load_digits()
    assert loaded.x_train.shape == (1437, 8, 8, 1)
    assert loaded.x_test.shape == (360, 8, 8, 1)
    assert loaded.x_train.dtype == np.float32
    assert loaded.x_train.min() == 0 and loaded.x_train.max() == 1
    counts = np.bincount(loaded.y_test)
    assert counts.min() >= 34 and counts.max() <= 37  # stratified
    rows = {x.tobytes() for x in loaded.x_train}
    assert not rows & {x.tobytes() for x in loaded.x_test}
    np.random.seed(1)  # the split does not depend on global seeds
    np.testing.assert_array_equal(data.load_digits().x_train, loaded.x_train)


def test_digits_label_noise():
    digits, noisy = data.load_digits(), data.load_digits_label_noise()
    assert (digits.y_test != noisy.y_train).sum() == round(0.2 * 360)
    assert noisy.y_train.dtype == np.int32
    for one, other in (("x_train", "x_test"), ("x_test", "x_train"),
                       ("y_test", "y_train")):  # fmt: skip
        np.testing.assert_array_equal(getattr(noisy, one), getattr(digits, other))
    again = data.load_digits_label_noise()
    np.testing.assert_array_equal(again.y_train, noisy.y_train)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_wrong_labels(fraction):
    labels = np.repeat(np.arange(4, dtype=np.int32), 1000)
    before = labels.copy()
    wrong = data.with_wrong_labels(labels, fraction, classes=4, seed=1)
    np.testing.assert_array_equal(labels, before)
    assert wrong.dtype == np.int32 and wrong.min() >= 0 and wrong.max() < 4
    assert (wrong != labels).sum() == round(fraction * 4000)
    other = data.with_wrong_labels(labels, fraction, classes=4, seed=2)
    assert (wrong != other).any() == (fraction > 0)
    counts = np.bincount(wrong[(labels == 0) & (wrong != 0)], minlength=4)
    # Each of the three wrong classes equally often, within five deviations.
    np.testing.assert_allclose(
        counts[1:], 1000 * fraction / 3, atol=5 * np.sqrt(1000 * fraction * 2 / 9)
    )


@pytest.mark.parametrize("load", [data.load_digits, data.load_digits_label_noise])
def test_digits_has_no_folder(load):
    with pytest.raises(ExperimentError, match="data_dir does not apply"):
        load("/tmp")
