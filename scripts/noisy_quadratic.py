"""The paper's simulation "SGD against sign descent", on noisy quadratics.

    python scripts/noisy_quadratic.py

Writes figures, results.md, results.csv and results.json into the workdir;
docs/paper.md says how to read them. Exit code: 0 if all is done, else not 0.
"""

import shlex
import sys

import command
from absl import flags

_CONFIG = command.define_config("noisy_quadratic.py")
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/noisy-quadratic", "Folder for the results."
)


def main() -> None:
    from svag_tf.experiments.simulations.noisy_quadratic import simulate

    config, _ = _CONFIG()
    simulate(config, _WORKDIR.value, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    command.run(main)
