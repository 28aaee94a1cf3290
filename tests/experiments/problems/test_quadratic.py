"""The quadratic is DeepOBS' to the last digit, and a problem without accuracy."""

import csv
import math

import keras
import matplotlib.image
import numpy as np
import pytest
from resuming import Killed, kill_at_replacement, outcome

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import PROBLEMS, quadratic
from svag_tf.experiments.training.train import train


def losses(theta, x):
    """0.5 (theta - x)' Q (theta - x), one by one in float64."""
    q = quadratic.matrix()
    distances = theta - x.astype(float)
    return np.array([0.5 * d @ q @ d for d in distances])


def test_the_spectrum():
    q = quadratic.matrix()
    np.testing.assert_allclose(q, q.T, atol=1e-12)
    eigenvalues, vectors = np.linalg.eigh(q)
    assert np.all((eigenvalues[:90] > 0) & (eigenvalues[:90] < 1))
    assert np.all((eigenvalues[90:] > 30) & (eigenvalues[90:] < 60))
    assert np.abs(vectors).max() < 0.6  # no eigenvector lies along an axis
    np.testing.assert_array_equal(q, quadratic.matrix())


def test_the_rotation():
    r = quadratic.rotation(7, np.random.RandomState(0))
    np.testing.assert_allclose(r @ r.T, np.eye(7), atol=1e-12)
    assert np.linalg.det(r) == pytest.approx(1)
    rng = np.random.RandomState(1)
    many = np.array([quadratic.rotation(3, rng) for _ in range(2000)])
    # Uniform: each entry has mean 0 and mean square 1/3.
    np.testing.assert_allclose(many.mean(0), 0, atol=0.06)
    np.testing.assert_allclose((many**2).mean(0), 1 / 3, atol=0.04)


def test_the_points():
    data = quadratic.load_points()
    assert data.x_train.shape == data.x_test.shape == (1000, 100)
    for x in (data.x_train, data.x_test):
        assert abs(x.mean()) < 0.01
        assert x.std() == pytest.approx(0.6, abs=0.005)
    assert not np.array_equal(data.x_train, data.x_test)
    with pytest.raises(ExperimentError, match="data_dir does not apply"):
        quadratic.load_points("/tmp")


def test_the_first_loss_is_the_published_one():
    """DeepOBS leaves out the remainder: seven batches of 128 test points."""
    x = quadratic.load_points().x_test[: 7 * 128]
    curve = published("quadratic_deep")["sgd"]
    assert curve["test_losses_std"][0] == 0
    first = losses(np.ones(100), x).mean()
    assert first == pytest.approx(curve["test_losses_mean"][0], abs=1e-5)
    model = PROBLEMS["quadratic_deep"].build()
    output = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(output[:, 0], losses(np.ones(100), x), rtol=1e-5)


def test_a_step_is_that_of_the_gradient():
    x = quadratic.load_points().x_train[:128]
    model = PROBLEMS["quadratic_deep"].build()
    model.compile(keras.optimizers.SGD(0.01), PROBLEMS["quadratic_deep"].loss())
    model.train_on_batch(x, np.zeros((128, 1), np.float32))
    expected = 1 - 0.01 * quadratic.matrix() @ (1 - x.mean(0))
    theta = keras.ops.convert_to_numpy(model.layers[0].theta)
    np.testing.assert_allclose(theta, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def config(load_config):
    config = load_config("quadratic_deep")
    config.epochs = 2
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = published("quadratic_deep")["sgd"]["learning_rate"]
    return config


def test_sgd_follows_the_published_curve(config, tmp_path):
    rows = train(config, tmp_path, report=lambda row: None)
    curve = published("quadratic_deep")["sgd"]
    for epoch in (1, 2):
        for part in ("train", "test"):  # all 1000 points here, 896 there
            expected = curve[f"{part}_losses_mean"][epoch]
            assert rows[epoch][f"{part}_loss"] == pytest.approx(expected, rel=0.01)
    model = keras.models.load_model(tmp_path / "model.keras")
    theta = keras.ops.convert_to_numpy(model.layers[0].theta)
    loss = losses(theta, quadratic.load_points().x_test).mean()
    assert rows[2]["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_a_run_with_a_loss_alone(config, tmp_path, capsys, monkeypatch):
    train(config, tmp_path / "whole")
    output = capsys.readouterr().out
    assert "test loss" in output and "final (epoch 2)" in output
    assert "accuracy" not in output
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        assert math.isnan(float(row["test_accuracy"]))
        assert math.isfinite(float(row["test_loss"]))
    assert "accuracy" not in (tmp_path / "whole" / "train.log").read_text()
    image = matplotlib.image.imread(tmp_path / "whole" / "curves.png")
    assert image.shape[1] < 1.6 * image.shape[0]  # one panel
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 10, after=False)
        train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
