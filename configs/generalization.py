"""Least squares that sign methods fit without learning: 20 seconds on two cores.

    python scripts/generalization.py

Any field can be overridden: `--config.majority=0.8`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns all fields."""
    config = ConfigDict()
    config.seed = 0  # of everything that is drawn
    config.data_sets = 10
    config.examples = 50  # in each training set
    config.test_examples = 10_000
    config.majority = 0.7  # p, the probability of the label 1
    config.steps = 500
    config.exact_steps = 150  # up to here sign methods must keep to sign(X'y)
    config.gradient_rate = 0.5  # learning rate of sgd, msgd, svag, msvag
    config.sign_rate = 0.003  # of ssd, mssd, svas, msvas, adam
    config.epsilon = 1e-30  # Adam's
    return config
