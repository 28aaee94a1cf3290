"""The same classes, unchanged, on Keras' other backends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import svag_tf

TESTS = Path(__file__).parent
ROOT = Path(svag_tf.__file__).parents[1]
BACKENDS = [
    pytest.param(name, marks=pytest.mark.needs(name)) for name in ("jax", "torch")
]


def python_on(backend, *arguments):
    """Runs Python with this backend; fails with what it printed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-6000:]


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_oracle_and_trains(backend, tmp_path):
    python_on(backend, str(TESTS / "backend_script.py"), str(tmp_path))


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", BACKENDS)
def test_files_of_models(backend, tmp_path):
    python_on(backend, str(TESTS / "backend_script.py"), str(tmp_path), "files")


@pytest.mark.parametrize("backend", BACKENDS)
def test_does_not_need_tensorflow(backend):
    """Nor import it: users with only this backend can use the package."""
    code = """if True:
        import sys

        sys.modules["tensorflow"] = None  # Any import of it now fails.

        import keras
        import svag_tf

        theta = keras.Variable([1.0])
        svag_tf.MSVAG(0.5).apply([keras.ops.array([1.0])], [theta])
        assert abs(float(theta[0]) - 0.5) < 1e-6
    """
    python_on(backend, "-c", code)
