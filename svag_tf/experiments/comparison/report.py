"""Reports the results of a comparison: tables, figures and everything as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from svag_tf.experiments.comparison import faithfulness, pairs
from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.figures import save_comparison, save_sensitivity
from svag_tf.experiments.comparison.page import (
    budget_text,
    cells_of,
    faithfulness_page,
    headings_of,
    is_comparable,
    results_page,
)
from svag_tf.experiments.comparison.results import (
    MEASURES,
    Comparison,
    Outcome,
    best,
    default_target,
    rank,
    steps_to,
    summary,
)
from svag_tf.experiments.config import plain
from svag_tf.experiments.files import write_json, write_text
from svag_tf.experiments.tables import as_csv

COLUMNS = (
    "rank",
    "optimizer",
    "seed",
    "learning_rate",
    "ended",
    "epochs",
    *MEASURES[:4],
    "steps_to_target",
    *MEASURES[4:],
    "error",
)
TUNING_COLUMNS = (
    "optimizer",
    "stage",
    "learning_rate",
    "best",
    "ended",
    "epochs",
    *MEASURES[:5],
    "error",
)


def write_report(comparison: Comparison, workdir: Path) -> list[dict[str, Any]]:
    """Writes and prints the results; returns one dict per run, best optimizer first."""
    ranking = rank(comparison)
    target = comparison.target
    if target is None:
        target = default_target(comparison)
    results = [
        {"rank": place, **_result(label, outcome, target, comparison.accuracy)}
        for place, label in enumerate(ranking, 1)
        for outcome in comparison.runs[label]
    ]
    tried = [
        _tried(label, stage, outcome, outcome is chosen)
        for label in ranking
        for stage, outcomes in (
            ("scouting", comparison.scouting[label]),
            ("tuning", comparison.tuning[label]),
        )
        for chosen in [best(outcomes, comparison.tuned_by)]
        for outcome in sorted(outcomes, key=lambda o: o.learning_rate)
    ]
    rows = summary(results)
    differences = pairs.differences(comparison)
    write_text(workdir / "results.csv", as_csv(results, COLUMNS))
    if tried:
        write_text(workdir / "tuning.csv", as_csv(tried, TUNING_COLUMNS))
    curves = published(comparison.config.problem)
    write_text(
        workdir / "results.md",
        results_page(comparison, rows, differences, target, curves),
    )
    checks = faithfulness.checks(
        comparison.config.problem,
        {label: [o.rows for o in runs] for label, runs in comparison.runs.items()},
    )
    if checks:
        write_text(workdir / "faithfulness.md", faithfulness_page(comparison, checks))
    write_json(
        workdir / "results.json",
        {
            "budget": comparison.budget,
            **comparison.about,
            "config": plain(comparison.config),
            "target": target,
            "ranking": ranking,
            "results": results,
            "tuning": tried,
            "faithfulness": [
                asdict(check) | {"agrees": check.agrees} for check in checks
            ],
            "differences": [
                pair | {k: asdict(pair[k]) for k in ("at_end", "at_equal_loss")}
                for pair in differences
            ],
            "runs": {
                label: [asdict(outcome) for outcome in outcomes]
                for label, outcomes in comparison.runs.items()
            },
            "scouting_runs": {
                label: [asdict(outcome) for outcome in outcomes]
                for label, outcomes in comparison.scouting.items()
            },
            "tuning_runs": {
                label: [asdict(outcome) for outcome in outcomes]
                for label, outcomes in comparison.tuning.items()
            },
        },
    )
    runs = {
        label: [outcome.rows for outcome in outcomes if outcome.rows]
        for label, outcomes in comparison.runs.items()
        if any(outcome.rows for outcome in outcomes)
    }
    if runs:
        save_comparison(
            runs,
            caption(comparison),
            workdir / "curves.png",
            titles=comparison.titles,
            published=curves if is_comparable(comparison) else None,
        )
    if tried:
        tuned = [row for row in tried if row["stage"] == "tuning"]
        save_sensitivity(tuned, results, caption(comparison), comparison.accuracy,
                         comparison.titles, workdir / "sensitivity.png")  # fmt: skip
    _print(comparison, rows, target, workdir)
    return results


def caption(comparison: Comparison) -> str:
    """Returns problem, budget and seeds in a line."""
    budget = comparison.budget
    if budget["name"] == "none":
        rate = comparison.config.optimizer.learning_rate
        rates = "untuned" if rate is None else f"learning rate {rate:g}"
    else:
        rates = f"tuned, {budget['name']} budget"
    seeds = len(comparison.seeds)
    return f"{comparison.config.problem}, {rates}, {seeds} seed" + "s" * (seeds > 1)


def _result(label: str, outcome: Outcome, target: float, accuracy: bool):
    return {
        "optimizer": label,
        "seed": outcome.seed,
        "learning_rate": outcome.learning_rate,
        "ended": outcome.ended,
        "epochs": outcome.rows[-1]["epoch"] if outcome.rows else 0,
        **outcome.measures(),
        "steps_to_target": steps_to(outcome.rows, target, accuracy),
        "error": outcome.error,
    }


def _tried(label: str, stage: str, outcome: Outcome, chosen: bool) -> dict[str, Any]:
    measures = outcome.measures()
    return {
        "optimizer": label,
        "stage": stage,
        "learning_rate": outcome.learning_rate,
        "best": chosen,
        "ended": outcome.ended,
        "epochs": outcome.rows[-1]["epoch"] if outcome.rows else 0,
        **{name: measures[name] for name in MEASURES[:5]},
        "error": outcome.error,
    }


def _print(
    comparison: Comparison,
    rows: Sequence[Mapping[str, Any]],
    target: float,
    workdir: Path,
) -> None:
    headings = headings_of(target, comparison.accuracy)
    left_out = ["train ", "ms a"] + ["test loss"] * comparison.accuracy
    shown = [
        i
        for i, heading in enumerate(headings)
        if not any(heading.startswith(start) for start in left_out)
    ]
    table = Table()
    for i in shown:
        table.add_column(headings[i], justify="left" if i == 1 else "right")
    for row in rows:
        cells = cells_of(
            row,
            comparison.titles[row["optimizer"]],
            comparison.accuracy,
            comparison.budget["name"] != "none",
        )
        table.add_row(*(cells[i] for i in shown))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(budget_text(comparison.budget).replace("**", ""), soft_wrap=True)
    console.print(f"Results in {workdir}:")
    for name, what in (
        ("curves.png", "test accuracy, or loss, training loss and their gap"),
        ("sensitivity.png", "results against learning rates"),
        ("results.md", "the ranking, the tuning and how it was made"),
        ("faithfulness.md", "the published optimizers beside DeepOBS' curves"),
        ("results.csv", "one line a run"),
        ("tuning.csv", "one line a learning rate"),
        ("results.json", "everything: configs, epochs, versions"),
    ):
        if (workdir / name).exists():
            console.print(f"  {name:16} {what}")
