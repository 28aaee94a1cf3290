"""Reports the results of a comparison: tables, figures and everything as JSON."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from svag_tf.experiments.comparison import faithfulness
from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.tuning import GRID
from svag_tf.experiments.config import plain
from svag_tf.experiments.files import write_json, write_text
from svag_tf.experiments.optimizers import TITLES
from svag_tf.experiments.plots import save_comparison, save_sensitivity
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
    "learning_rate",
    "best",
    "ended",
    "epochs",
    *MEASURES[:5],
    "error",
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

    def order(self, accuracy: bool) -> tuple[float, float, float]:
        """Returns a key to sort by: the best run has the lowest."""
        last = self.rows[-1] if self.rows else {}
        loss = last.get("test_loss", math.inf)
        first = -last.get("test_accuracy", 0.0) if accuracy else 0.0
        return (
            ENDED.index(self.ended),
            first if math.isfinite(first) else 0.0,
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
        tuning: for each optimizer, a run for each rate tried; none if it has a rate of
            its own.
        runs: for each optimizer, a run for each seed.
        seeds: seeds of the runs.
        accuracy: whether the problem has one.
        budget: see `tuning.describe`.
        target: test accuracy (or loss) that the user has given.
        about: command, machine and so on.
    """

    config: TrainingConfig
    titles: dict[str, str]
    tuning: dict[str, list[Outcome]]
    runs: dict[str, list[Outcome]]
    seeds: list[int]
    accuracy: bool
    budget: dict[str, Any]
    target: float | None
    about: dict[str, Any]

    @property
    def field(self) -> str:
        """The measure that counts."""
        return "test_accuracy" if self.accuracy else "test_loss"


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
        _tried(label, outcome, outcome is chosen)
        for label in ranking
        for chosen in [best(comparison.tuning[label], comparison.accuracy)]
        for outcome in sorted(comparison.tuning[label], key=lambda o: o.learning_rate)
    ]
    rows = summary(results)
    write_text(workdir / "results.csv", _csv(results, COLUMNS))
    if tried:
        write_text(workdir / "tuning.csv", _csv(tried, TUNING_COLUMNS))
    curves = published(comparison.config.problem)
    write_text(workdir / "results.md", _markdown(comparison, rows, target, curves))
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
            "runs": {
                label: [asdict(outcome) for outcome in outcomes]
                for label, outcomes in comparison.runs.items()
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
        save_sensitivity(tried, results, caption(comparison), comparison.accuracy,
                         comparison.titles, workdir / "sensitivity.png")  # fmt: skip
    _print(comparison, rows, target, workdir)
    return results


def best(outcomes: Sequence[Outcome], accuracy: bool) -> Outcome | None:
    """Returns the run with the best final test accuracy, or loss; None if no runs.

    The loss breaks ties of accuracy. Stopped runs come after completed ones, then
    diverged ones, then failed ones. Of two equal runs, the one with the lower rate is
    taken.
    """
    return min(
        outcomes, key=lambda o: (*o.order(accuracy), o.learning_rate), default=None
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


def _tried(label: str, outcome: Outcome, chosen: bool) -> dict[str, Any]:
    measures = outcome.measures()
    return {
        "optimizer": label,
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


def _csv(results: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerow(
            {k: np.float32(v) if isinstance(v, float) else v for k, v in result.items()}
        )
    return text.getvalue()


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if heading in ("optimizer", "") else "---:" for heading in headings]
    lines = [headings, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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
        facts.insert(
            0,
            f"{len(rates)} {grid}learning rates of DeepOBS' grid, {rates[0]:.3g} to "
            f"{rates[-1]:.3g}",
        )
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
        _table(_headings(target, accuracy), cells),
        "Mean ± standard deviation over the seeds, after the last epoch. Ranked by the "
        f"mean test {counts}; optimizers with runs that diverged or failed come last. "
        'Steps are counted at the evaluations, one per epoch. "Training" is the time '
        "of the batches alone.\n",
    ]
    labels = [row["optimizer"] for row in rows if comparison.tuning[row["optimizer"]]]
    if labels:
        parts += [
            "## Tuning\n",
            _table(
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
            ),
            f"With seed {comparison.seeds[0]}, by the final test {counts}: as in "
            "DeepOBS, on the test set itself. All rates are in tuning.csv.\n",
        ]
    if curves:
        parts += ["## Published by DeepOBS\n", *_published(comparison, curves)]
    parts += _about(comparison)
    return "\n".join(parts)


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
        note = "at the end of the grid"
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
    return [_table(headings, lines), note + "\n"]


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
