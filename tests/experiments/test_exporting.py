"""Runs, exported by the commands: each export is proved in another process."""

import os
import re

import numpy as np
import pytest
from test_train_script import TINY, run

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training import exporting

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of scripts/train.py that has exported a trainable model."""
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


@pytest.mark.exhaustive
def test_trainable_goes_on_from_the_last_epoch(workdir):
    """With its slots and step count, and the weights that are not yet averaged."""
    loaded = tf.saved_model.load(str(workdir / "export" / "trainable"))
    x, y = np.zeros((2, 8, 8, 1), "float32"), np.zeros(2, "int64")
    loaded.train(x=x, y=y)
    step = loaded.save(path=str(workdir / "saved"))["step"]
    assert int(step) == 320 // 32 + 1


def difference_in(said):
    (difference,) = re.findall(r"differ by at most ([\d.e+-]+)", said)
    return float(difference)


@pytest.mark.slow
def test_script(workdir, tmp_path):
    output = tmp_path / "a" / "exported"
    flags = (f"--workdir={workdir}", f"--output={output}")
    code, said, errors = run(*flags, cwd=tmp_path, script="export.py")
    assert code == 0, errors
    assert difference_in(said) < 1e-5
    assert (output / "saved_model.pb").stat().st_size > 1000


@pytest.mark.exhaustive
def test_tflite(workdir, tmp_path):
    output = tmp_path / "exported"
    assert difference_in(exporting.export_run(workdir, output, "tflite")) < 1e-5
    assert (output / "model.tflite").stat().st_size > 1000
    with pytest.raises(ExperimentError, match="exists"):
        exporting.export_run(workdir, output, "tflite")


@pytest.mark.exhaustive
@pytest.mark.parametrize("select", [False, True], ids=["built-in", "select"])
def test_why_there_is_no_training_with_tflite(workdir, select):
    """When this fails, docs/saving.md and the formats can be extended."""
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(workdir / "export" / "trainable"), signature_keys=["train"]
    )
    converter.experimental_enable_resource_variables = True
    if not select:
        with pytest.raises(Exception, match="ReluGrad"):
            converter.convert()
        return
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS,
        tf.lite.OpsSet.SELECT_TF_OPS,
    ]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    train = interpreter.get_signature_runner("train")
    with pytest.raises(RuntimeError, match="not supported by this interpreter"):
        train(x=np.zeros((2, 8, 8, 1), "float32"), y=np.zeros(2, "int64"))


@pytest.mark.exhaustive
def test_a_wrong_export_is_found_and_not_kept(workdir, tmp_path, monkeypatch):
    lite = exporting._tflite

    def damaged(model):
        content = bytearray(lite(model))
        array = np.asarray(model.layers[-1].kernel).T.tobytes()  # As in the file.
        start = content.index(array)
        content[start : start + len(array)] = bytes(len(array))
        return bytes(content)

    monkeypatch.setattr(exporting, "_tflite", damaged)
    with pytest.raises(ExperimentError, match="too much: nothing is kept"):
        exporting.export_run(workdir, tmp_path / "exported", "tflite")
    assert os.listdir(tmp_path) == []


def test_errors_are_short(tmp_path):
    flags = ("--workdir=nowhere", "--output=x")
    code, _, errors = run(*flags, cwd=tmp_path, script="export.py")
    assert code == 1
    assert "Error: nowhere holds no run" in errors and "Traceback" not in errors
    assert os.listdir(tmp_path) == []
    with pytest.raises(ExperimentError, match=r"one of inference, .* Received: onnx"):
        exporting.export_run(tmp_path, tmp_path / "x", "onnx")
