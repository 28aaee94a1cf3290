"""Shared by the simulations: progress, findings and result files."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from svag_tf.experiments import machine
from svag_tf.experiments.config import plain
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import writable_folder, write_json, write_text
from svag_tf.experiments.tables import markdown

Row = Mapping[str, Any]
PACKAGES = ("svag_tf", "tensorflow", "keras", "numpy")  # that the numbers depend on


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, and the measurements on it.

    Attributes:
        claim: a sentence.
        measured: the numbers in words.
        agrees: whether they support the claim; None if they cannot tell.
        numbers: the same numbers, by name.
    """

    claim: str
    measured: str
    agrees: bool | None
    numbers: dict[str, Any]


@contextlib.contextmanager
def progress(
    steps: int, interrupted: str = "Interrupted. Nothing was written."
) -> Iterator[Callable[[str], None]]:
    """Shows a progress bar; yields a function to call with the name of each step.

    A KeyboardInterrupt becomes an `ExperimentError` with the message `interrupted`.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        speed_estimate_period=600,
    )
    try:
        with bar:
            task = bar.add_task("", total=steps)
            started = 0

            def start(name: str) -> None:
                nonlocal started
                bar.update(task, description=name, completed=started)
                started += 1

            yield start
            bar.update(task, description="done", completed=steps)
    except KeyboardInterrupt:
        raise ExperimentError(interrupted) from None


class Report:
    """The results of a simulation: a folder of figures, tables and findings."""

    def __init__(
        self, title: str, config: Any, workdir: str | os.PathLike[str], command: str
    ):
        self.folder = writable_folder(workdir)
        self._start = time.monotonic()
        self._about: dict[str, Any] = {
            "title": title,
            "command": command,
            "config": plain(config),
            "machine": machine.description(),
        }

    def write(
        self,
        rows: Sequence[Row],
        tables: str,
        findings: Sequence[Finding],
        **more: Any,
    ) -> None:
        """Writes results.csv, results.json and results.md, and prints the findings.

        Args:
            rows: rows of the CSV file, all with the same names.
            tables: tables in Markdown.
            findings: the paper's claims.
            **more: further content of results.json. `seconds` replaces the time since
                this object was made.
        """
        about = {**self._about, "seconds": time.monotonic() - self._start, **more}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / "results.csv", text.getvalue())
        write_json(
            self.folder / "results.json",
            {**about, "findings": [asdict(f) for f in findings], "results": list(rows)},
        )
        write_text(self.folder / "results.md", _page(tables, findings, about))
        console = Console(highlight=False, markup=False)
        for finding in findings:
            console.print(f"{_verdict(finding)}: {finding.claim} {finding.measured}")
        console.print(f"Results in {self.folder}:")
        for path in sorted(p for p in self.folder.glob("*.*") if p.name[0] != "."):
            console.print(f"  {path.name}")


def _verdict(finding: Finding) -> str:
    return {True: "agrees", False: "DISAGREES", None: "undecided"}[finding.agrees]


def _page(tables: str, findings: Sequence[Finding], about: Mapping[str, Any]) -> str:
    machine = about["machine"]
    packages = ", ".join(
        f"{name} {version}"
        for name, version in machine["packages"].items()
        if name in PACKAGES
    )
    lines = [[f.claim, f.measured, _verdict(f)] for f in findings]
    headings = ["claim", "measured", "verdict"]
    return (
        f"# {about['title']}\n\n{markdown(headings, lines, left=(0, 1, 2))}\n{tables}\n"
        f"    {about['command']}\n\n"
        f"Commit {machine['commit'] or 'unknown'}, {machine['date'][:10]}, "
        f"{about['seconds']:.0f} s on {machine['cpu']}, {machine['cores']} cores. "
        f"Python {machine['python']}, {packages}.\n"
    )
