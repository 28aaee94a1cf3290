"""Trainings in real processes on this machine: started, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import svag_tf
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.launch import TRAIN, environments, launch

ROOT = Path(svag_tf.__file__).parents[1]
STOPS_WITHIN = 60  # Seconds, of which it needs one or two.


def flags(workdir, epochs=3, **more):
    fields = {
        "epochs": epochs,
        "train_examples": 64,
        "test_examples": 33,
        "batch_size": 16,
        "optimizer.name": "mssd",
        "optimizer.aggregation": "majority_vote",
        **more,
    }
    given = [f"--config.{k}={v}" for k, v in fields.items() if v is not None]
    return [f"--workdir={workdir}", *given]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def start(arguments, folder):
    """Two workers, as a cluster's scheduler starts them: nothing watches over them."""
    processes = []
    for index, variables in enumerate(environments(2)):
        with (folder / f"{index}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(TRAIN), *arguments],
                    env={**os.environ, **variables},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def finished_epochs(workdir):
    try:
        return len(json.loads((workdir / "state.json").read_text())["rows"]) - 1
    except OSError:
        return -1


def kill_after(epoch, victim, arguments, workdir, folder):
    """Kills one worker once an epoch is finished; what the other one then prints."""
    processes = start(arguments, folder)
    try:
        while finished_epochs(workdir) < epoch:
            assert all(p.poll() is None for p in processes), logs(folder)
            time.sleep(0.02)
        processes[victim].send_signal(signal.SIGKILL)
        other = processes[1 - victim]
        assert other.wait(STOPS_WITHIN) != 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return (folder / f"{1 - victim}.log").read_text()


def logs(folder):
    return "\n".join(log.read_text() for log in folder.glob("*.log"))


def outcome(workdir):
    state = json.loads((workdir / "state.json").read_text())
    model = keras.models.load_model(workdir / "model.keras", compile=False)
    return (
        (workdir / "metrics.csv").read_bytes(),
        state["values_sha256"],
        [w.tobytes() for w in model.get_weights()],
    )


def test_workers_that_are_killed_go_on_bit_for_bit(tmp_path):
    """The chief after epoch 1, the other one after epoch 2: as if nothing had been."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    launch(2, flags(whole), tmp_path / "logs")
    arguments = [*flags(broken), "--config.distribution=multi_worker"]
    for epoch, victim in ((0, 0), (1, 1)):
        printed = kill_after(epoch, victim, arguments, broken, tmp_path)
        assert "Another worker stopped or cannot be reached" in printed, printed
        assert "Start the same command again" in printed
        assert finished_epochs(broken) < 3
    launch(2, arguments, tmp_path / "logs")
    assert outcome(broken) == outcome(whole)


def test_all_are_stopped_when_one_fails(tmp_path, monkeypatch):
    """Worker 1 has no such data, and worker 0 waits for it."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, time\n"
        "index = os.environ['KERAS_DISTRIBUTION_PROCESS_ID']\n"
        "print('hello from', index, *sys.argv[1:], flush=True)\n"
        "open(f'{sys.argv[1]}.{index}', 'w').write(str(os.getpid()))\n"
        "while not os.path.exists(f'{sys.argv[1]}.0'): time.sleep(0.01)\n"
        "sys.exit('no data') if index == '1' else time.sleep(60)\n"
    )
    monkeypatch.setattr("svag_tf.experiments.launch.TRAIN", script)
    with pytest.raises(ExperimentError, match=r"(?s)Worker 1 failed.*no data"):
        launch(3, [str(tmp_path / "pid")], tmp_path / "logs")
    for index in (0, 2):
        pid = int((tmp_path / f"pid.{index}").read_text() or 0)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    assert "--config.distribution=multi_worker" in log


def test_launch_refuses():
    with pytest.raises(ExperimentError, match="Received: workers=0"):
        launch(0, [], "unused")


def test_two_processes_on_jax_are_one_device(tmp_path, monkeypatch):
    """And the numbers those of one process, dropout and an uneven batch included."""
    pytest.importorskip("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    fields = {
        "epochs": 1,
        "batch_size": 15,
        "optimizer.name": "msvag",
        "optimizer.aggregation": None,
    }
    launch(2, flags(tmp_path / "two", **fields), tmp_path / "logs")
    alone = flags(tmp_path / "one", **fields)
    subprocess.run([sys.executable, str(TRAIN), *alone], check=True)
    one, two = (
        keras.models.load_model(tmp_path / name / "model.keras", compile=False)
        for name in ("one", "two")
    )
    for a, b in zip(one.get_weights(), two.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)
