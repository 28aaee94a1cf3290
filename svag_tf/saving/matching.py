"""Matches an optimizer's saved state with its variables, and says what is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from svag_tf.saving.identities import Identity, identity_from, matched

_SHOWN = 8  # Variables in a message.
# Vectors with a number for each variable.
COUNTS = ("update_counts", "has_average")
_TITLES = {
    "average": "the averages of the weights (use_ema)",
    "accumulated_gradient": "half-accumulated gradients",
}


class Match(NamedTuple):
    """Matches a file's variables with an optimizer's.

    Attributes:
        sources: Maps the index of a variable here to its index in the file.
        message: What is not restored, and why; empty if everything is.
    """

    sources: dict[int, int]
    message: str


def match(
    optimizer: Any,
    record: dict[str, Any],
    here: list[Identity],
    expected: Iterable[str],
) -> Match:
    """Matches a record's variables with an optimizer's, and says what is missing.

    Args:
        optimizer: A `MomentOptimizer`.
        record: As `OptimizerState.record` returns it.
        here: The identities of the optimizer's variables.
        expected: The names of the entries that the optimizer has or will have.
    """
    there = [identity_from(each) for each in record["variables"] or []]
    sources = matched(there, here)
    left = {v.in_model or v.path: v for v in there}
    for source in sources.values():
        left.pop(there[source].in_model or there[source].path, None)
    fresh = []
    for i, each in enumerate(here):
        if i not in sources:
            other = left.pop(each.in_model or each.path, None)
            fresh.append(each.path)
            if other is not None:
                shapes = f"{tuple(each.shape)}, in the file {tuple(other.shape)}"
                fresh[-1] += f" (its shape is {shapes})"
    dropped = [each.path for each in left.values()]
    kinds = [{n.partition("/")[0] for n in record["entries"] if n not in COUNTS}]
    kinds.append({n.partition("/")[0] for n in expected})
    only_there = [t for k, t in _TITLES.items() if k in kinds[0] - kinds[1]]
    only_here = [t for k, t in _TITLES.items() if k in kinds[1] - kinds[0]]
    steps = [
        record["gradient_accumulation_steps"],
        optimizer.gradient_accumulation_steps,
    ]
    if steps[0] and steps[1] and steps[0] != steps[1]:
        only_there.append(_TITLES["accumulated_gradient"])
    if "learning_rate" in kinds[0] - kinds[1]:
        only_there.append("the learning rate, which is a schedule here")
    others = any(kind.startswith("other") for kind in kinds[0] ^ kinds[1])
    if others and optimizer.built:  # A subclass may add them in `build`.
        only_there.append("variables that the class has added")
    if not (fresh or dropped or only_there or only_here):
        return Match(sources, "")
    kept = [here[i].path for i in sources]
    parts = [
        f"The state of the optimizer {optimizer.name} was restored in part.",
        f"Restored: {_listed(kept)}.",
        f"Starts afresh, as its state is not in the file: {_listed(fresh)}.",
        f"Left out, as the model does not train it: {_listed(dropped)}.",
        f"Not restored: {', '.join(only_there)}.",
        f"Not in the file: {', '.join(only_here)}.",
    ]
    wanted = [True, kept, fresh, dropped, only_there, only_here]
    return Match(sources, " ".join(p for p, w in zip(parts, wanted) if w))


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
