"""The paper's problem P2, as in DeepOBS: CIFAR-10, three convolutions, three dense.

    python scripts/train.py --config=configs/cifar10_3c3d.py

The data comes from `--config.data_dir`, a folder with CIFAR-10's binary version, or
from Keras' downloader.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "cifar10_3c3d"
    config.epochs = 100
    config.batch_size = 128
    return config
