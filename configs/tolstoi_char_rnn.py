"""The paper's problem P4, as in DeepOBS: the next character of War and Peace, LSTMs.

    python scripts/train.py --config=configs/tolstoi_char_rnn.py

The text comes from `--config.data_dir`, a folder with war_and_peace.txt or
war_and_peace.txt.gz, or is downloaded; its SHA-256 is checked. `train_examples` and
`test_examples` count sequences of 50 characters. The problem fixes the batch size: the
text is cut into as many streams.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the fields of digits.py with the values of this problem."""
    digits = runpy.run_path(str(Path(__file__).with_name("digits.py")))
    config = digits["get_config"]()
    config.problem = "tolstoi_char_rnn"
    config.epochs = 200
    config.batch_size = 50
    return config
