"""The paper's P2 and P3: networks for CIFAR-10 and CIFAR-100.

The data stays in bytes; each batch is augmented and standardised when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import layers
from numpy.lib.stride_tricks import sliding_window_view

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems.data import Data

SHAPE = (32, 32, 3)
PADDING = 2  # on each side: 36x36, of which 32x32 are cut out


def cifar10_3c3d() -> keras.Model:
    """Builds DeepOBS' network of three convolutions and three dense layers.

    895,210 parameters. Kernels start Glorot normal in convolutions, Glorot uniform in
    dense layers, biases at 0. The loss has the term 0.002 * sum(w^2) / 2 over all
    kernels.
    """

    def l2() -> keras.Regularizer:
        return keras.regularizers.L2(0.002 / 2)

    def convolution(filters: int, size: int, padding: str) -> keras.Layer:
        return layers.Conv2D(
            filters,
            size,
            padding=padding,
            activation="relu",
            kernel_initializer="glorot_normal",
            kernel_regularizer=l2(),
        )

    def pool() -> keras.Layer:
        return layers.MaxPooling2D(3, strides=2, padding="same")

    return keras.Sequential(
        [
            keras.Input(SHAPE),
            convolution(64, 5, "valid"),
            pool(),
            convolution(96, 3, "valid"),
            pool(),
            convolution(128, 3, "same"),
            pool(),
            layers.Flatten(),
            layers.Dense(512, activation="relu", kernel_regularizer=l2()),
            layers.Dense(256, activation="relu", kernel_regularizer=l2()),
            layers.Dense(10, kernel_regularizer=l2(), dtype="float32"),
        ],
        name="cifar10_3c3d",
    )


def cifar100_wrn404() -> keras.Model:
    """Builds DeepOBS' wide residual network 40-4 (Zagoruyko and Komodakis 2016).

    8,972,340 parameters. Three stages of six units, each BN, ReLU, convolution twice.
    In a stage's first unit BN and ReLU come before the shortcut branches off, which is
    a 1x1 convolution. Kernels start Glorot uniform; convolutions have no biases. The
    loss has the term 0.0005 * sum(w^2) / 2 over all kernels.
    """

    def l2() -> keras.Regularizer:
        return keras.regularizers.L2(0.0005 / 2)

    def convolution(x: keras.KerasTensor, filters: int, size: int, strides: int = 1):
        return layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_regularizer=l2(),
        )(x)

    def normalised(x: keras.KerasTensor) -> keras.KerasTensor:
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        return layers.ReLU()(x)

    images = keras.Input(SHAPE)
    x = convolution(images, 16, 3)
    for filters, strides in ((64, 1), (128, 2), (256, 2)):
        x = normalised(x)
        shortcut = convolution(x, filters, 1, strides)
        x = convolution(x, filters, 3, strides)
        x = convolution(normalised(x), filters, 3) + shortcut
        for _ in range(5):
            shortcut = x
            x = convolution(normalised(x), filters, 3)
            x = convolution(normalised(x), filters, 3) + shortcut
    x = layers.GlobalAveragePooling2D()(normalised(x))
    logits = layers.Dense(100, kernel_regularizer=l2(), dtype="float32")(x)
    return keras.Model(images, logits, name="cifar100_wrn404")


def load_cifar10(data_dir: str | None = None) -> Data:
    """Loads CIFAR-10 as bytes: 50,000 train, 10,000 test, 32x32x3, ten classes.

    Args:
        data_dir: folder with the binary version (`data_batch_1.bin` to
            `data_batch_5.bin` and `test_batch.bin`, or `cifar-10-batches-bin`, which
            holds them), or None for Keras' downloader and its cache.

    Raises:
        ExperimentError: if a file is missing or corrupt, or no source is at hand.
    """
    return _load(
        data_dir,
        keras.datasets.cifar10.load_data,
        name="CIFAR-10",
        folder="cifar-10-batches-bin",
        train=[f"data_batch_{i}.bin" for i in range(1, 6)],
        test="test_batch.bin",
        label_bytes=1,
        classes=10,
    )


def load_cifar100(data_dir: str | None = None) -> Data:
    """Loads CIFAR-100 as bytes: 50,000 train, 10,000 test, 32x32x3, 100 fine classes.

    Args:
        data_dir: folder with the binary version (`train.bin` and `test.bin`, or
            `cifar-100-binary`, which holds them), or None for Keras' downloader and
            its cache.

    Raises:
        ExperimentError: if a file is missing or corrupt, or no source is at hand.
    """
    return _load(
        data_dir,
        keras.datasets.cifar100.load_data,
        name="CIFAR-100",
        folder="cifar-100-binary",
        train=["train.bin"],
        test="test.bin",
        label_bytes=2,  # the coarse label and then the fine one
        classes=100,
    )


def _load(
    data_dir: str | None,
    download: Callable[[], tuple[tuple, tuple]],
    name: str,
    folder: str,
    train: list[str],
    test: str,
    label_bytes: int,
    classes: int,
) -> Data:
    if data_dir is None:
        try:
            (x_train, y_train), (x_test, y_test) = download()
        except Exception as error:  # no network, a corrupt cache, ...: many kinds
            raise ExperimentError(
                f"{name} was not found. Two ways to get it: (1) name a folder with "
                f"its binary version, that is {', '.join(train)} and {test}, or with "
                f"{folder}, which holds them: --config.data_dir=DIR; (2) go online "
                "once, so that Keras' downloader can fetch it. The downloader said: "
                f"{error}"
            ) from error
        y_train, y_test = (np.ravel(y).astype(np.int32) for y in (y_train, y_test))
        return Data(x_train, y_train, x_test, y_test)
    if not Path(data_dir).is_dir():
        raise ExperimentError(f"The data folder {data_dir} does not exist.")
    files = [*train, test]
    places = (Path(data_dir) / folder, Path(data_dir))
    place = next((p for p in places if (p / test).is_file()), None)
    if place is None:
        raise ExperimentError(
            f"The data folder {data_dir} does not hold {name} in its binary version: "
            f"{', '.join(files)}, in the folder itself or in {folder}. (The 'python "
            "version' is made of pickles, which can run code, and is not read.)"
        )
    parts = [read_records(place / file, label_bytes, classes) for file in files]
    x_train, y_train = (np.concatenate(arrays) for arrays in zip(*parts[:-1]))
    return Data(x_train, y_train, *parts[-1])


def read_records(
    path: Path, label_bytes: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of CIFAR's binary version.

    A record is `label_bytes` labels, of which the last one counts, and 3072 bytes of
    red, green and blue planes.

    Returns:
        Images, uint8, shape (n, 32, 32, 3), and labels, int32, shape (n,).

    Raises:
        ExperimentError: if the file is missing, does not consist of whole records or
            has an invalid label; names it.
    """
    size = label_bytes + int(np.prod(SHAPE))
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ExperimentError(f"{path} is missing or unreadable: {error}") from error
    if len(content) == 0 or len(content) % size:
        raise ExperimentError(
            f"{path} is corrupt: it must hold whole records of {size} bytes. Found: "
            f"{len(content)} bytes"
        )
    records = content.reshape(-1, size)
    labels = records[:, label_bytes - 1].astype(np.int32)
    if labels.max() >= classes:
        raise ExperimentError(
            f"{path}: labels must be in 0..{classes - 1}. Found: {labels.max()}"
        )
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes images at random as DeepOBS does for training, then standardises them.

    Padded to 36x36 with zeros; a random 32x32 crop; flipped or not; brightness plus a
    number in +-63/255; saturation times 0.5 to 1.5; contrast times 0.2 to 1.8; all on
    the scale 0 to 255. (On that scale DeepOBS' change of brightness is tiny; it is kept
    as it is.) The images of a batch, uint8, shape (n, 32, 32, 3), are changed
    independently.

    Like DeepOBS, we also measure the loss on training data on such images: otherwise
    its published curves and ours could not be compared.
    """
    n = len(images)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n, 1, 1, 1)).astype(np.float32)

    around = (PADDING, PADDING)
    padded = np.pad(images, ((0, 0), around, around, (0, 0)))
    windows = sliding_window_view(padded, SHAPE[:2], axis=(1, 2))
    top, left = rng.integers(0, 2 * PADDING + 1, (2, n))
    x = windows[np.arange(n), top, left].transpose(0, 2, 3, 1).astype(np.float32)
    flipped = rng.random(n) < 0.5
    x[flipped] = x[flipped, :, ::-1]
    x += uniform(-63 / 255, 63 / 255)
    x = saturated(x, uniform(0.5, 1.5))
    mean = x.mean((1, 2), keepdims=True)
    x = (x - mean) * uniform(0.2, 1.8) + mean
    return standardised(x)


def saturated(x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiplies the saturation (of hue, saturation, value) and cuts it at 1.

    With the value V, the largest of red, green and blue, and the saturation
    S = (V - smallest) / V, a channel c becomes V - (V - c) min(factor S, 1) / S.
    The factors have the shape (n, 1, 1, 1).
    """
    red, green, blue = np.split(x, 3, axis=-1)  # much faster than x.max(-1)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    most = np.full_like(spread, np.inf)  # 1 / S
    np.divide(value, spread, out=most, where=spread > 0)
    ratio = np.minimum(factor, most)
    ratio[value <= 0] = 0
    return value - (value - x) * ratio


def standardised(x: np.ndarray) -> np.ndarray:
    """Gives each image of shape (height, width, channels) mean 0 and deviation 1.

    The deviation is taken to be at least 1/sqrt(N), N the size of an image, as in
    `tf.image.per_image_standardization`.
    """
    x = x.astype(np.float32)
    axes = (1, 2, 3)
    floor = 1 / np.sqrt(x[0].size)
    x -= x.mean(axes, keepdims=True)
    return x / np.maximum(x.std(axes, keepdims=True), np.float32(floor))


def prepare_test(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Prepares test images: they are only standardised."""
    return standardised(images)
