"""Compares optimizers on one problem: each is tuned, then run with several seeds."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from svag_tf.experiments import machine
from svag_tf.experiments.comparison.report import (
    Comparison,
    Outcome,
    best,
    write_report,
)
from svag_tf.experiments.comparison.tuning import (
    BUDGETS,
    Queue,
    Storage,
    budgeted,
    describe,
    outwards,
)
from svag_tf.experiments.comparison.variants import Variant, parse_variant, titles
from svag_tf.experiments.config import plain
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.files import read_json, write_json
from svag_tf.experiments.optimizers import OPTIMIZERS, build_optimizer
from svag_tf.experiments.problems import PROBLEMS, checks, made_of
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.training.config import TrainingConfig, checked
from svag_tf.experiments.training.distributed import started
from svag_tf.experiments.training.run_folder import Row, RunFolder
from svag_tf.experiments.training.train import prepared, train
from svag_tf.experiments.workdir import refuse_another_config
from svag_tf.optional import filelock, matplotlib, optuna, require, sqlalchemy

CONFIG, MADE_OF = "config.json", "made_of"
DEFAULT_SEEDS = (0, 1, 2)  # without a budget
# After the first quarter of the epochs, a run is stopped if it is in the worst quarter
# of the completed ones; the first runs are never stopped.
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

    Tries the budget's learning rates with the first seed, and stops those that are
    hopeless; then runs the best one, by final test accuracy (or loss), with every
    seed. Shows the overall progress. The same call resumes after an interruption, and
    several processes with the same workdir or storage share the work. A run that
    diverges or fails is recorded as such, and the others continue.

    Args:
        config: as for `train`; its `optimizer.name` and `seed` are replaced.
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
    require(filelock, matplotlib, optuna, sqlalchemy)
    workdir = Path(workdir)
    plan = _planned(config, optimizers, workdir, budget, seeds, protocol, kept, fresh)
    _check_target(plan, target)
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
        _begin(plan)
    start = time.monotonic()
    with keep.opened(), _Display(plan) as display:
        outcomes = []
        for variant in plan.variants:
            rate, tuning = variant.learning_rate, []
            if plan.tunes(variant):
                tuning = _tune(plan, variant, keep, display, retry_failed)
                chosen = best(tuning, plan.accuracy)
                assert chosen is not None
                rate = chosen.learning_rate
            runs = _run_seeds(plan, variant, rate, keep, display, retry_failed)
            outcomes.append((variant, tuning, runs))
    with contextlib.suppress(OSError):  # not there, or another process is tuning
        (workdir / "tuning").rmdir()
    comparison = Comparison(
        config=plan.config,
        titles=titles(plan.variants),
        tuning={variant.label: tuning for variant, tuning, _ in outcomes},
        runs={variant.label: runs for variant, _, runs in outcomes},
        seeds=plan.seeds,
        accuracy=plan.accuracy,
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


@dataclass(frozen=True)
class Plan:
    """A comparison before anything is run.

    Attributes:
        config: checked; the same for all runs except optimizer and seed.
        data: the problem's data, loaded once.
        variants: the optimizers.
        seeds: seeds of the runs with the best rate. The first is also used to tune.
        workdir: folder of the results.
        budget: the budget for tuning, or None.
        described: see `describe`, also without a budget.
        made_of: see `made_of.made_of`.
        fresh: whether runs of something else are deleted instead of refused.
    """

    config: TrainingConfig
    data: Data
    variants: list[Variant]
    seeds: list[int]
    workdir: Path
    budget: Any
    described: dict[str, Any]
    made_of: dict[str, str]
    fresh: bool

    @property
    def common(self) -> dict[str, Any]:
        """The part of the config that all runs of a workdir have in common."""
        config = plain(self.config)
        config["seed"] = None
        config["optimizer"] |= {"name": None, "learning_rate": None}
        return config

    @property
    def accuracy(self) -> bool:
        """Whether the problem has an accuracy; otherwise its loss counts."""
        return PROBLEMS[self.config.problem].accuracy

    def config_of(
        self, variant: Variant, rate: float | None, seed: int
    ) -> TrainingConfig:
        """Returns the checked config of a run; a rate of None keeps the config's."""
        own = {"name": variant.name, **dict(variant.arguments)}
        if rate is not None:
            own["learning_rate"] = rate
        config = plain(self.config) | {"seed": seed}
        config["optimizer"] |= own
        return checked(config)

    def tunes(self, variant: Variant) -> bool:
        """Returns whether the variant's learning rate is to be tuned."""
        return self.budget is not None and variant.learning_rate is None

    def folder_of(self, variant: Variant, rate: float | None, seed: int) -> Path:
        """Returns the folder of a run with a seed; a tuned rate is in its name."""
        tuned = f"-rate{rate:.3g}" if self.tunes(variant) else ""
        return self.workdir / f"{variant.folder}{tuned}-seed{seed}"

    def tuning_folder_of(self, variant: Variant, rate: float) -> Path:
        """Returns the folder of a run that tries a rate, deleted when the run ends."""
        return self.workdir / "tuning" / variant.folder / f"rate{rate:.3g}"


def _planned(
    config: Any,
    optimizers: Sequence[str | Variant],
    workdir: Path,
    budget_name: str | None,
    seeds: Sequence[int] | None,
    protocol: Any,
    kept: Sequence[str],
    fresh: bool,
) -> Plan:
    if budget_name is not None and budget_name not in BUDGETS:
        raise ExperimentError(
            f"budget must be one of {', '.join(BUDGETS)}. Received: {budget_name}"
        )
    budget = BUDGETS[budget_name] if budget_name else None
    variants = [
        parse_variant(one) if isinstance(one, str) else one for one in optimizers
    ]
    labels = [variant.label for variant in variants]
    if seeds is None:
        seeds = range(budget.seeds) if budget else DEFAULT_SEEDS
    for name, values in (("optimizers", labels), ("seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise ExperimentError(
                f"{name} must name at least one, and none twice. Received: "
                f"{name}={values}"
            )
    given = copy.deepcopy(config.to_dict() if hasattr(config, "to_dict") else config)
    given.setdefault("optimizer", {})["name"] = variants[0].name
    for seed in seeds:
        whole = checked(given | {"seed": seed})
    rate = whole.optimizer.learning_rate
    if budget is not None and rate is not None:
        raise ExperimentError(
            "optimizer.learning_rate is what is tuned. Leave it None, give one "
            "optimizer its own (--optimizers=adam:learning_rate=0.001), or do not "
            f"tune (--notune). Received: optimizer.learning_rate={rate}"
        )
    data = checks.load(whole.problem, PROBLEMS[whole.problem], whole.data_dir)
    examples = len(data.x_train), len(data.x_test)
    protocol = vars(whole) if protocol is None else protocol
    used = checked(budgeted(whole, budget, examples, kept)) if budget else whole
    plan = Plan(
        used,
        data,
        variants,
        list(seeds),
        workdir,
        budget,
        describe(used, protocol, budget, examples, seeds),
        _made_of(used, data),
        fresh,
    )
    for variant in variants:
        for seed in seeds:
            rate = variant.learning_rate
            if plan.tunes(variant):
                rate = plan.budget.rates[0]
            one = plan.config_of(variant, rate, seed)
            build_optimizer(one.optimizer, one.schedule, 1, 1)
            RunFolder(plan.folder_of(variant, rate, seed)).check(one)
    _check_workdir(plan)
    return plan


def _made_of(config: TrainingConfig, data: Data) -> dict[str, str]:
    """Describes data and model, which are the same in all runs, whatever their seed."""
    config = replace(config, seed=0)
    with started(config) as distribution:
        made = prepared(config, data, distribution)
        return made_of.made_of(config.problem, *made, config.distribution == "none")


def _check_workdir(plan: Plan) -> None:
    """Raises an error if something else was compared in the workdir."""
    path = plan.workdir / CONFIG
    if not os.path.lexists(path):
        return
    before = read_json(path)
    parts = before.pop(MADE_OF, None)
    what = f"The workdir {plan.workdir} holds a comparison"
    refuse_another_config(f"{what} with", before, plan.common)
    if not plan.fresh:
        made_of.refuse(what, parts, plan.made_of)


def _begin(plan: Plan) -> None:
    """Deletes runs of other data or another model, then writes the config."""
    path = plan.workdir / CONFIG
    if path.exists():
        if not made_of.differ(read_json(path).get(MADE_OF), plan.made_of):
            return
        for checkpoints in plan.workdir.glob("*/checkpoints"):
            RunFolder(checkpoints.parent).clear()
        shutil.rmtree(plan.workdir / "tuning", ignore_errors=True)
    write_json(path, plan.common | {MADE_OF: plan.made_of})


def _check_target(plan: Plan, target: float | None) -> None:
    if target is None:
        return
    if not (0 < target <= 1 if plan.accuracy else math.isfinite(target)):
        expected = "an accuracy in (0, 1]" if plan.accuracy else "a finite loss"
        raise ExperimentError(
            f"target must be {expected} for this problem. Received: target={target}"
        )


def _tune(
    plan: Plan, variant: Variant, storage: Storage, display: _Display, retry: bool
) -> list[Outcome]:
    """Makes a run for each of the budget's rates, with the first seed."""
    epochs, seed = plan.config.epochs, plan.seeds[0]
    default = inspect.signature(OPTIMIZERS[variant.name]).parameters["learning_rate"]
    rates = outwards(plan.budget.rates, default.default)
    # The study varies the rate; its config has one only to be complete.
    study = storage.study(
        f"{plan.config.problem} {variant.label} tuning",
        plain(plan.config_of(variant, min(rates), seed)),
        plan.accuracy,
        optuna.pruners.PercentilePruner(
            KEPT_PERCENT, STARTUP_RUNS, n_warmup_steps=math.ceil(epochs / 4)
        ),
        plan.made_of,
        plan.fresh,
    )
    queue = Queue(storage, study, "learning_rate", rates)
    made: list[Path] = []

    def run(trial: optuna.Trial, rate: float) -> float:
        folder = plan.tuning_folder_of(variant, rate)
        config = plan.config_of(variant, rate, seed)
        display.begin(f"{display.titles[variant.label]}, rate {rate:.3g}")
        made.append(folder)
        return _run(trial, plan, config, folder, True, display)

    def clean() -> None:  # once the study has the result of a run
        while made:
            shutil.rmtree(made.pop(), ignore_errors=True)

    outcomes = _outcomes(queue, run, display, len(rates), retry, clean)
    shutil.rmtree(plan.workdir / "tuning" / variant.folder, ignore_errors=True)
    return outcomes


def _run_seeds(
    plan: Plan,
    variant: Variant,
    rate: float | None,
    storage: Storage,
    display: _Display,
    retry: bool,
) -> list[Outcome]:
    """Makes a run for each seed."""
    study = storage.study(
        f"{plan.config.problem} {variant.label} seeds",
        plain(plan.config_of(variant, rate, plan.seeds[0])) | {"seed": None},
        plan.accuracy,
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

    return _outcomes(queue, run, display, len(plan.seeds), retry)


def _outcomes(
    queue: Queue,
    run: Callable[[optuna.Trial, float], float],
    display: _Display,
    runs: int,
    retry: bool,
    clean: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    def finished(done: Mapping[float, Any]) -> None:
        clean()
        display.finished(done)

    if retry:
        queue.retry()
    with display.stage(runs):
        trials = queue.work(run, finished)
    return [Outcome(**trial.user_attrs["result"]) for trial in trials.values()]


def _run(
    trial: optuna.Trial,
    plan: Plan,
    config: TrainingConfig,
    folder: Path,
    prune: bool,
    display: _Display,
) -> float:
    """Trains once and records the outcome in the trial. Returns the final result."""
    rows: list[Row] = []
    ended, error = "completed", None
    field = "test_accuracy" if plan.accuracy else "test_loss"

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
    return -math.inf if plan.accuracy else math.inf


@functools.cache
def _cpu() -> str:
    return machine.description()["cpu"]


class _Display:
    """Shows the overall progress: a bar, and a line for each run of this process."""

    def __init__(self, plan: Plan):
        self.titles = titles(plan.variants)
        self._epochs = plan.config.epochs + 1  # and epoch 0, before training
        rates = len(plan.budget.rates) if plan.budget else 0
        self._runs = sum(
            len(plan.seeds) + rates * plan.tunes(variant) for variant in plan.variants
        )
        self._start = time.monotonic()
        self._before = 0  # runs of stages that are over
        self._known = 0  # runs that earlier starts have made
        self._done = 0  # runs of this stage
        self._first = True
        self._rows = 0  # of the current run
        self._name = ""

    def __enter__(self) -> _Display:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
        )
        self._bar.start()
        total = self._runs * self._epochs
        self._task = self._bar.add_task("", total=total, eta="-")
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    @contextlib.contextmanager
    def stage(self, runs: int) -> Iterator[None]:
        """Begins, and at the end closes, a stage of so many runs."""
        self._first, self._done, self._rows = True, 0, 0
        yield
        self._before += runs
        self._done, self._rows = 0, 0
        self._update()

    def finished(self, done: Mapping[float, Any]) -> None:
        """Updates which runs of the stage are over, in this process or another one."""
        if self._first:
            self._known += len(done)
            self._first = False
        self._done, self._rows = len(done), 0
        self._update()

    def begin(self, name: str) -> None:
        """Starts a run."""
        self._name, self._rows = name, 0
        self._update()

    def advance(self) -> None:
        """Counts an epoch."""
        self._rows += 1
        self._update()

    def end(self, outcome: Outcome) -> None:
        """Ends a run with a line on its outcome."""
        self._rows = self._epochs
        self._update()
        number = self._before + self._done + 1
        self._bar.console.print(
            f"{number:{len(str(self._runs))}}/{self._runs}  {self._name:16}  "
            f"{outcome.sentence()}  ETA {self._eta()}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _completed(self) -> int:
        return (self._before + self._done) * self._epochs + self._rows

    def _eta(self) -> str:
        made = self._completed() - self._known * self._epochs
        if made <= 0:
            return "-"
        left = self._runs * self._epochs - self._completed()
        seconds = (time.monotonic() - self._start) / made * left
        return str(timedelta(seconds=round(seconds)))

    def _update(self) -> None:
        name = f"{self._name} ({self._before + self._done}/{self._runs})"
        self._bar.update(
            self._task, description=name, completed=self._completed(), eta=self._eta()
        )
