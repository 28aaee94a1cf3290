"""Checks the tables in results.md of a comparison against its CSV files.

The differences at equal training loss need every epoch, which the files do not have.
"""

import csv
import math
import re
import statistics

from svag_tf.experiments.comparison.pairs import PAIRS, paired
from svag_tf.experiments.comparison.variants import parse_variant, titles

# Heading -> column of results.csv and its scale.
MEASURES = {
    "test accuracy, %": ("test_accuracy", 100),
    "train accuracy, %": ("train_accuracy", 100),
    "test loss": ("test_loss", 1),
    "train loss": ("train_loss", 1),
    "training, s": ("train_seconds", 1),
    "ms a step": ("ms_per_step", 1),
}
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def check(folder):
    """Asserts that every number of the page's own results is that of the files."""
    page = (folder / "results.md").read_text("utf-8")
    runs = _by_optimizer(folder / "results.csv")
    names = titles([parse_variant(label) for label in runs])
    ranking = _table(page, "rank")
    assert len(ranking) == len(runs)
    for line, (label, mine) in zip(ranking, runs.items()):
        _check_result(line, names[label], mine)
    _check_tuning(_table(page, "optimizer | tried"), names, runs, folder)
    _check_differences(_table(page, "aspect"), names, runs)


def _check_result(line, name, runs):
    for ended in ("diverged", "failed"):
        if n := sum(run["ended"] == ended for run in runs):
            name += f" ({n} of {len(runs)} {ended})"
    assert line["optimizer"] == name
    assert {line["rank"]} == {run["rank"] for run in runs}
    rate = line["learning rate"].removesuffix(" (given)")
    assert {rate} == {f"{float(run['learning_rate']):.3g}" for run in runs}
    completed = [run for run in runs if run["ended"] == "completed"]
    for heading in MEASURES.keys() & line.keys():
        field, scale = MEASURES[heading]
        _check_mean(line[heading], [scale * float(run[field]) for run in completed])
    (steps,) = (line[heading] for heading in line if heading.startswith("steps to"))
    reached = [run["steps_to_target"] for run in completed if run["steps_to_target"]]
    if not reached:
        assert steps == "never"
        return
    if len(reached) < len(runs):
        share = f" ({len(reached)} of {len(runs)})"
        assert steps.endswith(share)
        steps = steps.removesuffix(share)
    _check_mean(steps, [int(n) for n in reached])


def _check_tuning(lines, names, runs, folder):
    if not lines:
        assert not (folder / "tuning.csv").exists()
        return
    tuning = _by_optimizer(folder / "tuning.csv")
    assert [line["optimizer"] for line in lines] == [names[label] for label in tuning]
    for line, (label, rows) in zip(lines, tuning.items()):
        # Comparisons before the budget "reduced" had no other stage.
        tried = [row for row in rows if row.get("stage", "tuning") == "tuning"]
        ended = [row["ended"] for row in tried]
        (best,) = (row["learning_rate"] for row in tried if row["best"] == "True")
        assert line["best learning rate"] == f"{float(best):.3g}"
        assert {best} == {run["learning_rate"] for run in runs[label]}
        assert line["tried"] == str(len(tried))
        assert line["stopped as hopeless"] == str(ended.count("stopped"))
        assert line["diverged"] == str(ended.count("diverged"))
        assert line["failed"] == str(ended.count("failed"))


def _check_differences(lines, names, runs):
    label_of = {name: label for label, name in names.items()}
    for line in lines:
        pair = label_of[line["with it"]], label_of[line["without"]]
        methods = tuple(label.partition(":")[0] for label in pair)
        assert methods in PAIRS[line["aspect"]]
        (heading,) = (h for h in line if h.endswith(": at the end"))
        field, scale = MEASURES[heading.removesuffix(": at the end")]
        one, other = (
            {r["seed"]: scale * float(r[field]) for r in runs[label]
             if r["ended"] == "completed"}
            for label in pair
        )  # fmt: skip
        expected = paired([one[seed] - other[seed] for seed in one if seed in other])
        numbers = [expected.mean] * (expected.seeds > 0)
        if expected.seeds > 1:
            numbers += [expected.mean - expected.half_width,
                        expected.mean + expected.half_width]  # fmt: skip
        _check_numbers(line[heading], numbers)
        left_out = len({r["seed"] for label in pair for r in runs[label]})
        left_out -= expected.seeds
        seeds = f"{expected.seeds}" + f" ({left_out} left out)" * (left_out > 0)
        assert line["seeds"] == seeds


def _check_mean(text, values):
    if not values or any(map(math.isnan, values)):
        assert text == "-"
        return
    expected = [statistics.fmean(values)]
    if len(values) > 1:
        expected.append(statistics.stdev(values))
    _check_numbers(text, expected)


def _check_numbers(text, expected):
    """The numbers in a cell are the expected ones, rounded to the digits shown."""
    shown = NUMBER.findall(text)
    assert len(shown) == len(expected), text
    for number, value in zip(shown, expected):
        unit = 10.0 ** -len(number.partition(".")[2])
        # The files have the digits of a float32.
        assert abs(float(number) - value) <= unit / 2 + 1e-6 * abs(value), text


def _by_optimizer(path):
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        label: [row for row in rows if row["optimizer"] == label]
        for label in dict.fromkeys(row["optimizer"] for row in rows)
    }


def _table(page, start):
    """The lines of the table whose headings start so; none if there is no such one."""
    match = re.search(rf"^\| {re.escape(start)} \|.*\n(\|.*\n)+", page, re.M)
    if not match:
        return []
    headings, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in match[0].splitlines()
    )
    return [dict(zip(headings, line, strict=True)) for line in lines]
