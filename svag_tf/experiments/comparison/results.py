"""The results of a comparison: outcomes of runs, and the ranking of the optimizers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svag_tf.experiments.training.config import TrainingConfig
from svag_tf.experiments.training.run_folder import Row

MEASURES = (
    "test_accuracy",
    "train_accuracy",
    "test_loss",
    "train_loss",
    "train_seconds",
    "ms_per_step",
)
ENDED = ("completed", "stopped", "diverged", "failed")  # from best to worst
TARGET_PART = 0.95


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        learning_rate: None only if the run failed at once with a default.
        seed: the run's seed.
        ended: one of `ENDED`; "stopped" as hopeless while tuning.
        error: the error of a failed run.
        rows: its epochs, as `train` returns them.
        cpu: the CPU on which it ran.
    """

    learning_rate: float
    seed: int
    ended: str
    error: str | None
    rows: list[Row]
    cpu: str

    def order(self, measure: str) -> tuple[float, float, float]:
        """Returns a key to sort by: the best run by a measure has the lowest."""
        last = self.rows[-1] if self.rows else {}
        first, loss = (last.get(name, math.inf) for name in (measure, "test_loss"))
        if measure == "test_accuracy":
            first = -first
        return (
            ENDED.index(self.ended),
            first if math.isfinite(first) else math.inf,
            loss if math.isfinite(loss) else math.inf,
        )

    def sentence(self) -> str:
        """Returns a sentence for the terminal."""
        if self.ended == "failed":
            return f"failed: {self.error}"
        last = self.rows[-1]
        if self.ended == "diverged":
            return f"diverged in epoch {last['epoch']}"
        text = f"test loss {last['test_loss']:.4f}"
        if not math.isnan(last["test_accuracy"]):
            text += f"  accuracy {last['test_accuracy']:.4f}"
        if self.ended == "stopped":
            text += f"  stopped as hopeless after epoch {last['epoch']}"
        return text

    def measures(self) -> dict[str, float]:
        """Returns `MEASURES` at the end; NaN where there is none."""
        if not self.rows:
            return dict.fromkeys(MEASURES, math.nan)
        # The median, as the first epoch of a process compiles the model.
        times = [
            row["train_seconds"] / (row["step"] - before["step"])
            for before, row in itertools.pairwise(self.rows)
            if row["step"] > before["step"]
        ]
        return {
            **{name: self.rows[-1][name] for name in MEASURES[:4]},
            "train_seconds": round(sum(row["train_seconds"] for row in self.rows), 3),
            "ms_per_step": round(1000 * statistics.median(times or [math.nan]), 3),
        }


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        config: the config of all runs except optimizer and seed.
        titles: titles of the optimizers, by their labels.
        scouting: for each optimizer, a run for each rate that the scout tried; none
            without a scout.
        tuning: for each optimizer, a run for each rate tried; none if it has a rate of
            its own.
        runs: for each optimizer, a run for each seed.
        seeds: seeds of the runs.
        accuracy: whether the problem has one.
        tuned_by: the measure by which rates were chosen.
        budget: see `budgets.describe`.
        target: test accuracy (or loss) that the user gave, or None.
        about: command, machine and so on.
    """

    config: TrainingConfig
    titles: dict[str, str]
    scouting: dict[str, list[Outcome]]
    tuning: dict[str, list[Outcome]]
    runs: dict[str, list[Outcome]]
    seeds: list[int]
    accuracy: bool
    tuned_by: str
    budget: dict[str, Any]
    target: float | None
    about: dict[str, Any]

    @property
    def field(self) -> str:
        """The measure that counts."""
        return "test_accuracy" if self.accuracy else "test_loss"


def best(outcomes: Sequence[Outcome], measure: str) -> Outcome | None:
    """Returns the run with the best final accuracy or loss; None if no runs.

    The test loss breaks ties. Stopped runs come after completed ones, then
    diverged ones, then failed ones. Of two equal runs, the one with the lower rate is
    taken.
    """
    return min(
        outcomes, key=lambda o: (*o.order(measure), o.learning_rate), default=None
    )


def rank(comparison: Comparison) -> list[str]:
    """Returns the optimizers' labels, best first.

    The mean final test accuracy counts (the loss if there is none, or if accuracies are
    equal). Optimizers with runs that diverged or failed come after all others, those
    with more such runs last.
    """

    def order(label: str) -> tuple[float, ...]:
        outcomes = comparison.runs[label]
        good = [o.measures() for o in outcomes if o.ended == "completed"]
        mean = {
            name: statistics.fmean(m[name] for m in good) if good else math.inf
            for name in ("test_accuracy", "test_loss")
        }
        first = -mean["test_accuracy"] if comparison.accuracy else 0.0
        return (len(outcomes) - len(good), first, mean["test_loss"])

    return sorted(comparison.runs, key=order)


def default_target(comparison: Comparison) -> float:
    """Returns 95 % of the way from the untrained model to the best optimizer's mean.

    NaN if no run was completed.
    """
    label = rank(comparison)[0]
    good = [o for o in comparison.runs[label] if o.ended == "completed"]
    if not good:
        return math.nan
    start, end = (
        statistics.fmean(o.rows[i][comparison.field] for o in good) for i in (0, -1)
    )
    return start + TARGET_PART * (end - start)


def steps_to(rows: Sequence[Row], target: float, accuracy: bool) -> int | None:
    """Returns batches until the first evaluation that reaches the target, or None."""
    for row in rows:
        if accuracy and row["test_accuracy"] >= target:
            return row["step"]
        if not accuracy and row["test_loss"] <= target:
            return row["step"]
    return None


def summary(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarises each optimizer's results over its seeds, in the given order.

    Returns:
        One dict per optimizer: `rank`, `optimizer`, `learning_rate`, `runs`,
        `diverged` and `failed` (how many), for each of `MEASURES` a list of the
        seeds' values (without runs that diverged or failed), and `steps_to_target`,
        the same with None for runs that never reached it.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(
            result["optimizer"],
            {
                **{k: result[k] for k in ("rank", "optimizer", "learning_rate")},
                **dict.fromkeys(("runs", "diverged", "failed"), 0),
                **{name: [] for name in (*MEASURES, "steps_to_target")},
            },
        )
        row["runs"] += 1
        if result["ended"] == "completed":
            for name in (*MEASURES, "steps_to_target"):
                row[name].append(result[name])
        else:
            row[result["ended"]] += 1
    return list(rows.values())
