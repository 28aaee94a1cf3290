"""DeepOBS' noisy quadratic in 100 dimensions, with the spectrum of a deep network.

    python scripts/train.py --config=configs/quadratic_deep.py

Needs no data, and has a loss but no accuracy.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "quadratic_deep"
    config.epochs = 100
    config.batch_size = 128
    return config
