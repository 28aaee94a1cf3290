"""The pages of a comparison: results.md and faithfulness.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from svag_tf.experiments.comparison import faithfulness, pairs
from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.budgets import EXTENSIONS, GRID, NEIGHBOURS
from svag_tf.experiments.comparison.results import Comparison, best
from svag_tf.experiments.optimizers import TITLES
from svag_tf.experiments.tables import markdown


def results_page(
    comparison: Comparison,
    rows: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
    target: float,
    curves: Mapping[str, Any],
) -> str:
    """Returns results.md.

    Args:
        comparison: a finished one.
        rows: from `summary`.
        differences: from `pairs.differences`.
        target: the measure to which steps are counted.
        curves: from `baselines.published`.
    """
    accuracy = comparison.accuracy
    tuned = comparison.budget["name"] != "none"
    cells = [
        cells_of(row, comparison.titles[row["optimizer"]], accuracy, tuned)
        for row in rows
    ]
    counts = "accuracy" if accuracy else "loss"
    parts = [
        f"# {comparison.config.problem}: {len(rows)} optimizers compared\n",
        budget_text(comparison.budget) + "\n",
        markdown(headings_of(target, accuracy), cells, left=(1,)),
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
            f"{_tuned_by(comparison)}. While the best "
            f"rate is the lowest or highest, the next one is tried too, at most "
            f"{EXTENSIONS} of them. All rates are in tuning.csv.\n",
        ]
    if curves:
        parts += ["## Published by DeepOBS\n", *_published(comparison, curves)]
    parts += _about(comparison)
    return "\n".join(parts)


def _tuned_by(comparison: Comparison) -> str:
    measure = comparison.tuned_by.replace("_", " ").replace("train ", "training ")
    if measure == "training loss":
        return f"{measure}: how well the fits generalize is the question here"
    return f"{measure}: as in DeepOBS, on the test set itself"


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


def faithfulness_page(
    comparison: Comparison, checks: Sequence[faithfulness.Check]
) -> str:
    """Returns the page on the published optimizers among those compared."""
    subset = ""
    if not is_comparable(comparison):
        budget = comparison.budget
        subset = (
            f"an epoch has {budget['train_examples']:,} of "
            f"{budget['whole_train_examples']:,} training examples in batches of "
            f"{budget['batch_size']}"
        )
    about = [budget_text(comparison.budget) + "\n", *_about(comparison)]
    return faithfulness.page(comparison.config.problem, checks, subset, about)


def headings_of(target: float, accuracy: bool) -> list[str]:
    """Returns the headings of the ranking."""
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


def cells_of(
    row: Mapping[str, Any], title: str, accuracy: bool, tuned: bool
) -> list[str]:
    """Returns an optimizer's line of the ranking, from its row of `summary`."""
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


def _steps(values: Sequence[int | None], runs: int) -> str:
    reached = [value for value in values if value is not None]
    if not reached:
        return "never"
    text = mean_and_deviation(reached, ".0f")
    return text if len(reached) == runs else f"{text} ({len(reached)} of {runs})"


def budget_text(budget: Mapping[str, Any]) -> str:
    """Returns a paragraph on a budget, from `budgets.describe`."""

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


def is_comparable(comparison: Comparison) -> bool:
    """Returns whether an epoch has as many batches as in the published curves."""
    budget = comparison.budget
    curves = published(comparison.config.problem)
    return (
        bool(curves)
        and budget["train_examples"] == budget["whole_train_examples"]
        and budget["batch_size"] == curves["sgd"]["batch_size"]
    )


def _tuning_cells(comparison: Comparison, label: str) -> list[str]:
    tuning = comparison.tuning[label]
    chosen = best(tuning, comparison.tuned_by)
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
    same = is_comparable(comparison)
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
