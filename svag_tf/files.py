"""Files and folders that are whole or not there, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which then replaces `path`.

    The content is on the disk before the rename, and the rename is atomic: a reader
    finds the old file or the new one, never a part. The temporary name keeps the
    suffix (Keras picks the format by it).

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be written; the message names it.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"Cannot write {path}: {error}") from error


@contextlib.contextmanager
def whole_folder(path):
    """Yields the path of a folder to make, which then replaces `path`.

    Its content is on the disk before the rename, and the rename is atomic: `path` is
    whole, or as it was.

    Args:
        path: Folder that does not exist, or is empty.

    Raises:
        FileExistsError: If it exists and is not an empty folder.
        OSError: If it cannot be written; the message names it.
    """
    path = Path(os.path.abspath(path))
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(
            f"{path} exists. Export to a new or an empty folder, or move it away."
        )
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():  # Left by a process that was killed.
            shutil.rmtree(temporary)
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _sync(file)
        os.replace(temporary, path)
        _sync(path.parent)
    except _write_errors() as error:
        raise OSError(f"Cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_errors():
    if "tensorflow" in sys.modules:
        return OSError, sys.modules["tensorflow"].errors.OpError
    return OSError


def temporary_name(path):
    """Returns a path beside a file or folder where it is made, or deleted."""
    return path.with_name(TEMPORARY_PREFIX + path.name)


def _sync(path):
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_writable(argument: str, path: Path) -> None:
    """Makes a folder if there is none, and checks that it is writable.

    Args:
        argument: Name of the argument that holds the path.
        path: The folder.

    Raises:
        OSError: If it is not; the message names the argument and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(b"\0")
    except (OSError, ValueError) as error:  # The second for a null character.
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"Argument `{argument}` must be a folder that can be written. "
            f"Received: {argument}={str(path)!r}: {reason}"
        ) from error
