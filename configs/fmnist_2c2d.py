"""The paper's problem P1, as in DeepOBS: Fashion-MNIST, two convolutions, two dense.

    python scripts/train.py --config=configs/fmnist_2c2d.py

The data comes from `--config.data_dir`, the folder of Debian's package
dataset-fashion-mnist or Keras' downloader, in that order.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "fmnist_2c2d"
    config.epochs = 100
    config.batch_size = 128
    return config
