"""Shows the progress of a comparison in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from svag_tf.experiments.comparison.budgets import NEIGHBOURS
from svag_tf.experiments.comparison.plan import Plan
from svag_tf.experiments.comparison.results import Outcome
from svag_tf.experiments.comparison.variants import titles


class Display:
    """Shows the overall progress: a bar, and a line for each run of this process."""

    def __init__(self, plan: Plan):
        self.titles = titles(plan.variants)
        tuned = sum(plan.tunes(variant) for variant in plan.variants)
        runs = len(plan.variants) * len(plan.seeds)
        scouting = 0
        if tuned and plan.scout:
            scouting = tuned * len(plan.scout.budget.rates)
            runs += tuned * NEIGHBOURS
        elif tuned:
            runs += tuned * len(plan.budget.rates)
        self._runs = scouting + runs
        # Each run has an epoch 0, before training.
        self._total = runs * (plan.config.epochs + 1)
        if plan.scout:
            self._total += scouting * (plan.scout.config.epochs + 1)
        self._start = time.monotonic()
        self._before = 0  # runs of stages that are over
        self._epochs_before = 0  # and their epochs
        self._known = 0  # epochs that earlier starts have made
        self._epochs = 0  # of a run of this stage
        self._planned = 0  # runs of this stage
        self._done = 0  # those that are over
        self._first = True
        self._rows = 0  # of the current run
        self._name = ""

    def __enter__(self) -> Display:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, eta="-")
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.stop()

    @contextlib.contextmanager
    def stage(self, runs: int, epochs: int) -> Iterator[None]:
        """Opens a stage of `runs` runs of `epochs` epochs each, and closes it."""
        self._first, self._done, self._rows = True, 0, 0
        self._planned, self._epochs = runs, epochs + 1
        yield
        self._before += self._planned
        self._epochs_before += self._planned * self._epochs
        self._done, self._rows = 0, 0
        self._update()

    def extend(self) -> None:
        """Adds a run to the stage."""
        self._planned += 1
        self._runs += 1
        self._total += self._epochs

    def finished(self, done: Mapping[float, Any]) -> None:
        """Updates which runs of the stage have ended, in this or another process."""
        if self._first:
            self._known += len(done) * self._epochs
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
        return self._epochs_before + self._done * self._epochs + self._rows

    def _eta(self) -> str:
        made = self._completed() - self._known
        if made <= 0:
            return "-"
        left = self._total - self._completed()
        seconds = (time.monotonic() - self._start) / made * left
        return str(timedelta(seconds=round(seconds)))

    def _update(self) -> None:
        name = f"{self._name} ({self._before + self._done}/{self._runs})"
        self._bar.update(
            self._task,
            description=name,
            completed=self._completed(),
            total=self._total,
            eta=self._eta(),
        )
