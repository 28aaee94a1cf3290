"""Reports the results of a comparison: tables, figures and everything as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from svag_tf.experiments.comparison import faithfulness, pairs
from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.budgets import EXTENSIONS, GRID, NEIGHBOURS
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
from svag_tf.experiments.optimizers import TITLES
from svag_tf.experiments.plots import save_comparison, save_sensitivity
from svag_tf.experiments.tables import as_csv, markdown

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
        for chosen in [best(outcomes, comparison.accuracy)]
        for outcome in sorted(outcomes, key=lambda o: o.learning_rate)
    ]
    rows = summary(results)
    differences = pairs.differences(comparison)
    write_text(workdir / "results.csv", as_csv(results, COLUMNS))
    if tried:
        write_text(workdir / "tuning.csv", as_csv(tried, TUNING_COLUMNS))
    curves = published(comparison.config.problem)
    write_text(
        workdir / "results.md", _markdown(comparison, rows, differences, target, curves)
    )
    checks = faithfulness.checks(
        comparison.config.problem,
        {label: [o.rows for o in runs] for label, runs in comparison.runs.items()},
    )
    if checks:
        write_text(workdir / "faithfulness.md", _faithfulness(comparison, checks))
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
            published=curves if _comparable(comparison) else None,
        )
    if tried:
        tuned = [row for row in tried if row["stage"] == "tuning"]
        save_sensitivity(tuned, results, caption(comparison), comparison.accuracy,
                         comparison.titles, workdir / "sensitivity.png")  # fmt: skip
    _print(comparison, rows, target, workdir)
    return results


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """Formats `mean ± sample standard deviation` with `form`; only the mean of one.

    Returns "-" if there is nothing to average: no values, or NaN.
    """
    if not values or any(math.isnan(value) for value in values):
        return "-"
    mean = format(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ± {format(statistics.stdev(values), form)}"


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


def _comparable(comparison: Comparison) -> bool:
    """Returns whether an epoch has as many batches as in the published curves."""
    budget = comparison.budget
    curves = published(comparison.config.problem)
    return (
        bool(curves)
        and budget["train_examples"] == budget["whole_train_examples"]
        and budget["batch_size"] == curves["sgd"]["batch_size"]
    )


def _headings(target: float, accuracy: bool) -> list[str]:
    form = ".2%" if accuracy else ".4g"
    goal = f"steps to {format(target, form).replace('%', ' %')}"
    return [
        "rank",
        "optimizer",
        "learning rate",
        *(["test accuracy, %", "train accuracy, %"] if accuracy else []),
        "test loss",
        "train loss",
        goal if math.isfinite(target) else "steps to target",
        "training, s",
        "ms a step",
    ]


def _cells(
    row: Mapping[str, Any], title: str, accuracy: bool, tuned: bool
) -> list[str]:
    for name in ("diverged", "failed"):
        if row[name]:
            title += f" ({row[name]} of {row['runs']} {name})"
    percent = {
        name: [100 * value for value in row[name]]
        for name in ("test_accuracy", "train_accuracy")
    }
    accuracies = [mean_and_deviation(values, ".2f") for values in percent.values()]
    rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:.3g}"
    if tuned and "learning_rate=" in row["optimizer"]:
        rate += " (given)"
    return [
        str(row["rank"]),
        title,
        rate,
        *(accuracies if accuracy else []),
        mean_and_deviation(row["test_loss"], ".4f"),
        mean_and_deviation(row["train_loss"], ".4f"),
        _steps(row["steps_to_target"], row["runs"]),
        mean_and_deviation(row["train_seconds"], ".1f"),
        mean_and_deviation(row["ms_per_step"], ".2f"),
    ]


def _steps(values: Sequence[int | None], runs: int) -> str:
    reached = [value for value in values if value is not None]
    if not reached:
        return "never"
    text = mean_and_deviation(reached, ".0f")
    return text if len(reached) == runs else f"{text} ({len(reached)} of {runs})"


def _budget_text(budget: Mapping[str, Any]) -> str:
    def part(n: int, whole: int) -> str:
        return f"{n:,}" if n == whole else f"the first {n:,} of {whole:,}"

    seeds = budget["seeds"]
    facts = [
        f"{budget['epochs']} epoch{'s' * (budget['epochs'] > 1)}"
        + (
            f" where the full protocol has {budget['whole_epochs']}"
            if budget["epochs"] != budget["whole_epochs"]
            else ""
        ),
        f"{part(budget['train_examples'], budget['whole_train_examples'])} training "
        f"and {part(budget['test_examples'], budget['whole_test_examples'])} test "
        "examples",
        f"batches of {budget['batch_size']}",
        f"seeds {', '.join(map(str, seeds))}",
    ]
    rates = budget["learning_rates"]
    if rates:
        grid = f"of the {len(GRID)} " if len(rates) < len(GRID) else ""
        fact = (
            f"{len(rates)} {grid}learning rates of DeepOBS' grid, {rates[0]:.3g} to "
            f"{rates[-1]:.3g}"
        )
        scout = budget["scout"]
        if scout:
            fact += (
                f", tried by a scout ({scout['epochs']} epochs of "
                f"{scout['train_examples']:,} training and "
                f"{scout['test_examples']:,} test examples), then {NEIGHBOURS} around "
                "its best at the length of this budget"
            )
        facts.insert(0, fact)
    name = budget["name"]
    if name == "none":
        name = "none, so learning rates are not tuned"
    elif name == "custom":
        name += f", {budget['asked']} except: {'; '.join(budget['changed'])}"
    text = f"**Budget: {name}.** " + "; ".join(facts) + "."
    if budget["name"] not in ("full", "none"):
        text += " This is not the full protocol."
    return text


def _markdown(
    comparison: Comparison,
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    target: float,
    curves: Mapping[str, Any],
) -> str:
    accuracy = comparison.accuracy
    tuned = comparison.budget["name"] != "none"
    cells = [
        _cells(row, comparison.titles[row["optimizer"]], accuracy, tuned)
        for row in rows
    ]
    counts = "accuracy" if accuracy else "loss"
    parts = [
        f"# {comparison.config.problem}: {len(rows)} optimizers compared\n",
        _budget_text(comparison.budget) + "\n",
        markdown(_headings(target, accuracy), cells, left=(1,)),
        "Mean ± standard deviation over the seeds, after the last epoch. Ranked by the "
        f"mean test {counts}; optimizers with runs that diverged or failed come last. "
        'Steps are counted at the evaluations, one per epoch. "Training" is the time '
        "of the batches alone.\n",
    ]
    if differences:
        parts += ["## One aspect at a time\n", *_differences(comparison, differences)]
    labels = [row["optimizer"] for row in rows if comparison.tuning[row["optimizer"]]]
    if labels:
        parts += [
            "## Tuning\n",
            markdown(
                [
                    "optimizer",
                    "tried",
                    "stopped as hopeless",
                    "diverged",
                    "failed",
                    "best learning rate",
                    "",
                ],
                [_tuning_cells(comparison, label) for label in labels],
                left=(0, 6),
            ),
            f"With a seed of its own, {comparison.budget['tuning_seed']}, by the final "
            f"test {counts}: as in DeepOBS, on the test set itself. While the best "
            f"rate is the lowest or highest, the next one is tried too, at most "
            f"{EXTENSIONS} of them. All rates are in tuning.csv.\n",
        ]
    if curves:
        parts += ["## Published by DeepOBS\n", *_published(comparison, curves)]
    parts += _about(comparison)
    return "\n".join(parts)


def _differences(
    comparison: Comparison, differences: Sequence[Mapping[str, Any]]
) -> list[str]:
    titles = comparison.titles
    measure = "test accuracy, %" if comparison.accuracy else "test loss"
    return [
        markdown(
            [
                "aspect",
                "with it",
                "without",
                f"{measure}: at the end",
                "at equal training loss",
                "seeds",
            ],
            [
                [
                    pair["aspect"],
                    titles[pair["with"]],
                    titles[pair["without"]],
                    *pairs.cells(pair, comparison.accuracy),
                ]
                for pair in differences
            ],
            left=(0, 1, 2),
        ),
        f"The difference of the two optimizers, with the aspect minus without it: mean "
        f"over the seeds and [{pairs.CONFIDENCE:.0%} interval] by Student's t for "
        "paired differences. An interval that holds 0 shows no difference. At equal "
        "training loss: where each run first reaches the larger one of the final "
        "losses of both, interpolated between evaluations. Seeds of runs that did not "
        "complete are left out.\n",
    ]


def _about(comparison: Comparison) -> list[str]:
    """Returns the command, the commit and the machine, as paragraphs."""
    about = comparison.about
    machine = about["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    cpus = {o.cpu for runs in comparison.runs.values() for o in runs}
    command = [f"    {about['command']}\n"] if about["command"] else []
    return [
        *command,
        f"Commit {machine['commit'] or 'unknown'}, {machine['date'][:10]}, "
        f"{' and '.join(sorted(cpus))}, {machine['cores']} cores, backend "
        f"{about['backend']}. Python {machine['python']}, {packages}.\n",
    ]


def _faithfulness(comparison: Comparison, checks: Sequence[faithfulness.Check]) -> str:
    """Returns the page on the published optimizers among those compared."""
    subset = ""
    if not _comparable(comparison):
        budget = comparison.budget
        subset = (
            f"an epoch has {budget['train_examples']:,} of "
            f"{budget['whole_train_examples']:,} training examples in batches of "
            f"{budget['batch_size']}"
        )
    about = [_budget_text(comparison.budget) + "\n", *_about(comparison)]
    return faithfulness.page(comparison.config.problem, checks, subset, about)


def _tuning_cells(comparison: Comparison, label: str) -> list[str]:
    tuning = comparison.tuning[label]
    chosen = best(tuning, comparison.accuracy)
    assert chosen is not None
    rates = sorted(outcome.learning_rate for outcome in tuning)
    note = ""
    if chosen.ended != "completed":
        note = "no rate went through"
    elif chosen.learning_rate in (rates[0], rates[-1]):
        note = "at the edge of the rates tried"
    return [
        comparison.titles[label],
        str(len(tuning)),
        *(
            str(sum(o.ended == ended for o in tuning))
            for ended in ("stopped", "diverged", "failed")
        ),
        f"{chosen.learning_rate:.3g}",
        note,
    ]


def _published(comparison: Comparison, curves: Mapping[str, Any]) -> list[str]:
    epochs = comparison.budget["epochs"]
    same = _comparable(comparison)
    at = [curves["sgd"]["epochs"]]
    if same and epochs < at[0]:
        at.insert(0, epochs)
    if comparison.accuracy:
        field, scale, form, name = "test_accuracies", 100, ".2f", "test accuracy, %"
    else:
        field, scale, form, name = "test_losses", 1, ".4f", "test loss"
    lines = [
        [
            TITLES[optimizer] + " 0.99" * (optimizer == "momentum"),
            f"{curve['learning_rate']:.3g}",
            *(
                f"{scale * curve[f'{field}_mean'][epoch]:{form}} ± "
                f"{scale * curve[f'{field}_std'][epoch]:{form}}"
                for epoch in at
            ),
        ]
        for optimizer, curve in curves.items()
    ]
    headings = ["optimizer", "learning rate"]
    headings += [f"{name} after {epoch} epochs" for epoch in at]
    note = "Ten seeds, the full protocol (Schneider, Balles and Hennig 2019)."
    if not same:
        note += " This comparison used less data, so the curves are not in its figure."
    return [markdown(headings, lines), note + "\n"]


def _print(
    comparison: Comparison,
    rows: Sequence[Mapping[str, Any]],
    target: float,
    workdir: Path,
) -> None:
    headings = _headings(target, comparison.accuracy)
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
        cells = _cells(
            row,
            comparison.titles[row["optimizer"]],
            comparison.accuracy,
            comparison.budget["name"] != "none",
        )
        table.add_row(*(cells[i] for i in shown))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(_budget_text(comparison.budget).replace("**", ""), soft_wrap=True)
    console.print(f"Results in {workdir}:")
    for name, what in (
        ("curves.png", "test accuracy, or loss, and training loss"),
        ("sensitivity.png", "results against learning rates"),
        ("results.md", "the ranking, the tuning and how it was made"),
        ("faithfulness.md", "the published optimizers beside DeepOBS' curves"),
        ("results.csv", "one line a run"),
        ("tuning.csv", "one line a learning rate"),
        ("results.json", "everything: configs, epochs, versions"),
    ):
        if (workdir / name).exists():
            console.print(f"  {name:16} {what}")
