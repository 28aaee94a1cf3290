"""The project's targets for the run on the TensorFlow backend, and their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A ratio and its bound.

    Attributes:
        text: what is compared.
        bound: the smallest or the largest ratio allowed.
        at_least: whether the bound is the smallest ratio, not the largest.
        value: returns the ratio in the results; None if it was not measured.
    """

    text: str
    bound: float
    at_least: bool
    value: Callable[[Results], float | None]


def _entry(results: Results, case: str, row: str, field: str) -> float | None:
    return results["cases"].get(case, {}).get("rows", {}).get(row, {}).get(field)


def _ratio(case: str, above: str, below: str, field: str = "median") -> Any:
    def value(results: Results) -> float | None:
        a, b = (_entry(results, case, row, field) for row in (above, below))
        return a / b if a is not None and b else None

    return value


def _extra_memory(case: str, row: str) -> Any:
    def value(results: Results) -> float | None:
        extra = _entry(results, case, row, "extra_memory")
        if extra is None:
            return None
        return extra / results["cases"][case]["largest_variable"]

    return value


TARGETS = (
    Target("M-SVAG / C loop, matrices", 1.3, False,
           _ratio("matrices", "msvag", "limit")),
    Target("Keras Adam / M-SVAG, matrices", 7, True,
           _ratio("matrices", "keras-adam", "msvag")),
    Target("Keras Adam / M-SVAG, ResNet-50", 2, True,
           _ratio("resnet50", "keras-adam", "msvag")),
    Target("M-SVAG / Keras Adam, 60 tiny variables", 1, False,
           _ratio("tiny", "msvag", "keras-adam")),
    Target("First step, M-SVAG / Keras Adam, ResNet-50", 1, False,
           _ratio("resnet50", "msvag", "keras-adam", "first_step")),
    Target("First step, M-SVAG / Keras Adam, EfficientNet-B0", 1, False,
           _ratio("efficientnet", "msvag", "keras-adam", "first_step")),
    Target("M-SVAG's extra memory / largest variable, matrices", 1, False,
           _extra_memory("matrices", "msvag")),
    Target("M-SVAG's extra memory / largest variable, ResNet-50", 1, False,
           _extra_memory("resnet50", "msvag")),
    Target("M-SVAG's extra memory / largest variable, EfficientNet-B0", 1, False,
           _extra_memory("efficientnet", "msvag")),
    Target("M-SVAG / torch AdamW fused, matrices", 1, False,
           _ratio("matrices", "msvag", "torch-adamw-fused")),
    Target("M-SVAG / torch AdamW foreach, matrices", 0.5, False,
           _ratio("matrices", "msvag", "torch-adamw-foreach")),
    Target("M-SVAG / pytorch_optimizer M-SVAG foreach, matrices", 0.5, False,
           _ratio("matrices", "msvag", "torch-msvag")),
    Target("M-SVAG, sparse gradient / dense gradient, embedding", 1, False,
           _ratio("embedding", "msvag", "msvag-dense")),
    Target("M-SVAG / M-SVAG lazy, embedding", 20, True,
           _ratio("embedding", "msvag", "msvag-lazy")),
    # In 100 steps, the time of one step is 1 %.
    Target("GradientNoise every 100 steps, economy, % of fit", 1, False,
           _ratio("noise", "noise-economy", "noise-fit")),
    Target("GradientNoise every 100 steps, business, % of fit", 3, False,
           _ratio("noise", "noise-business", "noise-fit")),
)  # fmt: skip


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
