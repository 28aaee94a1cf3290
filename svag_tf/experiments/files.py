"""Files that are whole or absent, whenever the process is killed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from svag_tf.experiments.errors import ExperimentError
from svag_tf.files import TEMPORARY_PREFIX, make_writable, whole_file


def writable_folder(workdir: str | os.PathLike[str]) -> Path:
    """Returns the folder of the results, which is created if needed.

    Raises:
        ExperimentError: if files cannot be written there, before any work.
    """
    path = Path(workdir)
    try:
        make_writable("workdir", path)
    except OSError as error:
        raise ExperimentError(str(error)) from error
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Does what `svag_tf.files.whole_file` does, with an `ExperimentError`."""
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise ExperimentError(str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file (UTF-8), or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a whole JSON file, or nothing; numbers that are not finite are `null`."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ExperimentError: if it is unreadable or not a JSON object; names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path} is corrupt or unreadable: {error}") from error
    if not isinstance(value, dict):
        raise ExperimentError(f"{path} is corrupt: it does not hold a JSON object.")
    return value


def remove_temporaries(folder: Path, pattern: str) -> None:
    """Removes half-written files whose names match a pattern, as "epoch_*.keras"."""
    for path in folder.glob(TEMPORARY_PREFIX + pattern):
        path.unlink()


def _finite(value: Any) -> Any:
    """Returns `value` with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
