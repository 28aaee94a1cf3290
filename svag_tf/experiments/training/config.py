"""Checks a config before anything is trained or written."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import keras

from svag_tf.experiments.config import checked as check_fields
from svag_tf.experiments.config import field, one_of, rules_of, whole
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import METHODS, OptimizerConfig, ScheduleConfig
from svag_tf.experiments.problems import PROBLEMS, Problem
from svag_tf.noise.callback import PRESETS

DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
MEASURABLE = tuple(  # By GradientNoise.
    name
    for name, method in METHODS.items()
    if name == "adam" or getattr(method.create, "damping", None)
)
DISTRIBUTIONS = ("none", "mirrored", "multi_worker", "jax")
JIT_COMPILE: dict[str, bool | str] = {"auto": "auto", "true": True, "false": False}
# Keras' own optimizers, which get some things wrong under tf.distribute.
KERAS_OPTIMIZERS = tuple(n for n, method in METHODS.items() if not method.is_ours)
NOT_OF_KERAS = (
    "optimizer.clipnorm",
    "optimizer.clipvalue",
    "optimizer.global_clipnorm",
    "optimizer.ema_overwrite_frequency",
    "optimizer.gradient_accumulation_steps",
)


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """What `GradientNoise` measures, and after how many batches; None for nothing."""

    preset: str | None = one_of(PRESETS, optional=True)
    every: int = whole(1)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A checked config; `configs/digits.py` says what each field means."""

    problem: str = one_of(PROBLEMS)
    seed: int = whole(0, 2**32 - 1)
    epochs: int = whole(1)
    batch_size: int = whole(1)
    data_dir: str | None = field(str, bool, "a folder", optional=True)
    train_examples: int | None = whole(1, optional=True)
    test_examples: int | None = whole(1, optional=True)
    dtype_policy: str = one_of(DTYPE_POLICIES)
    jit_compile: str = one_of(JIT_COMPILE)
    distribution: str = one_of(DISTRIBUTIONS)
    replicas: int | None = whole(1, optional=True)
    optimizer: OptimizerConfig
    noise: NoiseConfig
    schedule: ScheduleConfig


FIELDS = rules_of(TrainingConfig)


def checked(config: Any) -> TrainingConfig:
    """Returns a config after checking its fields, also against each other.

    Raises:
        ExperimentError: with the field, its valid values, and the value it had.
    """
    result = check_fields(config, TrainingConfig)
    _check_together(result)
    return result


def _check_together(config: TrainingConfig) -> None:
    problem = PROBLEMS[config.problem]
    _require(
        isinstance(problem, Problem),
        f"PROBLEMS['{config.problem}'] must be a Problem(load, build)",
        config, "problem",
    )  # fmt: skip
    streams = problem.streams
    _require(
        streams in (None, config.batch_size),
        f"batch_size must be {streams} for this problem, whose text is cut into so "
        "many streams",
        config, "problem", "batch_size",
    )  # fmt: skip
    _check_distribution(config)
    schedule, epochs = config.schedule.name, config.epochs
    boundaries = config.schedule.boundaries
    _require(
        (schedule == "step") == bool(boundaries),
        "schedule.boundaries must name epochs for the schedule 'step', and must be "
        "empty for others",
        config, "schedule.name", "schedule.boundaries",
    )  # fmt: skip
    _require(
        not boundaries or boundaries[-1] < epochs,
        "schedule.boundaries must be less than epochs",
        config, "schedule.boundaries", "epochs",
    )  # fmt: skip
    for name, owner in (("factor", "step"), ("final_fraction", "cosine")):
        _require(
            schedule == owner or getattr(config.schedule, name) is None,
            f"schedule.{name} applies to the schedule '{owner}' only",
            config, "schedule.name", f"schedule.{name}",
        )  # fmt: skip
    _require(
        config.schedule.warmup_epochs < epochs,
        "schedule.warmup_epochs must be less than epochs",
        config, "schedule.warmup_epochs", "epochs",
    )  # fmt: skip
    _require(
        config.noise.preset is None
        or (config.optimizer.name in MEASURABLE and config.optimizer.beta != 0),
        f"noise.preset needs one of the optimizers {', '.join(MEASURABLE)}, with "
        "beta > 0: the others do not hold what is measured",
        config, "noise.preset", "optimizer.name", "optimizer.beta",
    )  # fmt: skip
    _require(
        config.noise.preset is None or config.optimizer.variance != "replicas",
        "noise.preset must be None with optimizer.variance='replicas', which keeps no "
        "average of the squared gradient",
        config, "noise.preset", "optimizer.variance",
    )  # fmt: skip
    for name in ("optimizer.ema_momentum", "optimizer.ema_overwrite_frequency"):
        _require(
            config.optimizer.use_ema or attrgetter(name)(config) is None,
            f"{name} needs optimizer.use_ema=True",
            config, name, "optimizer.use_ema",
        )  # fmt: skip


def _check_distribution(config: TrainingConfig) -> None:
    name = config.distribution
    _require(
        name in ("mirrored", "jax") or config.replicas is None,
        "replicas applies to distribution=mirrored and distribution=jax; with "
        "multi_worker all GPUs of each worker are used",
        config, "distribution", "replicas",
    )  # fmt: skip
    if name == "none":
        return
    backend = "jax" if name == "jax" else "tensorflow"
    if keras.backend.backend() != backend:
        raise ExperimentError(
            f"distribution={name} needs Keras' backend '{backend}': set "
            f"KERAS_BACKEND={backend}. Received: '{keras.backend.backend()}'"
        )
    _require(
        PROBLEMS[config.problem].streams is None,
        "distribution must be 'none' for this problem, whose model keeps a state for "
        "each stream of its text",
        config, "problem", "distribution",
    )  # fmt: skip
    _require(
        name == "jax" or config.jit_compile != "true",
        "jit_compile must be 'auto' or 'false' with this distribution: XLA compiles "
        "for one device. The optimizer's kernels are compiled on each",
        config, "jit_compile", "distribution",
    )  # fmt: skip
    if name == "jax" or config.optimizer.name not in KERAS_OPTIMIZERS:
        return
    for option in NOT_OF_KERAS:
        _require(
            attrgetter(option)(config) is None,
            f"{option} must be None: Keras' own optimizers clip before the gradients "
            "are summed over the replicas, and cannot accumulate or overwrite there. "
            "Use an optimizer of svag_tf",
            config, "optimizer.name", "distribution", option,
        )  # fmt: skip
    _require(
        config.dtype_policy != "mixed_float16",
        "dtype_policy must not be 'mixed_float16' for Keras' own optimizers, whose "
        "loss scaling fails on several replicas. Use an optimizer of svag_tf, or "
        "mixed_bfloat16",
        config, "optimizer.name", "distribution", "dtype_policy",
    )  # fmt: skip


def _require(condition: Any, rule: str, config: TrainingConfig, *names: str) -> None:
    if not condition:
        received = ", ".join(f"{name}={attrgetter(name)(config)!r}" for name in names)
        raise ExperimentError(f"{rule}. Received: {received}")
