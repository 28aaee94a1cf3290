"""The command itself: flags, messages, exit codes, kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config.epochs=3", "--config.train_examples=320", "--config.test_examples=50")


def start(*flags, cwd, script="train.py", **environment):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *flags],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*flags, cwd, script="train.py", **environment):
    process = start(*flags, cwd=cwd, script=script, **environment)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def kill_when(path, *flags, cwd, delay=0.0):
    """Starts the command and sends SIGKILL once `path` exists."""
    process = start(*flags, cwd=cwd)
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_twice_and_started_again(tmp_path):
    code, output, errors = run(*TINY, "--workdir=whole", cwd=tmp_path)
    assert code == 0, errors
    assert "curves.png" in output and "test accuracy" in output
    assert "oneDNN" not in errors and "Traceback" not in errors

    cut = tmp_path / "cut"
    kill_when(cut / "config.json", *TINY, "--workdir=cut", cwd=tmp_path, delay=0.1)
    second = cut / "checkpoints" / "epoch_0001.keras"
    kill_when(second, *TINY, "--workdir=cut", cwd=tmp_path)
    code, output, errors = run(*TINY, "--workdir=cut", cwd=tmp_path)
    assert code == 0, errors
    whole = tmp_path / "whole"
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    values = [
        json.loads((folder / "state.json").read_text())["values_sha256"]
        for folder in (cut, whole)
    ]
    assert values[0] == values[1]

    code, _, errors = run(*TINY, "--workdir=cut", "--config.seed=7", cwd=tmp_path)
    assert code == 1
    assert "seed: 0 -> 7" in errors and "Traceback" not in errors


def test_the_other_config_and_the_default_workdir(tmp_path):
    flags = (f"--config={ROOT / 'configs' / 'fmnist_2c2d.py'}",
             "--config.optimizer.name=ssd", "--config.data_dir=nowhere")  # fmt: skip
    code, _, errors = run(*flags, cwd=tmp_path)
    assert code == 1
    assert "nowhere does not exist" in errors and "Traceback" not in errors
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--config.epochs=many", "many"),
        ("--config.epochs=0", "epochs must be a whole number >= 1"),
        ("--config.optimizer.nme=ssd", 'Did you mean "name"'),
        ("--config.optimizer.name=sdg", "one of msvag, svag"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--workdir=/dev/null/x", "/dev/null"),
        ("--epochs=3", "epochs"),
        ("extra", "extra"),
    ],
)
def test_errors_are_short(tmp_path, flag, message):
    code, output, errors = run(flag, cwd=tmp_path)
    assert code not in (0, None)
    assert message in output + errors
    assert "Traceback" not in output + errors
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends(tmp_path, backend):
    pytest.importorskip(backend)
    flags = (*TINY, "--config.epochs=1", "--workdir=run")
    code, output, errors = run(*flags, cwd=tmp_path, KERAS_BACKEND=backend)
    assert code == 0, errors
    assert "final (epoch 1)" in output
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["backend"] == backend


def test_compare(tmp_path):
    flags = ("--optimizers=ssd,sgd", "--seeds=4", *TINY[1:], "--config.epochs=1")
    code, output, errors = run(*flags, cwd=tmp_path, script="compare.py")
    assert code == 0, errors
    assert "2/2  SGD, seed 4" in output and "Traceback" not in errors
    folder = tmp_path / "runs" / "compare-digits"
    assert (folder / "ssd-seed4" / "model.keras").exists()
    assert len((folder / "results.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "flag, message",
    [("--seeds=0,x", "--seeds=0,1,2"), ("--optimizers=sdg", "Received: sdg")],
)
def test_errors_of_compare(tmp_path, flag, message):
    code, output, errors = run(flag, cwd=tmp_path, script="compare.py")
    assert code == 1
    assert message in output + errors and "Traceback" not in output + errors
    assert os.listdir(tmp_path) == []
