"""The folder of a run: its files, who may write to it, and its commit points.

After every epoch `RunFolder.commit` writes a checkpoint and then `state.json`, which
names it. The replacement of `state.json` is the commit: a run killed at any moment
continues from the last one. The checkpoint and the state of the epoch before are kept
beside them, in case one of the two is damaged later.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import statistics
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.config import differences, plain
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import (
    read_json,
    remove_temporaries,
    replacing,
    sha256,
    write_json,
    write_text,
)
from svag_tf.experiments.problems import made_of
from svag_tf.experiments.training.config import TrainingConfig
from svag_tf.optional import filelock
from svag_tf.saving.model_state import random_states

COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
)
CHECKPOINTS = "epoch_*.keras"
KEPT = "epoch_*.*"  # Checkpoints, and the state of the epoch before the last.
TIMES = ("train_seconds", "seconds")
START_AGAIN = "Delete the folder to start afresh, or name another --workdir."

Row = dict[str, Any]


@dataclass
class State:
    """A run up to its last finished epoch.

    Attributes:
        backend: Keras' backend that made it.
        rows: one dict for epoch 0 (before training), 1, 2, ...: `COLUMNS`, `TIMES`.
        checkpoint: name of the file in `checkpoints/`.
        checkpoint_sha256: its SHA-256.
        random: state of the model's random generators (Keras does not save it).
        values_sha256: SHA-256 of all values of model and optimizer.
        local_state: name of the file in `checkpoints/` with the state that differs
            between replicas; empty if there is none.
        local_state_sha256: its SHA-256.
        made_of: see `made_of.made_of`; empty in runs of earlier versions.
    """

    backend: str
    rows: list[Row] = field(default_factory=list)
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    random: list[list[int]] = field(default_factory=list)
    values_sha256: str = ""
    local_state: str = ""
    local_state_sha256: str = ""
    made_of: dict[str, str] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The last finished epoch; -1 before the evaluation of epoch 0."""
        return len(self.rows) - 1

    @property
    def diverged(self) -> bool:
        """Whether the last epoch ended with a loss that is not finite."""
        last = self.rows[-1] if self.rows else {}
        return not all(
            math.isfinite(last.get(name, 0)) for name in ("train_loss", "test_loss")
        )


class RunFolder:
    """The paths in a run's folder, and the order in which they are written.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.state = self.path / "state.json"
        self.metrics = self.path / "metrics.csv"
        self.log = self.path / "train.log"
        self.curves = self.path / "curves.png"
        self.model = self.path / "model.keras"
        self.results = (self.metrics, self.log, self.curves, self.model)
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    def check(
        self, config: TrainingConfig, found: Mapping[str, str] | None = None
    ) -> State:
        """Checks whether a run of `config` may use this folder. Only reads.

        Args:
            config: a checked one.
            found: the result of `made_of`. Defaults to `None`: not known yet.

        Returns:
            The state to continue from.

        Raises:
            ExperimentError: if it is not a folder, or holds another run or a corrupt
                state or checkpoint.
        """
        existing = next(p for p in (self.path, *self.path.absolute().parents)
                        if os.path.lexists(p))  # fmt: skip
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ExperimentError(
                f"The workdir {self.path} cannot be written: {existing} is not a "
                "writable folder."
            )
        fresh = State(keras.backend.backend())
        if not os.path.lexists(self.config):
            others = (*self.results, self.state, self.checkpoints, self.tensorboard)
            self._refuse_existing(others, self.config)
            return fresh
        changed = differences(read_json(self.config), plain(config))
        if changed:
            raise ExperimentError(
                f"The workdir {self.path} holds a run of another config. Name another "
                "--workdir, or use the old values (old -> new):\n  "
                + "\n  ".join(changed)
            )
        if not os.path.lexists(self.state):
            self._refuse_existing(self.results, self.state)
            return fresh
        state, _ = self._good_state()
        if state.backend != fresh.backend:
            raise ExperimentError(
                f"The workdir {self.path} holds a run on Keras' backend "
                f"'{state.backend}', and this is '{fresh.backend}'. Set "
                f"KERAS_BACKEND={state.backend}, or name another --workdir."
            )
        if found is not None:
            what = f"The workdir {self.path} holds a run"
            made_of.refuse(what, state.made_of, found)
        return state

    def ended(self) -> State:
        """Returns the state of a run made by another process. Only reads.

        Raises:
            ExperimentError: if there is none, or if it is corrupt.
        """
        if not self.state.is_file():
            raise ExperimentError(
                f"{self.path} holds no run: it has no {self.state.name}."
            )
        return self._good_state()[0]

    @contextlib.contextmanager
    def opened(
        self,
        config: TrainingConfig,
        found: Mapping[str, str],
        fresh: bool = False,
    ) -> Iterator[State]:
        """Creates the folder if needed and keeps other processes out of it.

        Args:
            config: a checked one.
            found: the result of `made_of`.
            fresh: delete a run of other data or another model instead of refusing it.
                Defaults to `False`.

        Raises:
            ExperimentError: as `check`; if the folder cannot be written; or if
                another process is using it.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._locked())
                state = self.check(config, None if fresh else found)
                if fresh and state.rows and made_of.differ(state.made_of, found):
                    self._delete()
                    state = self.check(config)
                if not self.config.exists():
                    write_json(self.config, plain(config))
                if not state.rows:
                    state.made_of = dict(found)
                self.checkpoints.mkdir(exist_ok=True)
                if state.epoch >= 0 and self._good_state()[1] != self.state:
                    # Replaces a damaged one.
                    write_json(self.state, _sealed(state), exact=True)
                for path in (self.config, self.state, *self.results):
                    remove_temporaries(self.path, path.name)
                remove_temporaries(self.checkpoints, KEPT)
                self._remove_old_checkpoints(state)
            except OSError as error:
                raise ExperimentError(
                    f"The workdir {self.path} cannot be written: {error}"
                ) from error
            yield state

    def clear(self) -> None:
        """Deletes the run.

        Raises:
            ExperimentError: if another process is using it.
        """
        with self._locked():
            self._delete()

    def _delete(self) -> None:
        # In such an order that a later start never takes the remains for a run.
        shutil.rmtree(self.path / "export", ignore_errors=True)
        for path in (*self.results, self.state):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        self.config.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder, which exists."""
        try:
            with filelock.FileLock(self.path / ".lock", blocking=False):
                yield
        except filelock.Timeout as error:
            raise ExperimentError(
                f"The workdir {self.path} is in use by another process. Wait for it "
                "to end, or name another --workdir."
            ) from error

    def commit(
        self,
        state: State,
        model: keras.Model,
        epochs: int,
        local_state: Sequence[np.ndarray] = (),
    ) -> None:
        """Makes `state` and the model's values the point from which a run continues.

        Args:
            state: with complete `rows`; the other fields are filled in here.
            model: compiled, with a built optimizer.
            epochs: length of the whole run, for the log.
            local_state: the result of `svag_tf.distribution.local_state`.
        """
        name = f"epoch_{state.epoch:04d}.keras"
        path = self.checkpoints / name
        self.save_model(model, path)
        if state.checkpoint:  # Unchanged except for the rows.
            before = self.checkpoints / Path(state.checkpoint).with_suffix(".json")
            last = replace(state, rows=state.rows[:-1])
            write_json(before, _sealed(last), exact=True)
        state.checkpoint, state.checkpoint_sha256 = name, sha256(path)
        state.random = [
            [int(number) for number in keras.ops.convert_to_numpy(v)]
            for v in random_states(model)
        ]
        state.values_sha256 = fingerprint(model)
        state.local_state = state.local_state_sha256 = ""
        if local_state:
            state.local_state = f"epoch_{state.epoch:04d}.npz"
            with replacing(self.checkpoints / state.local_state) as temporary:
                np.savez(temporary, *local_state)
            path = self.checkpoints / state.local_state
            state.local_state_sha256 = sha256(path)
        write_json(self.state, _sealed(state), exact=True)
        self.write_tables(state, epochs)
        self._remove_old_checkpoints(state)

    def write_tables(self, state: State, epochs: int) -> None:
        """Writes `metrics.csv` and `train.log` from the state."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in state.rows:
            values = (row[name] for name in COLUMNS)
            writer.writerow(
                np.float32(v) if isinstance(v, float) else v for v in values
            )
        write_text(self.metrics, text.getvalue())
        lines = [log_line(state.rows[: i + 1], epochs) for i in range(len(state.rows))]
        write_text(self.log, "\n".join(lines) + "\n")

    def restore(self, state: State, model: keras.Model) -> None:
        """Gives the model and its optimizer the values of the last commit.

        Args:
            state: as `check` returns it, `state.epoch >= 0`.
            model: compiled, with a built optimizer.

        Raises:
            ExperimentError: if not every value came back.
        """
        path = self.checkpoints / state.checkpoint
        try:
            model.load_weights(path)
            for variable, numbers in zip(
                random_states(model), state.random, strict=True
            ):
                variable.assign(np.asarray(numbers, variable.dtype))
        except Exception as error:  # Keras, h5py and zipfile raise many kinds
            raise ExperimentError(
                f"{path} cannot be restored: {error}\n{START_AGAIN}"
            ) from error
        if fingerprint(model) != state.values_sha256:
            raise ExperimentError(
                f"{path} does not restore the values that were saved; was it made by "
                f"another version of Keras or svag_tf? {START_AGAIN}"
            )

    def save_model(self, model: keras.Model, path: Path) -> None:
        """Saves model and optimizer as a whole `.keras` file, or none."""
        with replacing(path) as temporary:
            model.save(temporary)

    def _good_state(self) -> tuple[State, Path]:
        """Reads the last state, or the one before if one of its files is damaged.

        Returns:
            The state, and its file.

        Raises:
            ExperimentError: if neither is whole.
        """
        try:
            return self._read_state(self.state), self.state
        except ExperimentError as error:
            for path in sorted(self.checkpoints.glob("epoch_*.json"), reverse=True):
                with contextlib.suppress(ExperimentError):
                    state = self._read_state(path)
                    warnings.warn(
                        f"{error} Resuming from the epoch before, {state.epoch}.",
                        stacklevel=1,
                    )
                    return state, path
            raise ExperimentError(f"{error}\n{START_AGAIN}") from error

    def _read_state(self, path: Path) -> State:
        try:
            fields = read_json(path)
            if fields.pop("sha256", None) != _digest(fields):
                raise ExperimentError(
                    f"{path} is corrupt, or of an earlier version of svag_tf: its "
                    "SHA-256 is not the one in it."
                )
            state = State(**fields)
            checkpoint = self.checkpoints / state.checkpoint
        except (TypeError, KeyError, AttributeError) as error:
            raise ExperimentError(f"{path} is corrupt: {error!r}.") from error
        if checkpoint.parent != self.checkpoints or not checkpoint.is_file():
            raise ExperimentError(f"The checkpoint {checkpoint} is missing.")
        self._check_sha256(checkpoint, state.checkpoint_sha256, path)
        if state.local_state:
            local_state = self.checkpoints / state.local_state
            self._check_sha256(local_state, state.local_state_sha256, path)
        return state

    def _check_sha256(self, path: Path, expected: str, source: Path) -> None:
        inside = path.parent == self.checkpoints
        if not inside or not path.is_file() or sha256(path) != expected:
            raise ExperimentError(
                f"The checkpoint {path} is corrupt: its SHA-256 is not the one in "
                f"{source}."
            )

    def _refuse_existing(self, paths: tuple[Path, ...], missing: Path) -> None:
        found = [path.name for path in paths if os.path.lexists(path)]
        if found:
            raise ExperimentError(
                f"The workdir {self.path} has no {missing.name} but holds "
                f"{', '.join(found)}, which would be overwritten. Name another "
                "--workdir, or move them away."
            )

    def _remove_old_checkpoints(self, state: State) -> None:
        kept = {f"epoch_{epoch:04d}" for epoch in (state.epoch, state.epoch - 1)}
        for path in self.checkpoints.glob(KEPT):
            if path.stem not in kept:
                path.unlink()

    def read_local_state(self, state: State) -> list[np.ndarray]:
        """Reads the state of the last commit that differs between replicas.

        Args:
            state: as `check` returns it.

        Raises:
            ExperimentError: if it cannot be read.
        """
        if not state.local_state:
            return []
        path = self.checkpoints / state.local_state
        try:
            with np.load(path) as arrays:
                return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ExperimentError(
                f"{path} cannot be read: {error}\n{START_AGAIN}"
            ) from error


def _sealed(state: State) -> dict[str, Any]:
    """Returns a state's fields with a checksum of them, for the file."""
    fields = asdict(state)
    return fields | {"sha256": _digest(fields)}


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def fingerprint(model: keras.Model) -> str:
    """Returns the SHA-256 of all values of the model and its optimizer."""
    digest = hashlib.sha256()
    for variable in (*model.weights, *random_states(model), *model.optimizer.variables):
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()


def log_line(rows: list[Row], epochs: int) -> str:
    """Returns a line on the last of `rows`, with an estimate of the time left."""
    row = rows[-1]
    seconds = [r["seconds"] for r in rows[1:]] or [row["seconds"]]
    left = statistics.median(seconds) * (epochs - row["epoch"])
    eta = f"ETA {timedelta(seconds=round(left))}"
    parts = [f"epoch {row['epoch']:{len(str(epochs))}}/{epochs}"]
    for part in ("train", "test"):
        text = f"{part} loss {row[f'{part}_loss']:.4f}"
        if has_accuracy(row):
            text += f" accuracy {row[f'{part}_accuracy']:.4f}"
        parts.append(text)
    parts.append(f"{row['seconds']:.1f} s")
    parts.append(eta if len(rows) > 1 else "before training")
    return "  ".join(parts)


def has_accuracy(row: Row) -> bool:
    """Returns whether the row's problem has an accuracy; otherwise it is NaN."""
    return not math.isnan(row["test_accuracy"])
