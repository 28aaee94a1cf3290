"""Data sets as NumPy arrays, checked while they are read."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from svag_tf.experiments.errors import ExperimentError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Data(NamedTuple):
    """Inputs and labels, examples along the first axis.

    Images have the shape (n, height, width, channels) and are float32 in [0, 1] unless
    the problem says otherwise; their labels are int32 of shape (n,).
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_digits(data_dir: str | None = None) -> Data:
    """Loads scikit-learn's handwritten digits: 1437 train, 360 test, 8x8x1.

    The split is stratified by class and always the same.

    Raises:
        ExperimentError: if `data_dir` is given or scikit-learn is missing.
    """
    if data_dir is not None:
        raise ExperimentError(
            "data_dir does not apply to the digits, which come with scikit-learn; "
            f"leave it None. Received: data_dir={data_dir!r}"
        )
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ExperimentError(
            "The digits need scikit-learn: pip install scikit-learn"
        ) from error
    x, y = load(return_X_y=True)
    x = (x / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y.astype(np.int32), test_size=0.2, random_state=0, stratify=y
    )
    return Data(x_train, y_train, x_test, y_test)


def load_digits_label_noise(data_dir: str | None = None) -> Data:
    """Loads the digits with the parts exchanged and some training labels wrong.

    So there are 360 examples to train on, few enough to learn by heart, and 1437 to
    test. A fifth of the training labels is wrong, always the same.
    """
    x_test, y_test, x_train, y_train = load_digits(data_dir)
    return Data(x_train, with_wrong_labels(y_train, 0.2, classes=10), x_test, y_test)


def with_wrong_labels(
    labels: np.ndarray, fraction: float, classes: int, seed: int = 0
) -> np.ndarray:
    """Returns labels of which a fraction is wrong, each wrong class equally likely.

    Exactly round(fraction * n) of the n labels are wrong.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    wrong = labels.copy()
    wrong[chosen] += rng.integers(1, classes, len(chosen), dtype=labels.dtype)
    return wrong % classes


def load_fashion_mnist(data_dir: str | None = None) -> Data:
    """Loads Fashion-MNIST: 60,000 train, 10,000 test, 28x28x1.

    Looks in this order: `data_dir` if given; the folder of Debian's package
    dataset-fashion-mnist; Keras' downloader (and its cache).

    Args:
        data_dir: folder with the four IDX files, gzipped or not, or None.

    Raises:
        ExperimentError: if a file is missing or corrupt, or no source is at hand.
    """
    if data_dir is not None:
        return read_idx_data(Path(data_dir))
    if DEBIAN_FASHION_MNIST.is_dir():
        return read_idx_data(DEBIAN_FASHION_MNIST)
    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # no network, a corrupt cache, ...: many kinds
        raise ExperimentError(
            "Fashion-MNIST was not found. Three ways to get it: (1) name a folder with "
            "its four IDX files: --config.data_dir=DIR; (2) install Debian's package, "
            f"apt install dataset-fashion-mnist, which fills {DEBIAN_FASHION_MNIST}; "
            "(3) go online once, so that Keras' downloader can fetch it. The "
            f"downloader said: {error}"
        ) from error
    return Data(
        _pixels(x_train), y_train.astype(np.int32),
        _pixels(x_test), y_test.astype(np.int32),
    )  # fmt: skip


def read_idx_data(folder: Path, shape: tuple[int, int] = (28, 28)) -> Data:
    """Reads the four files of an MNIST-like data set.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
            `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each plain or with
            the suffix `.gz`.
        shape: height and width that the images must have.

    Raises:
        ExperimentError: naming the file that is missing or corrupt.
    """
    if not folder.is_dir():
        raise ExperimentError(f"The data folder {folder} does not exist.")
    paths = [_find(folder, name) for name in _FASHION_MNIST_FILES]
    splits = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        if images.shape[1:] != shape:
            raise ExperimentError(
                f"{images_path}: the images must be {shape[0]}x{shape[1]}. Found: "
                f"{images.shape[1]}x{images.shape[2]}"
            )
        if len(images) != len(labels):
            raise ExperimentError(
                f"{images_path} and {labels_path} do not belong together: "
                f"{len(images)} images and {len(labels)} labels."
            )
        if len(labels) == 0:
            raise ExperimentError(f"{labels_path}: holds no examples.")
        if labels.max() > 9:
            raise ExperimentError(
                f"{labels_path}: labels must be in 0..9. Found: {labels.max()}"
            )
        splits += [_pixels(images), labels.astype(np.int32)]
    return Data(*splits)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, gzipped if its name ends in `.gz`.

    Raises:
        ExperimentError: naming the file, if it is unreadable, truncated, too long or
            not an IDX file of that many axes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ExperimentError(f"{path} is corrupt or unreadable: {error}") from error
    header = 4 * (1 + dimensions)
    magic = bytes([0, 0, 8, dimensions])
    if len(content) < header or content[:4] != magic:
        raise ExperimentError(
            f"{path} is not an IDX file of bytes with {dimensions} axes: it must start "
            f"with {magic.hex()}. Found: {content[:4].hex() or 'an empty file'}, "
            f"{len(content)} bytes in all"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = int(np.prod(shape, dtype=object))
    if len(content) - header != expected:
        raise ExperimentError(
            f"{path} is corrupt: its header announces {expected} bytes of shape "
            f"{shape}. Found: {len(content) - header}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise ExperimentError(
        f"The data folder {folder} holds neither {name}.gz nor {name}. It must hold, "
        f"gzipped or not: {', '.join(_FASHION_MNIST_FILES)}"
    )


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32)[..., np.newaxis] / np.float32(255)
