"""Shared by all tests: restores global state and clears caches of compiled code."""

import contextlib
import gc
import importlib.util
import os
import signal

import keras
import pytest
from tiers import mark_all_but_a_sample

from svag_tf.kernels import programs

# Tests are the same wherever they run; those of the native update make their own build.
os.environ["SVAG_TF_NATIVE"] = "0"

collect_ignore_glob = [
    "*_script.py",  # They run in separate processes.
    "*/conftest.py",  # All modules are searched for doctests, and these share a name.
]
# On other backends `test_backends.py` compares and trains the methods.
ON_TENSORFLOW_ALONE = (
    "svag_tf/convert.py",
    "svag_tf/saving/export.py",
    "svag_tf/saving/backup.py::svag_tf.saving.backup.restore_latest",
    "svag_tf/saving/model_state.py",
    "tests/optimizers/",
    "tests/test_mutations.py",
    "tests/test_statistics.py",
)


@pytest.hookimpl(tryfirst=True)  # Before -m looks at the marks.
def pytest_collection_modifyitems(items):
    """Skips tests with TensorFlow or float64 on other backends."""
    mark_all_but_a_sample(items)
    if keras.backend.backend() != "tensorflow":
        for item in items:
            if item.nodeid.startswith(ON_TENSORFLOW_ALONE):
                item.add_marker(pytest.mark.skip("for the TensorFlow backend"))


def pytest_runtest_setup(item):
    """Skips tests marked with `needs("package", ...)` if one is missing."""
    for mark in item.iter_markers("needs"):
        for package in mark.args:
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")


@pytest.fixture(autouse=True)
def _keras_state_restored():
    """Seeds each test; restores dtype policy and floatx after it."""
    keras.utils.set_random_seed(0)
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx(floatx)


def forget_compiled_rules():
    """Empties the store of kernels, which hold the rules as they were when traced.

    A test that patches a rule must call it, or it may see the rule unpatched.
    """
    programs.COMPILED.clear()
    programs.PROGRAMS.clear()


@pytest.fixture(scope="module", autouse=True)
def _memory_given_back():
    """A compiled kernel takes a MB or so, and a module of tests makes hundreds.

    What is left, such as the graphs of models that TensorFlow keeps, is not searched
    for garbage again: that took much of the time of all tests.
    """
    yield
    forget_compiled_rules()
    gc.collect()
    gc.freeze()


@pytest.fixture
def patch_rules(monkeypatch):
    """`patch_rules(owner, name, value)`: monkeypatch, and no stale compiled rule."""

    def patch(owner, name, value):
        monkeypatch.setattr(owner, name, value)
        forget_compiled_rules()

    yield patch
    monkeypatch.undo()
    forget_compiled_rules()


@pytest.fixture
def disk_of():
    """`with disk_of(n)`: no file of this process can grow beyond n bytes.

    Only within it: pytest's own output may be a file.
    """
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limited(n):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited
