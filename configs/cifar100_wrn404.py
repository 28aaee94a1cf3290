"""The paper's problem P3, as in DeepOBS: CIFAR-100, a wide residual network 40-4.

    python scripts/train.py --config=configs/cifar100_wrn404.py

As in the Wide-ResNet paper (momentum 0.9; the rate times 0.2 after three epochs):

    python scripts/train.py --config=configs/cifar100_wrn404.py \\
        --config.optimizer.name=momentum --config.optimizer.learning_rate=0.1 \\
        --config.schedule.name=step --config.schedule.factor=0.2 \\
        --config.schedule.boundaries='(60, 120, 160)'

The data comes from `--config.data_dir`, a folder with CIFAR-100's binary version, or
from Keras' downloader. Meant for a GPU.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "cifar100_wrn404"
    config.epochs = 200
    config.batch_size = 128
    return config
