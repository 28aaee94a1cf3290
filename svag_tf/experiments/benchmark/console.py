"""Shows the benchmark's progress and results on a terminal."""

from __future__ import annotations

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

from svag_tf.experiments.benchmark.measure import Options, benchmark
from svag_tf.experiments.benchmark.texts import number
from svag_tf.experiments.errors import ExperimentError


def benchmark_with_progress(options: Options) -> dict[str, Any]:
    """Runs `benchmark` with a progress bar; then prints the targets and the files.

    Failed rows raise an error after all is written.
    """
    console = Console()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed, left:"),
        TimeRemainingColumn(),
        console=console,
    )
    try:
        with progress:
            task = progress.add_task("starts", total=None)

            def report(done: float, work: float, what: str) -> None:
                progress.update(
                    task, completed=done, total=work, description=what or None
                )

            results = benchmark(options, report)
            progress.update(task, description="done")
    except KeyboardInterrupt:
        raise ExperimentError(
            f"Interrupted. {options.workdir} holds the cases that were finished."
        ) from None
    words = {True: "met", False: "missed"}
    for target in results.get("targets", []):
        if target["met"] is not None:
            console.print(
                f"{words[target['met']]:7}{target['text']}: "
                f"{number(target['value'])} ({target['target']})",
                highlight=False,
            )
    console.print(f"Results: {options.workdir / 'benchmark.md'}", highlight=False)
    failed = [
        f"{row['title']} ({case['title']})"
        for case in results["cases"].values()
        for row in case["rows"].values()
        if "error" in row or "fresh_error" in row
    ]
    if failed:
        raise ExperimentError(f"Not measured (see there): {', '.join(failed)}")
    return results
