"""The commands of the simulations: flags, messages, exit codes."""

import json

import keras
import pytest
from test_train_script import run
from tiers import sampled

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.simulations.report import progress

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="once is enough"
)
TINY = {
    "noisy_quadratic": (
        "--config.methods=('ssd',)",
        "--config.steps=3",
        "--config.rates=2",
        "--config.noise_levels=(0.5,)",
    ),
    "generalization": (
        "--config.data_sets=1",
        "--config.steps=3",
        "--config.exact_steps=2",
    ),
    "variance_adaptation": ("--config.batches=10", "--config.samples=20"),
    "where_it_helps": (
        "--config.seeds=10",
        "--config.examples=40",
        "--config.steps=20",
        "--config.rates=2",
    ),
    "gradient_noise": (
        "--config.steps=(2,)",
        "--config.training.problem=quadratic_deep",
        "--config.training.train_examples=128",
    ),
}


@pytest.mark.parametrize("name", sampled(["variance_adaptation"], TINY))
def test_the_command(name, tmp_path):
    script = f"{name}.py"
    code, output, errors = run(*TINY[name], script=script, cwd=tmp_path)
    assert code == 0, errors
    folder = tmp_path / "runs" / name.replace("_", "-")
    assert "ETA" in output and f"Results in runs/{folder.name}" in output
    assert "Traceback" not in errors and "oneDNN" not in errors
    command = json.loads((folder / "results.json").read_text())["command"]
    assert command.startswith("python ") and TINY[name][-1] in command.replace("'", "")


@pytest.mark.slow
def test_bad_flags(tmp_path):
    script = "variance_adaptation.py"
    flags = ("--config.seed=-1", "--workdir=new")
    code, _, errors = run(*flags, script=script, cwd=tmp_path)
    assert code != 0 and not (tmp_path / "new").exists()
    assert errors.splitlines()[-1] == (
        "Error: seed must be a whole number >= 0. Received: seed=-1"
    )


def test_an_interruption_is_told_in_a_sentence():
    with pytest.raises(ExperimentError, match="Interrupted"), progress(2) as start:
        start("one")
        raise KeyboardInterrupt
