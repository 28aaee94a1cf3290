"""The factors of variance adaptation, and a test that they are optimal: a few seconds.

    python scripts/variance_adaptation.py

Any field can be overridden: `--config.etas="(0.5, 1.0, 2.0)"`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns all fields."""
    config = ConfigDict()
    config.seed = 0  # of the gradients that are drawn
    config.etas = (0.25, 0.5, 1.0, 2.0, 4.0)  # noise-to-signal ratios
    config.batches = 100  # their spread gives the standard errors
    config.samples = 20_000  # gradients in each batch
    return config
