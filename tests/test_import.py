"""`import svag_tf` in environments in which it cannot work: its errors and warnings."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from tiers import sampled

import svag_tf

ROOT = Path(svag_tf.__file__).parents[1]
BACKEND = {"KERAS_BACKEND": keras.backend.backend()}  # There may be no other.


def python(*arguments, stubs=None, **variables):
    """Runs Python with the package and `stubs` before the installed packages."""
    path = [str(stubs)] if stubs else []
    path += [str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "PYTHONPATH": os.pathsep.join(path), **variables},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def block(folder):
    """Puts modules into a folder that raise Python's error for missing modules."""
    for name in ("keras", "tensorflow", "jax", "torch"):
        text = f"raise ModuleNotFoundError('No module named {name}', name='{name}')"
        (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize(
    "name, meant",
    [("pytorch", "torch"), ("tf", "tensorflow"), ("JAX", "jax"), ("mxnet", None)],
)
def test_unknown_backend(name, meant):
    ran = python("-c", "import svag_tf", KERAS_BACKEND=name)
    assert ran.returncode
    last = ran.stderr.splitlines()[-1]
    assert last == (
        "ImportError: svag_tf needs one of Keras' backends: KERAS_BACKEND must be one "
        f"of tensorflow, jax, torch. Received: {name}."
        + (f" Did you mean {meant}?" if meant else "")
    )


def test_unknown_backend_in_a_file(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "pytorch"}')
    ran = python("-c", "import svag_tf", KERAS_HOME=str(tmp_path))
    assert ran.returncode
    assert "`backend` in Keras' file keras.json must be one of" in ran.stderr


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("version", ["2.15.0", "3.9.2"])
def test_old_keras(tmp_path, version, known):
    """`known`: to pip; its import then need not even succeed."""
    (tmp_path / "keras").mkdir()
    text = "1 / 0" if known else f"__version__ = {version!r}"
    (tmp_path / "keras" / "__init__.py").write_text(text)
    if known:
        folder = tmp_path / f"keras-{version}.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\nName: keras\nVersion: {version}\n"
        (folder / "METADATA").write_text(text)
    ran = python("-c", "import svag_tf", stubs=tmp_path)
    assert ran.returncode
    last = ran.stderr.splitlines()[-1]
    start = "ImportError: svag_tf needs Keras 3.10 or later. "
    assert last.startswith(f"{start}Found: keras {version}. Run `pip install --upgrade")


@pytest.mark.parametrize(
    "value, told",
    sampled([("1", True)], [("1", True), ("True", True), ("0", False)]),
)
def test_legacy_keras(value, told):
    """A warning: models of `keras`, which is Keras 3, are trained all the same.

    On other backends there is no tf.keras that could be meant.
    """
    ran = python("-c", "import svag_tf", TF_USE_LEGACY_KERAS=value, **BACKEND)
    assert ran.returncode == 0
    text = f"TF_USE_LEGACY_KERAS={value} makes tf.keras Keras 2, and the optimizers of"
    on_tensorflow = keras.backend.backend() == "tensorflow"
    assert (text in ran.stderr) == (told and on_tensorflow)


@pytest.mark.parametrize(
    "use", ["svag_tf.MSVAG", "from svag_tf import MSVAG", "from svag_tf import convert"]
)
def test_without_a_backend(tmp_path, use):
    """A warning when it is imported, and an error as soon as a name is used."""
    block(tmp_path)
    ran = python("-c", "import svag_tf; svag_tf.__version__", stubs=tmp_path)
    assert ran.returncode == 0
    words = "svag_tf needs Keras 3 and one of its backends, and `import keras` failed: "
    assert words in ran.stderr and "pip install tensorflow" in ran.stderr
    ran = python("-W", "ignore", "-c", f"import svag_tf\n{use}", stubs=tmp_path)
    assert ran.returncode
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: {words}No module named keras. Install a ")
    ran = python("-c", "import svag_tf; svag_tf.of_no_such_name", stubs=tmp_path)
    assert "AttributeError: module 'svag_tf' has no attribute" in ran.stderr


def test_names():
    assert {*svag_tf.__all__} <= {*dir(svag_tf)}
    assert all(getattr(svag_tf, name) is not None for name in svag_tf.__all__)


UNTOUCHED = """
import keras
methods = dict(vars(keras.Model)), dict(vars(keras.Optimizer))
import svag_tf
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(svag_tf.MSVAG(), "mse")
model.fit(keras.ops.ones((4, 2)), keras.ops.ones((4, 1)), verbose=0)
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        svag_tf.MSVAG()
assert methods == (vars(keras.Model), vars(keras.Optimizer))
"""


def test_leaves_keras_as_it_is():
    """Keras is changed under strategies of several replicas only."""
    ran = python("-c", UNTOUCHED, **BACKEND)
    assert ran.returncode == 0, ran.stderr
