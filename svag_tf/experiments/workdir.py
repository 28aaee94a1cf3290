"""Folders of results: used by one process, and of one config."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from svag_tf.experiments.config import differences
from svag_tf.experiments.errors import ExperimentError
from svag_tf.optional import filelock

START_AGAIN = "Delete the folder to start afresh, or name another --workdir."


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of an existing folder; an error if one is using it."""
    try:
        with filelock.FileLock(workdir / ".lock", blocking=False):
            yield
    except filelock.Timeout as error:
        raise ExperimentError(
            f"The workdir {workdir} is in use by another process. Wait for it to end, "
            "or name another --workdir."
        ) from error


def refuse_another_config(
    what: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
    """Raises an error with the differences of two configs, if there are any.

    Args:
        what: "The workdir runs/mine holds a run of".
        old: the config of what is there, as `config.plain` returns it.
        new: the config of what is to be done, likewise.
    """
    changed = differences(old, new)
    if changed:
        raise ExperimentError(
            f"{what} another config. Name another --workdir, or use the old values "
            "(old -> new):\n  " + "\n  ".join(changed)
        )


def refuse_older(path: Path) -> None:
    """Raises an error if a file is there that only earlier versions have written."""
    if os.path.lexists(path):
        raise ExperimentError(
            f"{path} was written by an earlier version of svag_tf; its runs cannot "
            f"be resumed by this one. {START_AGAIN}"
        )
