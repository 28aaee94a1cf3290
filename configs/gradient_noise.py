"""M-SVAG's estimates of gradient and noise, and the exact ones: about six minutes.

    python scripts/gradient_noise.py

Any field can be overridden: `--config.training.train_examples=1000`. Exact values cost
a pass over all training examples, with a gradient each, at every step of `steps`.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns all fields."""
    problem = runpy.run_path(str(Path(__file__).with_name("fmnist_2c2d.py")))
    config = ConfigDict()
    config.steps = (10, 30, 100, 200, 390)  # measured after so many updates
    config.elements = 3000  # of each layer, in the scatter plot
    config.memory = 2**28  # bytes, for the gradients of single examples

    # As in scripts/train.py; the optimizer is M-SVAG.
    config.training = problem["get_config"]()
    config.training.epochs = 10
    config.training.train_examples = 5000  # for training and for the exact values
    return config
