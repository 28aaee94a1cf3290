"""A few digits, a fifth of their labels wrong, which a model learns by heart.

    python scripts/compare.py --config=configs/digits_label_noise.py --budget=reduced

360 examples to train on, 1437 to test; the labels of the test set are right.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "digits_label_noise"
    config.epochs = 40
    config.batch_size = 16
    return config
