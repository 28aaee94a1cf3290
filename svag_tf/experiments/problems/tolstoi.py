"""The paper's P4: an LSTM that predicts the next character of War and Peace."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems.data import Data

STREAMS, LENGTH = 50, 50
VOCABULARY = 83  # with the carriage return
# The text with line ends \n and without white space at its ends, in UTF-8.
CHARACTERS, BYTES = 3_196_211, 3_196_228
SHA256 = "b0fc81c399971eaf738c8be89809e6a0d95c151749112b04f06b6af648d8a39f"
# Karpathy's char-rnn; its published length fits. The download is checked.
ADDRESS = "https://cs.stanford.edu/people/karpathy/char-rnn/warpeace_input.txt"
NAME = "war_and_peace.txt"


@keras.saving.register_keras_serializable(package="svag_tf")
class Stateful(layers.Wrapper):
    """Makes an LSTM begin each batch in the state in which the last one ended.

    Keras' `stateful=True` does this only on the TensorFlow backend: on JAX the state is
    silently lost, and on PyTorch training ends with an error. Here the state is two
    weights of the layer, which are saved and restored with the others.

    Args:
        layer: a `keras.layers.LSTM` with `return_sequences` and `return_state`. The
            batch size of its input must be known.
    """

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self.state = [
            self.add_weight(
                shape=(input_shape[0], self.layer.units),
                initializer="zeros",
                trainable=False,
                name=name,
            )
            for name in ("hidden", "cell")
        ]

    def call(self, x: Any, training: bool | None = None) -> Any:
        # Copies: PyTorch's gradient must not see the state change.
        start = [ops.cast(ops.copy(s), self.compute_dtype) for s in self.state]
        output, *end = self.layer(x, initial_state=start, training=training)
        for state, value in zip(self.state, end, strict=True):
            state.assign(ops.cast(value, state.dtype))
        return output

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:2], self.layer.units)

    def reset_state(self) -> None:
        """Sets the state to zero."""
        for state in self.state:
            state.assign(ops.zeros(state.shape, state.dtype))


def tolstoi_char_rnn() -> keras.Model:
    """Builds DeepOBS' network: embedding, two LSTMs of 128 units, dense layer.

    284,499 parameters. While training, 0.2 of each LSTM's inputs and outputs are
    dropped, anew for every character. Initial values are those of DeepOBS: Glorot
    uniform, with both kernels of an LSTM counted as one matrix, also for the last
    layer's biases; the LSTM's biases are 1 for the forget gate and 0 otherwise. It
    takes 50 sequences of 50 ids at a time, and keeps its state from batch to batch.
    """
    units = 128
    limit = (6 / (2 * units + 4 * units)) ** 0.5

    def lstm() -> keras.Layer:
        return Stateful(
            layers.LSTM(
                units,
                return_sequences=True,
                return_state=True,
                kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
                recurrent_initializer=keras.initializers.RandomUniform(-limit, limit),
            )
        )

    return keras.Sequential(
        [
            keras.Input(batch_shape=(STREAMS, LENGTH), dtype="int32"),
            layers.Embedding(
                VOCABULARY, units, embeddings_initializer="glorot_uniform"
            ),
            layers.Dropout(0.2),
            lstm(),
            layers.Dropout(0.2),
            layers.Dropout(0.2),
            lstm(),
            layers.Dropout(0.2),
            layers.Dense(
                VOCABULARY, bias_initializer="glorot_uniform", dtype="float32"
            ),
        ],
        name="tolstoi_char_rnn",
    )


def load_war_and_peace(data_dir: str | None = None) -> Data:
    """Loads War and Peace as sequences of 50 characters: 52,100 train, 13,000 test.

    Lines end with carriage return and line feed, whatever the file has: 3,258,225
    characters, 83 different ones. DeepOBS does the same, and it matters: the line feed
    after a carriage return is easy to predict. (DeepOBS' copy of the book is a
    different, slightly longer one.) The first 80 % are for training, the rest for
    testing. An input is 50 ids, its label the 50 ids one character later.

    Args:
        data_dir: folder with `war_and_peace.txt` or `war_and_peace.txt.gz`, or None
            for a download with Keras' downloader and its cache.

    Raises:
        ExperimentError: if the text is missing, cannot be downloaded or is another one.
    """
    if data_dir is None:
        path = _download()
    else:
        paths = [Path(data_dir) / f"{NAME}.gz", Path(data_dir) / NAME]
        found = [path for path in paths if path.is_file()]
        if not found:
            raise ExperimentError(
                f"The data folder {data_dir} holds neither {NAME}.gz nor {NAME}."
            )
        path = found[0]
    text = read_text(path).replace("\n", "\r\n")
    _, ids = np.unique(np.array(list(text)), return_inverse=True)
    end = -(-4 * len(ids) // 5)
    return Data(*sequences(ids[:end]), *sequences(ids[end:]))


def read_text(path: Path) -> str:
    """Reads the text, gzipped if its name ends in `.gz`, and checks its SHA-256.

    Line ends become `\\n`; a byte-order mark and white space at the ends are removed.

    Raises:
        ExperimentError: if the file is unreadable or another text; names it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is corrupt or unreadable: {error}") from error
    text = text.replace("\r\n", "\n").strip()
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != SHA256:
        raise ExperimentError(
            f"{path} is not the text of this problem, which has {CHARACTERS:,} "
            f"characters, {BYTES:,} bytes and the SHA-256 {SHA256} (in UTF-8, with "
            "line ends \\n, without white space at the ends). Found: "
            f"{len(text):,} characters, {len(text.encode()):,} bytes, SHA-256 {found}"
        )
    return text


def _download() -> Path:
    try:
        return Path(keras.utils.get_file(NAME, ADDRESS))
    except Exception as error:  # no network, a full disk, ...: many kinds
        raise ExperimentError(
            "The text of War and Peace was not found. Two ways to get it: (1) name a "
            f"folder with {NAME} or {NAME}.gz: --config.data_dir=DIR; (2) go online "
            f"once, so that it can be fetched from {ADDRESS}. The downloader said: "
            f"{error}"
        ) from error


def sequences(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text, shape (characters,), into parallel streams and those into sequences.

    Returns:
        Inputs and labels, int32, shape (n, LENGTH), n a multiple of STREAMS: example
        `i * STREAMS + k` is the i-th sequence of stream k. Characters that do not fill
        a sequence in every stream are left out.
    """
    ids = ids.astype(np.int32)
    batches = (len(ids) - 1) // (STREAMS * LENGTH)
    used = batches * STREAMS * LENGTH

    def cut(part: np.ndarray) -> np.ndarray:
        streams = part.reshape(STREAMS, batches, LENGTH)
        return streams.swapaxes(0, 1).reshape(-1, LENGTH)

    return cut(ids[:used]), cut(ids[1 : used + 1])
