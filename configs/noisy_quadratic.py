"""SGD against sign descent on noisy quadratics: about two minutes on two cores.

    python scripts/noisy_quadratic.py

Any field can be overridden: `--config.seeds=10 --config.methods="('sgd', 'ssd')"`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns all fields."""
    config = ConfigDict()
    config.seed = 0  # of everything that is drawn
    config.seeds = 50  # starts and noises for each curve
    config.dimension = 100
    config.noise_levels = (0.0, 0.1, 4.0)  # nu, the variance of every element

    # "ideal" is SVAG with the exact noise-to-signal ratio.
    config.methods = (
        "sgd", "msgd", "svag", "msvag", "ideal", "ssd", "mssd", "svas", "msvas",
    )  # fmt: skip
    config.steps = 200
    config.rates = 25  # of the grid of learning rates, evenly spaced in the logarithm
    config.lowest_rate = 1e-3
    config.highest_rate = 10.0

    # The long run, with rates relative to 1/L, L the largest eigenvalue.
    config.long_steps = 20_000
    config.long_noise = 0.1
    config.long_rates = (1.0, 0.1, 0.01)
    return config
