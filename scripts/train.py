"""Trains a problem with an optimizer, both named in a config.

    python scripts/train.py
    python scripts/train.py --config=configs/fmnist_2c2d.py --workdir=runs/p1
    python scripts/train.py --config.optimizer.name=ssd --config.epochs=5

Run again with the same flags after an interruption, it goes on from the last
finished epoch. Exit code: 0 if the run is complete, else not 0.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # same numbers on more machines

from absl import app, flags
from ml_collections import config_flags

ROOT = Path(__file__).resolve().parent.parent
try:  # the fields of --config are parsed here, the other flags in app.run
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        str(ROOT / "configs" / "digits.py"),
        "The config file. Any field can be overridden: --config.epochs=5.",
        lock_config=True,
    )
except (AttributeError, KeyError, TypeError, ValueError) as error:
    sys.exit(f"Error: bad field in --config: {' '.join(str(error.args[0]).split())}")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for the results. Default: runs/<config file>-<optimizer>.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    from svag_tf.experiments.errors import ExperimentError
    from svag_tf.experiments.training import train

    try:
        config = _CONFIG.value
        name = config.optimizer.name
    except OSError as error:
        sys.exit(f"Error: {error}")
    stem = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    try:
        train(config, _WORKDIR.value or f"runs/{stem}-{name}")
    except ExperimentError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    app.run(main)
