"""Shared by the simulations: checked configs, progress, findings and result files."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import write_json, write_text
from svag_tf.experiments.training.config import Field, flatten
from svag_tf.optional import matplotlib, require

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


def whole(low: int) -> Field:
    """Returns a field that holds a whole number."""
    return Field(int, lambda v: v >= low, f"a whole number >= {low}")


def list_of(valid: Callable[[Any], bool], expected: str) -> Field:
    """Returns a field that holds one or more values, none of them twice."""

    def all_valid(values: Any) -> bool:
        return 0 < len(values) == len(set(values)) and all(map(valid, values))

    return Field(list | tuple, all_valid, expected)  # type: ignore[arg-type]


def checked(config: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """Checks every field of a config, and that matplotlib is installed.

    Args:
        config: a flat `ConfigDict` or dict.
        fields: the fields that it must have.

    Returns:
        The config as a dict of plain JSON values.

    Raises:
        ExperimentError: with the field, its valid values, and the value it had.
        ImportError: if matplotlib is missing.
    """
    require(matplotlib)
    flat = flatten(config.to_dict() if hasattr(config, "to_dict") else config)
    unknown, missing = sorted(flat.keys() - fields), sorted(fields.keys() - flat)
    if unknown or missing:
        raise ExperimentError(
            f"The config's fields must be: {', '.join(fields)}. "
            f"Unknown: {', '.join(unknown) or 'none'}; "
            f"missing: {', '.join(missing) or 'none'}"
        )
    for name, field in fields.items():
        if not field.accepts(flat[name]):
            raise ExperimentError(
                f"{name} must be {field.expected}. Received: {name}={flat[name]!r}"
            )
    return json.loads(json.dumps(flat))


@contextlib.contextmanager
def progress(
    steps: int, interrupted: str = "Interrupted. Nothing was written."
) -> Iterator[Callable[[str], None]]:
    """Shows a progress bar with the time left.

    Args:
        steps: length of the work.
        interrupted: the message of the error after an interruption.

    Yields:
        A function to call with the name of each step when it starts.

    Raises:
        ExperimentError: instead of a KeyboardInterrupt.
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


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table, right-aligned except for the first column."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_results(
    workdir: Path,
    rows: Sequence[Row],
    tables: str,
    findings: Sequence[Finding],
    about: Mapping[str, Any],
) -> None:
    """Writes results.csv, results.json and results.md, and prints the findings.

    Args:
        workdir: an existing folder that already has the figures.
        rows: rows of the CSV file, all with the same names.
        tables: tables in Markdown.
        findings: the paper's claims.
        about: `title`, `command`, `config`, `machine` and `seconds`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(workdir / "results.csv", text.getvalue())
    write_json(
        workdir / "results.json",
        {**about, "findings": [asdict(f) for f in findings], "results": list(rows)},
    )
    write_text(workdir / "results.md", _page(tables, findings, about))
    console = Console(highlight=False, markup=False)
    for finding in findings:
        console.print(f"{_verdict(finding)}: {finding.claim} {finding.measured}")
    console.print(f"Results in {workdir}:")
    for path in sorted(p for p in workdir.glob("*.*") if p.name[0] != "."):
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
    claims = table(["the paper's claim", "measured", "verdict"], lines)
    return (
        f"# {about['title']}\n\n{claims.replace('---:', '---')}\n{tables}\n"
        f"    {about['command']}\n\n"
        f"Commit {machine['commit'] or 'unknown'}, {machine['date'][:10]}, "
        f"{about['seconds']:.0f} s on {machine['cpu']}, {machine['cores']} cores. "
        f"Python {machine['python']}, {packages}.\n"
    )
