"""Writes the results: JSON, a page of Markdown and plots."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from svag_tf.experiments.benchmark.cases import LIMIT
from svag_tf.experiments.benchmark.plots import save_bars, save_scaling
from svag_tf.experiments.benchmark.rows import all_rows
from svag_tf.experiments.benchmark.targets import judged
from svag_tf.experiments.benchmark.texts import (
    NOTHING,
    counted,
    mebibytes,
    number,
    seconds,
    spread,
)
from svag_tf.experiments.files import write_json, write_text

Results = dict[str, Any]

REPLICAS = """\
Step time, bytes exchanged and efficiency: [replicas.md](replicas.md).

![Time, efficiency and bytes by replicas](replicas.png)
"""


def write_report(results: Results, workdir: Path) -> None:
    """Writes benchmark.json, benchmark.md and the plots into a folder."""
    if results["backend"] == "tensorflow":
        results["targets"] = judged(results)
    write_json(workdir / "benchmark.json", results)
    for name, case in results["cases"].items():
        if _measured(case):
            save_bars(case, workdir / f"benchmark-{name}.png")
    if results["scaling"]:
        save_scaling(results["scaling"], workdir / "scaling.png")
    write_text(workdir / "benchmark.md", page(results))


def page(results: Results) -> str:
    """Returns the results as a page of Markdown that shows the plots."""
    parts = ["# Benchmark\n", provenance(results)]
    if results["quick"]:
        parts.append("**A quick trial with small sizes: the numbers mean nothing.**\n")
    if any(_measured(case) for case in results["cases"].values()):
        parts += ["## Time a step\n", overview(results)]
    if any(row["value"] is not None for row in results.get("targets", [])):
        parts += ["## Targets\n", targets(results)]
    for name, case in results["cases"].items():
        parts.append(f"## {case['title']}\n")
        if _measured(case):
            parts.append(f"![Time a step of every method](benchmark-{name}.png)\n")
        parts.append(_case(case))
    if results["scaling"]:
        parts += ["## Time against parameters\n", _scaling(results)]
    if results["replicas"]:
        parts += ["## Time against devices and processes\n", REPLICAS]
    return "\n".join(parts)


def _measured(case: Results) -> bool:
    return any(
        "median" in row and row["group"] != LIMIT for row in case["rows"].values()
    )


def provenance(results: Results) -> str:
    """Returns a list: how, where and when the results were measured."""
    machine = results["machine"]
    cache, memory = machine["last_level_cache"], machine["memory"]
    where = [
        machine["cpu"] or "unknown processor",
        f"{machine['cores']} cores",
        *([f"{cache} last-level cache"] if cache else []),
        *([f"{memory / 2**30:.1f} GiB of memory"] if memory else []),
        machine["system"],
    ]
    packages = [f"{name} {version}" for name, version in machine["packages"].items()]
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    lines = [
        f"- Command: `{results['command']}`",
        f"- Machine: {', '.join(where)}",
        f"- Software: Python {machine['python']}, {', '.join(packages)}",
        f"- C loop: `{results['compiler']}`"
        if results["compiler"]
        else f"- No C loop: {results['no_c_loop']}",
        f"- Native update: {machine.get('native_update', 'none').partition(':')[0]}",
        f"- When: {machine['date']}{commit}",
        f"- Load average: {number(machine['load_at_start'])} at the start, "
        f"{number(machine['load_at_end'])} at the end",
        f"- Backend: {results['backend']}; {counted(results['rounds'], 'round')}, in "
        "which all rows of a case take turns",
    ]
    lines += [f"- Left out: {row}: {why}" for row, why in results["skipped"].items()]
    return "\n".join(lines) + "\n"


def overview(
    results: Results, cases: Iterable[str] = (), rows: Iterable[str] = ()
) -> str:
    """Returns a table, rows x cases: median, and its ratio to the limit (or Adam).

    By default it has all cases, and all rows but the copy.
    """
    shown = [
        case
        for name, case in results["cases"].items()
        if case["rows"] and name in (cases or results["cases"])
    ]
    known = all_rows(results["backend"])
    wanted = rows or known.keys() - {"copy"}
    lines = []
    for name, row in known.items():
        if name in wanted and any(name in case["rows"] for case in shown):
            cells = [_overview_cell(case["rows"].get(name, {})) for case in shown]
            lines.append([row.title, *cells])
    table = _table(["", *(case["title"] for case in shown)], lines)
    return (
        "Median; in brackets, how many times the limit that is; for `fit`, how many "
        f"times Keras Adam's step.\n\n{table}"
    )


def _overview_cell(row: Results) -> str:
    if "error" in row:
        return "fails"
    if "median" not in row:
        return NOTHING
    ratio = row.get("to_limit", row.get("to_keras-adam"))
    return seconds(row["median"]) + (f" ({number(ratio)})" if ratio else "")


def targets(results: Results) -> str:
    """Returns a table: the targets, and whether they are met."""
    words = {True: "met", False: "missed", None: "not measured"}
    return _table(
        ["", "target", "measured", ""],
        [
            [row["text"], row["target"], number(row["value"]), words[row["met"]]]
            for row in results["targets"]
        ],
    )


def _case(case: Results) -> str:
    lines, notes = [], []
    for row in case["rows"].values():
        for field in ("error", "fresh_error"):
            if field in row:
                notes.append(f"- {row['title']} fails. {row[field]}")
        if "median" in row:
            lines.append(
                [
                    row["title"],
                    seconds(row["median"]),
                    spread(row["low"], row["high"]),
                    number(row.get("to_limit")),
                    number(row.get("to_keras-adam")),
                    number(row["gb_per_second"]),
                    mebibytes(row["bytes"]),
                    seconds(row.get("first_step")),
                    mebibytes(row.get("extra_memory")),
                ]
            )
    about = []
    if case["parameters"]:
        largest = mebibytes(case["largest_variable"])
        about.append(
            f"{case['parameters']:,} parameters; largest variable {largest} MiB."
        )
    if case["batches"] > 1:
        about.append(
            f"Measured in {case['batches']} batches, as all rows at once would not "
            "fit in memory; the ratios are those within a batch."
        )
    header = [
        "",
        "time a step",
        "quartiles",
        "/ limit",
        "/ Keras Adam",
        "GB/s",
        "MiB moved",
        "first step",
        "extra MiB",
    ]
    used = [i for i in range(len(header)) if any(r[i] != NOTHING for r in lines)]
    table = _table([header[i] for i in used], [[r[i] for i in used] for r in lines])
    paragraphs = [" ".join(about), table.rstrip() if lines else "", "\n".join(notes)]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _scaling(results: Results) -> str:
    curves = list(results["scaling"].values())
    sizes = sorted({size for curve in curves for size in curve["parameters"]})
    lines = []
    for size in sizes:
        times = [
            dict(zip(curve["parameters"], curve["median"])).get(size)
            for curve in curves
        ]
        lines.append([f"{size:,}", *(seconds(time) for time in times)])
    table = _table(["parameters", *(curve["title"] for curve in curves)], lines)
    return f"![Time a step against parameters](scaling.png)\n\n{table}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Formats a Markdown table, right-aligned except for the first column."""
    header = list(header)
    rule = ["---", *("--:" for _ in header[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows])
