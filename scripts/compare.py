"""Trains a problem with several optimizers and seeds, and compares them.

    python scripts/compare.py --config=configs/digits.py --seeds=0,1,2

Every optimizer has its default learning rate, unless --config.optimizer.learning_rate
gives all of them the same. Run again with the same flags after an interruption, it
goes on from the last finished epoch.
"""

import command
from absl import flags

_CONFIG = command.define_config()
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    ["msvag", "svag", "mssd", "ssd", "msvas", "svas", "msgd", "adam", "sgd"],
    "Names of optimizers.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds: whole numbers.")
flags.register_validator(
    "seeds",
    lambda seeds: all(seed.isdecimal() for seed in seeds),
    "must be whole numbers, such as --seeds=0,1,2",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for the results. Default: runs/compare-<config file>."
)


def main() -> None:
    from svag_tf.experiments.comparison import compare

    config, name = _CONFIG()
    workdir = _WORKDIR.value or f"runs/compare-{name}"
    compare(config, _OPTIMIZERS.value, [int(s) for s in _SEEDS.value], workdir)


if __name__ == "__main__":
    command.run(main)
