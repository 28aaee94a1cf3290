"""The published baselines are complete and belong to our problems."""

import math

import pytest

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.problems import PROBLEMS

PUBLISHED = ("fmnist_2c2d", "cifar10_3c3d", "tolstoi_char_rnn", "quadratic_deep")


@pytest.mark.parametrize("problem", PUBLISHED)
def test_a_published_problem(problem):
    curves = published(problem)
    assert curves.keys() == {"sgd", "momentum", "adam"}
    measures = ["losses", "accuracies"] if PROBLEMS[problem].accuracy else ["losses"]
    for curve in curves.values():
        # DeepOBS' grid: 36 rates from 1e-5 to 1e2, evenly spaced in the logarithm.
        steps = math.log10(curve["learning_rate"] / 1e-5) / 0.2
        assert steps == pytest.approx(round(steps), abs=1e-6) and 0 <= steps <= 35
        assert curve["seeds"] == 10
        lists = {k: v for k, v in curve.items() if isinstance(v, list)}
        assert lists.keys() == {
            f"{part}_{measure}_{statistic}"
            for part in ("train", "test")
            for measure in measures
            for statistic in ("mean", "std")
        }
        assert {len(values) for values in lists.values()} == {curve["epochs"] + 1}
        assert curve["test_losses_mean"][-1] < curve["test_losses_mean"][0]


def test_the_final_accuracies_of_the_publication():
    """The published figures, to the last digit."""
    for problem, name, mean, deviation in (
        ("fmnist_2c2d", "sgd", 0.9227, 0.0017),
        ("cifar10_3c3d", "momentum", 0.8441, 0.0060),
        ("tolstoi_char_rnn", "adam", 0.6123, 0.0029),
    ):
        curve = published(problem)[name]
        assert curve["test_accuracies_mean"][-1] == pytest.approx(mean, abs=1e-4)
        assert curve["test_accuracies_std"][-1] == pytest.approx(deviation, abs=1e-4)


@pytest.mark.parametrize("problem", sorted(PROBLEMS.keys() - set(PUBLISHED)))
def test_nothing_is_published_on_the_others(problem):
    assert published(problem) == {}


@pytest.mark.parametrize("problem", PUBLISHED)
def test_length_and_batch_size_are_those_of_our_configs(problem, load_config):
    config = load_config(problem)
    for curve in published(problem).values():
        assert (curve["epochs"], curve["batch_size"]) == (
            config.epochs,
            config.batch_size,
        )
