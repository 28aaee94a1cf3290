"""Noisy quadratics: against closed forms, plain training and the paper's claims."""

import dataclasses
import functools
import json
import os

import keras
import numpy as np
import pytest
from conftest import config_of

from svag_tf.experiments.config import checked
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.simulations.noisy_quadratic import simulate
from svag_tf.experiments.simulations.noisy_quadratic.findings import (
    against_sign_descent,
    of_the_long_run,
    slope_of,
)
from svag_tf.experiments.simulations.noisy_quadratic.simulator import (
    Config,
    quadratics,
    sgd_floor,
    simulator,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="simulates on TensorFlow"
)
EIGENVALUES = np.linspace(0.1, 1.1, 10)


make_config = functools.partial(config_of, "noisy_quadratic")


def test_the_four_problems():
    problems = quadratics(100, seed=3)
    assert [p.name for p in problems] == [
        "mild, axis-aligned",
        "mild, rotated",
        "ill-conditioned, axis-aligned",
        "ill-conditioned, rotated",
    ]
    for problem in problems:
        spectrum = np.linalg.eigvalsh(problem.matrix)
        np.testing.assert_allclose(spectrum, np.sort(problem.eigenvalues), atol=1e-12)
        off = np.abs(problem.matrix - np.diag(np.diag(problem.matrix))).max()
        assert (off > 0.01) == problem.rotated
    mild, ill = problems[0].eigenvalues, problems[2].eigenvalues
    assert mild.min() >= 0.1 and mild.max() <= 1.1
    assert ((ill >= 0) & (ill <= 1)).sum() == 90
    assert ((ill >= 30) & (ill <= 60)).sum() == 10


@pytest.mark.parametrize("method", ["sgd", "msvag", "svas"])
def test_it_is_the_optimizer_with_that_learning_rate(method):
    import tensorflow as tf

    rates, steps, seed = [0.05, 0.4], 6, 11
    matrix = quadratics(10, seed=0)[1].matrix
    start = np.random.default_rng(0).normal(size=(3, 10))
    draw = tf.function(tf.random.stateless_normal, jit_compile=True)
    losses = simulator(method, rates, 3, 10, steps)(matrix, 0.5, start, seed)
    assert losses.shape == (steps + 1, 2, 3)
    for i, rate in enumerate(rates):
        theta = keras.Variable(start, dtype="float32")
        optimizer = OPTIMIZERS[method](learning_rate=rate)
        for t in range(steps + 1):
            exact = theta.numpy() @ matrix.astype(np.float32)
            loss = 0.5 * (theta.numpy() * exact).sum(-1)
            np.testing.assert_allclose(losses[t, i], loss, rtol=2e-5)
            noise = draw((3, 10), tf.constant([seed, t]))
            optimizer.apply([exact + 0.5**0.5 * noise], [theta])


def test_sgd_has_the_expected_loss_and_floor():
    rate, noise, steps = 0.3, 0.2, 120
    start = np.tile(np.linspace(-1, 2, 10), (2000, 1))
    run = simulator("sgd", [rate], 2000, 10, steps)
    losses = run(np.diag(EIGENVALUES), noise, start, 0)[:, 0].mean(1)
    shrink = (1 - rate * EIGENVALUES) ** (2 * np.arange(steps + 1)[:, None])
    variance = rate**2 * noise * (1 - shrink) / (1 - (1 - rate * EIGENVALUES) ** 2)
    expected = 0.5 * (EIGENVALUES * (shrink * start[0] ** 2 + variance)).sum(1)
    np.testing.assert_allclose(losses, expected, rtol=0.05)
    floor = sgd_floor(EIGENVALUES, rate, noise)
    assert losses[-1] == pytest.approx(floor, rel=0.05)


def test_ideal_svag_follows_its_rule():
    start = np.random.default_rng(0).normal(size=(20_000, 10))
    losses = simulator("ideal", [0.5], 20_000, 10, 1)(
        np.diag(EIGENVALUES), 0.3, start, 0
    )
    exact = start * EIGENVALUES
    gamma = exact**2 / (exact**2 + 0.3)
    # E (theta - rate gamma g)^2, the mean and the variance of the step apart
    squares = (start - 0.5 * gamma * exact) ** 2 + 0.25 * gamma**2 * 0.3
    expected = 0.5 * (EIGENVALUES * squares).sum(1).mean()
    assert losses[1].mean() == pytest.approx(expected, rel=0.01)
    assert losses[0].mean() > 1.5 * expected


def test_the_slope_of_a_power():
    assert slope_of(7 / (1e-9 + np.arange(5001)) ** 1.5) == pytest.approx(-1.5)


def test_the_same_seed_gives_the_same_numbers():
    run = simulator("msvag", [0.1], 2, 10, 5)
    start = np.ones((2, 10))
    first = run(np.diag(EIGENVALUES), 1.0, start, 1)
    assert (first == run(np.diag(EIGENVALUES), 1.0, start, 1)).all()
    other = run(np.diag(EIGENVALUES), 1.0, start, 2)
    assert (other[0] == first[0]).all() and (other[1:] != first[1:]).all()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy") / "results"
    config = make_config(
        methods=("sgd", "ideal", "ssd"),
        dimension=50,
        seeds=10,
        noise_levels=(0.0, 0.1),
        rates=13,
        long_steps=3000,
        long_noise=0.01,
        long_rates=(1.0, 0.1),
    )
    return simulate(config, folder, "the command"), folder


@pytest.mark.slow
def test_the_papers_findings(small):
    findings = small[0]["findings"]
    assert len(findings) == 5
    for finding in findings:
        assert finding.agrees, finding.measured


def test_results(small):
    result, folder = small
    files = ["gradient_methods.png", "long_run.png", "results.csv", "results.json"]
    files += ["results.md", "sgd_against_sign_descent.png", "sign_methods.png"]
    assert sorted(os.listdir(folder)) == files
    everything = json.loads((folder / "results.json").read_text())
    assert everything["command"] == "the command"
    assert everything["machine"]["cores"] >= 1
    assert everything["config"]["dimension"] == 50
    rows = everything["results"]
    assert len(rows) == 4 * 2 * 3 * 13
    for (problem, noise, method), outcome in result["outcomes"].items():
        of = [
            row
            for row in rows
            if (row["problem"], row["noise"], row["method"]) == (problem, noise, method)
        ]
        finite = [row for row in of if row["mean_final_loss"] is not None]
        best = min(finite, key=lambda row: row["mean_final_loss"])
        assert best["best"] and sum(row["best"] for row in of) == 1
        mean = outcome.losses[-1].mean()
        assert best["mean_final_loss"] == pytest.approx(mean, rel=1e-5)
    page = (folder / "results.md").read_text()
    assert "| agrees |" in page and "DISAGREES" not in page
    assert "edge of the grid" not in page


def test_losses_that_underflow_are_equal(small):
    config = checked(make_config(noise_levels=(0.0, 0.1)), Config)
    outcomes = {
        key: dataclasses.replace(outcome, finals=np.zeros_like(outcome.finals))
        if key[1] == 0.0
        else outcome
        for key, outcome in small[0]["outcomes"].items()
    }
    *_, rotation = against_sign_descent(config, outcomes)
    assert rotation.agrees and rotation.numbers["mild"][0] == 1.0


def test_findings_that_do_not_hold_are_told(small):
    config = checked(
        make_config(
            noise_levels=(0.0, 0.1),
            long_steps=3000,
            long_noise=0.01,
            long_rates=(1.0, 0.1),
        ),
        Config,
    )
    outcomes = dict(small[0]["outcomes"])
    swapped = {
        (problem, noise, {"sgd": "ssd", "ssd": "sgd"}.get(method, method)): outcome
        for (problem, noise, method), outcome in outcomes.items()
    }
    claims = against_sign_descent(config, swapped)
    assert [finding.agrees for finding in claims] == [False, False, False]
    flat = np.ones_like(small[0]["long"]["ideal"])
    claims = of_the_long_run(config, quadratics(50, 0)[0], {"ideal": flat, "sgd": flat})
    assert [finding.agrees for finding in claims] == [False, False]
    assert all(dataclasses.asdict(finding)["measured"] for finding in claims)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"seeds": 1}, "seeds must be a whole number >= 2. Received: seeds=1"),
        ({"dimension": 9}, "dimension must be a whole number >= 10"),
        ({"noise_levels": (-0.1,)}, "noise_levels must be finite numbers >= 0"),
        ({"noise_levels": ()}, "at least one"),
        ({"methods": ("sgd", "adam")}, "methods must be of sgd, msgd"),
        ({"methods": ("sgd", "sgd")}, "none twice"),
        ({"lowest_rate": 0.0}, "lowest_rate must be a finite number > 0"),
        ({"highest_rate": 1e-4}, "highest_rate must be greater than lowest_rate"),
        ({"long_rates": (2.0,)}, r"numbers in \(0, 2\)"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, fields, message):
    with pytest.raises(ExperimentError, match=message):
        simulate(make_config(**fields), tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_another_backend_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ExperimentError, match="KERAS_BACKEND=tensorflow"):
        simulate(make_config(), tmp_path / "a")
    assert os.listdir(tmp_path) == []
