"""Runs, exported by the commands: each export is proved in another process."""

import os
import re

import numpy as np
import pytest
import tensorflow as tf
from test_train_script import TINY, run

from svag_tf.experiments import exporting
from svag_tf.experiments.errors import ExperimentError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of scripts/train.py that has exported itself as it goes on training."""
    folder = tmp_path_factory.mktemp("run")
    flags = (*TINY, "--config.epochs=1", "--config.optimizer.use_ema=True")
    code, output, errors = run(
        *flags, "--workdir=run", "--export=trainable", cwd=folder
    )
    assert code == 0, errors
    differences = [float(d) for d in re.findall(r"at most ([\d.e+-]+)", output)]
    assert len(differences) == 2 and differences[0] < 1e-5 and differences[1] == 0.0
    assert "Exported to run/export/trainable" in output
    return folder / "run"


def test_trainable_goes_on_from_the_last_epoch(workdir):
    """With its slots and step count, and the weights that are not yet averaged."""
    loaded = tf.saved_model.load(str(workdir / "export" / "trainable"))
    x, y = np.zeros((2, 8, 8, 1), "float32"), np.zeros(2, "int64")
    loaded.train(x=x, y=y)
    step = loaded.save(path=str(workdir / "saved"))["step"]
    assert int(step) == 320 // 32 + 1


@pytest.mark.parametrize("format", ["inference", "tflite"])
def test_scripts_of_inference(workdir, tmp_path, format):
    output = tmp_path / "a" / "exported"
    code, out, errors = run(
        f"--workdir={workdir}", f"--output={output}", f"--format={format}",
        cwd=tmp_path, script="export.py",
    )  # fmt: skip
    assert code == 0, errors
    (difference,) = re.findall(r"differ by at most ([\d.e+-]+)", out)
    assert float(difference) < 1e-5
    name = "model.tflite" if format == "tflite" else "saved_model.pb"
    assert (output / name).stat().st_size > 1000
    with pytest.raises(ExperimentError, match="exists"):
        exporting.export_run(workdir, output, format)


def test_a_wrong_export_is_found_and_not_kept(workdir, tmp_path, monkeypatch):
    lite = exporting._tflite

    def damaged(model):
        content = bytearray(lite(model))
        array = np.asarray(model.layers[-1].kernel).T.tobytes()  # As the file has it.
        start = content.index(array)
        content[start : start + len(array)] = bytes(len(array))
        return bytes(content)

    monkeypatch.setattr(exporting, "_tflite", damaged)
    with pytest.raises(ExperimentError, match="too much: nothing is kept"):
        exporting.export_run(workdir, tmp_path / "exported", "tflite")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--workdir=nowhere", "--output=x"), "nowhere holds no run"),
        (("--workdir=x", "--output=y", "--format=onnx"), "one of inference, trainable"),
        (("--output=x",), "workdir"),
    ],
)
def test_errors_are_short(tmp_path, flags, message):
    code, output, errors = run(*flags, cwd=tmp_path, script="export.py")
    assert code not in (0, None)
    assert message in output + errors and "Traceback" not in output + errors
    assert os.listdir(tmp_path) == []
