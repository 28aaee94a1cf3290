"""The folder of a run: its files, who may write to it, and its commit points.

After every epoch `RunFolder.commit` makes a commit in `checkpoints/`, of which
`svag_tf.saving.commits` says what it guarantees: a run killed at any moment continues
from the last one. The other files are results, rewritten from what is committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.config import plain
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import (
    read_json,
    remove_temporaries,
    replacing,
    write_json,
    write_text,
)
from svag_tf.experiments.problems import made_of
from svag_tf.experiments.tables import as_csv
from svag_tf.experiments.training.config import TrainingConfig
from svag_tf.experiments.workdir import (
    START_AGAIN,
    locked,
    refuse_another_config,
    refuse_older,
)
from svag_tf.saving.commits import Commits
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
# In a commit; the last is the state that differs between replicas, if there is any.
MODEL, STATE, LOCAL = "model.keras", "state.json", "local_state.npz"

Row = dict[str, Any]


@dataclass
class State:
    """A run up to its last finished epoch.

    Attributes:
        backend: Keras' backend that made it.
        rows: one dict for epoch 0 (before training), 1, 2, ...: `COLUMNS` and the
            times "train_seconds" and "seconds".
        random: state of the model's random generators (Keras does not save it).
        values_sha256: SHA-256 of all values of model and optimizer.
        made_of: see `made_of.made_of`.
    """

    backend: str
    rows: list[Row] = field(default_factory=list)
    random: list[list[int]] = field(default_factory=list)
    values_sha256: str = ""
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
        self.metrics = self.path / "metrics.csv"
        self.log = self.path / "train.log"
        self.curves = self.path / "curves.png"
        self.model = self.path / "model.keras"
        self.machine = self.path / "machine.json"
        self.results = (self.metrics, self.log, self.curves, self.model)
        self.checkpoints = self.path / "checkpoints"
        self.commits = Commits(self.checkpoints)
        self.older = self.path / "state.json"  # Of earlier versions.
        self.tensorboard = self.path / "tensorboard"

    def check(
        self, config: TrainingConfig, found: Mapping[str, str] | None = None
    ) -> State:
        """Returns the state from which a run of `config` may continue here. Only reads.

        Args:
            config: a checked one.
            found: the result of `made_of`. Defaults to `None`: not known yet.

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
        if not os.path.lexists(self.config):
            others = (*self.results, self.older, self.checkpoints, self.tensorboard)
            self._refuse_existing(others, self.config)
            return State(keras.backend.backend())
        refuse_another_config(
            f"The workdir {self.path} holds a run of",
            read_json(self.config),
            plain(config),
        )
        state = self._last()
        if state.epoch < 0:
            self._refuse_existing(self.results, self.checkpoints)
            return state
        if state.backend != keras.backend.backend():
            raise ExperimentError(
                f"The workdir {self.path} holds a run on Keras' backend "
                f"'{state.backend}', and this is '{keras.backend.backend()}'. Set "
                f"KERAS_BACKEND={state.backend}, or name another --workdir."
            )
        if found is not None:
            what = f"The workdir {self.path} holds a run"
            made_of.refuse(what, state.made_of, found)
        return state

    def ended(self) -> State:
        """Returns the state of a run made by another process, or raises. Only reads."""
        state = self._last()
        if state.epoch < 0:
            raise ExperimentError(f"{self.path} holds no run: no epoch is finished.")
        return state

    def _last(self) -> State:
        """Returns the state of the last whole commit, or one before the first epoch."""
        refuse_older(self.older)
        try:
            commit = self.commits.last()
        except ValueError as error:
            raise ExperimentError(f"{error} {START_AGAIN}") from error
        if commit is None:
            return State(keras.backend.backend())
        return State(**read_json(commit / STATE))

    @contextlib.contextmanager
    def opened(
        self,
        config: TrainingConfig,
        found: Mapping[str, str],
        fresh: bool = False,
    ) -> Iterator[State]:
        """Creates the folder if needed and keeps other processes out of it.

        With `fresh`, a run of other data or another model is deleted, not refused.

        Raises:
            ExperimentError: as `check`; if the folder cannot be written; or if
                another process is using it.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(self.path))
                state = self.check(config, None if fresh else found)
                if fresh and state.rows and made_of.differ(state.made_of, found):
                    self._delete()
                    state = self.check(config)
                if not self.config.exists():
                    write_json(self.config, plain(config))
                if not state.rows:
                    state.made_of = dict(found)
                for path in (self.config, self.machine, *self.results):
                    remove_temporaries(self.path, path.name)
                self.commits.clean()
            except OSError as error:
                raise ExperimentError(
                    f"The workdir {self.path} cannot be written: {error}"
                ) from error
            yield state

    def clear(self) -> None:
        """Deletes the run; an error if another process is using it."""
        with locked(self.path):
            self._delete()

    def _delete(self) -> None:
        # In such an order that a later start never takes the remains for a run.
        shutil.rmtree(self.path / "export", ignore_errors=True)
        for path in (*self.results, self.machine, self.older):
            path.unlink(missing_ok=True)
        self.commits.delete()
        for folder in (self.checkpoints, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        self.config.unlink(missing_ok=True)

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
        state.random = [
            [int(number) for number in keras.ops.convert_to_numpy(v)]
            for v in random_states(model)
        ]
        state.values_sha256 = fingerprint(model)
        try:
            with self.commits.new(state.epoch) as folder:
                model.save(folder / MODEL)
                if local_state:
                    np.savez(folder / LOCAL, *local_state)
                (folder / STATE).write_text(json.dumps(asdict(state), indent=2))
        except OSError as error:
            raise ExperimentError(str(error)) from error
        self.write_tables(state, epochs)

    def checkpoint(self, state: State) -> Path:
        """Returns the model's file in the commit of a state."""
        return self.commits.path(state.epoch) / MODEL

    def write_tables(self, state: State, epochs: int) -> None:
        """Writes `metrics.csv` and `train.log` from the state."""
        write_text(self.metrics, as_csv(state.rows, COLUMNS))
        lines = [log_line(state.rows[: i + 1], epochs) for i in range(len(state.rows))]
        write_text(self.log, "\n".join(lines) + "\n")

    def restore(self, state: State, model: keras.Model) -> None:
        """Gives a compiled model and its built optimizer the values of the last commit.

        Raises:
            ExperimentError: if not every value came back.
        """
        path = self.checkpoint(state)
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

    def _refuse_existing(self, paths: tuple[Path, ...], missing: Path) -> None:
        found = [path.name for path in paths if os.path.lexists(path)]
        if found:
            raise ExperimentError(
                f"The workdir {self.path} has no {missing.name} but holds "
                f"{', '.join(found)}, which would be overwritten. Name another "
                "--workdir, or move them away."
            )

    def read_local_state(self, state: State) -> list[np.ndarray]:
        """Reads the state of a commit that differs between replicas, if it has any."""
        path = self.checkpoint(state).with_name(LOCAL)
        if not path.exists():
            return []
        with np.load(path) as arrays:
            return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


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
