"""Pairs of optimizers that differ in one aspect: paired differences over seeds."""

import math
from types import SimpleNamespace

import pytest

from svag_tf.experiments.comparison.pairs import (
    PAIRS,
    at_training_loss,
    cells,
    differences,
    paired,
)
from svag_tf.experiments.comparison.results import Outcome
from svag_tf.experiments.optimizers import METHODS


def outcome(seed, losses, accuracies, ended="completed"):
    rows = [
        {"epoch": i, "train_loss": loss, "test_accuracy": accuracy}
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]
    return Outcome(0.1, seed, ended, None, rows, "cpu")


def comparison(**runs):
    return SimpleNamespace(runs=runs, field="test_accuracy")


def test_each_pair_differs_in_one_aspect():
    for one, other in PAIRS["variance adaptation"]:
        assert METHODS[one].direction == METHODS[other].direction
        assert one.startswith("m") == other.startswith("m")
    for one, other in PAIRS["sign"]:
        assert (METHODS[one].direction, METHODS[other].direction) == (
            "sign", "gradient"
        )  # fmt: skip
        assert METHODS[one].colour == METHODS[other].colour  # The same otherwise.


def test_the_interval_is_that_of_students_t():
    # Mean 2, deviation 1, t of 2 degrees of freedom 4.302653: 4.302653 / sqrt(3).
    difference = paired([1.0, 2.0, 3.0])
    assert difference.mean == 2.0 and difference.seeds == 3
    assert difference.half_width == pytest.approx(2.4841377, rel=1e-6)
    # Mean 0.3, deviation 0.2828427, t of 1 degree 12.706205.
    assert paired([0.1, 0.5]).half_width == pytest.approx(2.5412410, rel=1e-6)
    assert paired([0.4]).mean == 0.4 and math.isnan(paired([0.4]).half_width)
    assert paired([]).seeds == 0 and math.isnan(paired([]).mean)
    assert paired([0.5, 0.5]).half_width == 0.0


def test_a_measure_where_the_training_loss_comes_down_to_a_level():
    rows = outcome(0, [2.0, 1.0, 1.5, 0.5], [0.1, 0.5, 0.4, 0.8]).rows
    field = "test_accuracy"
    assert at_training_loss(rows, 1.25, field) == pytest.approx(0.4)  # 3/4 of the way
    assert at_training_loss(rows, 0.75, field) == pytest.approx(0.7)
    assert at_training_loss(rows, 2.0, field) == at_training_loss(rows, 3.0, field)
    assert at_training_loss(rows, 2.0, field) == 0.1
    assert at_training_loss(rows, 0.5, field) == pytest.approx(0.8)
    assert math.isnan(at_training_loss(rows, 0.4, field))


def test_differences_are_paired_by_seed():
    found = differences(
        comparison(
            msvag=[
                outcome(0, [2.0, 1.0], [0.1, 0.9]),
                outcome(1, [2.0, 0.5], [0.1, 0.8]),
                outcome(2, [2.0, math.nan], [0.1, 0.2], "diverged"),
            ],
            msgd=[
                outcome(1, [2.0, 1.25], [0.1, 0.5]),
                outcome(0, [2.0, 0.0], [0.1, 0.7]),
                outcome(2, [2.0, 1.0], [0.1, 0.9]),
            ],
            adam=[outcome(0, [2.0, 1.0], [0.1, 0.9])],
        )
    )
    (pair,) = found
    assert (pair["aspect"], pair["with"], pair["without"]) == (
        "variance adaptation", "msvag", "msgd",
    )  # fmt: skip
    assert pair["at_end"].seeds == 2
    assert pair["at_end"].mean == pytest.approx((0.2 + 0.3) / 2)
    # Seed 0 at a loss of 1: 0.9 against halfway, 0.4. Seed 1 at 1.25: halfway, 0.45,
    # against 0.5.
    assert pair["at_equal_loss"].mean == pytest.approx((0.5 - 0.05) / 2)
    # Deviation 0.0707107, t 12.706205: 0.6353102.
    assert pair["left_out"] == 1
    assert cells(pair, True)[::2] == ["+25.00 [-38.53, +88.53]", "2 (1 left out)"]
    assert cells(pair, False)[0] == "+0.2500 [-0.3853, +0.8853]"
    assert not differences(comparison(adam=[], msvag=[]))
    (empty,) = differences(comparison(mssd=[], msvas=[]))
    assert cells(empty, True) == ["-", "-", "0"]


def test_an_optimizer_with_arguments_is_paired_like_the_one_without():
    runs = {"msgd": [], "mssd": [], "mssd:learning_rate=0.1": []}
    assert [pair["with"] for pair in differences(comparison(**runs))] == [
        "mssd", "mssd:learning_rate=0.1",
    ]  # fmt: skip
