"""Compares M-SVAG's estimates of gradient and noise with exact ones during training.

    python scripts/gradient_noise.py

Writes figures, results.md, results.csv and results.json into the workdir;
docs/results/gradient_noise.md says how to read them. Run again with the same flags
after an interruption, it resumes after the last measurement. Exit code: 0 if all is
done, else not 0.
"""

import shlex
import sys

import command
from absl import flags

_CONFIG = command.define_config("gradient_noise.py")
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/gradient-noise", "Folder for the results."
)


def main() -> None:
    from svag_tf.experiments.simulations.gradient_noise import simulate

    config, _ = _CONFIG()
    simulate(config, _WORKDIR.value, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    command.run(main)
