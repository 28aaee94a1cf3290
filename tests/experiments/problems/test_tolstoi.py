"""The text and its streams, and an LSTM whose state goes from batch to batch."""

import dataclasses
import gzip
import hashlib
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from resuming import Killed, kill_at_replacement, outcome

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import PROBLEMS, tolstoi
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.problems.tolstoi import Stateful
from svag_tf.experiments.training.train import train

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data"
TEXT = "Well, Prince,\nso Genoa and Lucca é\n\nare now"


@pytest.mark.skipif(
    not (SHARED / "war_and_peace.txt.gz").is_file(),
    reason="needs ../shared/data/war_and_peace.txt.gz",
)
def test_the_real_text():
    text = tolstoi.read_text(SHARED / "war_and_peace.txt.gz")
    assert len(text) == 3_196_211 and len(set(text)) == 82
    assert text.startswith('"Well, Prince, so Genoa') and "\r" not in text
    assert text.count("\n") == 62_014 and len(text.encode()) == 3_196_228
    text = text.replace("\n", "\r\n")  # as in DeepOBS
    assert len(text) == 3_258_225 and len(set(text)) == 83
    data = tolstoi.load_war_and_peace(str(SHARED))
    assert data.x_train.shape == data.y_train.shape == (1042 * 50, 50)
    assert data.x_test.shape == data.y_test.shape == (260 * 50, 50)
    assert data.x_train.min() == 0 and data.x_train.max() == 82
    characters = sorted(set(text))
    border = 2_606_580  # 80 %

    def spelled(ids):
        return "".join(characters[i] for i in ids)

    stream = text[1042 * 50 : 2 * 1042 * 50]  # the second of 50
    assert spelled(data.x_train[1::50].ravel()) == stream
    assert spelled(data.y_train[0]) == text[1:51]
    assert spelled(data.x_test[0]) == text[border : border + 50]


def test_sequences():
    """Each stream continues from batch to batch; the label is the next character."""
    ids = np.arange(50 * 50 * 3 + 40)  # three batches and a rest
    x, y = tolstoi.sequences(ids)
    assert x.shape == y.shape == (150, 50) and x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(y, x + 1)
    for k in (0, 1, 49):
        stream = np.concatenate([x[50 * i + k] for i in range(3)])
        np.testing.assert_array_equal(stream, 150 * k + np.arange(150))


def test_the_last_label_must_exist():
    x, _ = tolstoi.sequences(np.arange(2 * 2500))
    assert len(x) == 50
    x, y = tolstoi.sequences(np.arange(2 * 2500 + 1))
    assert len(x) == 100 and y.max() == 5000


@pytest.fixture
def expected(monkeypatch):
    """Makes TEXT the text of the problem."""
    monkeypatch.setattr(tolstoi, "SHA256", hashlib.sha256(TEXT.encode()).hexdigest())


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf\r\n" + TEXT.replace("\n", "\r\n").encode() + b"\r\n",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_line_ends_and_the_byte_order_mark_do_not_matter(
    tmp_path, expected, content, zipped
):
    path = tmp_path / ("war_and_peace.txt" + ".gz" * zipped)
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert tolstoi.read_text(path) == TEXT


def test_another_text_is_refused(tmp_path, expected):
    path = tmp_path / "war_and_peace.txt"
    path.write_text(TEXT[:-1], encoding="utf-8")
    found = hashlib.sha256(TEXT[:-1].encode()).hexdigest()
    with pytest.raises(ExperimentError) as error:
        tolstoi.load_war_and_peace(str(tmp_path))
    for part in (path, tolstoi.SHA256, found, f"Found: {len(TEXT) - 1} characters"):
        assert str(part) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"<html>", gzip.compress(b"a" * 99)[:-9], gzip.compress(b"\xff\xfe\xff")],
    ids=["no gzip", "cut", "no UTF-8"],  # A gzip file's bytes hold the time.
)
def test_a_corrupt_file_is_named(tmp_path, content):
    (tmp_path / "war_and_peace.txt.gz").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"war_and_peace.txt.gz is corrupt"):
        tolstoi.load_war_and_peace(str(tmp_path))


def test_a_folder_without_the_text(tmp_path):
    with pytest.raises(ExperimentError, match=r"neither war_and_peace.txt.gz nor"):
        tolstoi.load_war_and_peace(str(tmp_path))


def test_the_download_is_checked(tmp_path, expected, monkeypatch):
    path = tmp_path / "downloaded"
    path.write_bytes(TEXT.encode())
    asked = []

    def get_file(name, origin):
        asked.append((name, origin))
        return str(path)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setattr(tolstoi, "STREAMS", 2)
    monkeypatch.setattr(tolstoi, "LENGTH", 3)
    data = tolstoi.load_war_and_peace()
    # 43 characters and three carriage returns: 80 % are 37, six batches of two streams
    # and one more label; the other nine make one batch.
    assert data.x_train.shape == (12, 3) and data.x_test.shape == (2, 3)
    assert len(np.unique(np.concatenate(data, axis=None))) <= len(set(TEXT)) + 1
    assert asked[0][0] == "war_and_peace.txt" and asked[0][1].startswith("https://")
    path.write_bytes(b"<html>moved</html>")
    with pytest.raises(ExperimentError, match=r"downloaded is not the text"):
        tolstoi.load_war_and_peace()


def test_no_source_names_both(monkeypatch):
    def offline(*args):
        raise OSError("no route to host")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(ExperimentError) as error:
        tolstoi.load_war_and_peace()
    for part in ("--config.data_dir", "https://", "no route"):
        assert part in str(error.value)


def lstm(length, batch=3):
    """An LSTM that keeps its state, and the same one without an initial state."""
    going_on = Stateful(layers.LSTM(4, return_sequences=True, return_state=True))
    model = keras.Sequential([keras.Input(batch_shape=(batch, length, 2)), going_on])
    plain = keras.Sequential(
        [keras.Input((None, 2)), layers.LSTM(4, return_sequences=True)]
    )
    plain.set_weights(going_on.layer.get_weights())
    return model, plain


def state(model):
    return [keras.ops.convert_to_numpy(v) for v in model.layers[0].state]


def test_the_state_goes_from_batch_to_batch():
    model, plain = lstm(5)
    x = np.random.default_rng(0).normal(size=(3, 20, 2)).astype(np.float32)
    expected = plain.predict(x, verbose=0)
    batches = np.concatenate([x[:, i : i + 5] for i in range(0, 20, 5)])
    for _ in range(2):  # the second time after a reset
        parts = model.predict(batches, batch_size=3, verbose=0)
        together = np.concatenate(np.split(parts, 4), axis=1)
        np.testing.assert_allclose(together, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(state(model)[0], parts[-3:, -1])
        model.layers[0].reset_state()
        assert not np.any(state(model))


def test_the_state_goes_on_in_training_and_is_saved(tmp_path):
    model, plain = lstm(5)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.random.default_rng(0).normal(size=(3, 10, 2)).astype(np.float32)
    batches = np.concatenate([x[:, :5], x[:, 5:]])
    model.fit(batches, np.zeros((6, 5, 4)), batch_size=3, shuffle=False, verbose=0)
    last = plain.predict(x, verbose=0)[:, -1]
    np.testing.assert_allclose(state(model)[0], last, rtol=1e-5, atol=1e-6)
    assert len(model.trainable_variables) == 3
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for value, saved in zip(state(model), state(again), strict=True):
        np.testing.assert_array_equal(value, saved)
    np.testing.assert_array_equal(
        again.predict(x[:, :5], verbose=0), model.predict(x[:, :5], verbose=0)
    )


def test_the_model_is_that_of_deepobs():
    model = PROBLEMS["tolstoi_char_rnn"].build()
    kinds = [
        layer.rate if isinstance(layer, layers.Dropout) else type(layer).__name__
        for layer in model.layers
    ]
    assert kinds == [
        "Embedding", 0.2, "Stateful", 0.2, 0.2, "Stateful", 0.2, "Dense"
    ]  # fmt: skip
    assert not model.losses

    def uniform(variable, fan_in, fan_out):
        values = keras.ops.convert_to_numpy(variable)
        limit = np.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * limit < np.abs(values).max() <= 1.0001 * limit
        assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.2)

    uniform(model.layers[0].embeddings, 83, 128)
    for layer in (model.layers[2], model.layers[5]):
        kernel, recurrent, bias = layer.layer.trainable_variables
        uniform(kernel, 128 + 128, 4 * 128)
        uniform(recurrent, 128 + 128, 4 * 128)
        values = keras.ops.convert_to_numpy(bias)
        assert values.tolist() == [0] * 128 + [1] * 128 + [0] * 256
    uniform(model.layers[-1].kernel, 128, 83)
    uniform(model.layers[-1].bias, 83, 83)


@pytest.fixture
def little(monkeypatch, load_config):
    """The config of a short run on a text that is easy to learn."""
    ids = np.tile(np.arange(10), 2000)
    data = Data(*tolstoi.sequences(ids[:12_510]), *tolstoi.sequences(ids[:5_010]))
    problem = PROBLEMS["tolstoi_char_rnn"]
    monkeypatch.setitem(
        PROBLEMS,
        "tolstoi_char_rnn",
        dataclasses.replace(problem, load=lambda folder: data),
    )
    config = load_config("tolstoi_char_rnn")
    config.epochs = 2
    config.optimizer.name, config.optimizer.learning_rate = "adam", 0.01
    return config, data


@pytest.mark.exhaustive
def test_it_trains_and_goes_on_bit_for_bit(little, tmp_path, monkeypatch):
    config, data = little
    rows = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 10, after=False)  # before epoch 2 is committed
        train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert [row["step"] for row in rows] == [0, 5, 10]
    assert rows[0]["test_loss"] == pytest.approx(np.log(83), abs=0.1)
    assert rows[2]["test_loss"] < rows[1]["test_loss"] < rows[0]["test_loss"] - 0.5
    # Evaluation starts with a state of zero, and keeps it from batch to batch.
    model = keras.models.load_model(tmp_path / "whole" / "model.keras")
    for layer in model.layers:
        if isinstance(layer, Stateful):
            assert not np.any([keras.ops.convert_to_numpy(v) for v in layer.state])
    logits = model.predict(data.x_test, batch_size=50, verbose=0).astype(float)
    chosen = np.take_along_axis(logits, data.y_test[..., None], -1)[..., 0]
    loss = (np.log(np.exp(logits).sum(-1)) - chosen).mean()
    assert rows[2]["test_loss"] == pytest.approx(loss, rel=1e-5)
    accuracy = (logits.argmax(-1) == data.y_test).mean()  # of the characters
    assert rows[2]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
def test_limits_are_rounded_to_whole_batches(little, tmp_path):
    config, _ = little
    config.epochs, config.train_examples, config.test_examples = 1, 120, 99
    assert train(config, tmp_path / "run")[1]["step"] == 2
    config.test_examples = 49
    with pytest.raises(ExperimentError, match="test_examples must be at least 50"):
        train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
