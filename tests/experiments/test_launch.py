"""Trainings in real processes on this machine: started, killed and resumed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import svag_tf
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training.launch import environments, launch

ROOT = Path(svag_tf.__file__).parents[1]
SCRIPT = Path(__file__).parent / "launch_script.py"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    "backend",
    [
        "tensorflow",
        pytest.param("jax", marks=[pytest.mark.needs("jax"), pytest.mark.exhaustive]),
    ],
)
@pytest.mark.slow
@pytest.mark.needs("tensorflow")
def test_workers_that_are_killed_go_on_bit_for_bit(backend, tmp_path):
    process = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-8000:]


@pytest.mark.needs("tensorflow")
def test_a_worker_does_not_wait_for_ever_for_the_others():
    """TensorFlow would wait, in a call that holds Python's lock."""
    code = (
        "from svag_tf.experiments.training import distributed as d\n"
        "d.MEET_WITHIN = 1.0\n"
        "d.multi_worker_strategy()\n"
    )
    (first, _) = environments(2)
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **first},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert "Not all workers have come within 1 s. Start the same" in process.stderr


def test_all_are_stopped_when_one_fails(tmp_path):
    """Worker 1 has no such data, and the others wait for it."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys, time\n"
        "index = os.environ['KERAS_DISTRIBUTION_PROCESS_ID']\n"
        "print('hello from', index, *sys.argv[1:], flush=True)\n"
        "mine = f'{sys.argv[1]}.{index}'\n"
        "open(f'{mine}.new', 'w').write(str(os.getpid()))\n"
        "os.rename(f'{mine}.new', mine)\n"
        "others = [f'{sys.argv[1]}.{i}' for i in (0, 2)]\n"
        "while not all(map(os.path.exists, others)): time.sleep(0.01)\n"
        "sys.exit('no data') if index == '1' else time.sleep(600)\n"
    )
    with pytest.raises(ExperimentError, match=r"(?s)Worker 1 failed.*no data"):
        launch(script, 3, [str(tmp_path / "pid")], tmp_path / "logs")
    for index in (0, 2):
        pid = int((tmp_path / f"pid.{index}").read_text())
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    kind = "jax" if keras.backend.backend() == "jax" else "multi_worker"
    assert f"--config.distribution={kind}" in log


def test_launch_refuses():
    with pytest.raises(ExperimentError, match="Received: workers=0"):
        launch("unused.py", 0, [], "unused")
