"""Trains a problem with an optimizer, both named in a config.

    python scripts/train.py --config=configs/fmnist_2c2d.py --workdir=runs/fmnist
    python scripts/train.py --config.optimizer.name=ssd --config.epochs=5

Run again with the same flags after an interruption, it resumes after the last
finished epoch. Exit code: 0 if the run is complete, else not 0.
"""

import command
from absl import flags

_CONFIG = command.define_config()
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for the results. Default: runs/<config file>-<optimizer>.",
)
_FRESH = flags.DEFINE_boolean(
    "fresh",
    False,
    "Delete a run of other data or another model than load() and build() of the "
    "problem return now. Default: refuse the workdir.",
)
_EXPORT = flags.DEFINE_list(
    "export",
    [],
    "Formats to export at the end, to export/<format> in the workdir: inference, "
    "trainable, tflite, separated by commas. The command export explains them.",
)


def main() -> None:
    from svag_tf.experiments.training.config import checked
    from svag_tf.experiments.training.train import train

    given, name = _CONFIG()
    config = checked(given)
    workdir = _WORKDIR.value or f"runs/{name}-{config.optimizer.name}"
    if _EXPORT.value:
        from svag_tf.experiments.training.exporting import check_format, export_once

        for form in _EXPORT.value:
            check_format(form)
    train(config, workdir, fresh=_FRESH.value)
    for form in _EXPORT.value:
        print(export_once(workdir, form))


if __name__ == "__main__":
    command.run(main)
