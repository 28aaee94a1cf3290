"""Writes a self-contained page on how noisy the gradients of one or more runs are.

    python -m svag_tf.report WORKDIR [WORKDIR ...] [--output=PAGE] [--watch]

Reads what `svag_tf.callbacks.GradientNoise` wrote with `log_dir=WORKDIR`, and what
`scripts/train.py` wrote beside it (`metrics.csv`). The page needs no network. Exit
code: 0 if it was written, else not 0.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from svag_tf.files import whole_file
from svag_tf.noise.page import page
from svag_tf.noise.runs import NothingMeasured, ReportError, Run, read_run


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def write_report(
    folders: Sequence[Path], output: Path, refresh: int | None = None
) -> list[Run]:
    """Reads the runs in `folders` and writes the page atomically."""
    runs = [
        read_run(folder, name)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    if output.is_dir():
        raise ReportError(f"Cannot write {output}: it is a folder")
    try:
        with whole_file(output) as temporary:
            temporary.write_text(page(runs, refresh), encoding="utf-8")
    except OSError as error:
        raise ReportError(str(error)) from error
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svag_tf.report",
        description="Writes one HTML page on the gradients' noise in one or more runs.",
    )
    parser.add_argument("workdir", nargs="+", type=Path, help="the folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        help="the page to write; default: report.html in the run's folder, or in the "
        "current one for several runs",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="rewrite the page until the runs are complete; browsers reload it",
    )
    parser.add_argument(
        "--interval", type=int, default=10, help="seconds between pages; default: 10"
    )
    flags = parser.parse_args(arguments)
    if flags.interval < 1:
        parser.error(f"--interval must be at least 1. Received: {flags.interval}")
    folders = list(dict.fromkeys(flags.workdir))
    output = flags.output or (
        folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    )
    try:
        if not flags.watch:
            write_report(folders, output)
            print(f"Wrote {output}")
            return
        _watch(folders, output, flags.interval)
    except (ImportError, ReportError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


def _watch(folders: Sequence[Path], output: Path, interval: int) -> None:
    told = ""
    while True:
        try:
            runs = write_report(folders, output, interval)
            if all(run.complete for run in runs):
                write_report(folders, output)
                print(f"Wrote {output}: complete")
                return
            text = f"Writing {output} every {interval} s; Ctrl-C stops"
        except NothingMeasured as error:
            text = f"Waiting: {error}"
        if text != told:
            print(text, flush=True)
        told = text
        time.sleep(interval)
