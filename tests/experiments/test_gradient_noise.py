"""M-SVAG's estimates against exact ones: the measures, the run, its resumption."""

import csv
import json
import os

import keras
import numpy as np
import pytest
from conftest import config_of
from resuming import Killed, kill_at_replacement

from svag_tf.experiments import problems
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.simulations.gradient_noise import figures, run, simulate
from svag_tf.experiments.simulations.gradient_noise.measurement import (
    QUANTITIES,
    Measurement,
    binned,
    compared,
    estimates,
    exact_values,
    labels_of,
    rho_of,
)

FILES = [
    ".lock", "calibration.png", "checkpoints", "config.json", "layers.png",
    "measurements", "results.csv", "results.json", "results.md", "scatter.png",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _little_problem(monkeypatch):
    def load(data_dir):
        rng = np.random.default_rng(0)
        y = np.arange(50, dtype=np.int32) % 3
        x = (rng.normal(size=(50, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float32)
        return Data(x, y, x[:9], y[:9])

    def build():
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
        )

    monkeypatch.setitem(problems.PROBLEMS, "little", problems.Problem(load, build))


@pytest.fixture
def _no_pictures(monkeypatch):
    for name in ("draw_scatter", "draw_calibration", "draw_layers"):
        monkeypatch.setattr(figures, name, lambda *arguments: None)


def make_config(**fields):
    config = config_of("gradient_noise")
    config.steps, config.elements = (3, 12), 10
    config.training.update(
        {"problem": "little", "epochs": 2, "batch_size": 5, "train_examples": None}
    )
    config.update_from_flattened_dict(fields)
    return config


def test_estimates_of_gradients_that_do_not_drift():
    """Unbiased, all of them, where the paper's assumptions hold."""
    rng = np.random.default_rng(0)
    mean, deviation = rng.normal(size=(2, 40_000))
    m_tilde = v_tilde = 0.0
    for t in range(1, 41):
        g = mean + deviation * rng.normal(size=mean.shape)
        m_tilde = 0.9 * m_tilde + 0.1 * g
        v_tilde = 0.9 * v_tilde + 0.1 * g * g
        if t not in (2, 10, 40):
            continue
        made = estimates(m_tilde, v_tilde, t, 0.9)
        exact = exact_values(mean, deviation**2, rho_of(t, 0.9))
        for name in ("m", "s", "rho_s"):
            ratio = compared(name, made[name], exact[name])["ratio"]
            assert ratio == pytest.approx(1, abs=0.05), (t, name)
        error = np.square(made["m"] - mean).sum() / made["rho_s"].sum()
        assert error == pytest.approx(1, abs=0.05), t


def test_estimates_and_exact_values_by_hand():
    made = estimates(np.array([0.1, 0.0]), np.array([0.2, 0.0]), 2, 0.5)
    m, v = 0.1 / 0.75, 0.2 / 0.75  # 1 - beta^2 = 0.75; rho = 0.5 * 1.25 / (1.5 * 0.75)
    rho = 0.625 / 1.125
    assert rho_of(2, 0.5) == pytest.approx(rho)
    s = (v - m * m) / (1 - rho)
    expected = {
        "m": m, "s": s, "rho_s": rho * s, "eta2": rho * s / m**2,
        "gamma": m * m / (m * m + rho * s),
    }  # fmt: skip
    for name, value in expected.items():
        assert made[name][0] == pytest.approx(value, rel=1e-6)
    assert np.isnan(made["eta2"][1]) and made["gamma"][1] == 0
    exact = exact_values(np.array([2.0]), np.array([3.0]), 0.5)
    assert [exact[name][0] for name in QUANTITIES] == [2, 3, 1.5, 0.375, 1 / 1.375]


def test_measures_of_agreement():
    a, b = np.array([1.0, 2.0, 6.0, np.nan]), np.array([2.0, 2.0, 3.0, 1.0])
    result = compared("eta2", a, b)
    assert result["ratio"] == 1.0
    expected = np.corrcoef(np.log(a[:3]), np.log(b[:3]))[0, 1]
    assert result["correlation"] == pytest.approx(expected)
    a = np.array([1.0, -1.0, 0.0])
    assert compared("m", 3 * a, a)["ratio"] == 3.0
    assert compared("m", 3 * a, a)["correlation"] == pytest.approx(1)
    a, b = np.array([0.0, 4.0, 1.0, 3.0]), np.array([1.0, 1.0, 1.0, 1.0])
    assert compared("s", a, b)["ratio"] == 2.0
    assert np.isnan(compared("s", a, b)["correlation"])  # b does not vary
    tenths = np.full(3, 0.1)  # of which the mean and so the deviation are rounded
    assert tenths.std() > 0
    assert np.isnan(compared("gamma", a[:3], tenths)["correlation"])
    assert compared("gamma", a, np.arange(4.0))["correlation"] == pytest.approx(
        np.corrcoef(a, np.arange(4.0))[0, 1]
    )


def test_bins_hold_equally_many_elements():
    estimate = np.random.default_rng(0).permutation(100).astype(float)
    a, b = binned("s", estimate, 10 * estimate)
    np.testing.assert_allclose(a, np.arange(25) * 4 + 1.5)
    np.testing.assert_allclose(b, 10 * a)
    a, b = binned("eta2", np.r_[estimate, np.nan], np.r_[estimate**2, 1.0])
    np.testing.assert_allclose(b, np.median((np.arange(100.0) ** 2).reshape(25, 4), 1))


def test_labels_do_not_depend_on_other_models():
    build = problems.PROBLEMS["little"].build
    assert labels_of(build()) == labels_of(build()) == [
        "1 Dense kernel", "1 Dense bias", "2 Dense kernel", "2 Dense bias",
    ]  # fmt: skip


@pytest.mark.slow
def test_results(tmp_path):
    config = make_config()
    result = simulate(config, tmp_path / "a", "the command")
    assert sorted(os.listdir(tmp_path / "a")) == FILES
    assert list(result["measurements"]) == [3, 12]
    everything = json.loads((tmp_path / "a" / "results.json").read_text())
    assert everything["command"] == "the command" and everything["seconds"] > 0
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").open()))
    layers = [*labels_of(problems.PROBLEMS["little"].build()), "all"]
    assert [(r["step"], r["layer"], r["quantity"]) for r in rows] == [
        (step, layer, name)
        for step in ("3", "12")
        for layer in layers
        for name in QUANTITIES
    ]
    page = (tmp_path / "a" / "results.md").read_text()
    assert "50 training examples, batches of 5" in page and "1.2 epochs" in page
    measurement = result["measurements"][12]
    assert measurement.bins["s"].shape == (2, 25)
    assert np.bincount(measurement.layers).tolist() == [10, 5, 10, 3]
    # Once more, by the optimizer itself: what the run measured after 12 updates.
    data, model = run.prepared(run._checked(make_config()).training)
    batches = run.Batches(data.x_train, data.y_train, 5, 0)
    for step in range(12):
        batches.shuffle(step // 10)
        model.train_on_batch(*batches[step % 10])
    gradients = [
        [
            keras.ops.convert_to_numpy(g).ravel().astype(np.float64)
            for g in _gradients(model, data.x_train[i : i + 1], data.y_train[i : i + 1])
        ]
        for i in range(50)
    ]
    variance = sum(np.var(column, axis=0).sum() for column in zip(*gradients))
    row = next(
        r for r in measurement.rows if (r["layer"], r["quantity"]) == ("all", "s")
    )
    assert row["sum_of_exact_values"] == pytest.approx(variance / 5 * 45 / 49, rel=1e-4)
    m = [v.numpy().ravel() / (1 - 0.9**12) for v in model.optimizer.m_tilde]
    exact = [np.mean(column, axis=0) for column in zip(*gradients)]
    row = next(
        r for r in measurement.rows if (r["layer"], r["quantity"]) == ("all", "m")
    )
    error = sum(np.square(a - b).sum() for a, b in zip(m, exact))
    assert row["squared_error_of_m"] == pytest.approx(error, rel=1e-3)


def _gradients(model, x, y):
    import tensorflow as tf

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with tf.GradientTape() as tape:
        value = loss(y, model(x))
    return tape.gradient(value, model.trainable_variables)


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.exhaustive
def test_goes_on_after_an_interruption(tmp_path, monkeypatch, capsys):
    whole = simulate(make_config(), tmp_path / "whole")["measurements"]
    save = Measurement.save

    def stop(measurement, path):
        if path.name == "step_000012.npz":
            raise Killed
        save(measurement, path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Measurement, "save", stop)
        simulate(make_config(), tmp_path / "parts")
    parts = simulate(make_config(), tmp_path / "parts")["measurements"]
    assert "after step 3" in capsys.readouterr().out
    for step, measurement in whole.items():
        for name in QUANTITIES:
            np.testing.assert_array_equal(
                measurement.sample[name], parts[step].sample[name]
            )
    rows = [(tmp_path / n / "results.csv").read_bytes() for n in ("whole", "parts")]
    assert rows[0] == rows[1]
    # Complete: nothing is measured again, the tables are made anew.
    monkeypatch.setattr(run, "measured", None)
    (tmp_path / "parts" / "results.md").unlink()
    simulate(make_config(), tmp_path / "parts")
    assert (tmp_path / "parts" / "results.md").exists()
    with pytest.raises(
        ExperimentError, match=r"another config.*\n.*elements: 10 -> 11"
    ):
        simulate(make_config(elements=11), tmp_path / "parts")
    for step in (3, 12):
        commit = tmp_path / "parts" / "checkpoints" / f"step_{step}"
        (commit / "values.npz").write_bytes(b"nothing")
    with (
        pytest.warns(UserWarning, match="step_12 is damaged"),
        pytest.raises(ExperimentError, match=r"None of these is whole: .*step_3.*Del"),
    ):
        simulate(make_config(), tmp_path / "parts")
    (tmp_path / "parts" / "state.npz").write_bytes(b"as before")
    with pytest.raises(
        ExperimentError, match=r"state\.npz was written by an earlier version"
    ):
        simulate(make_config(), tmp_path / "parts")


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.exhaustive
def test_killed_between_a_measurement_and_its_commit(tmp_path, monkeypatch):
    simulate(make_config(), tmp_path / "whole")
    for number in (
        2,
        3,
    ):  # First comes config.json; then measurement and commit, twice.
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at_replacement(patch, number, after=False)
            simulate(make_config(), tmp_path / "cut")
    assert os.listdir(tmp_path / "cut" / "checkpoints") == ["step_3"]
    simulate(make_config(), tmp_path / "cut")
    rows = [(tmp_path / n / "results.csv").read_bytes() for n in ("whole", "cut")]
    assert rows[0] == rows[1]


@pytest.mark.usefixtures("_no_pictures")
def test_divergence(tmp_path):
    config = make_config(**{"training.optimizer.learning_rate": 1e38})
    with pytest.raises(DivergedError, match="diverged at step"):
        simulate(config, tmp_path)


def dropout():
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": (1, 5)}, "steps must be rising whole numbers >= 2.*steps=.1, 5"),
        ({"steps": (5, 5)}, "steps must be rising"),
        ({"steps": (5, 21)}, r"not exceed the 20 updates of 2 epochs.*\[5, 21\]"),
        ({"elements": 1}, "elements must be a whole number >= 10"),
        ({"memory": 1}, "`memory` must be at least"),
        ({"training.optimizer.name": "ssd"}, "must be msvag.*'ssd'"),
        ({"training.optimizer.clipnorm": 1.0}, "clipnorm must be None.*=1.0"),
        ({"training.batch_size": 0}, "batch_size must be a whole number >= 1"),
        ({"training.problem": "cifar10_3c3d"}, "not changed at random.*cifar10"),
        # PyTorch's dropout changes no variable.
        ({"training.problem": "dropout"}, "drop out at random|mix examples cannot"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, monkeypatch, fields, message):
    little = problems.PROBLEMS["little"]
    monkeypatch.setitem(
        problems.PROBLEMS, "dropout", problems.Problem(little.load, dropout)
    )
    with pytest.raises(ExperimentError, match=message):
        simulate(make_config(**fields), tmp_path / "a")
    assert os.listdir(tmp_path) == []
