"""Packages that may be missing: modules import without them, and using one says how to
install it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import svag_tf
from svag_tf import optional

ROOT = Path(svag_tf.__file__).parents[1]
BACKENDS = [
    pytest.param(name, marks=pytest.mark.needs(name))
    for name in ("tensorflow", "jax", "torch")
]
# Import name, and what installs it.
EXPERIMENTS = 'pip install "svag-tf[experiments]" (in a clone: pip install ".'
PACKAGES = {
    **dict.fromkeys(
        ("filelock", "matplotlib", "optuna", "scipy", "sqlalchemy"), EXPERIMENTS
    ),
    "platformdirs": "pip install platformdirs",
    "plotly": 'pip install "svag-tf[report]"',
    "optax": "pip install optax",
    "pytorch_optimizer": "pip install pytorch_optimizer",
    "tensorflow": "pip install tensorflow",
    "jax": "pip install jax",
    "torch": "pip install torch",
}
# Optional as well, and never named in svag_tf.optional.
OTHERS = ("ml_collections", "pandas", "sklearn", "tensorboard")

WITHOUT = """if True:
    import sys

    class Finder:
        def __init__(self, finder):
            self.finder = finder

        def __getattr__(self, name):
            return getattr(self.finder, name)

        def find_spec(self, name, *rest):
            if name.partition(".")[0] in BLOCKED:
                return None
            return self.finder.find_spec(name, *rest)

    sys.meta_path[:] = map(Finder, sys.meta_path)
"""


def python_without(backend, blocked, code):
    """Runs Python with some packages missing and reads its output as JSON."""
    process = subprocess.run(
        [sys.executable, "-c", f"BLOCKED = {blocked!r}\n{WITHOUT}\n{code}"],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-6000:]
    return json.loads(process.stdout)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_module_can_be_imported_without_them(backend):
    needed = {backend, "scipy"} if backend == "jax" else {backend}
    blocked = [name for name in (*PACKAGES, *OTHERS) if name not in needed]
    code = """if True:
        import importlib, json, pkgutil
        import svag_tf

        modules = [m.name for m in pkgutil.walk_packages(svag_tf.__path__, "svag_tf.")]
        for name in modules:
            importlib.import_module(name)
        print(json.dumps(modules))
    """
    modules = python_without(backend, blocked, code)
    assert len(modules) > 70
    assert {"svag_tf.kernels", "svag_tf.experiments.comparison.storage"} <= set(modules)


USES = {
    "training.train({}, 'x')": "filelock",
    "comparison.compare({}, ['ssd'], 'x')": "filelock",
    "variance_adaptation.simulate({}, 'x')": "matplotlib",
    "noisy_quadratic.simulate({}, 'x')": "matplotlib",
    "generalization.simulate({}, 'x')": "matplotlib",
    "gradient_noise.simulate({}, 'x')": "filelock",
    "measure.benchmark(None)": "matplotlib",
    "replicas.benchmark_replicas('x')": "matplotlib",
    "storage.Storage('study.db', pathlib.Path('.'))": "filelock",
    "jax_rows.optax_msvag(0.1)": "optax",
    "jax_rows.jax_meter()()": "jax",
    "torch_rows.TorchRows(None, 1)": "torch",
    "report.page([])": "plotly",
}


@pytest.mark.needs("tensorflow")
def test_what_uses_one_says_how_to_get_it(tmp_path):
    """All at once: starting a process takes longer than all the rest."""
    blocked = [name for name in (*PACKAGES, *OTHERS) if name != "tensorflow"]
    code = f"""if True:
        import json, os, pathlib
        from svag_tf.noise import report
        from svag_tf.experiments.comparison import compare as comparison
        from svag_tf.experiments.comparison import storage
        from svag_tf.experiments.training import train as training
        from svag_tf.experiments.benchmark import (
            jax_rows, measure, replicas, torch_rows
        )
        from svag_tf.experiments.simulations import (
            generalization, gradient_noise, noisy_quadratic, variance_adaptation
        )

        os.chdir({str(tmp_path)!r})
        told = {{}}
        for use in {list(USES)}:
            try:
                eval(use)
            except ImportError as error:
                told[use] = [error.name, str(error)]
        print(json.dumps(told))
    """
    told = python_without("tensorflow", blocked, code)
    for use, package in USES.items():
        name, message = told[use]
        assert name == package, use
        expected = f"{package} is not installed. Remedy: {PACKAGES[package]}"
        assert message.startswith(expected), use
    assert os.listdir(tmp_path) == []


def test_all_packages_are_known():
    proxies = {
        name for name, value in vars(optional).items()
        if isinstance(value, optional._Optional)
    }  # fmt: skip
    assert proxies == set(PACKAGES)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `made_up` with a submodule, and one module that is broken."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    (folder / "__init__.py").write_text("number = 3")
    (folder / "part.py").write_text("number = 4")
    (folder / "broken.py").write_text("import made_up_and_missing")
    (tmp_path / "made_up_broken.py").write_text("import made_up_and_missing")
    monkeypatch.syspath_prepend(tmp_path)
    yield optional._Optional("made_up", "pip install made_up")
    for name in [name for name in sys.modules if name.startswith("made_up")]:
        del sys.modules[name]


def test_a_package_is_imported_when_an_attribute_is_read(package):
    assert not hasattr(package, "__wrapped__")
    assert "made_up" not in sys.modules
    assert package.number == 3
    assert package.part.number == 4
    assert "made_up" in sys.modules
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing


def test_what_is_broken_is_not_called_missing(package):
    with pytest.raises(ModuleNotFoundError, match="made_up_and_missing"):
        _ = package.broken
    with pytest.raises(ModuleNotFoundError, match="made_up_and_missing"):
        _ = optional._Optional("made_up_broken").any


def test_require(package):
    optional.require(package)
    missing = optional._Optional("made_up_not_there", "pip install it")
    with pytest.raises(ImportError, match="made_up_not_there is not installed"):
        optional.require(package, missing)
