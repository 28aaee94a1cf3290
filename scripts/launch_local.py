"""Trains in several processes on this machine, as if they were several machines.

    python scripts/launch_local.py --workers=2 -- --config.epochs=5 --workdir=runs/two
    KERAS_BACKEND=jax python scripts/launch_local.py --workers=2 -- --config.epochs=5

Flags of scripts/train.py follow `--`. Each worker has a log; the output of the first
one is also shown. If one fails, all are stopped, and the same command resumes after the
last finished epoch. Exit code: 0 if all are done, else not 0.
"""

from pathlib import Path

import command
from absl import flags

_WORKERS = flags.DEFINE_integer("workers", 2, "Number of processes.")
_LOGDIR = flags.DEFINE_string("logdir", "runs/logs", "Folder for the workers' logs.")


def main(arguments: list[str]) -> None:
    from svag_tf.experiments.training.launch import launch

    train = Path(__file__).resolve().with_name("train.py")
    launch(train, _WORKERS.value, arguments, _LOGDIR.value)


if __name__ == "__main__":
    command.run_with_arguments(main)
