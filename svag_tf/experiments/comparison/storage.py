"""Shares the runs of a comparison between several processes, through Optuna."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.problems import made_of
from svag_tf.optional import filelock, optuna, sqlalchemy

HEARTBEAT = 30  # seconds between two signs of life of a run
GRACE = 150  # seconds without one after which a run counts as dead
RATES = (1e-99, 1e99)  # Optuna needs bounds; these are wider than any rate tried.
POLL = 1.0  # seconds between looks at the runs of other processes


class NotQueuedError(Exception):
    """Raised by a trial that was not queued, or that another process already ran."""


class Storage:
    """Stores the runs of a comparison in a file or any SQL database.

    Within `opened` this process counts as alive.

    Args:
        place: a file, which need not exist, or a URL that SQLAlchemy understands.
        workdir: existing folder of the comparison.

    Raises:
        ExperimentError: if the storage cannot be used.
    """

    def __init__(self, place: str, workdir: Path):
        self.url = place if "://" in place else f"sqlite:///{Path(place).absolute()}"
        self.lock = filelock.FileLock(workdir / ".queue.lock")
        self.worker = uuid.uuid4().hex
        self._workers = workdir / ".workers"
        unusable: tuple[type[Exception], ...]
        unusable = (ImportError, ValueError, OSError, *_storage_errors())
        try:
            self.shown = sqlalchemy.engine.make_url(self.url).render_as_string(
                hide_password=True
            )
            with self.lock:
                self._storage = self._connected()
        except unusable as error:
            raise self._unusable(error) from error

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Marks this process as alive, so that others leave its runs alone."""
        self._workers.mkdir(exist_ok=True)
        path = self._workers / f"{self.worker}.lock"
        try:
            with filelock.FileLock(path):
                yield
        except _storage_errors() as error:
            raise self._unusable(error) from error
        finally:
            path.unlink(missing_ok=True)

    def study(
        self,
        name: str,
        config: Mapping[str, Any],
        maximize: bool,
        pruner: Any,
        found: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> optuna.Study:
        """Returns the study of this name and config, created if needed.

        Two configs never share a study, nor do two backends. `data_dir` may differ:
        another machine has its data elsewhere.

        Args:
            name: the study's name, without the suffix that tells configs apart.
            config: the part of the config that the runs have in common.
            maximize: whether the highest result is best.
            pruner: a pruner of Optuna.
            found: the result of `made_of`; None if data and model do not matter.
            fresh: delete a study of other data or another model instead of refusing it.

        Raises:
            ExperimentError: if it is of other data or another model, or if the storage
                cannot be used.
        """
        content = {
            "config": {k: v for k, v in config.items() if k != "data_dir"},
            "backend": keras.backend.backend(),
        }
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]

        def opened() -> optuna.Study:
            return optuna.create_study(
                storage=self._storage,
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=pruner,
                study_name=f"{name} {digest}",
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )

        try:
            with self.lock:
                study = opened()
                if "config" in study.user_attrs and found is not None:
                    before = study.user_attrs.get("made_of")
                    try:
                        made_of.refuse(f"{self.shown} holds a study", before, found)
                    except ExperimentError:
                        if not fresh:
                            raise
                        optuna.delete_study(
                            study_name=study.study_name, storage=self._storage
                        )
                        study = opened()
                if "config" not in study.user_attrs:
                    for key, value in {"made_of": found, **content}.items():
                        study.set_user_attr(key, value)
        except _storage_errors() as error:
            raise self._unusable(error) from error
        return study

    def is_dead(self, trial: optuna.trial.FrozenTrial) -> bool:
        """Returns whether the process that makes a trial is known to have ended.

        Processes with another workdir are judged by Optuna's heartbeat alone.
        """
        worker = trial.user_attrs.get("worker")
        if worker is None:  # just begun, or killed at its beginning
            start = trial.datetime_start
            return start is not None and time.time() - start.timestamp() > GRACE
        path = self._workers / f"{worker}.lock"
        if worker == self.worker or not path.exists():
            return False
        try:
            with filelock.FileLock(path, blocking=False):
                return True
        except filelock.Timeout:
            return False

    def _connected(self) -> optuna.storages.RDBStorage:
        sqlite = self.url.startswith("sqlite")
        tries = 5
        for attempt in range(tries):
            try:
                with warnings.catch_warnings():  # Optuna's heartbeat is experimental
                    warnings.simplefilter(
                        "ignore", optuna.exceptions.ExperimentalWarning
                    )
                    return optuna.storages.RDBStorage(
                        self.url,
                        engine_kwargs=(
                            {"connect_args": {"timeout": 100}} if sqlite else None
                        ),
                        heartbeat_interval=HEARTBEAT,
                        grace_period=GRACE,
                    )
            except sqlalchemy.exc.DBAPIError:
                # Another machine may be making the tables at this moment.
                if sqlite or attempt == tries - 1:
                    raise
                time.sleep(1)
        raise AssertionError

    def _unusable(self, error: Exception) -> ExperimentError:
        where = getattr(self, "shown", "what --storage names")
        cause = error.__cause__ or error
        text = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        return ExperimentError(
            f"The runs cannot be kept in {where}: {text}. --storage must be a file or "
            "the URL of an SQL database, such as postgresql://user@host/name."
        )


def _storage_errors() -> tuple[type[Exception], ...]:
    return (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)


class Queue:
    """The runs of one optimizer, one for each of some values.

    Every process that works on a queue takes the next free value. A value that an ended
    process left unfinished is free again.

    Args:
        storage: the storage of the study.
        study: from `Storage.study`.
        parameter: "learning_rate" or "seed".
        values: in the order in which to take them.
    """

    def __init__(
        self,
        storage: Storage,
        study: optuna.Study,
        parameter: str,
        values: Sequence[float],
    ):
        self._storage, self._study = storage, study
        self._parameter, self._values = parameter, list(values)

    def finished(self) -> dict[float, optuna.trial.FrozenTrial]:
        """Returns the last finished trial of each value that has one."""
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        result = {}
        for trial in self._study.get_trials(deepcopy=False, states=states):
            result[self._value(trial)] = trial
        return {value: result[value] for value in self._values if value in result}

    def retry(self) -> None:
        """Queues failed runs (not diverged ones) again."""
        for value, trial in self.finished().items():
            if trial.user_attrs["outcome"] == "failed":
                self._enqueue(value)

    def work(
        self,
        run: Callable[[optuna.Trial, float], float],
        waiting: Callable[[dict[float, optuna.trial.FrozenTrial]], None],
    ) -> dict[float, optuna.trial.FrozenTrial]:
        """Makes runs until every value has one; returns the trial of each value.

        Args:
            run: makes the run of a value, returns its result.
            waiting: called with the finished trials before each run, and repeatedly
                while other processes make the last ones.
        """

        def objective(trial: optuna.Trial) -> float:
            if not trial.user_attrs.get("queued"):
                raise NotQueuedError
            trial.set_user_attr("worker", self._storage.worker)
            if self._parameter == "seed":
                value: float = trial.suggest_int("seed", 0, 2**32 - 1)
            else:
                value = trial.suggest_float(self._parameter, *RATES, log=True)
            index = self._index(value)
            if index is not None:  # otherwise it helps a process with other values
                value = self._values[index]
            if self._taken(trial, value):
                raise NotQueuedError
            return run(trial, value)

        while True:
            with self._storage.lock:
                queued = self._fill()
            done = self.finished()
            waiting(done)
            if queued:
                self._study.optimize(objective, n_trials=1, catch=(NotQueuedError,))
            elif len(done) == len(self._values):
                return done
            else:
                time.sleep(POLL)

    def _fill(self) -> bool:
        """Queues values without a run; returns whether any run is waiting."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        states = optuna.trial.TrialState
        taken = set()
        queued = False
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == states.FAIL:
                continue
            if trial.state == states.RUNNING and self._storage.is_dead(trial):
                with contextlib.suppress(ValueError):  # another process was quicker
                    self._study.tell(trial.number, state=states.FAIL)
                continue
            queued = queued or trial.state == states.WAITING
            taken.add(self._value(trial))
        for value in self._values:
            if value not in taken:
                self._enqueue(value)
                queued = True
        return queued

    def _enqueue(self, value: float) -> None:
        self._study.enqueue_trial({self._parameter: value}, user_attrs={"queued": True})

    def _value(self, trial: optuna.trial.FrozenTrial) -> float | None:
        """Returns the value of a trial; None if it was not queued here."""
        if self._parameter in trial.params:
            value = trial.params[self._parameter]
        elif "fixed_params" in trial.system_attrs:  # waiting, or just begun
            value = trial.system_attrs["fixed_params"][self._parameter]
        else:
            return None
        index = self._index(value)
        return value if index is None else self._values[index]

    def _index(self, value: float) -> int | None:
        """Returns the index of a value, which a database may have rounded."""
        for i, other in enumerate(self._values):
            if math.isclose(value, other, rel_tol=1e-9):
                return i
        return None

    def _taken(self, trial: optuna.Trial, value: float) -> bool:
        """Returns whether another process was first, as without a common workdir."""
        return any(
            other.number < trial.number
            and other.state == optuna.trial.TrialState.RUNNING
            and self._value(other) == value
            and not self._storage.is_dead(other)
            for other in self._study.get_trials(deepcopy=False)
        )
