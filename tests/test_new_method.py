"""A method that is added as CONTRIBUTING.md says is found everywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What changes in the copies of svag.py, and of `__init__`.
IN_SVAG = {
    "class SVAG": "class PowerSVAG",
    "svag_tf.SVAG": "svag_tf.PowerSVAG",
    "    gamma = staticmethod(rules.gamma_gradient)\n": "",
    "0.4488": "0.4738",  # In the example.
    "        {{keras": "        power: Float > 0. Defaults to `2.0`.\n        {{keras",
    "from svag_tf.optimizers.base": "from svag_tf.optimizers.arguments import "
    "check_number\nfrom svag_tf.optimizers.base",
    "    def direction": """    def gamma(self, signal, noise):
        return rules.gamma_gradient(signal, noise) ** self.power

    def direction""",
}
IN_SIGN_ADAPTED = {
    'check_choice("adaptation", adaptation, tuple(_GAMMAS))':
        'power = check_number("power", power, "(0, inf)")',
    "learning_rate=0.001": "learning_rate=0.1",
    'adaptation="gaussian"': "power=2.0",
    "adaptation": "power",
}  # fmt: skip


def changed(text, changes):
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def method():
    """A class that is made as CONTRIBUTING.md says: theta -= rate * gamma^power * g."""
    folder = ROOT / "svag_tf/optimizers"
    copy = changed((folder / "sign_adapted.py").read_text(), IN_SIGN_ADAPTED)
    init = copy[copy.index("    def __init__") : copy.index("    @property\n")]
    svag = changed((folder / "svag.py").read_text(), IN_SVAG)
    before, gamma, after = svag.partition("    def gamma")
    return f"{before}{init}{gamma}{after}"


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
            '    "powersvag": Method("PowerSVAG", "g", scaled, "s",\n'
            "        lambda m, noise: gradient_factor(m, noise) ** 2),\n"
            '    "powersvag5": Method("PowerSVAG", "g", scaled, "s",\n'
            "        lambda m, noise: gradient_factor(m, noise) ** 5,\n"
            '        {"power": 5.0}),\n',
        )
    ],
    "tests/optimizers/test_arguments.py": [
        ('    "variance": (', '    "power": (2.0, 5.0, 0.0, "a number in (0, inf)"),\n')
    ],
    "svag_tf/experiments/optimizers.py": [
        (
            '    "svag": Method(',
            '    "powersvag": Method(svag_tf.PowerSVAG, "Power", "gradient",\n'
            '        "#F0E442"),\n',
        ),
        (
            "    momentum: float | None",
            '    power: float | None = number(0, ends="(]", optional=True)\n',
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

    plain, gamma = trained(svag_tf.SVAG(0.1))
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
    (tmp_path / "svag_tf/optimizers/powersvag.py").write_text(method())
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
        "-m", "pytest", "-q", "-k", "powersvag or test_classes",
        "tests/optimizers/test_arguments.py", "tests/optimizers/test_table.py",
        "svag_tf/optimizers/powersvag.py",
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
