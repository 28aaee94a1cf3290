"""Compares two estimates of a mean gradient's noise: from its past, from its replicas.

    python scripts/replica_variance.py

Takes seconds. Writes results.md and results.json into the workdir;
docs/distribution.md says what they mean. Exit code: 0 if all is done, else not 0.
"""

import command
from absl import flags

_ELEMENTS = flags.DEFINE_integer("elements", 20_000, "Repetitions.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 100, "Steps averaged.", lower_bound=2)
_BETA = flags.DEFINE_float("beta", 0.9, "Decay.", lower_bound=0.1, upper_bound=0.999)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/replica-variance", "Folder for the results."
)


def main() -> None:
    from svag_tf.experiments.simulations.replica_variance import write_simulation

    text = write_simulation(
        _WORKDIR.value,
        _ELEMENTS.value,
        _STEPS.value,
        _BETA.value,
        _SEED.value,
        command.LINE,
    )
    print(text)


if __name__ == "__main__":
    command.run(main)
