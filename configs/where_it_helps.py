"""Where does variance adaptation help? Minutes on two cores.

    python scripts/where_it_helps.py

Any field can be overridden: `--config.seeds=50`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns all fields."""
    config = ConfigDict()
    config.seed = 0  # of everything that is drawn
    config.seeds = 20  # problems to compare on; the rates are tuned on as many others
    config.examples = 400
    config.dimension = 30
    config.steps = 200
    config.rates = 14  # of the grid of learning rates, evenly spaced in the logarithm
    config.lowest_rate = 3e-3
    config.highest_rate = 30.0
    return config
