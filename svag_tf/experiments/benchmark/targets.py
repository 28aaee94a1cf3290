"""The project's targets for the run on the TensorFlow backend, and their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A ratio of one row to another in a case, and its bound.

    Attributes:
        text: what is compared.
        bound: the largest ratio allowed; or the smallest, if `at_least`.
        case: name of the case.
        above: name of the row whose number is divided.
        below: name of the row by whose number; "" for the size of the case's largest
            variable.
        field: which of a row's numbers.
        at_least: whether the bound is the smallest ratio.
    """

    text: str
    bound: float
    case: str
    above: str
    below: str
    field: str = "median"
    at_least: bool = False

    def value(self, results: Results) -> float | None:
        """Returns the ratio in the results; None if it was not measured."""
        case = results["cases"].get(self.case, {"rows": {}})
        size = {self.field: case.get("largest_variable")}
        a = case["rows"].get(self.above, {}).get(self.field)
        b = case["rows"].get(self.below, {} if self.below else size).get(self.field)
        return a / b if a is not None and b else None


_FIRST, _MEMORY = "first_step", "extra_memory"
TARGETS = (
    Target("M-SVAG / C loop, matrices", 1.25, "matrices", "msvag", "limit"),
    Target("M-SVAS / C loop, matrices", 1.6, "matrices", "msvas", "limit"),
    Target("M-SVAG, bfloat16 / float32 slots, matrices", 1, "matrices",
           "msvag-bfloat16", "msvag"),
    Target("M-SVAG / torch AdamW fused, matrices", 1.1, "matrices", "msvag",
           "torch-adamw-fused"),
    Target("M-SVAG / torch AdamW fused, ResNet-50", 1.1, "resnet50", "msvag",
           "torch-adamw-fused"),
    Target("M-SVAG / Keras Adam in a compiled step, BERT-base", 0.7, "bert", "msvag",
           "keras-adam-compiled"),
    Target("M-SVAG / Keras Adam, 60 tiny variables", 0.35, "tiny", "msvag",
           "keras-adam"),
    Target("First step, M-SVAG / Keras Adam, ResNet-50", 0.3, "resnet50", "msvag",
           "keras-adam", _FIRST),
    Target("First step, M-SVAG / Keras Adam, EfficientNet-B0", 0.3, "efficientnet",
           "msvag", "keras-adam", _FIRST),
    *(Target(f"M-SVAG's extra memory / largest variable, {title}", 0.05, case, "msvag",
             "", _MEMORY)
      for case, title in (("matrices", "matrices"), ("resnet50", "ResNet-50"),
                          ("efficientnet", "EfficientNet-B0"))),
    Target("A step of fit, M-SVAG / Keras Adam, a large table", 1, "table", "msvag",
           "keras-adam"),
    Target("A step of fit, M-SVAG / Keras Adam, large dense layers", 1, "dense",
           "msvag", "keras-adam"),
    Target("Keras Adam / M-SVAG, matrices", 7, "matrices", "keras-adam", "msvag",
           at_least=True),
    Target("Keras Adam / M-SVAG, ResNet-50", 2, "resnet50", "keras-adam", "msvag",
           at_least=True),
    Target("M-SVAG / torch AdamW foreach, matrices", 0.5, "matrices", "msvag",
           "torch-adamw-foreach"),
    Target("M-SVAG / pytorch_optimizer M-SVAG foreach, matrices", 0.5, "matrices",
           "msvag", "torch-msvag"),
    Target("M-SVAG, sparse gradient / dense gradient, embedding", 1, "embedding",
           "msvag", "msvag-dense"),
    Target("M-SVAG / M-SVAG lazy, embedding", 20, "embedding", "msvag", "msvag-lazy",
           at_least=True),
    # In 100 steps, the time of one step is 1 %.
    Target("GradientNoise every 100 steps, economy, % of fit", 1, "noise",
           "noise-economy", "noise-fit"),
    Target("GradientNoise every 100 steps, business, % of fit", 3, "noise",
           "noise-business", "noise-fit"),
)  # fmt: skip


def needed() -> tuple[list[str], list[str]]:
    """Returns the names of all cases and rows that the targets compare."""
    cases = {target.case for target in TARGETS}
    rows = {row for target in TARGETS for row in (target.above, target.below) if row}
    return sorted(cases), sorted(rows)


def judged(results: Results) -> list[dict[str, Any]]:
    """Returns the targets with measured values: text, target, value, met or None."""
    rows = []
    for target in TARGETS:
        value = target.value(results)
        met = None
        if value is not None:
            met = value >= target.bound if target.at_least else value <= target.bound
        bound = f"{'at least' if target.at_least else 'at most'} {target.bound:g}"
        rows.append({"text": target.text, "target": bound, "value": value, "met": met})
    return rows
