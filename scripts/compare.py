"""Compares optimizers on a problem: each is tuned, then run with several seeds.

    python scripts/compare.py
    python scripts/compare.py --config=configs/fmnist_2c2d.py --budget=full
    python scripts/compare.py --notune --optimizers=msvag,adam:epsilon=1e-8
    python scripts/compare.py --config=configs/fmnist_2c2d.py --published \\
        --config.epochs=2

Tunes the learning rate of each optimizer on DeepOBS' grid with Optuna, runs the best
one with several seeds, and ranks the optimizers. Run again with the same flags after
an interruption, it resumes; several processes with the same --workdir, or machines
with the same --storage, share the work. With --notune nothing is tuned.
"""

import runpy
from typing import Any

import command
from absl import flags
from ml_collections import config_flags

_CONFIG = command.define_config()
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    ["msvag", "mssd", "msgd", "adam"],
    "Names of optimizers, each optionally followed by its own arguments: "
    "adam:epsilon=1e-8,momentum:momentum=0.99. One with a learning_rate is not tuned.",
)
_TUNE = flags.DEFINE_boolean(
    "tune",
    True,
    "Whether to tune. If not, every optimizer has its default learning rate, or all "
    "have --config.optimizer.learning_rate, and the config's own epochs.",
)
_PUBLISHED = flags.DEFINE_boolean(
    "published",
    False,
    "Run DeepOBS' baselines instead, Keras' SGD, SGD with momentum 0.99 and Adam "
    "(epsilon 1e-8) at the published learning rates, and set their curves beside the "
    "published ones in faithfulness.md. Implies --notune.",
)
_BUDGET = flags.DEFINE_enum(
    "budget",
    "quick",
    ["quick", "reduced", "standard", "full"],
    "quick: 12 learning rates, 3 seeds, at most 4 epochs of 2,000 examples; reduced: "
    "the quick budget's rates, then three around the best, 5 seeds, at most 20 epochs "
    "of 10,000 examples (tolstoi_char_rnn: 10 of 5,000); standard: "
    "18, 5, at most 20 epochs; full: the protocol of the paper and DeepOBS, 36 "
    "learning rates, 10 seeds, all epochs. Given fields of --config are kept.",
)
_SEEDS = flags.DEFINE_list(
    "seeds", None, "Seeds: whole numbers. Default: by --budget; 0,1,2 with --notune."
)
flags.register_validator(
    "seeds",
    lambda seeds: all(seed.isdecimal() for seed in seeds or []),
    "must be whole numbers, such as --seeds=0,1,2",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for the results. Default: runs/compare-<config file>-<budget>, "
    "runs/compare-<config file> with --notune, ...-published with --published.",
)
_STORAGE = flags.DEFINE_string(
    "storage",
    None,
    "Where the runs are kept: a file, or the URL of an SQL database that several "
    "machines share. Default: study.db in the workdir.",
)
_TARGET = flags.DEFINE_float(
    "target",
    None,
    "Test accuracy in (0, 1] (or loss, where there is no accuracy) to which steps are "
    "counted. Default: 95 % of the way from the untrained model to the best optimizer.",
)
_RETRY = flags.DEFINE_boolean(
    "retry_failed", False, "Repeat runs that failed in an earlier start."
)
_FRESH = flags.DEFINE_boolean(
    "fresh",
    False,
    "Delete runs of other data or another model than load() and build() of the problem "
    "return now. Default: refuse the workdir.",
)


def main() -> None:
    from svag_tf.experiments.comparison.compare import compare
    from svag_tf.experiments.comparison.faithfulness import published_variants

    config, name = _CONFIG()
    budget = _BUDGET.value if _TUNE.value and not _PUBLISHED.value else None
    kind = "published" if _PUBLISHED.value else budget
    workdir = "-".join(filter(None, ("runs/compare", name, kind)))
    optimizers: Any = _OPTIMIZERS.value
    if _PUBLISHED.value:
        optimizers = list(published_variants(config.get("problem")).values())
    compare(
        config,
        optimizers,
        _WORKDIR.value or workdir,
        budget=budget,
        seeds=None if _SEEDS.value is None else [int(s) for s in _SEEDS.value],
        protocol=_protocol(),
        kept=list(config_flags.get_override_values(flags.FLAGS["config"])),
        storage=_STORAGE.value,
        target=_TARGET.value,
        retry_failed=_RETRY.value,
        fresh=_FRESH.value,
        command=command.LINE,
    )


def _protocol() -> Any:
    """Returns the config in its file; None if the file makes it from an argument."""
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    try:
        return runpy.run_path(path)["get_config"]()
    except TypeError:
        return None


if __name__ == "__main__":
    command.run(main)
