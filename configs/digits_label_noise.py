"""The digits with a fifth of the training labels wrong, which a model can overfit.

    python scripts/compare.py --config=configs/digits_label_noise.py

The labels of the test set are right.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "digits_label_noise"
    config.epochs = 100
    return config
