"""Trains a problem with an optimizer, both named in a config.

    python scripts/train.py --config=configs/fmnist_2c2d.py --workdir=runs/p1
    python scripts/train.py --config.optimizer.name=ssd --config.epochs=5

Run again with the same flags after an interruption, it goes on from the last
finished epoch. Exit code: 0 if the run is complete, else not 0.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags, logging
from ml_collections import config_flags

DIGITS = Path(__file__).resolve().parent.parent / "configs" / "digits.py"
try:  # the fields of --config are parsed here, the other flags in app.run
    _CONFIG = config_flags.DEFINE_config_file(
        "config",
        str(DIGITS),
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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what native code writes to stderr: TensorFlow's greetings on import."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    with quiet():
        from svag_tf.experiments.errors import ExperimentError
        from svag_tf.experiments.training import train
    try:
        config = _CONFIG.value
        stem = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        train(config, _WORKDIR.value or f"runs/{stem}-{config.optimizer.name}")
    except (ExperimentError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from the last epoch.")


if __name__ == "__main__":
    app.run(main)
