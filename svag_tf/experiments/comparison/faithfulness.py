"""Compares Keras' optimizers with DeepOBS' published curves of the same problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.variants import Variant
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import TITLES
from svag_tf.experiments.tables import markdown
from svag_tf.experiments.training.run_folder import Row

# Arguments of DeepOBS' optimizers, besides the learning rate, that differ from Keras'.
ARGUMENTS: dict[str, dict[str, float]] = {
    "sgd": {},
    "momentum": {"momentum": 0.99},
    "adam": {"epsilon": 1e-8},
}
DEVIATIONS = 3.0
FIELDS = {
    "test_accuracy": "test_accuracies",
    "train_accuracy": "train_accuracies",
    "test_loss": "test_losses",
    "train_loss": "train_losses",
}


@dataclass(frozen=True)
class Check:
    """A value of our runs, compared with the published one.

    Attributes:
        optimizer: "sgd", "momentum" or "adam".
        epoch: the epoch after which it was measured; 0 for before training.
        field: field of a row, such as "test_loss".
        values: the values of our runs.
        mean: the published mean.
        deviation: the published standard deviation over ten seeds.
    """

    optimizer: str
    epoch: int
    field: str
    values: list[float]
    mean: float
    deviation: float

    @property
    def distance(self) -> float:
        """The distance of our mean from the published one, in published deviations.

        NaN if DeepOBS' runs do not differ there.
        """
        if self.deviation == 0:
            return float("nan")
        return (float(np.mean(self.values)) - self.mean) / self.deviation

    @property
    def agrees(self) -> bool | None:
        """Whether the distance is at most 3; None if it is unknown."""
        if self.deviation == 0:
            return None
        return abs(self.distance) <= DEVIATIONS


def published_variants(problem: str) -> dict[str, Variant]:
    """Returns the published optimizers with the arguments that DeepOBS used.

    Raises:
        ExperimentError: if nothing has been published on the problem.

    Example:

    >>> published_variants("fmnist_2c2d")["adam"].label
    'adam:epsilon=1e-08:learning_rate=0.000251189'
    """
    curves = published(problem)
    if not curves:
        raise ExperimentError(
            "DeepOBS' baselines exist for the problems fmnist_2c2d, cifar10_3c3d, "
            f"tolstoi_char_rnn and quadratic_deep. Received: problem={problem}"
        )
    return {
        name: Variant(
            name,
            (*ARGUMENTS[name].items(), ("learning_rate", curve["learning_rate"])),
        )
        for name, curve in curves.items()
    }


def checks(problem: str, runs: Mapping[str, Sequence[Sequence[Row]]]) -> list[Check]:
    """Checks every epoch of every published optimizer that was run.

    Args:
        problem: a name in `PROBLEMS`.
        runs: for each optimizer's label, the rows of its runs.
    """
    if not published(problem):
        return []
    result = []
    for name, variant in published_variants(problem).items():
        made = [rows for rows in runs.get(variant.label, ()) if rows]
        curve = published(problem)[name]
        length = min([len(rows) for rows in made] + [curve["epochs"] + 1])
        for epoch in range(length if made else 0):
            for field, key in FIELDS.items():
                if f"{key}_mean" in curve:
                    result.append(
                        Check(
                            name,
                            epoch,
                            field,
                            [rows[epoch][field] for rows in made],
                            curve[f"{key}_mean"][epoch],
                            curve[f"{key}_std"][epoch],
                        )
                    )
    return result


def table(made: Sequence[Check]) -> str:
    """Formats the checks as a Markdown table."""
    headings = (
        "optimizer", "epoch", "measure", "ours", "published", "distance", "within 3",
    )  # fmt: skip
    rows = []
    for check in made:
        percent = "accuracy" in check.field
        scale, form = (100, ".2f") if percent else (1, ".4f")
        ours = format(scale * float(np.mean(check.values)), form)
        if len(check.values) > 1:
            low, high = min(check.values), max(check.values)
            ours += f" ({scale * low:{form}} to {scale * high:{form}})"
        verdict = {True: "yes", False: "**no**", None: "no spread published"}
        title = TITLES[check.optimizer] + " 0.99" * (check.optimizer == "momentum")
        cells = [
            title,
            str(check.epoch),
            check.field.replace("_", " ") + ", %" * percent,
            ours,
            f"{scale * check.mean:{form}} ± {scale * check.deviation:{form}}",
            "-" if check.agrees is None else f"{check.distance:+.1f}",
            verdict[check.agrees],
        ]
        rows.append(cells)
    return markdown(headings, rows, left=(0, 2, 6))


def page(problem: str, made: Sequence[Check], subset: str, about: Sequence[str]) -> str:
    """Returns the text of `faithfulness.md`.

    Args:
        problem: the problem's name.
        made: the checks, at least one.
        subset: "", or the reason why the epochs are shorter than those of DeepOBS.
        about: paragraphs on how it was made.
    """
    judged = [check for check in made if check.agrees is not None]
    seeds = max(len(check.values) for check in made)
    count = sum(bool(check.agrees) for check in judged)
    parts = [f"# {problem}: Keras' optimizers beside DeepOBS' published curves\n"]
    if subset:
        parts.append(f"**Not a test of faithfulness: {subset}.**\n")
    parts += [
        f"{count} of {len(judged)} means over {seeds} seed{'s' * (seeds > 1)} lie "
        "within three published standard deviations of the published mean (ten seeds; "
        "Schneider, Balles and Hennig 2019), at DeepOBS' learning rates. In brackets "
        "the range of our runs; the distance is in published deviations.\n",
        table(made),
        *about,
    ]
    return "\n".join(parts)
