"""Budgets of a comparison: how many learning rates, epochs, examples and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.training.config import TrainingConfig

# DeepOBS' grid: 36 rates from 1e-5 to 1e2, a factor of 10^0.2 apart.
GRID = tuple(float(rate) for rate in np.logspace(-5, 2, 36))


@dataclass(frozen=True)
class Budget:
    """The allowed cost of a comparison.

    Attributes:
        name: the budget's name.
        epochs: the largest number of epochs; None for the config's own.
        train_examples: how many of the first examples to use; None for all.
        test_examples: the same for the test set.
        stride: every `stride`-th rate of `GRID` is tried.
        seeds: number of runs with the best rate.
    """

    name: str
    epochs: int | None
    train_examples: int | None
    test_examples: int | None
    stride: int
    seeds: int

    @property
    def rates(self) -> tuple[float, ...]:
        """Returns the learning rates to try, in ascending order."""
        return GRID[:: self.stride]


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("quick", 4, 2000, 1000, stride=3, seeds=3),
        Budget("standard", 20, None, None, stride=2, seeds=5),
        Budget("full", None, None, None, stride=1, seeds=10),
    )
}


def budgeted(
    config: TrainingConfig,
    budget: Budget,
    examples: tuple[int, int],
    kept: Sequence[str] = (),
) -> TrainingConfig:
    """Returns a config with the length and data of a budget.

    Args:
        config: a checked one.
        budget: one of `BUDGETS`.
        examples: sizes of the whole training and test set.
        kept: fields that the user has set, which are not changed.
    """
    changed: dict[str, Any] = {}
    if budget.epochs is not None and "epochs" not in kept:
        changed["epochs"] = min(config.epochs, budget.epochs)
    for name, n in zip(("train_examples", "test_examples"), examples):
        limit = getattr(budget, name)
        if limit is not None and name not in kept:
            limit = min(limit, getattr(config, name) or n)
            changed[name] = limit if limit < n else None
    return replace(config, **changed)


def describe(
    config: TrainingConfig,
    protocol: Mapping[str, Any],
    budget: Budget | None,
    examples: tuple[int, int],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Describes the actual budget of a comparison.

    Args:
        config: the config of the runs.
        protocol: `epochs` and `batch_size` of the config in its file.
        budget: the requested budget; None if nothing is tuned.
        examples: sizes of the whole training and test set.
        seeds: seeds of the runs with the best rate.

    Returns:
        `name`: the budget's, "none", or "custom" if anything differs from the budget,
        which `changed` then lists; `asked`, the requested budget's name; `epochs`,
        `train_examples` and `test_examples`, each also as `whole_*`; `batch_size`,
        `seeds` and `learning_rates`.
    """
    curves = published(config.problem).get("sgd", protocol)
    whole = replace(
        config,
        epochs=curves["epochs"],
        batch_size=curves["batch_size"],
        train_examples=None,
        test_examples=None,
    )
    changed = []
    if budget is not None:
        expected = budgeted(whole, budget, examples)
        changed = [
            f"{name} is {getattr(config, name) or 'all'}, not {value or 'all'}"
            for name, value in vars(expected).items()
            if getattr(config, name) != value
        ]
        if len(seeds) < budget.seeds:
            changed.append(f"{len(seeds)} seeds, not {budget.seeds}")
    asked = budget.name if budget else "none"
    return {
        "name": "custom" if changed else asked,
        "asked": asked,
        "changed": changed,
        "epochs": config.epochs,
        "whole_epochs": whole.epochs,
        "train_examples": config.train_examples or examples[0],
        "whole_train_examples": examples[0],
        "test_examples": config.test_examples or examples[1],
        "whole_test_examples": examples[1],
        "batch_size": config.batch_size,
        "seeds": list(seeds),
        "learning_rates": list(budget.rates) if budget else [],
    }


def outwards(rates: Sequence[float], start: float) -> list[float]:
    """Returns the rates in the order in which to try them: those near `start` first.

    Hopeless ones are then recognised soon.
    """
    return sorted(rates, key=lambda rate: abs(math.log(rate / start)))
