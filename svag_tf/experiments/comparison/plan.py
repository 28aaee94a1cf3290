"""Plans a comparison, and checks it before anything runs."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svag_tf.experiments.comparison.budgets import (
    BUDGETS,
    TUNING_SEED,
    budgeted,
    describe,
)
from svag_tf.experiments.comparison.variants import Variant, parse_variant
from svag_tf.experiments.config import plain
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import read_json, write_json
from svag_tf.experiments.optimizers import build_optimizer
from svag_tf.experiments.problems import PROBLEMS, checks, made_of
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.training.config import TrainingConfig, checked
from svag_tf.experiments.training.distributed import started
from svag_tf.experiments.training.preparing import prepared
from svag_tf.experiments.training.run_folder import RunFolder
from svag_tf.experiments.workdir import refuse_another_config

CONFIG, MADE_OF = "config.json", "made_of"
STAGES = ("scouting", "tuning")
DEFAULT_SEEDS = (0, 1, 2)  # without a budget


@dataclass(frozen=True)
class Plan:
    """A comparison before anything is run.

    Attributes:
        config: checked; the same for all runs except optimizer and seed.
        data: the problem's data, loaded once.
        variants: the optimizers.
        seeds: seeds of the runs with the best rate.
        workdir: folder of the results.
        budget: the budget for tuning, or None.
        described: see `describe`, also without a budget.
        made_of: see `made_of.made_of`.
        fresh: whether runs of other data or another model are deleted, not refused.
        stage: "tuning", or "scouting" in the plan of a scout.
        scout: the plan with which rates are tried first, or None.
    """

    config: TrainingConfig
    data: Data
    variants: list[Variant]
    seeds: list[int]
    workdir: Path
    budget: Any
    described: dict[str, Any]
    made_of: dict[str, str]
    fresh: bool
    stage: str = "tuning"
    scout: Plan | None = None

    @property
    def common(self) -> dict[str, Any]:
        """The part of the config that all runs of a workdir have in common."""
        config = plain(self.config)
        config["seed"] = None
        config["optimizer"] |= {"name": None, "learning_rate": None}
        return config

    @property
    def accuracy(self) -> bool:
        """Whether the problem has an accuracy; otherwise its loss counts."""
        return PROBLEMS[self.config.problem].accuracy

    @property
    def tuned_by(self) -> str:
        """The measure by which rates are chosen."""
        tuned_by = PROBLEMS[self.config.problem].tuned_by
        return tuned_by or ("test_accuracy" if self.accuracy else "test_loss")

    def config_of(
        self, variant: Variant, rate: float | None, seed: int
    ) -> TrainingConfig:
        """Returns the checked config of a run; a rate of None keeps the config's."""
        own = {"name": variant.name, **dict(variant.arguments)}
        if rate is not None:
            own["learning_rate"] = rate
        config = plain(self.config) | {"seed": seed}
        config["optimizer"] |= own
        return checked(config)

    def tunes(self, variant: Variant) -> bool:
        """Returns whether the variant's learning rate is to be tuned."""
        return self.budget is not None and variant.learning_rate is None

    def folder_of(self, variant: Variant, rate: float | None, seed: int) -> Path:
        """Returns the folder of a run with a seed; a tuned rate is in its name."""
        tuned = f"-rate{rate:.3g}" if self.tunes(variant) else ""
        return self.workdir / f"{variant.folder}{tuned}-seed{seed}"

    def tuning_folder_of(self, variant: Variant, rate: float) -> Path:
        """Returns the folder of a run that tries a rate, deleted when the run ends."""
        return self.workdir / self.stage / variant.folder / f"rate{rate:.3g}"


def planned(
    config: Any,
    optimizers: Sequence[str | Variant],
    workdir: Path,
    budget_name: str | None,
    seeds: Sequence[int] | None,
    protocol: Any,
    kept: Sequence[str],
    fresh: bool,
) -> Plan:
    """Checks the arguments of `compare` and the folders of its runs; only reads."""
    if budget_name is not None and budget_name not in BUDGETS:
        raise ExperimentError(
            f"budget must be one of {', '.join(BUDGETS)}. Received: {budget_name}"
        )
    budget = BUDGETS[budget_name] if budget_name else None
    variants = [
        parse_variant(one) if isinstance(one, str) else one for one in optimizers
    ]
    labels = [variant.label for variant in variants]
    if seeds is None:
        seeds = range(budget.seeds) if budget else DEFAULT_SEEDS
    for name, values in (("optimizers", labels), ("seeds", list(seeds))):
        if not values or len(set(values)) < len(values):
            raise ExperimentError(
                f"{name} must name at least one, and none twice. Received: "
                f"{name}={values}"
            )
    if budget is not None and TUNING_SEED in seeds:
        raise ExperimentError(
            f"seeds must not hold {TUNING_SEED}, with which the learning rates are "
            f"tuned. Received: seeds={list(seeds)}"
        )
    given = copy.deepcopy(config.to_dict() if hasattr(config, "to_dict") else config)
    given.setdefault("optimizer", {})["name"] = variants[0].name
    for seed in seeds:
        whole = checked(given | {"seed": seed})
    rate = whole.optimizer.learning_rate
    if budget is not None and rate is not None:
        raise ExperimentError(
            "optimizer.learning_rate is what is tuned. Leave it None, give one "
            "optimizer its own (--optimizers=adam:learning_rate=0.001), or do not "
            f"tune (--notune). Received: optimizer.learning_rate={rate}"
        )
    data = checks.load(whole.problem, PROBLEMS[whole.problem], whole.data_dir)
    examples = len(data.x_train), len(data.x_test)
    protocol = vars(whole) if protocol is None else protocol
    used = checked(budgeted(whole, budget, examples, kept)) if budget else whole
    scout = None
    if budget is not None and budget.scout is not None:
        scout_budget = BUDGETS[budget.scout]
        scout = checked(budgeted(used, scout_budget, examples))
    plan = Plan(
        used,
        data,
        variants,
        list(seeds),
        workdir,
        budget,
        describe(used, protocol, budget, examples, seeds, scout),
        _made_of(used, data),
        fresh,
    )
    if not any(map(plan.tunes, variants)):
        scout = None
        plan.described.update(learning_rates=[], scout=None)
    if scout is not None:
        plan = replace(
            plan,
            scout=replace(
                plan,
                config=scout,
                budget=scout_budget,
                made_of=_made_of(scout, data),
                stage="scouting",
            ),
        )
    for variant in variants:
        for seed in seeds:
            rate = variant.learning_rate
            if plan.tunes(variant):
                rate = plan.budget.rates[0]
            one = plan.config_of(variant, rate, seed)
            build_optimizer(one.optimizer, one.schedule, 1, 1)
            RunFolder(plan.folder_of(variant, rate, seed)).check(one)
    _check_workdir(plan)
    return plan


def _made_of(config: TrainingConfig, data: Data) -> dict[str, str]:
    """Describes data and model, which are the same in all runs, whatever their seed."""
    config = replace(config, seed=0)
    with started(config.distribution, config.replicas) as distribution:
        made = prepared(config, data, distribution)
        return made_of.made_of(config.problem, *made, config.distribution == "none")


def _check_workdir(plan: Plan) -> None:
    """Raises an error if something else was compared in the workdir."""
    path = plan.workdir / CONFIG
    if not os.path.lexists(path):
        return
    before = read_json(path)
    parts = before.pop(MADE_OF, None)
    what = f"The workdir {plan.workdir} holds a comparison"
    refuse_another_config(f"{what} with", before, plan.common)
    if not plan.fresh:
        made_of.refuse(what, parts, plan.made_of)


def begin(plan: Plan) -> None:
    """Deletes runs of other data or another model, then writes the config."""
    path = plan.workdir / CONFIG
    if path.exists():
        if not made_of.differ(read_json(path).get(MADE_OF), plan.made_of):
            return
        for checkpoints in plan.workdir.glob("*/checkpoints"):
            RunFolder(checkpoints.parent).clear()
        for stage in STAGES:
            shutil.rmtree(plan.workdir / stage, ignore_errors=True)
    write_json(path, plan.common | {MADE_OF: plan.made_of})


def check_target(plan: Plan, target: float | None) -> None:
    """Raises an `ExperimentError` if the target cannot be one of this problem."""
    if target is None:
        return
    if not (0 < target <= 1 if plan.accuracy else math.isfinite(target)):
        expected = "an accuracy in (0, 1]" if plan.accuracy else "a finite loss"
        raise ExperimentError(
            f"target must be {expected} for this problem. Received: target={target}"
        )
