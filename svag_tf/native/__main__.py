"""Builds the native update for this machine: `python -m svag_tf.native`.

It takes about a minute and needs a C++ compiler: the environment's CXX, or c++.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

from svag_tf import native
from svag_tf.files import whole_file
from svag_tf.optional import tensorflow as tf

# A product and a sum are rounded once only where the source says so.
FLAGS = (
    *("-shared", "-fPIC", "-O3", "-march=native", "-w"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
CHECK = "svag_tf.optimizers.known_answer"


class BuildError(Exception):
    """Raised if the build fails, or if its result does not work."""


def build() -> Path:
    """Compiles the update, tries it in another process, and keeps it if that works.

    Returns:
        The library.

    Raises:
        BuildError: With the reason, in one line.
    """
    if keras.backend.backend() != "tensorflow":
        raise BuildError(
            "It is for Keras' backend 'tensorflow': set KERAS_BACKEND=tensorflow. "
            f"Received: '{keras.backend.backend()}'."
        )
    key = native.key()
    folder = native.folder_of(key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            built = Path(temporary) / "update.so"
            _compile(built)
            answers = _known_answers(built)
            sha256 = native.digest_of(built.read_bytes())
            library = folder / f"update-{sha256[:16]}.so"
            os.replace(built, library)
        record = {"library": library.name, "sha256": sha256, "key": key, **answers}
        with whole_file(folder / native.RECORD) as file:
            file.write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error}") from error
    return library


def _compile(library: Path) -> None:
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    flags = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    command = [*compiler, *FLAGS, str(native.SOURCE), "-o", str(library), *flags]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(
            f"The C++ compiler {compiler[0]!r} cannot be run: {error.strerror}. "
            "Install one (Debian: apt install g++), or set CXX."
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if "error" in line]
        raise BuildError(
            f"The C++ compiler {compiler[0]!r} failed: {(errors or lines)[0]}"
        )


def _known_answers(library: Path) -> dict[str, list[str]]:
    """Returns the rules that are "equal" to the XLA kernel, and those "different"."""
    done = subprocess.run(
        [sys.executable, "-m", CHECK, str(library)],
        env={**os.environ, native.VARIABLE: "0"},
        capture_output=True,
        text=True,
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(
            f"The build does not run (exit code {done.returncode}): {last}"
        ) from None


def main() -> None:
    """Builds the native update, and prints the result."""
    print("Compiles and checks the native update; about a minute.", flush=True)
    try:
        build()
    except BuildError as error:
        sys.exit(f"No native build. {error} Optimizers work without it, as before.")
    native.use(None)
    print(native.status())


if __name__ == "__main__":
    main()
