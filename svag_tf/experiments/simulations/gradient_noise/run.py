"""Trains and measures, and resumes where it was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.config import checked, field, plain, whole
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.files import read_json, writable_folder, write_json
from svag_tf.experiments.problems import PROBLEMS
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.simulations.gradient_noise import figures
from svag_tf.experiments.simulations.gradient_noise.findings import (
    findings_of,
    tables_of,
)
from svag_tf.experiments.simulations.gradient_noise.measurement import (
    Array,
    Measurement,
    labels_of,
    measured,
)
from svag_tf.experiments.simulations.report import Report, progress
from svag_tf.experiments.training import config as training_config
from svag_tf.experiments.training.config import TrainingConfig
from svag_tf.experiments.training.preparing import Batches, prepared
from svag_tf.experiments.workdir import (
    START_AGAIN,
    locked,
    refuse_another_config,
    refuse_older,
)
from svag_tf.noise.gradients import GradientStatistics, gradient_statistics
from svag_tf.optional import filelock, matplotlib, require
from svag_tf.saving.commits import Commits, restore_state, save_state

PART = 50  # examples between two signs of progress


def _is_rising(steps: Any) -> bool:
    whole = all(isinstance(step, int) and step >= 2 for step in steps)
    return whole and len(steps) > 0 and list(steps) == sorted(set(steps))


@dataclass(frozen=True, kw_only=True)
class Config:
    """See configs/gradient_noise.py."""

    steps: tuple[int, ...] = field(
        tuple,
        _is_rising,
        "rising whole numbers >= 2, such as (10, 100): the first update says nothing "
        "of the noise",
    )
    elements: int = whole(10)
    memory: int = whole(1)
    training: TrainingConfig = field(  # noqa: RUF009 (it is dataclasses.field)
        TrainingConfig,
        lambda v: True,
        "the config of a training, see configs/digits.py",
    )


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Trains, measures, and writes figures, tables and findings; resumable.

    An interrupted run resumes from `checkpoints/` and `measurements/` in the workdir.

    Returns:
        `measurements`, a `Measurement` for each of the config's steps, and
        `findings`.

    Raises:
        DivergedError: if the training diverges.
    """
    require(filelock, matplotlib)
    config = _checked(config)
    workdir = Path(workdir)
    data, model = prepared(config.training)
    _check_problem(config, data, model)
    (writable_folder(workdir) / "measurements").mkdir(exist_ok=True)
    with locked(workdir):
        return _simulate(config, workdir, command, data, model)


def _checked(config: Any) -> Config:
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    if isinstance(given.get("training"), Mapping):
        given["training"] = training_config.checked(given["training"])
    config = checked(given, Config)
    optimizer = config.training.optimizer
    if optimizer.name != "msvag":
        raise ExperimentError(
            "training.optimizer.name must be msvag, whose estimates are measured. "
            f"Received: training.optimizer.name={optimizer.name!r}"
        )
    for name in (
        "clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps",
    ):  # fmt: skip
        value = getattr(optimizer, name)
        if value is not None:
            raise ExperimentError(
                f"training.optimizer.{name} must be None: the slots must hold "
                "averages of unmodified mini-batch gradients. "
                f"Received: training.optimizer.{name}={value!r}"
            )
    problem = PROBLEMS[config.training.problem]
    for fine, rule in (
        (
            problem.prepare_train is None,
            "be one whose inputs are not changed at random",
        ),
        (problem.streams is None, "have independent examples"),
    ):
        if not fine:
            raise ExperimentError(
                f"training.problem must {rule}. "
                f"Received: training.problem={config.training.problem!r}"
            )
    return config


def _check_problem(config: Config, data: Data, model: keras.Model) -> None:
    training = config.training
    steps = len(data.x_train) // training.batch_size * training.epochs
    if config.steps[-1] > steps:
        raise ExperimentError(
            f"steps must not exceed the {steps} updates of {training.epochs} "
            f"epochs. Received: steps={list(config.steps)}"
        )
    try:  # refuses dropout layers, and too little memory
        _exact(config, data, model, lambda _: None, limit=2)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _exact(
    config: Config,
    data: Data,
    model: keras.Model,
    show: Callable[[str], None],
    limit: int | None = None,
) -> GradientStatistics:
    """Computes the exact statistics of the first `limit` examples, or of all."""

    def parts() -> Iterator[tuple[Array, Array]]:
        x, y = data.x_train[:limit], data.y_train[:limit]
        for start in range(0, len(x), PART):
            show("the exact gradients")
            yield x[start : start + PART], y[start : start + PART]

    return gradient_statistics(
        model,
        PROBLEMS[config.training.problem].loss(),
        parts(),
        training=True,
        memory=config.memory,
        verbose=False,
    )


def _simulate(
    config: Config,
    workdir: Path,
    command: str,
    data: Data,
    model: keras.Model,
) -> dict[str, Any]:
    title = "M-SVAG's estimates of gradient and noise against exact ones"
    report = Report(title, config, workdir, command)
    seconds = _measure_all(config, workdir, data, model)
    measurements = {
        step: Measurement.load(_measurement(workdir, step)) for step in config.steps
    }
    findings = findings_of(measurements)
    labels = labels_of(model)
    figures.draw_scatter(measurements, labels, workdir / "scatter.png")
    figures.draw_calibration(measurements, workdir / "calibration.png")
    figures.draw_layers(measurements, labels, workdir / "layers.png")
    rows = [row for m in measurements.values() for row in m.rows]
    tables = tables_of(measurements, labels, config.training, len(data.x_train))
    report.write(rows, tables, findings, seconds=seconds)
    return {"measurements": measurements, "findings": findings}


def _measurement(workdir: Path, step: int) -> Path:
    return workdir / "measurements" / f"step_{step:06d}.npz"


def _measure_all(
    config: Config, workdir: Path, data: Data, model: keras.Model
) -> float:
    """Trains and writes every missing measurement; returns the seconds."""
    training = config.training
    begin = time.monotonic()
    first, before = _restored(workdir, config, model)
    problem = PROBLEMS[training.problem]
    batches = Batches(
        data.x_train,
        data.y_train,
        training.batch_size,
        training.seed,
        problem.prepare_train,
    )
    left = [step for step in config.steps if step > first]
    if not left:
        return before
    parts = -(-len(data.x_train) // PART)
    interrupted = "Interrupted. The same command resumes after the last measurement."
    if first:
        print(f"Resuming the run in {workdir} after step {first}.")
    with progress(left[-1] - first + parts * len(left), interrupted) as show:
        for step in range(first, left[-1]):
            show("training")
            epoch, batch = divmod(step, len(batches))
            batches.shuffle(epoch)
            loss = model.train_on_batch(*batches[batch], return_dict=True)["loss"]
            if not np.isfinite(loss):
                raise DivergedError(
                    f"The training diverged at step {step + 1}: the loss is not "
                    "finite. Try a lower training.optimizer.learning_rate."
                )
            if step + 1 in left:
                measurement = measured(
                    model,
                    _exact(config, data, model, show),
                    step + 1,
                    training.batch_size,
                    config.elements,
                    training.seed,
                )
                measurement.save(_measurement(workdir, step + 1))
                seconds = before + time.monotonic() - begin
                with _commits(workdir).new(step + 1) as commit:
                    save_state(model, commit, step=step + 1, seconds=seconds)
    return seconds


def _restored(workdir: Path, config: Config, model: keras.Model) -> tuple[int, float]:
    """Restores the model of the last measurement; returns its step and seconds."""
    path = workdir / "config.json"
    if path.exists():
        what = f"The workdir {workdir} holds a run of"
        refuse_another_config(what, read_json(path), plain(config))
    else:
        write_json(path, plain(config))
    refuse_older(workdir / "state.npz")
    try:
        last = _commits(workdir).last()
        if last is None:
            return 0, 0.0
        facts = restore_state(model, last)
    except ValueError as error:
        raise ExperimentError(f"{error} {START_AGAIN}") from error
    return facts["step"], facts["seconds"]


def _commits(workdir: Path) -> Commits:
    return Commits(workdir / "checkpoints", "step")
