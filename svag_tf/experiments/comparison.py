"""Several optimizers and seeds on one problem: their runs, a table and a figure."""

from __future__ import annotations

import copy
import csv
import importlib.metadata
import io
import itertools
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from svag_tf.experiments.config import checked
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.files import write_json, write_text
from svag_tf.experiments.optimizers import OPTIMIZERS, TITLES, build_optimizer
from svag_tf.experiments.plots import save_comparison
from svag_tf.experiments.run_folder import Row, RunFolder
from svag_tf.experiments.training import train

COLUMNS = (
    "optimizer",
    "seed",
    "learning_rate",
    "epochs",
    "diverged",
    "test_accuracy",
    "train_accuracy",
    "test_loss",
    "train_loss",
    "ms_per_step",
)
PACKAGES = ("svag-tf", "keras", "tensorflow", "tensorflow-cpu", "jax", "torch", "numpy")


@dataclass(frozen=True)
class Run:
    """One run of a comparison: its checked config and its folder."""

    config: dict[str, Any]
    folder: Path

    @property
    def optimizer(self) -> str:
        return self.config["optimizer"]["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]


def compare(
    config: Any,
    optimizers: Sequence[str],
    seeds: Sequence[int],
    workdir: str | os.PathLike[str],
) -> list[dict[str, Any]]:
    """Trains a problem with each optimizer and seed, and compares the runs.

    Shows the progress of the whole. Runs that an earlier, interrupted start finished
    are not made again. A run that diverges is noted as such, and the others go on.

    Args:
        config: as for `train`; its `optimizer.name` and `seed` are replaced. A
            `optimizer.learning_rate` of None leaves each optimizer its default.
        optimizers: names, see `OPTIMIZERS`.
        seeds: whole numbers.
        workdir: folder for the results: one folder a run, `results.csv` (one line a
            run), `results.md` (mean and deviation over the seeds), `results.json`
            (everything) and `curves.png`.

    Returns:
        One dict a run: `COLUMNS`.

    Raises:
        ExperimentError: before any training, if a run's config or folder cannot be
            used.
    """
    workdir = Path(workdir)
    runs = _planned(config, optimizers, seeds, workdir)
    rows = _trained(runs)
    results = [_result(run, rows[run.folder]) for run in runs]
    curves: dict[str, list[list[Row]]] = {}
    for run in runs:
        curves.setdefault(run.optimizer, []).append(rows[run.folder])
    write_text(workdir / "results.csv", _csv(results))
    write_text(workdir / "results.md", _markdown(results, runs[0].config, seeds))
    write_json(
        workdir / "results.json",
        {
            "environment": environment(),
            "results": results,
            "runs": [
                {"config": run.config, "epochs": rows[run.folder]} for run in runs
            ],
        },
    )
    save_comparison(curves, _caption(runs[0].config, seeds), workdir / "curves.png")
    _print(results, workdir)
    return results


def environment() -> dict[str, Any]:
    """What the numbers, and above all the times, depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "backend": keras.backend.backend(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        **versions,
    }


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of each optimizer over its seeds, in the order they come in.

    Returns:
        One dict an optimizer: `optimizer`, `learning_rate`, `runs`, `diverged` (how
        many), and for each measure in `COLUMNS` a list of the seeds' values; those of
        runs that diverged are left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(
            result["optimizer"],
            {
                "optimizer": result["optimizer"],
                "learning_rate": result["learning_rate"],
                "runs": 0,
                "diverged": 0,
                **{name: [] for name in COLUMNS[5:]},
            },
        )
        row["runs"] += 1
        row["diverged"] += result["diverged"]
        if not result["diverged"]:
            for name in COLUMNS[5:]:
                row[name].append(result[name])
    return list(rows.values())


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """`mean ± sample standard deviation`, each as `form` says; the mean of one.

    "-" if there is nothing to average: no values, or NaN for what a problem has not.
    """
    if not values or any(math.isnan(value) for value in values):
        return "-"
    mean = format(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(statistics.stdev(values), form)}"


def _planned(
    config: Any, optimizers: Sequence[str], seeds: Sequence[int], workdir: Path
) -> list[Run]:
    for name, values in (("optimizers", optimizers), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ExperimentError(
                f"{name} must name at least one, and none twice. Received: "
                f"{name}={list(values)}"
            )
    unknown = [name for name in optimizers if name not in OPTIMIZERS]
    if unknown:
        raise ExperimentError(
            f"optimizers must be of {', '.join(OPTIMIZERS)}. Received: "
            f"{', '.join(unknown)}"
        )
    runs = []
    for name in optimizers:
        for seed in seeds:
            one = copy.deepcopy(
                config.to_dict() if hasattr(config, "to_dict") else config
            )
            one["optimizer"]["name"], one["seed"] = name, seed
            run = Run(checked(one), workdir / f"{name}-seed{seed}")
            build_optimizer(run.config["optimizer"], run.config["schedule"], 1, 1)
            RunFolder(run.folder).check(run.config)
            runs.append(run)
    return runs


def _trained(runs: Sequence[Run]) -> dict[Path, list[Row]]:
    rows: dict[Path, list[Row]] = {}
    start = time.monotonic()
    epochs = runs[0].config["epochs"] + 1  # and epoch 0, before training
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        speed_estimate_period=600,
    ) as progress:
        task = progress.add_task("", total=len(runs) * epochs)
        for i, run in enumerate(runs):
            name = f"{TITLES[run.optimizer]}, seed {run.seed}"
            progress.update(task, description=f"{name} ({i + 1}/{len(runs)})")
            keras.utils.clear_session()
            try:
                made = train(
                    run.config, run.folder, report=lambda row: progress.advance(task)
                )
                last = made[-1]
                outcome = f"test loss {last['test_loss']:.4f}"
                if not math.isnan(last["test_accuracy"]):
                    outcome += f"  accuracy {last['test_accuracy']:.4f}"
            except DivergedError:
                made = RunFolder(run.folder).check(run.config).rows
                outcome = f"diverged in epoch {made[-1]['epoch']}"
            rows[run.folder] = made
            progress.update(task, completed=(i + 1) * epochs)
            left = (time.monotonic() - start) / (i + 1) * (len(runs) - i - 1)
            progress.console.print(
                f"{i + 1:{len(str(len(runs)))}}/{len(runs)}  {name:16}  {outcome}  "
                f"ETA {timedelta(seconds=round(left))}",
                highlight=False,
            )
    return rows


def _result(run: Run, rows: list[Row]) -> dict[str, Any]:
    last = rows[-1]
    # Of the later epochs: the first one of a process compiles the model.
    times = [
        row["train_seconds"] / (row["step"] - before["step"])
        for before, row in itertools.pairwise(rows)
    ]
    return {
        "optimizer": run.optimizer,
        "seed": run.seed,
        "learning_rate": rows[0]["learning_rate"],
        "epochs": last["epoch"],
        "diverged": last["epoch"] < run.config["epochs"],
        **{name: last[name] for name in COLUMNS[5:-1]},
        "ms_per_step": round(1000 * statistics.median(times), 3),
    }


def _csv(results: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerow(
            {k: np.float32(v) if isinstance(v, float) else v for k, v in result.items()}
        )
    return text.getvalue()


def _caption(config: Mapping[str, Any], seeds: Sequence[int]) -> str:
    rate = config["optimizer"]["learning_rate"]
    rates = "default learning rates" if rate is None else f"learning rate {rate:g}"
    return f"{config['problem']}, {rates}, {len(seeds)} seed" + "s" * (len(seeds) > 1)


HEADINGS = (
    "optimizer",
    "learning rate",
    "test accuracy, %",
    "train accuracy, %",
    "test loss",
    "train loss",
    "ms a step",
)


def _cells(row: Mapping[str, Any]) -> list[str]:
    title = TITLES[row["optimizer"]]
    if row["diverged"]:
        title += f" ({row['diverged']} of {row['runs']} diverged)"
    percent = {
        name: [100 * value for value in row[name]]
        for name in ("test_accuracy", "train_accuracy")
    }
    return [
        title,
        f"{row['learning_rate']:g}",
        mean_and_deviation(percent["test_accuracy"], ".2f"),
        mean_and_deviation(percent["train_accuracy"], ".2f"),
        mean_and_deviation(row["test_loss"], ".4f"),
        mean_and_deviation(row["train_loss"], ".4f"),
        mean_and_deviation(row["ms_per_step"], ".2f"),
    ]


def _markdown(
    results: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    seeds: Sequence[int],
) -> str:
    lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)]]
    lines += [_cells(row) for row in summary(results)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{table}\n\n"
        f"{_caption(config, seeds)}: mean ± standard deviation over the seeds "
        f"{', '.join(map(str, seeds))} after {config['epochs']} epochs of batches of "
        f"{config['batch_size']}. "
        + ", ".join(f"{name} {value}" for name, value in environment().items())
        + ".\n"
    )


def _print(results: Sequence[Mapping[str, Any]], workdir: Path) -> None:
    shown = [i for i, heading in enumerate(HEADINGS) if "train" not in heading]
    table = Table()
    for i in shown:
        table.add_column(HEADINGS[i], justify="right" if i else "left")
    for row in summary(results):
        cells = _cells(row)
        table.add_row(*(cells[i] for i in shown))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"Results in {workdir}:")
    for name, what in (
        ("curves.png", "test accuracy, or loss, and training loss"),
        ("results.md", "this table, with the training set"),
        ("results.csv", "one line a run"),
        ("results.json", "everything: configs, epochs, versions"),
    ):
        console.print(f"  {name:12} {what}")
