"""Exports the model of a run that was trained, and checks that it runs elsewhere.

    python scripts/export.py --workdir=runs/digits-msvag --output=exported

Formats: `inference`, a SavedModel for TensorFlow Serving and others; `trainable`, a
SavedModel that can be trained further with TensorFlow alone; `tflite`, for inference
with TensorFlow Lite. Exit code: 0 if it is exported, else not 0.
"""

import command
from absl import flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.", required=True)
_FORMAT = flags.DEFINE_string(
    "format", "inference", "One of inference, trainable, tflite."
)


def main() -> None:
    from svag_tf.experiments.training.exporting import export_run

    print(export_run(_WORKDIR.value, _OUTPUT.value, _FORMAT.value))
    print(f"Exported to {_OUTPUT.value}")


if __name__ == "__main__":
    command.run(main)
