"""Compares optimizers on one problem: each is tuned, then run with several seeds."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from svag_tf.experiments import machine
from svag_tf.experiments.comparison.budgets import (
    EXTENSIONS,
    GRID,
    TUNING_SEED,
    outwards,
)
from svag_tf.experiments.comparison.display import Display
from svag_tf.experiments.comparison.plan import (
    STAGES,
    Plan,
    begin,
    check_target,
    planned,
)
from svag_tf.experiments.comparison.report import write_report
from svag_tf.experiments.comparison.results import Comparison, Outcome, best
from svag_tf.experiments.comparison.storage import Queue, Storage
from svag_tf.experiments.comparison.variants import Variant, titles
from svag_tf.experiments.config import plain
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.training.config import TrainingConfig
from svag_tf.experiments.training.run_folder import Row
from svag_tf.experiments.training.train import train
from svag_tf.optional import filelock, matplotlib, optuna, require, scipy, sqlalchemy

# After the first quarter of its epochs, a run is stopped if it is among the worst
# quarter of the completed runs. The first runs are never stopped.
KEPT_PERCENT = 75.0
STARTUP_RUNS = 3


def compare(
    config: Any,
    optimizers: Sequence[str | Variant],
    workdir: str | os.PathLike[str],
    budget: str | None = None,
    seeds: Sequence[int] | None = None,
    protocol: Any = None,
    kept: Sequence[str] = (),
    storage: str | None = None,
    target: float | None = None,
    retry_failed: bool = False,
    fresh: bool = False,
    command: str = "",
) -> list[dict[str, Any]]:
    """Compares optimizers on a problem, each with its tuned learning rate.

    Tries the budget's learning rates with a seed that is used for nothing else, and
    stops hopeless runs. If the best rate is the lowest or the highest, tries rates
    beyond it. Then runs the best rate, by `Problem.tuned_by`, with every seed. Shows
    the overall progress. The same call resumes after an interruption, and several
    processes with the same workdir or storage share the work. A run that diverges or
    fails is recorded as such, and the others continue.

    Args:
        config: a `ConfigDict` or nested dicts, as for `train`; its `optimizer.name` and
            `seed` are replaced.
        optimizers: `name` or `name:argument=value:...`, see `parse_variant`, or a
            `Variant`. One with a `learning_rate` of its own is not tuned.
        workdir: folder for the results: one folder per run, `results.csv` (one line per
            run), `tuning.csv` (one line per rate), `results.md` (the ranking),
            `results.json` (everything), `curves.png`, `sensitivity.png` and, if DeepOBS
            has published some of the optimizers, `faithfulness.md`.
        budget: a name in `BUDGETS`. Defaults to `None`: nothing is tuned; each
            optimizer has `config.optimizer.learning_rate`, or its own default.
        seeds: whole numbers. Defaults to `None`: as many as the budget says, or 3.
        protocol: the config in its file, that is, with the problem's full length.
            Defaults to `None`: `config`.
        kept: names of the config's fields that the budget must not change.
        storage: a file or an SQL database's URL for the runs. Defaults to `None`:
            `study.db` in the workdir.
        target: test accuracy (or loss) to which the steps are counted. Defaults to
            `None`: 95 % of the way from the untrained model to the best optimizer.
        retry_failed: repeat runs that failed earlier.
        fresh: delete runs of other data or another model instead of refusing them.
        command: the command line, for the results.

    Returns:
        One dict per run with a seed: `comparison_report.COLUMNS`; the best optimizer
        first.

    Raises:
        ExperimentError: before any training, if a run's config or folder, or the
            storage, cannot be used.
        ImportError: before any training, if a package is missing.
    """
    require(filelock, matplotlib, optuna, scipy, sqlalchemy)
    workdir = Path(workdir)
    plan = planned(config, optimizers, workdir, budget, seeds, protocol, kept, fresh)
    check_target(plan, target)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        keep = Storage(storage or str(workdir / "study.db"), workdir)
    except ExperimentError:
        if new:
            shutil.rmtree(workdir)
        raise
    with keep.lock:
        begin(plan)
    start = time.monotonic()
    with keep.opened(), Display(plan) as display:
        outcomes = []
        for variant in plan.variants:
            rate = variant.learning_rate
            scouting: list[Outcome] = []
            tuning: list[Outcome] = []
            if plan.tunes(variant):
                rates = plan.budget.rates
                if plan.scout is not None:
                    scouting, rate = _tune(
                        plan.scout, variant, plan.scout.budget.rates, keep, display,
                        retry_failed,
                    )  # fmt: skip
                    rates = plan.budget.around(rate)
                tuning, rate = _tune(plan, variant, rates, keep, display, retry_failed)
            runs = _run_seeds(plan, variant, rate, keep, display, retry_failed)
            outcomes.append((variant, scouting, tuning, runs))
    for stage in STAGES:
        with contextlib.suppress(OSError):  # not there, or another process is tuning
            (workdir / stage).rmdir()
    comparison = Comparison(
        config=plan.config,
        titles=titles(plan.variants),
        scouting={variant.label: scouting for variant, scouting, _, _ in outcomes},
        tuning={variant.label: tuning for variant, _, tuning, _ in outcomes},
        runs={variant.label: runs for variant, _, _, runs in outcomes},
        seeds=plan.seeds,
        accuracy=plan.accuracy,
        tuned_by=plan.tuned_by,
        budget=plan.described,
        target=target,
        about={
            "command": command.replace(storage, keep.shown) if storage else command,
            "storage": keep.shown,
            "seconds_of_this_start": round(time.monotonic() - start, 1),
            "machine": machine.description(),
            "backend": keras.backend.backend(),
        },
    )
    with keep.lock:  # other processes write the same files
        return write_report(comparison, workdir)


def _tune(
    plan: Plan,
    variant: Variant,
    rates: Sequence[float],
    storage: Storage,
    display: Display,
    retry: bool,
) -> tuple[list[Outcome], float]:
    """Makes a run for each rate, and beyond the edge if the best rate lies there.

    Returns:
        The outcomes, and the best rate.
    """
    epochs = plan.config.epochs
    default = inspect.signature(OPTIMIZERS[variant.name]).parameters["learning_rate"]
    # The study varies the rate; its config has one only to be complete.
    study = storage.study(
        f"{plan.config.problem} {variant.label} {plan.stage}",
        plain(plan.config_of(variant, GRID[0], TUNING_SEED)),
        plan.tuned_by == "test_accuracy",
        optuna.pruners.PercentilePruner(
            KEPT_PERCENT, STARTUP_RUNS, n_warmup_steps=math.ceil(epochs / 4)
        ),
        plan.made_of,
        plan.fresh,
    )
    made: list[Path] = []

    def run(trial: optuna.Trial, rate: float) -> float:
        folder = plan.tuning_folder_of(variant, rate)
        config = plan.config_of(variant, rate, TUNING_SEED)
        title = display.titles[variant.label]
        display.begin(f"{title}, {plan.stage}, rate {rate:.3g}")
        made.append(folder)
        return _run(trial, plan, config, folder, True, display)

    def clean() -> None:  # once the study has the result of a run
        while made:
            shutil.rmtree(made.pop(), ignore_errors=True)

    order = outwards(rates, default.default)
    with display.stage(len(order), epochs):
        while True:
            queue = Queue(storage, study, "learning_rate", order)
            outcomes = _outcomes(queue, run, display, retry, clean)
            chosen = best(outcomes, plan.tuned_by)
            assert chosen is not None
            further = plan.budget.beyond(order, chosen.learning_rate)
            extensions = len(order) - len(rates)
            if further is None or extensions == EXTENSIONS or chosen.ended == "failed":
                break
            order.append(further)
            display.extend()
    shutil.rmtree(plan.workdir / plan.stage / variant.folder, ignore_errors=True)
    return outcomes, chosen.learning_rate


def _run_seeds(
    plan: Plan,
    variant: Variant,
    rate: float | None,
    storage: Storage,
    display: Display,
    retry: bool,
) -> list[Outcome]:
    """Makes a run for each seed."""
    study = storage.study(
        f"{plan.config.problem} {variant.label} seeds",
        plain(plan.config_of(variant, rate, plan.seeds[0])) | {"seed": None},
        plan.tuned_by == "test_accuracy",
        optuna.pruners.NopPruner(),
        plan.made_of,
        plan.fresh,
    )
    queue = Queue(storage, study, "seed", plan.seeds)

    def run(trial: optuna.Trial, seed: float) -> float:
        folder = plan.folder_of(variant, rate, int(seed))
        config = plan.config_of(variant, rate, int(seed))
        display.begin(f"{display.titles[variant.label]}, seed {seed}")
        return _run(trial, plan, config, folder, False, display)

    with display.stage(len(plan.seeds), plan.config.epochs):
        return _outcomes(queue, run, display, retry)


def _outcomes(
    queue: Queue,
    run: Callable[[optuna.Trial, float], float],
    display: Display,
    retry: bool,
    clean: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    def finished(done: Mapping[float, Any]) -> None:
        clean()
        display.finished(done)

    if retry:
        queue.retry()
    trials = queue.work(run, finished)
    return [Outcome(**trial.user_attrs["result"]) for trial in trials.values()]


def _run(
    trial: optuna.Trial,
    plan: Plan,
    config: TrainingConfig,
    folder: Path,
    prune: bool,
    display: Display,
) -> float:
    """Trains once and records the outcome in the trial. Returns the final result."""
    rows: list[Row] = []
    ended, error = "completed", None
    field = plan.tuned_by

    def report(row: Row) -> None:
        rows.append(row)
        display.advance()
        finite = math.isfinite(row["train_loss"]) and math.isfinite(row["test_loss"])
        if prune and finite and 0 < row["epoch"] < config.epochs:
            trial.report(row[field], row["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned

    keras.utils.clear_session()
    try:
        train(config, folder, report=report, data=plan.data)
    except DivergedError:
        ended = "diverged"
    except optuna.TrialPruned:
        ended = "stopped"
    except ExperimentError:
        raise  # not a failed run, but something that the user can fix
    except Exception as problem:  # out of memory, a numerical library's error, ...
        ended = "failed"
        error = f"{type(problem).__name__}: {problem}".strip().splitlines()[0]
    rate: Any = config.optimizer.learning_rate
    outcome = Outcome(
        learning_rate=rows[0]["learning_rate"] if rate is None and rows else rate,
        seed=config.seed,
        ended=ended,
        error=error,
        rows=rows,
        cpu=_cpu(),
    )
    trial.set_user_attr("outcome", ended)
    trial.set_user_attr("result", asdict(outcome))
    display.end(outcome)
    if ended == "stopped":
        raise optuna.TrialPruned
    if ended == "completed":
        return rows[-1][field]
    return -math.inf if field == "test_accuracy" else math.inf


@functools.cache
def _cpu() -> str:
    return machine.description()["cpu"]
