"""Wilson's least squares: against its definition, closed forms and the paper."""

import functools
import json
import os

import keras
import numpy as np
import pytest
from conftest import config_of

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.simulations.generalization import (
    SIGN_METHODS,
    accuracy,
    deviation,
    draw_labels,
    features,
    new_scores,
    simulate,
    train,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="once is enough"
)
LABELS = np.array([1, -1, 1, 1, -1, 1, 1, 1, -1, 1], float)


make_config = functools.partial(config_of, "generalization")


def test_features():
    expected = [
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [-1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(features(np.array([1.0, -1.0, 1.0])), expected)


def test_labels_have_a_positive_majority():
    rng = np.random.default_rng(0)
    draws = np.array([draw_labels(rng, 5, 0.51) for _ in range(300)])
    assert set(draws.ravel()) == {-1.0, 1.0} and (draws.sum(1) > 0).all()
    assert np.mean(draw_labels(rng, 100_000, 0.7) > 0) == pytest.approx(0.7, abs=0.01)


def test_accuracy_and_deviation():
    scores, labels = np.array([[0.2, -3.0, 1.0, 0.0]]), np.array([[1, -1, -1, -1]])
    np.testing.assert_array_equal(accuracy(scores, labels), [0.5])
    sign = np.array([[1.0, -1.0, 0.0, 1.0]])
    np.testing.assert_allclose(deviation(3 * sign, sign), 0, atol=1e-15)
    theta = np.array([[1.0, -1.0, 0.25, 1.0]])
    np.testing.assert_allclose(deviation(theta, sign), 0.25)


def test_sgd_finds_the_least_norm_solution():
    x = features(LABELS)
    theta, _ = train(OPTIMIZERS["sgd"](0.5), x[None], LABELS[None], 600)
    expected = np.linalg.pinv(x) @ LABELS
    np.testing.assert_allclose(theta[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", SIGN_METHODS)
def test_sign_methods_go_along_the_sign_to_a_quarter(method):
    x = features(LABELS)
    extra = {"epsilon": 1e-30} if method == "adam" else {}
    optimizer = OPTIMIZERS[method](learning_rate=0.003, **extra)
    theta, deviations = train(optimizer, x[None], LABELS[None], 140)
    assert deviations.shape == (140,) and deviations.max() < 1e-5
    np.testing.assert_allclose(theta[0], np.sign(x.T @ LABELS) / 4, atol=0.02)


@pytest.mark.parametrize("method", ["msvag", "ssd"])
def test_features_of_new_examples_only_get_no_weight(method):
    whole = features(LABELS)
    known, new = whole[:6], LABELS[6:]
    theta, _ = train(OPTIMIZERS[method](0.01), known[None], LABELS[None, :6], 60)
    assert (theta[0, 3 + 5 * 6 :] == 0).all()
    np.testing.assert_allclose(
        new_scores(theta, new[None])[0], whole[6:] @ theta[0], atol=1e-12
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generalization") / "results"
    config = make_config(
        data_sets=2, examples=20, test_examples=200, steps=180, exact_steps=120
    )
    return simulate(config, folder, "the command"), folder


@pytest.mark.exhaustive
def test_the_papers_findings(small):
    findings = small[0]["findings"]
    assert len(findings) == 3
    for finding in findings:
        assert finding.agrees, finding.measured
    assert 0.5 < np.mean(findings[0].numbers["majority"]) < 0.9


def test_results(small):
    folder = small[1]
    files = ["generalization.png", "proportional.png"]
    files += ["results.csv", "results.json", "results.md"]
    assert sorted(os.listdir(folder)) == files
    everything = json.loads((folder / "results.json").read_text())
    assert everything["command"] == "the command"
    assert len(everything["results"]) == 9 * 2
    for row in everything["results"]:
        right = row["method"] not in SIGN_METHODS
        assert (row["label_to_constant"] > 1) == right
        expected = 1 if right else row["majority_in_test_set"]
        assert row["test_accuracy"] == expected and row["train_accuracy"] == 1
    assert "| Adam | 0.003 | 1.0000 |" in (folder / "results.md").read_text()


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    tiny = {"data_sets": 1, "examples": 8, "steps": 5, "exact_steps": 5}
    first, again, other = (
        simulate(make_config(seed=seed, **tiny), tmp_path)["results"]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_findings_that_do_not_hold_are_told(tmp_path):
    # After few short steps even gradient methods follow a large majority, and Adam
    # with a large epsilon is not a sign method.
    config = make_config(
        majority=0.9, steps=3, exact_steps=3, gradient_rate=1e-3, epsilon=1.0
    )
    findings = simulate(config, tmp_path)["findings"]
    assert [finding.agrees for finding in findings] == [False, False, False]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"majority": 0.5}, r"majority must be a number in \(0.5, 1\). Received"),
        ({"examples": 1}, "examples must be a whole number >= 2"),
        ({"sign_rate": 0.0}, "sign_rate must be a finite number > 0"),
        ({"epsilon": float("nan")}, "epsilon must be a finite number > 0"),
        ({"exact_steps": 501}, "exact_steps must be at most steps"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, fields, message):
    with pytest.raises(ExperimentError, match=message):
        simulate(make_config(**fields), tmp_path / "a")
    assert os.listdir(tmp_path) == []
