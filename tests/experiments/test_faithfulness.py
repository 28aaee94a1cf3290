"""Keras' optimizers and the published curves: which are run, and the report."""

import math

import keras
import pytest

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.faithfulness import checks, page, published_variants
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS

PROBLEM = "fmnist_2c2d"
FIELDS = {
    "test_accuracy": "test_accuracies",
    "train_accuracy": "train_accuracies",
    "test_loss": "test_losses",
    "train_loss": "train_losses",
}


def rows(name, epochs, deviations, problem=PROBLEM):
    """Rows a number of published deviations away from the published means."""
    curve = published(problem)[name]
    return [
        {
            field: curve[f"{key}_mean"][epoch] + deviations * curve[f"{key}_std"][epoch]
            if f"{key}_mean" in curve
            else math.nan
            for field, key in FIELDS.items()
        }
        for epoch in range(epochs + 1)
    ]


def test_the_optimizers_are_those_of_deepobs():
    variants = published_variants(PROBLEM)
    made = {
        name: OPTIMIZERS[v.name](**dict(v.arguments)) for name, v in variants.items()
    }
    for name, optimizer in made.items():
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        assert rate == pytest.approx(published(PROBLEM)[name]["learning_rate"])
    assert made["sgd"].momentum == 0.0
    assert made["momentum"].momentum == 0.99 and not made["momentum"].nesterov
    adam = made["adam"]
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.9, 0.999, 1e-8)


def test_a_problem_of_which_nothing_is_published():
    with pytest.raises(ExperimentError, match="Received: problem=digits"):
        published_variants("digits")
    assert checks("digits", {"sgd": [[{}]]}) == []


def test_within_three_deviations_and_not():
    labels = {name: v.label for name, v in published_variants(PROBLEM).items()}
    runs = {
        labels["sgd"]: [rows("sgd", 2, 2.0), rows("sgd", 1, 3.8)],  # mean: 2.9
        labels["adam"]: [rows("adam", 1, -3.1)],
        labels["momentum"]: [[]],  # failed at once
        "msvag": [rows("sgd", 1, 0.0)],
    }
    made = checks(PROBLEM, runs)
    # As many epochs as all runs of an optimizer have.
    assert [(c.optimizer, c.epoch, c.field) for c in made] == [
        (name, epoch, field)
        for name in ("sgd", "adam")
        for epoch in (0, 1)
        for field in FIELDS
    ]
    assert all(c.agrees is (c.optimizer == "sgd") for c in made)
    assert {round(c.distance, 6) for c in made} == {2.9, -3.1}

    text = page(PROBLEM, made, "", ["the end"])
    assert "8 of 16 means over 2 seeds" in text and text.endswith("the end")
    assert "Not a test" not in text
    mean = published(PROBLEM)["adam"]["test_accuracies_mean"][1]
    deviation = published(PROBLEM)["adam"]["test_accuracies_std"][1]
    assert (
        f"| Adam | 1 | test accuracy, % | {100 * (mean - 3.1 * deviation):.2f} | "
        f"{100 * mean:.2f} ± {100 * deviation:.2f} | -3.1 | **no** |" in text
    )
    assert "Not a test of faithfulness: a subset." in page(
        PROBLEM, made, "a subset", []
    )


def test_what_is_not_finite_does_not_agree():
    label = published_variants(PROBLEM)["sgd"].label
    made = checks(PROBLEM, {label: [[dict.fromkeys(FIELDS, math.nan)]]})
    assert [c.agrees for c in made] == [False] * 4


def test_without_a_published_spread_nothing_is_said():
    problem = "quadratic_deep"
    label = published_variants(problem)["sgd"].label
    made = checks(problem, {label: [rows("sgd", 1, 0.5, problem)]})
    assert [(c.epoch, c.field, c.agrees) for c in made] == [
        (0, "test_loss", None),
        (0, "train_loss", True),
        (1, "test_loss", True),
        (1, "train_loss", True),
    ]
    text = page(problem, made, "", [])
    assert "3 of 3 means over 1 seed lie" in text and "no spread published" in text
