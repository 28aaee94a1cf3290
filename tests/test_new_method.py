"""A method that is added as CONTRIBUTING.md says is found everywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

METHOD = '''"""M-SVAG with a power of its factor."""

import functools

import keras

from svag_tf import rules
from svag_tf.optimizers.base import MomentOptimizer


def _gamma(signal, noise, power):
    return rules.gamma_gradient(signal, noise) ** power


@keras.saving.register_keras_serializable(package="svag_tf")
class PowerSVAG(MomentOptimizer):
    """theta <- theta - learning_rate * gamma^power * m."""

    slots = ("m_tilde", "v_tilde")
    counts_updates = True
    damping = "gradient"

    def __init__(self, learning_rate=0.1, beta=0.9, power=2.0, **kwargs):
        super().__init__(learning_rate, beta, **kwargs)
        self.power = power

    @property
    def gamma(self):
        return functools.partial(_gamma, power=self.power)

    def direction(self, g, m, v, factor):
        return self.gamma(*rules.signal_and_noise(m, v, factor)) * m

    def noise_factor(self, t):
        return rules.mean_variance_factor(t, self.beta)

    def get_config(self):
        return {**super().get_config(), "power": self.power}
'''

NEW_IMPORT = "    from svag_tf.optimizers.powersvag import PowerSVAG\n"
# file -> what is written before which line.
EDITS = {
    "svag_tf/optimizers/__init__.py": [
        ("\n__all__ = [", "from svag_tf.optimizers.powersvag import PowerSVAG\n"),
        ('"SSD", ', '"PowerSVAG", '),
    ],
    "svag_tf/__init__.py": [
        ('    "SSD",\n', '    "PowerSVAG",\n'),
        ("    from svag_tf.saving.backup", NEW_IMPORT),
    ],
    "tests/oracle.py": [
        (
            "}\n\n\ndef rho(",
            '    "powersvag": Method("PowerSVAG", "m", False, "rho s",\n'
            "        lambda m, noise: gradient_factor(m, noise) ** 2),\n"
            '    "powersvag5": Method("PowerSVAG", "m", False, "rho s",\n'
            "        lambda m, noise: gradient_factor(m, noise) ** 5,\n"
            '        {"power": 5.0}),\n',
        )
    ],
    "tests/optimizers/test_arguments.py": [
        ('    "variance": (', '    "power": (2.0, 5.0),\n')
    ],
    "svag_tf/experiments/optimizers.py": [
        (
            '    "svag": Method(',
            '    "powersvag": Method(svag_tf.PowerSVAG, "Power", "gradient",\n'
            '        "#F0E442"),\n',
        ),
        (
            "    momentum: float | None",
            "    power: float | None = number(0, optional=True)\n",
        ),
    ],
    "configs/digits.py": [
        (
            "    config.optimizer.momentum",
            "    config.optimizer.power = placeholder(float)  # powersvag\n",
        )
    ],
}

EVERYWHERE = """if True:
    import keras
    import numpy as np
    import svag_tf
    from svag_tf.experiments.benchmark.measure import BACKENDS
    from svag_tf.experiments.benchmark.rows import all_rows
    from svag_tf.experiments.optimizers import METHODS, TITLES
    from svag_tf.experiments.training.config import MEASURABLE

    assert "powersvag" in TITLES and "powersvag" in METHODS
    assert "powersvag" in MEASURABLE
    assert all("powersvag" in all_rows(backend) for backend in BACKENDS)

    def trained(optimizer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(optimizer, "mse")
        noise = svag_tf.callbacks.GradientNoise(1)
        x = np.random.default_rng(0).normal(size=(32, 3))
        history = model.fit(x, x[:, :2], 4, verbose=0, callbacks=[noise])
        return model.get_weights()[0], history.history["noise/gamma"][-1]

    plain, gamma = trained(svag_tf.MSVAG(0.1))
    one, gamma_one = trained(svag_tf.PowerSVAG(0.1, power=1.0))
    two, gamma_two = trained(svag_tf.PowerSVAG(0.1, power=2.0))
    np.testing.assert_allclose(one, plain, rtol=1e-6)
    assert abs(gamma_one - gamma) < 1e-6 and gamma_two < gamma - 1e-3
    assert np.abs(two - one).max() > 1e-4
    try:
        svag_tf.MSVAG(power=2.0)
    except TypeError as error:
        assert "PowerSVAG has one" in str(error), error
"""


@pytest.mark.slow
def test_it_is_found_everywhere(tmp_path):
    for folder in ("svag_tf", "tests", "scripts", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "svag_tf/optimizers/powersvag.py").write_text(METHOD)
    for name, edits in EDITS.items():
        text = (tmp_path / name).read_text()
        for anchor, added in edits:
            assert anchor in text, (name, anchor)
            text = text.replace(anchor, added + anchor, 1)
        (tmp_path / name).write_text(text)

    def python(*arguments):
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    python("-c", EVERYWHERE)
    said = python(
        "-m", "pytest", "-q", "-k",
        "(powersvag or test_classes) and not documented and not signature",
        "tests/optimizers/test_arguments.py", "tests/optimizers/test_table.py",
    )  # fmt: skip
    assert " passed" in said and "failed" not in said
    python(
        "scripts/train.py", "--workdir=run", "--config.optimizer.name=powersvag",
        "--config.optimizer.power=5.0", "--config.epochs=1",
        "--config.train_examples=64", "--config.test_examples=64",
    )  # fmt: skip
    assert json.loads((tmp_path / "run/config.json").read_text())["optimizer"][
        "power"
    ] == pytest.approx(5)
