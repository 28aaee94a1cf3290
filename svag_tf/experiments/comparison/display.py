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

from svag_tf.experiments.comparison.plan import Plan
from svag_tf.experiments.comparison.results import Outcome
from svag_tf.experiments.comparison.variants import titles


class Display:
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
