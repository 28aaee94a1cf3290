"""Compares optimizers that differ in a single aspect of the paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svag_tf.experiments.comparison.results import Comparison, Outcome
from svag_tf.experiments.training.run_folder import Row
from svag_tf.optional import scipy

# For each aspect, the optimizers with it and the same ones without.
PAIRS = {
    "variance adaptation": (
        ("msvag", "msgd"),
        ("svag", "sgd"),
        ("msvas", "mssd"),
        ("svas", "ssd"),
    ),
    "sign": (("mssd", "msgd"), ("ssd", "sgd"), ("msvas", "msvag"), ("svas", "svag")),
}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, one for each seed.

    Attributes:
        mean: NaN if there are none.
        half_width: of the interval around the mean, by Student's t with `CONFIDENCE`;
            NaN with fewer than two differences.
        seeds: how many differences there are.
    """

    mean: float
    half_width: float
    seeds: int


def paired(differences: Sequence[float]) -> Difference:
    """Returns the mean of differences with its interval.

    Example:

    >>> difference = paired([1.0, 2.0, 3.0])
    >>> difference.mean, round(difference.half_width, 3)
    (2.0, 2.484)
    """
    n = len(differences)
    if n == 0:
        return Difference(math.nan, math.nan, 0)
    mean = math.fsum(differences) / n
    if n == 1:
        return Difference(mean, math.nan, 1)
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Difference(mean, quantile * deviation / math.sqrt(n), n)


def at_training_loss(rows: Sequence[Row], level: float, field: str) -> float:
    """Returns a measure at the point where the training loss first reaches a level.

    Between two evaluations both are interpolated linearly. NaN if it is never reached.
    """
    if rows and rows[0]["train_loss"] <= level:
        return rows[0][field]
    for before, row in itertools.pairwise(rows):
        if row["train_loss"] <= level:
            fall = before["train_loss"] - row["train_loss"]
            part = (before["train_loss"] - level) / fall
            return before[field] + part * (row[field] - before[field])
    return math.nan


def differences(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns the differences of all pairs of `PAIRS` that are among the optimizers.

    An optimizer with given arguments is paired like the same one without.

    Returns:
        One dict per pair: `aspect`, `with`, `without` (labels), and the `Difference`
        of the measure that counts, once with the aspect minus once without: `at_end`,
        and `at_equal_loss`, where each run's training loss comes down to the larger
        one of the final losses of both. `left_out` is the number of seeds of which a
        run diverged or failed; they are in neither.
    """
    field = comparison.field
    result = []
    labels: dict[str, list[str]] = {}
    for label in comparison.runs:
        labels.setdefault(label.partition(":")[0], []).append(label)
    for aspect, pairs in PAIRS.items():
        for one, other in itertools.chain.from_iterable(
            itertools.product(labels.get(a, ()), labels.get(b, ())) for a, b in pairs
        ):
            both = _of_same_seed(comparison.runs[one], comparison.runs[other])
            seeds = {o.seed for o in comparison.runs[one] + comparison.runs[other]}
            at_end, at_equal_loss = [], []
            for a, b in both:
                at_end.append(a[-1][field] - b[-1][field])
                level = max(a[-1]["train_loss"], b[-1]["train_loss"])
                first, second = (
                    at_training_loss(rows, level, field) for rows in (a, b)
                )
                at_equal_loss.append(first - second)
            result.append(
                {
                    "aspect": aspect,
                    "with": one,
                    "without": other,
                    "at_end": paired(at_end),
                    "at_equal_loss": paired(at_equal_loss),
                    "left_out": len(seeds) - len(both),
                }
            )
    return result


def _of_same_seed(
    one: Sequence[Outcome], other: Sequence[Outcome]
) -> list[tuple[list[Row], list[Row]]]:
    completed = [
        {o.seed: o.rows for o in outcomes if o.ended == "completed"}
        for outcomes in (one, other)
    ]
    seeds = sorted(completed[0].keys() & completed[1].keys())
    return [(completed[0][seed], completed[1][seed]) for seed in seeds]


def cells(difference: Mapping[str, Any], accuracy: bool) -> list[str]:
    """Formats a pair's differences at the end and at equal training loss, and seeds."""

    def text(d: Difference) -> str:
        if d.seeds == 0:
            return "-"
        scale, form = (100, "+.2f") if accuracy else (1, "+.4f")
        mean = format(scale * d.mean, form)
        if d.seeds == 1:
            return f"{mean} (one seed)"
        low, high = (scale * (d.mean + s * d.half_width) for s in (-1, 1))
        return f"{mean} [{low:{form}}, {high:{form}}]"

    at_end, left_out = difference["at_end"], difference["left_out"]
    seeds = f"{at_end.seeds}" + (f" ({left_out} left out)" if left_out else "")
    return [text(at_end), text(difference["at_equal_loss"]), seeds]
