"""Where variance adaptation helps: against loops over single examples in float64."""

import csv
import functools
import json
import math
import os

import keras
import numpy as np
import pytest
from conftest import ROOT, config_of

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.simulations import where_it_helps
from svag_tf.experiments.simulations.where_it_helps import (
    METHODS,
    Setting,
    checked,
    exact_moments,
    excess_losses,
    interval,
    problem,
    simulate,
)
from svag_tf.experiments.simulations.where_it_helps import Config as Fields

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="once is enough"
)
TINY = {"seeds": 10, "steps": 20, "examples": 40, "dimension": 4, "rates": 3}


make_config = functools.partial(config_of, "where_it_helps", **TINY)


def moments(x, y, theta, batch):
    """Mean and variance of the examples' gradients, one after the other."""
    gradients = [(row @ theta - label) * row for row, label in zip(x, y, strict=True)]
    return np.mean(gradients, axis=0), np.var(gradients, axis=0) / batch


def test_exact_moments():
    drawn = problem(checked(make_config(), Fields), Setting(), 0)
    theta = np.random.default_rng(0).normal(size=(10, 4, 3)).astype(np.float32)
    gradient, variance = exact_moments(drawn.x, drawn.y, theta, 8)
    for seed in range(10):
        for rate in range(3):
            expected = moments(
                drawn.x[seed].astype(float), drawn.y[seed, :, 0].astype(float),
                theta[seed, :, rate].astype(float), 8,
            )  # fmt: skip
            got = gradient[seed, :, rate], variance[seed, :, rate]
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_a_training_is_that_of_the_paper(method, beta):
    config = checked(make_config(), Fields)
    setting = Setting(beta=beta, batch_size=8)
    drawn = problem(config, setting, 0)
    rates = np.array([0.05, 0.4])
    got = excess_losses(method, drawn, setting, rates, config)
    for seed in range(2):
        for i, rate in enumerate(rates):
            expected = train(method, drawn, setting, rate, config, seed)
            assert got[seed, i] == pytest.approx(expected, rel=1e-4)


def train(method, drawn, setting, rate, config, seed):
    """One training in float64, as in the paper's equations."""
    rng, b, beta = np.random.default_rng(config.seed), setting.batch_size, setting.beta
    x, y = drawn.x[seed].astype(float), drawn.y[seed, :, 0].astype(float)
    least = np.linalg.lstsq(x, y, rcond=None)[0]
    theta, first, second, losses = np.zeros(4), 0.0, 0.0, []
    for t in range(1, 21):
        rows = rng.integers(len(x), size=(config.seeds, b, 1))[seed, :, 0]
        g = moments(x[rows], y[rows], theta, b)[0]
        first = beta * first + (1 - beta) * g
        second = beta * second + (1 - beta) * g**2
        m, v = first / (1 - beta**t), second / (1 - beta**t)
        rho = (1 - beta) * (1 + beta**t) / ((1 + beta) * (1 - beta**t))
        gamma = 1.0
        if method == "msvag" and rho < 1:
            gamma = m**2 / (m**2 + rho * (v - m**2) / (1 - rho))
        elif method == "exact":
            gradient, variance = moments(x, y, theta, b)
            gamma = gradient**2 / (gradient**2 + rho * variance)
        theta = theta - rate * gamma * m
        losses.append(
            0.5 * np.mean((x @ theta - y) ** 2) - 0.5 * np.mean((x @ least - y) ** 2)
        )
    return np.mean(losses[-2:])


@pytest.mark.parametrize("n, quantile", [(10, 2.2622), (20, 2.0930)])
def test_the_interval_is_that_of_student(n, quantile):
    values = np.random.default_rng(n).normal(size=n)
    mean, low, high = interval(values)
    assert (low + high) / 2 == pytest.approx(mean) == pytest.approx(values.mean())
    half = quantile * values.std(ddof=1) / math.sqrt(n)
    assert (high - low) / 2 == pytest.approx(half, rel=2e-3)


def test_what_varies():
    config = checked(make_config(examples=4000), Fields)
    sparse = problem(config, Setting(density=0.1), 0).x
    assert (sparse != 0).mean() == pytest.approx(0.1, abs=0.005)
    deviations = np.geomspace(1, 0.1, 4)
    np.testing.assert_allclose(sparse.std((0, 1)), deviations, rtol=0.1)
    normal, heavy = (
        problem(config, Setting(freedom=freedom), 0) for freedom in (math.inf, 1.5)
    )
    largest = [np.abs(p.y - p.x @ p.minimum).max() for p in (normal, heavy)]
    assert largest[0] < 6 and largest[1] > 50
    np.testing.assert_array_equal(normal.x, heavy.x)


@pytest.mark.slow
def test_results(tmp_path, monkeypatch):
    panels = {"beta": ("β", (0.0, 0.9)), "length": ("length", (1.0,))}
    monkeypatch.setattr(where_it_helps, "PANELS", panels)
    result = simulate(make_config(), tmp_path, "the command")
    files = "results.csv results.json results.md where_it_helps.png"
    assert " ".join(sorted(os.listdir(tmp_path))) == files
    everything = json.loads((tmp_path / "results.json").read_text())
    assert everything["results"] == result["results"]
    counts = [sum(r["panel"] == panel for r in result["results"]) for panel in panels]
    assert counts == [2, 1]
    for row in result["results"]:
        assert row["exact_low"] <= row["exact_ratio"] <= row["exact_high"]
    assert simulate(make_config(), tmp_path)["results"] == result["results"]
    other = simulate(make_config(seed=1), tmp_path)["results"]
    assert other != result["results"]


def test_the_committed_page_says_what_the_committed_file_does():
    folder = ROOT / "docs" / "results" / "where_it_helps"
    with open(folder / "results.csv", encoding="utf-8") as file:
        rows = [
            {
                name: text
                if name in ("panel", "value")
                else text == "True"
                if name.endswith("_at_edge")
                else float(text)
                for name, text in row.items()
            }
            for row in csv.DictReader(file)
        ]
    assert len(rows) == 18
    page = (folder / "results.md").read_text("utf-8")
    assert where_it_helps._table(rows) in page
    for panel in where_it_helps.PANELS:
        assert where_it_helps._finding(rows, panel).measured in page


def test_what_is_refused_before_any_work(tmp_path):
    with pytest.raises(ExperimentError, match="seeds must be a whole number >= 10"):
        simulate(make_config(seeds=1), tmp_path / "a")
    assert os.listdir(tmp_path) == []
