"""Draws the paper's factors of variance adaptation, and tests that they are optimal.

    python scripts/variance_adaptation.py

Writes figures, results.md, results.csv and results.json into the workdir;
docs/paper.md says how to read them. Exit code: 0 if all is done, else not 0.
"""

import shlex
import sys

import command
from absl import flags

_CONFIG = command.define_config("variance_adaptation.py")
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/variance-adaptation", "Folder for the results."
)


def main() -> None:
    from svag_tf.experiments.simulations.variance_adaptation import simulate

    config, _ = _CONFIG()
    simulate(config, _WORKDIR.value, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    command.run(main)
