"""The command itself: flags, messages, exit codes, kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest
from tiers import sampled

from svag_tf.experiments.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--config.epochs=3", "--config.train_examples=320", "--config.test_examples=50")


def start(*flags, cwd, script="train.py", **environment):
    given = environment.pop("PYTHONPATH", None), str(ROOT), os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, given))
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
    output, errors = process.communicate(timeout=900)
    return process.returncode, output, errors


def kill_when(path, *flags, cwd, delay=0.0, script="train.py"):
    """Starts the command and sends SIGKILL once `path` exists."""
    process = start(*flags, cwd=cwd, script=script)
    deadline = time.monotonic() + 600
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.slow
def test_killed_twice_and_started_again(tmp_path):
    code, output, errors = run(*TINY, "--workdir=whole", cwd=tmp_path)
    assert code == 0, errors
    assert "curves.png" in output and "test accuracy" in output
    assert "oneDNN" not in errors and "Traceback" not in errors

    cut = tmp_path / "cut"
    kill_when(cut / "config.json", *TINY, "--workdir=cut", cwd=tmp_path, delay=0.1)
    second = cut / "checkpoints" / "epoch_1"
    kill_when(second, *TINY, "--workdir=cut", cwd=tmp_path)
    code, output, errors = run(*TINY, "--workdir=cut", cwd=tmp_path)
    assert code == 0, errors
    whole = tmp_path / "whole"
    assert (cut / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    values = [RunFolder(folder).ended().values_sha256 for folder in (cut, whole)]
    assert values[0] == values[1]

    code, _, errors = run(*TINY, "--workdir=cut", "--config.seed=7", cwd=tmp_path)
    assert code == 1
    assert "seed: 0 -> 7" in errors and "Traceback" not in errors


@pytest.mark.slow
def test_the_other_config_and_the_default_workdir(tmp_path):
    flags = (f"--config={ROOT / 'configs' / 'fmnist_2c2d.py'}",
             "--config.optimizer.name=ssd", "--config.data_dir=nowhere")  # fmt: skip
    code, _, errors = run(*flags, cwd=tmp_path)
    assert code == 1
    assert "nowhere does not exist" in errors and "Traceback" not in errors
    assert os.listdir(tmp_path) == []


# A process for each: one of the flags of absl, one of our own words.
@pytest.mark.parametrize(
    "flags, message",
    sampled(
        lambda case: case[0] in ("--config.epochs=many", "--config.epochs=0"),
        [
            ("--config.epochs=many", "many"),
            ("--config.epochs=0", "epochs must be a whole number >= 1"),
            ("--config.optimizer.nme=ssd", 'Did you mean "name"'),
            ("--config=digits --config.epoch=3", 'Did you mean "epochs"'),
            ("--config.optimizer.name=sdg", "one of msvag, svag"),
            (
                "--config=nowhere.py --config.epochs=3",
                "digits_label_noise, fmnist_2c2d, generalization, gradient_noise, "
                "noisy_quadratic, quadratic_deep, tolstoi_char_rnn, "
                "variance_adaptation, where_it_helps. Received: nowhere.py",
            ),
            ("--config=digits:3", "digits.py failed: TypeError: get_config() takes"),
            ("--workdir=/dev/null/x", "/dev/null"),
            (
                f"--config={ROOT}/configs/generalization.py",
                "missing: batch_size, data_dir",
            ),
            ("extra", "such as --config=digits. Received: extra"),
        ],
    ),
)
def test_errors_are_short(tmp_path, flags, message):
    code, output, errors = run(*flags.split(), cwd=tmp_path)
    assert code not in (0, None)
    assert message in output + errors
    assert "Traceback" not in output + errors
    assert len((output + errors).splitlines()) <= 2  # absl adds one on --help.
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "package",
    sampled(["filelock"], ["ml_collections", "svag_tf", "filelock", "matplotlib"]),
)
def test_a_missing_package_is_told(tmp_path, package):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    message = f"No module named '{package}'"
    raises = f'raise ModuleNotFoundError("{message}", name="{package}")'
    (blocked / f"{package}.py").write_text(raises)
    code, _, errors = run(cwd=blocked, PYTHONPATH=str(blocked))
    assert code == 1
    told = f'Error: {message}. The commands need: pip install "svag-tf[experiments]"'
    if package in ("filelock", "matplotlib"):  # that svag_tf imports when used
        told = f"Error: {package} is not installed. Remedy: pip install"
    assert told in errors
    assert "Traceback" not in errors
    assert not (blocked / "runs").exists()


@pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("jax", "torch")],
)
def test_other_backends(tmp_path, backend):
    flags = (*TINY, "--config.epochs=1", "--workdir=run")
    code, output, errors = run(*flags, cwd=tmp_path, KERAS_BACKEND=backend)
    assert code == 0, errors
    assert "final (epoch 1)" in output
    assert RunFolder(tmp_path / "run").ended().backend == backend


@pytest.mark.slow
def test_compare(tmp_path):
    flags = ("--notune", "--optimizers=ssd,sgd:learning_rate=0.1", "--seeds=4",
             *TINY[1:], "--config.epochs=1")  # fmt: skip
    code, output, errors = run(*flags, cwd=tmp_path, script="compare.py")
    assert code == 0, errors
    assert "2/2  SGD, seed 4" in output and "Traceback" not in errors
    folder = tmp_path / "runs" / "compare-digits"
    assert (folder / "ssd-seed4" / "model.keras").exists()
    assert len((folder / "results.csv").read_text().splitlines()) == 3


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")
@pytest.mark.slow
def test_tuning_killed_and_then_shared_by_two_processes(tmp_path):
    flags = ("--optimizers=ssd", "--seeds=0,1", "--config.epochs=1",
             "--config.train_examples=32", "--config.test_examples=20")  # fmt: skip
    folder = tmp_path / "runs" / "compare-digits-quick"
    running = folder / "tuning" / "ssd" / "rate0.000158" / "config.json"
    kill_when(running, *flags, cwd=tmp_path, script="compare.py")
    assert not (folder / "results.json").exists()

    both = [start(*flags, cwd=tmp_path, script="compare.py") for _ in range(2)]
    ends = [process.communicate(timeout=900) for process in both]
    for process, (output, errors) in zip(both, ends, strict=True):
        assert process.returncode == 0, errors
        assert "Results in" in output and "Traceback" not in errors
    results = json.loads((folder / "results.json").read_text())
    rates = [run["learning_rate"] for run in results["tuning"]]
    assert len(rates) == len(set(rates)) == 12
    assert {run["seed"] for run in results["results"]} == {0, 1}
    assert results["budget"]["name"] == "custom"
    # Nothing was done twice but the run that was killed.
    lines = "".join(output for output, _ in ends).splitlines()
    for seed in (0, 1):
        assert sum("/14  SSD" in x and f"SSD, seed {seed} " in x for x in lines) == 1
    assert sum("/14  SSD, rate" in x for x in lines) == 10


@pytest.mark.parametrize(
    "flag, message",
    sampled(
        [("--optimizers=sdg", "Received: sdg")],
        [
            ("--seeds=0,x", "--seeds=0,1,2"),
            ("--optimizers=sdg", "Received: sdg"),
            ("--budget=huge", "quick|reduced|standard|full"),
            ("--storage=nosuch://x", "--storage must be a file or"),
            ("--target=2", "target must be an accuracy in (0, 1]"),
        ],
    ),
)
def test_errors_of_compare(tmp_path, flag, message):
    code, output, errors = run(flag, cwd=tmp_path, script="compare.py")
    assert code == 1
    assert message in output + errors and "Traceback" not in output + errors
    assert not list(tmp_path.glob("runs/*"))
