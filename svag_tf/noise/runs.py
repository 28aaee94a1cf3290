"""Reads what was measured in a run."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from svag_tf.noise.files import BINS, COLUMNS, HISTOGRAM_COLUMNS, OVERALL, read_table


class ReportError(Exception):
    """Raised if a folder cannot be reported on; its message is meant for the user."""


class NothingMeasured(ReportError):
    """Raised if a folder holds no measurement, or none yet."""


@dataclass(frozen=True)
class Run:
    """The measurements of a run.

    Attributes:
        name: the name for legends.
        noise: for each layer, and `OVERALL`, a dict of columns: arrays over the
            measurements.
        histograms: for each layer the gamma histogram of the last measurement; empty
            unless the preset was "full".
        gamma_over_time: steps, and shape (BINS, steps): shares of all elements.
        metrics: columns of `metrics.csv`; empty without one.
        complete: whether the training has ended; None if unknown.
    """

    name: str
    noise: dict[str, dict[str, np.ndarray]]
    histograms: dict[str, np.ndarray]
    gamma_over_time: tuple[np.ndarray, np.ndarray]
    metrics: dict[str, np.ndarray]
    complete: bool | None


def read_run(folder: Path, name: str) -> Run:
    """Reads the files of a run, which may still be written to.

    Raises:
        ReportError: if a file is missing or malformed; names it.
    """
    try:
        rows = read_table(folder / "noise.csv", COLUMNS)
        histograms = read_table(folder / "noise_histograms.csv", HISTOGRAM_COLUMNS)
        # The line of all layers comes last: without it a measurement is incomplete.
        steps = list(dict.fromkeys(r["step"] for r in rows if r["layer"] == OVERALL))
        if not steps:
            raise NothingMeasured(
                f"{folder} holds no measurements: {folder / 'noise.csv'} must have "
                "been written by svag_tf.callbacks.GradientNoise(log_dir=...), or by "
                "scripts/train.py with --config.noise.preset=full"
            )
        at = {step: i for i, step in enumerate(steps)}
        noise: dict[str, dict[str, np.ndarray]] = {}
        for row in rows:
            if row["step"] in at:
                columns = noise.setdefault(
                    row["layer"],
                    {c: np.full(len(at), math.nan) for c in COLUMNS if c != "layer"},
                )
                for column, values in columns.items():
                    values[at[row["step"]]] = float(row[column] or math.nan)
        gamma = [row for row in histograms if row["quantity"] == "gamma"]
        counts = {
            (int(row["step"]), row["layer"]): np.array(
                [int(row[f"bin_{i}"]) for i in range(BINS)]
            )
            for row in gamma
        }
    except (OSError, ValueError) as error:
        raise ReportError(f"{folder} cannot be read: {error}") from error
    last = max((step for step, _ in counts), default=0)
    counted = sorted(step for step, layer in counts if layer == OVERALL)
    over_time = np.array([counts[step, OVERALL] for step in counted]).T
    metrics = _metrics(folder / "metrics.csv")
    return Run(
        name,
        noise,
        {layer: row for (step, layer), row in counts.items() if step == last},
        (np.array(counted), over_time / np.maximum(over_time.sum(0), 1)),
        metrics,
        _complete(folder, metrics),
    )


def _metrics(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {
            name: np.array([float(row[name] or math.nan) for row in rows])
            for name in (rows[0] if rows else ())
        }
    except (OSError, ValueError, TypeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error


def _complete(folder: Path, metrics: dict[str, np.ndarray]) -> bool | None:
    try:
        epochs = float(json.loads((folder / "config.json").read_text())["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return bool("epoch" in metrics and metrics["epoch"][-1] >= epochs)
