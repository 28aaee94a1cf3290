"""Budgets of a comparison: how many learning rates, epochs, examples and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.training.config import TrainingConfig

# DeepOBS' grid: 36 rates from 1e-5 to 1e2, a factor of 10^0.2 apart.
GRID = tuple(float(rate) for rate in np.logspace(-5, 2, 36))
NEIGHBOURS = 3  # Rates tried after a scout; its best is in the middle.
EXTENSIONS = 5  # The most rates that are tried beyond the lowest or the highest.
# Rates are tuned with a seed that is not reported: the best of several results with a
# reported seed would be biased upwards.
TUNING_SEED = 1_000_000


def rate_at(index: int) -> float:
    """Returns a rate of `GRID`, continued beyond both ends by the same factor."""
    return GRID[index] if 0 <= index < len(GRID) else 10.0 ** (index / 5 - 5)


def index_of(rate: float) -> int:
    """Returns the index of a rate for `rate_at`."""
    return round(5 * (math.log10(rate) + 5))


@dataclass(frozen=True)
class Budget:
    """What a comparison may cost.

    Attributes:
        name: the budget's name.
        epochs: the largest number of epochs; None for the config's own.
        train_examples: how many of the first examples to use; None for all.
        test_examples: the same for the test set.
        stride: every `stride`-th rate of `GRID` is tried; after a scout, only its best
            rate and the two neighbours.
        seeds: number of runs with the best rate.
        scout: name of a cheaper budget with which the rates are tried first, or None.
        overrides: by a problem's name, other values of these fields.
    """

    name: str
    epochs: int | None
    train_examples: int | None
    test_examples: int | None
    stride: int
    seeds: int
    scout: str | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def rates(self) -> tuple[float, ...]:
        """Returns the learning rates to try, in ascending order."""
        return GRID[:: self.stride]

    def around(self, rate: float) -> tuple[float, ...]:
        """Returns a rate of the grid and its two neighbours at the stride."""
        index = index_of(rate)
        first = index - NEIGHBOURS // 2 * self.stride
        return tuple(rate_at(first + n * self.stride) for n in range(NEIGHBOURS))

    def beyond(self, tried: Sequence[float], best: float) -> float | None:
        """Returns the rate to try next; None if the best has neighbours on both sides.

        The rates tried so far are each `stride` from the next.
        """
        index, indices = index_of(best), [index_of(rate) for rate in tried]
        if index == min(indices):
            return rate_at(index - self.stride)
        if index == max(indices):
            return rate_at(index + self.stride)
        return None


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("quick", 4, 2000, 1000, stride=3, seeds=3),
        Budget(
            "reduced",
            20,
            10_000,
            10_000,
            stride=2,
            seeds=5,
            scout="quick",
            overrides={
                "tolstoi_char_rnn": {
                    "epochs": 10,
                    "train_examples": 5000,
                    "test_examples": 1000,
                },
                "digits_label_noise": {"epochs": None},
            },
        ),
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
    budget = replace(budget, **budget.overrides.get(config.problem, {}))
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
    scout: TrainingConfig | None = None,
) -> dict[str, Any]:
    """Describes the actual budget of a comparison.

    Args:
        config: the config of the runs.
        protocol: `epochs` and `batch_size` of the config in its file.
        budget: the requested budget; None if nothing is tuned.
        examples: sizes of the whole training and test set.
        seeds: seeds of the runs with the best rate.
        scout: the config of the scout's runs. Defaults to `None`: there is no scout.

    Returns:
        `name`: the budget's, "none", or "custom" if anything differs from the budget,
        which `changed` then lists; `asked`, the requested budget's name; `epochs`,
        `train_examples` and `test_examples`, each also as `whole_*`; `batch_size`,
        `seeds`, `tuning_seed` and `learning_rates`, those that are tried first;
        `scout`: None, or `epochs`, `train_examples` and `test_examples` of its runs.
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
    first = BUDGETS[budget.scout] if budget and budget.scout else budget
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
        "tuning_seed": TUNING_SEED,
        "learning_rates": list(first.rates) if first else [],
        "scout": scout
        and {
            "epochs": scout.epochs,
            "train_examples": scout.train_examples or examples[0],
            "test_examples": scout.test_examples or examples[1],
        },
    }


def outwards(rates: Sequence[float], start: float) -> list[float]:
    """Returns the rates in the order in which to try them: those near `start` first.

    Hopeless rates are then recognised early.
    """
    return sorted(rates, key=lambda rate: abs(math.log(rate / start)))
