"""TensorFlow on a CPU: the update of all variables as one native operation.

Only `python -m svag_tf.native` compiles `update.cc`, against the installed TensorFlow.
A build is used (see `svag_tf.kernels`) if it was made for this machine and for these
versions of everything that it depends on, and only for rules whose results equal those
of the XLA kernel, bit for bit. See docs/kernels.md.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras

from svag_tf import internals
from svag_tf.optional import platformdirs
from svag_tf.optional import tensorflow as tf

__all__ = ["status"]

SOURCE = Path(__file__).with_name("update.cc")
COMMAND = "python -m svag_tf.native"
VARIABLE = "SVAG_TF_NATIVE"
OPERATION = "Svag>Update"
RECORD = "build.json"
_HERE = threading.local()
_LOCK = threading.RLock()


class Build(NamedTuple):
    """The build for this process, or why there is none.

    Attributes:
        update: Function that makes the operation; `None` without a build.
        rules: Names of the rules that it may be used for, see `rule_name`.
        status: One line for the user.
    """

    update: Any
    rules: frozenset[str]
    status: str


class _Process:
    build: Build | None = None


_PROCESS = _Process()


def status() -> str:
    """Returns one line: whether a native build is in use here, or why not.

    Example:

    >>> import svag_tf
    >>> print(svag_tf.native.status().partition(":")[0] in ("in use", "not in use"))
    True
    """
    return load().status


def rule_name(method: str, slot_dtype: str) -> str:
    """Returns the name of a method with slots of a dtype, in records."""
    return f"{method} with {slot_dtype} slots"


@contextlib.contextmanager
def turned_off() -> Iterator[None]:
    """Turns the build off in this thread, for graphs that leave this process."""
    outer = is_turned_off()
    _HERE.off = True
    try:
        yield
    finally:
        _HERE.off = outer


def is_turned_off() -> bool:
    """Returns whether this runs within `turned_off`."""
    return getattr(_HERE, "off", False)


def load() -> Build:
    """Returns the build for this process, loaded when it is first needed."""
    with _LOCK:
        if _PROCESS.build is None:
            try:
                _PROCESS.build = _load()
            except Exception as error:  # A bad file must not stop training.
                _PROCESS.build = _without(f"{type(error).__name__}: {error}")
        return _PROCESS.build


def use(build: Build | None) -> None:
    """Makes `load` return this build; with `None` it looks for one again."""
    with _LOCK:
        _PROCESS.build = build


def operation_of(library: Path) -> Any:
    """Loads a library; returns the function that makes its operation."""
    update = tf.load_op_library(str(library)).svag_update
    internals.retrace_within_xla()
    return update


def _load() -> Build:
    if os.environ.get(VARIABLE) == "0":
        return _without(f"{VARIABLE}=0")
    if keras.backend.backend() != "tensorflow":
        return _without(f"Keras' backend is {keras.backend.backend()}")
    folder = folder_of(key())
    if not (folder / RECORD).exists():
        return _without(
            f"no build for these versions and this machine in {folder}. "
            f"`{COMMAND}` makes one"
        )
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    library = folder / record["library"]
    if digest_of(library.read_bytes()) != record["sha256"] or record["key"] != key():
        return _without(f"{folder} is damaged. `{COMMAND}` rebuilds it")
    differ = ", ".join(record["different"])
    return Build(
        operation_of(library),
        frozenset(record["equal"]),
        f"in use: {library}" + f", except {differ}: not XLA's bits" * bool(differ),
    )


def _without(reason: str) -> Build:
    return Build(None, frozenset(), "not in use: " + " ".join(reason.split()))


def digest_of(content: bytes) -> str:
    """Returns the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def folder_of(parts: dict[str, Any]) -> Path:
    """Returns the folder of the build with a `key`."""
    digest = digest_of(json.dumps(parts, sort_keys=True).encode())
    return platformdirs.user_cache_path("svag_tf") / "native" / digest[:16]


@functools.cache
def key() -> dict[str, Any]:
    """Returns everything on which a build, and its equality with XLA, depends."""
    package = SOURCE.parents[1]
    sources = (
        SOURCE,
        Path(__file__).with_name("__main__.py"),
        package / "rules.py",
        *sorted((package / "kernels").glob("*.py")),
        *sorted((package / "optimizers").glob("*.py")),
    )
    libraries = Path(tf.sysconfig.get_lib()).glob("libtensorflow*")
    return {
        "sources": digest_of(b"".join(source.read_bytes() for source in sources)),
        "keras": keras.__version__,
        "tensorflow": [
            tf.version.VERSION,
            tf.version.GIT_VERSION,
            tf.version.COMPILER_VERSION,
            *sorted(f"{each.name}: {each.stat().st_size}" for each in libraries),
        ],
        "machine": [platform.machine(), *platform.libc_ver(), *_processor()],
    }


def _processor() -> list[str]:
    """Returns the processor's name and abilities, as far as they are known."""
    names = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return [platform.processor()]
    fields = (line.partition(":") for line in first)
    return [value.strip() for name, _, value in fields if name.strip() in names]
