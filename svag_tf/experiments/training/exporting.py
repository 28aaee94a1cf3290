"""Exports the model of a finished run, and proves that it runs elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training.run_folder import RunFolder
from svag_tf.files import whole_folder
from svag_tf.optional import tensorflow as tf
from svag_tf.saving.export import export_trainable, restore_trained
from svag_tf.saving.model_state import random_states, state_of

FORMATS = ("inference", "trainable", "tflite")
EXAMPLES = 8  # In a batch of the proof.
STEPS = 3
TOLERANCE = 1e-4  # Relative to the largest number.
RUNNER = Path(__file__).with_name("exported_runner.py")


def export_run(
    workdir: str | os.PathLike[str], output: str | os.PathLike[str], format: str
) -> str:
    """Exports the model of a finished run after checking it in another process.

    Args:
        workdir: folder of the run, as `training.train` left it.
        output: folder to make: a SavedModel, or `model.tflite` in it. It appears only
            after the check.
        format: "inference", the model as it was saved at the end, for TensorFlow
            Serving and others; "trainable", a SavedModel that continues from the last
            epoch (`svag_tf.export_trainable`); or "tflite", the first of the two for
            TensorFlow Lite.

    Returns:
        One line with what was compared, and the difference.

    Raises:
        ExperimentError: if the run cannot be exported, or the export behaves
            differently in the other process. Nothing is left of it.
    """
    check_format(format)
    model = _load(RunFolder(workdir), trainable=format == "trainable")
    try:
        with whole_folder(output) as folder:
            if format == "trainable":
                export_trainable(model, folder)
                return _prove(model, folder, trains=True)
            if format == "inference":
                model.export(str(folder), verbose=False)
            else:
                folder.mkdir()
                (folder / "model.tflite").write_bytes(_tflite(model))
            return _prove(model, folder, trains=False)
    except (OSError, ValueError) as error:
        raise ExperimentError(str(error)) from error


def export_once(workdir: str | os.PathLike[str], format: str) -> str:
    """Exports to `export/<format>` in the workdir once; returns what was done."""
    output = Path(workdir) / "export" / format
    if output.exists():
        return f"{output} is there already."
    return f"{export_run(workdir, output, format)}\nExported to {output}"


def check_format(format: str) -> None:
    """Raises an `ExperimentError` if nothing can be exported in this format here."""
    if format not in FORMATS:
        raise ExperimentError(
            f"A format must be one of {', '.join(FORMATS)}; tflite is for inference, "
            "because TensorFlow Lite lacks the operations of a training step. "
            f"Received: {format}"
        )
    if keras.backend.backend() != "tensorflow":
        raise ExperimentError(
            "An export needs Keras' TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )


def _load(folder: RunFolder, trainable: bool) -> keras.Model:
    """Loads the model as saved at the end, or the one from which training continues."""
    state = folder.ended()
    path = folder.checkpoint(state) if trainable else folder.model
    if not path.is_file():
        raise ExperimentError(f"The run in {folder.path} has no {path.name} yet.")
    try:
        model = keras.models.load_model(path, compile=trainable)
    except Exception as error:  # Keras, h5py and zipfile raise many kinds.
        raise ExperimentError(f"{path} cannot be loaded: {error}") from error
    if trainable:
        for variable, numbers in zip(random_states(model), state.random, strict=True):
            variable.assign(np.asarray(numbers, variable.dtype))
    return model


def _tflite(model: keras.Model) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    try:
        return converter.convert()
    except Exception as error:  # The converter raises many kinds.
        raise ExperimentError(
            "TensorFlow Lite cannot run this model: it has operations besides the "
            f"built-in ones. {error}"
        ) from error


def _inputs(model: keras.Model, rng: np.random.Generator) -> np.ndarray:
    (like,) = model.inputs
    shape = [EXAMPLES, *like.shape[1:]]
    if like.shape[0] is not None:
        shape[0] = like.shape[0]
    if "int" in like.dtype:
        return rng.integers(2, size=shape).astype(like.dtype)
    return rng.normal(size=shape).astype(like.dtype)


def _prove(model: keras.Model, folder: Path, trains: bool) -> str:
    """Compares the export in `folder`, run by another process, with the model here."""
    x = _inputs(model, np.random.default_rng(0))
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    with tempfile.TemporaryDirectory() as scratch:
        inputs, results, checkpoint = (
            os.path.join(scratch, name) for name in ("in.npz", "out.npz", "trained")
        )
        np.savez(inputs, x=x)
        command = [sys.executable, str(RUNNER), str(folder), inputs, results]
        command += [str(STEPS), checkpoint] if trains else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ExperimentError(
                "The exported model does not run in another process. Nothing is kept. "
                f"It said: {done.stderr.strip()}"
            )
        with np.load(results) as found:
            output, y = found["output"], found["y"] if trains else None
        difference, size = _difference([output], [expected])
        said = (
            f"Another process, with TensorFlow alone: {len(x)} outputs differ by at "
            f"most {difference:.3g} (the largest is {size:.3g})"
        )
        if not difference <= TOLERANCE * max(size, 1.0):
            raise ExperimentError(f"{said}. That is too much: nothing is kept.")
        if not trains:
            return f"{said}."
        for _ in range(STEPS):
            model.train_on_batch(x, y)
        here = values_of(model)
        restore_trained(model, checkpoint)
        difference, size = _difference(values_of(model), here)
    said += (
        f"; after {STEPS} steps of training, all weights, slots and counters differ by "
        f"at most {difference:.3g}"
    )
    if not difference <= TOLERANCE * max(size, 1.0):
        raise ExperimentError(f"{said}. That is too much: nothing is kept.")
    return f"{said}."


def values_of(model: keras.Model) -> list[np.ndarray]:
    """Returns the values of all state from which training continues."""
    return [np.array(keras.ops.convert_to_numpy(v)) for v in state_of(model).values()]


def _difference(found: Any, expected: Any) -> tuple[float, float]:
    """Returns the largest difference of two lists of arrays, and the largest number."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(found, expected, strict=True)
    ]
    return (
        max(float(np.abs(a - b).max()) for a, b in pairs),
        max(float(np.abs(b).max()) for _, b in pairs),
    )
