"""Commits: saved states from which a training run resumes, whatever failed.

`BackupAndRestore`, the runs of `scripts/train.py` and the simulation of gradient noise
all save their training in this way. It guarantees:

- A commit is a folder that appears at once, when all of it is on the disk. A killed
  process or a full disk leaves all earlier commits as they were.
- A commit holds the SHA-256 of its files (`SHA256SUMS`, as `sha256sum --check` reads
  it). If it is truncated or has a flipped bit, the one before is used instead.
- The last two commits are kept. A deleted commit disappears at once.

`save_state` writes all state of a model and its optimizers to a commit, and
`restore_state` restores it, bit for bit, into the same model and no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.files import TEMPORARY_PREFIX, temporary_name, whole_folder
from svag_tf.saving.model_state import (
    build_optimizers,
    description_of,
    first_difference,
    state_of,
)

# Not HDF5, which Keras uses: it ends the process when the disk is full.
VALUES, STATE, SUMS = "values.npz", "state.json", "SHA256SUMS"
KEPT = 2  # Commits: the last, and the one before.


class Commits:
    """The commits of one training run.

    Args:
        folder: Holds the commits; it need not exist.
        unit: What is counted. The commits are the folders `epoch_1`, `epoch_2`, ...
    """

    def __init__(self, folder: Path, unit: str = "epoch"):
        self.folder = folder
        self._prefix = f"{unit}_"

    def path(self, number: int) -> Path:
        """Returns the path of a commit."""
        return self.folder / f"{self._prefix}{number}"

    def all(self) -> list[Path]:
        """Returns the commits, the last first, whole or damaged."""
        numbers = [
            int(path.name.removeprefix(self._prefix))
            for path in self.folder.glob(f"{self._prefix}*")
            if path.name.removeprefix(self._prefix).isdecimal()
        ]
        return [self.path(n) for n in sorted(numbers, reverse=True)]

    @contextlib.contextmanager
    def new(self, number: int) -> Iterator[Path]:
        """Yields a folder to fill, which then becomes a commit; removes old commits.

        Args:
            number: Greater than that of the last whole commit.

        Raises:
            OSError: If it cannot be written. The commits before it stay whole.
        """
        self.clean()
        path = self.path(number)
        shutil.rmtree(path, ignore_errors=True)  # Only a damaged one can be there.
        with whole_folder(path) as folder:
            folder.mkdir()
            yield folder
            names = sorted(file.name for file in folder.iterdir())
            (folder / SUMS).write_text(_sums(folder, names))
        for old in self.all()[KEPT:]:
            _delete(old)

    def last(self) -> Path | None:
        """Returns the last whole commit, or `None` if there are no commits.

        Warns:
            UserWarning: For each damaged commit after it, with its path.

        Raises:
            ValueError: If there are commits and none is whole.
        """
        commits = self.all()
        for path in commits:
            if is_whole(path):
                return path
            warnings.warn(f"{path} is damaged. Trying the one before.", stacklevel=3)
        if commits:
            raise ValueError(f"None of these is whole: {', '.join(map(str, commits))}.")
        return None

    def delete(self) -> None:
        """Deletes all commits, the last first."""
        for path in self.all():
            _delete(path)
        self.clean()

    def clean(self) -> None:
        """Removes what a killed process left unfinished."""
        for left in self.folder.glob(f"{TEMPORARY_PREFIX}{self._prefix}*"):
            shutil.rmtree(left)


def is_whole(commit: Path) -> bool:
    """Returns whether a commit has exactly the files and bytes that were written."""
    try:
        sums = (commit / SUMS).read_bytes().decode()
        names = [line.partition("  ")[2] for line in sums.splitlines()]
        found = [file.name for file in commit.iterdir() if file.name != SUMS]
        return sorted(names) == sorted(found) and sums == _sums(commit, names)
    except (OSError, UnicodeDecodeError):
        return False


def _sums(folder: Path, names: list[str]) -> str:
    lines = []
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {name}\n")
    return "".join(lines)


def _delete(path: Path) -> None:
    """Deletes a commit at once, so that a process killed here leaves no damaged one."""
    deleted = temporary_name(path)
    shutil.rmtree(deleted, ignore_errors=True)
    os.replace(path, deleted)
    shutil.rmtree(deleted)


def save_state(model: keras.Model, commit: Path, **facts: Any) -> None:
    """Writes all state from which the model's training continues.

    Args:
        model: Compiled and built.
        commit: Folder of a new commit.
        **facts: Further content of `state.json`.
    """
    values = map(_bytes, state_of(model).values())
    np.savez(commit / VALUES, *values, **_global_random_states())
    (commit / STATE).write_text(json.dumps({**facts, **description_of(model)}))


def restore_state(model: keras.Model, commit: Path) -> dict[str, Any]:
    """Restores what `save_state` wrote, and returns the facts.

    Args:
        model: Compiled, with its layers built.
        commit: A whole commit.

    Raises:
        ValueError: If it belongs to another model or optimizer. Nothing is restored.
    """
    found = json.loads((commit / STATE).read_text())
    build_optimizers(model, found)
    expected = description_of(model)
    facts = {name: found.pop(name) for name in list(found) if name not in expected}
    if found != expected:
        raise ValueError(
            f"{commit} is that of another model or optimizer. "
            f"{first_difference(found, expected)}"
        )
    with np.load(commit / VALUES) as arrays:
        for i, variable in enumerate(state_of(model).values()):
            like = keras.ops.convert_to_numpy(variable)
            value = np.frombuffer(arrays[f"arr_{i}"].tobytes(), like.dtype)
            variable.assign(value.reshape(like.shape))
        _set_global_random_states(arrays)
    return facts


def _global_random_states() -> dict[str, Any]:
    """Returns the states of PyTorch's generators, which Keras' dropout uses there."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    gpus = enumerate(torch.cuda.get_rng_state_all())
    states = {"torch": torch.get_rng_state(), **{f"torch_{i}": s for i, s in gpus}}
    return {name: state.numpy() for name, state in states.items()}


def _set_global_random_states(saved: Mapping[str, np.ndarray]) -> None:
    """Restores them, as far as there are such devices."""
    for name in _global_random_states().keys() & set(saved):
        import torch

        state, number = torch.from_numpy(saved[name]), name.partition("_")[2]
        if number:
            torch.cuda.set_rng_state(state, int(number))
        else:
            torch.set_rng_state(state)


def _bytes(variable: Any) -> np.ndarray:
    """Returns a variable's value as bytes: NumPy cannot write bfloat16."""
    value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
    return np.frombuffer(value.tobytes(), np.uint8)
