"""Builds an optimizer and its learning-rate schedule from the names in a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras.optimizers.schedules import (
    CosineDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
)

import svag_tf
from svag_tf.experiments.config import field, number, one_of, whole
from svag_tf.experiments.errors import ExperimentError
from svag_tf.optimizers.arguments import STATE_DTYPES
from svag_tf.optimizers.base import MomentOptimizer


class Method(NamedTuple):
    """An optimizer of the experiments.

    Attributes:
        create: makes it.
        title: its name as the papers write it.
        direction: "gradient" or "sign": what it steps along.
        colour: in plots, from Okabe and Ito's palette, which is safe for the
            colour-blind. One for each way to treat a direction: plain, averaged,
            variance-adapted, both; and one for each method outside the grid.
    """

    create: Callable[..., keras.optimizers.Optimizer]
    title: str
    direction: str
    colour: str

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this package, not to Keras."""
        return isinstance(self.create, type) and issubclass(
            self.create, MomentOptimizer
        )


_MOMENTUM = functools.partial(keras.optimizers.SGD, momentum=0.9)
METHODS = {
    "msvag": Method(svag_tf.MSVAG, "M-SVAG", "gradient", "#D55E00"),
    "svag": Method(svag_tf.SVAG, "SVAG", "gradient", "#009E73"),
    "mssd": Method(svag_tf.MSSD, "M-SSD", "sign", "#0072B2"),
    "ssd": Method(svag_tf.SSD, "SSD", "sign", "#E69F00"),
    "msvas": Method(svag_tf.MSVAS, "M-SVAS", "sign", "#D55E00"),
    "svas": Method(svag_tf.SVAS, "SVAS", "sign", "#009E73"),
    "msgd": Method(svag_tf.MSGD, "M-SGD", "gradient", "#0072B2"),
    "sgd": Method(keras.optimizers.SGD, "SGD", "gradient", "#E69F00"),
    "momentum": Method(_MOMENTUM, "SGD, momentum", "gradient", "#56B4E9"),
    "adam": Method(keras.optimizers.Adam, "Adam", "sign", "#CC79A7"),
    "lion": Method(keras.optimizers.Lion, "Lion", "sign", "#000000"),
}
OPTIMIZERS = {name: method.create for name, method in METHODS.items()}
TITLES = {name: method.title for name, method in METHODS.items()}
# Heading -> the colour of each optimizer below it.
DIRECTIONS = {
    heading: {n: m.colour for n, m in METHODS.items() if m.direction == direction}
    for heading, direction in (
        ("along the gradient", "gradient"),
        ("along its sign", "sign"),
    )
}
SCHEDULES = ("constant", "cosine", "step")
DEFAULT_STEP_FACTOR = 0.1


def _is_rising(epochs: Any) -> bool:
    whole = all(isinstance(e, int) and not isinstance(e, bool) for e in epochs)
    return whole and list(epochs) == sorted({e for e in epochs if e >= 1})


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer: its name, and arguments of its class; None for its default."""

    name: str = one_of(OPTIMIZERS)
    learning_rate: float | None = number(0, optional=True)
    beta: float | None = number(0, 1, "[)", optional=True)
    adaptation: str | None = one_of(("gaussian", "adam"), optional=True)
    state_dtype: str | None = one_of(STATE_DTYPES, optional=True)
    aggregation: str | None = one_of(("mean", "majority_vote"), optional=True)
    variance: str | None = one_of(("time", "replicas"), optional=True)
    momentum: float | None = number(0, 1, optional=True)
    beta_1: float | None = number(0, 1, "[)", optional=True)
    beta_2: float | None = number(0, 1, "[)", optional=True)
    epsilon: float | None = number(0, optional=True)
    weight_decay: float | None = number(0, optional=True)
    clipnorm: float | None = number(0, ends="(]", optional=True)
    clipvalue: float | None = number(0, ends="(]", optional=True)
    global_clipnorm: float | None = number(0, ends="(]", optional=True)
    use_ema: bool | None = field(bool, lambda v: True, "True or False", optional=True)
    ema_momentum: float | None = number(0, 1, optional=True)
    ema_overwrite_frequency: int | None = whole(1, optional=True)
    loss_scale_factor: float | None = number(0, ends="(]", optional=True)
    gradient_accumulation_steps: int | None = whole(2, optional=True)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A learning-rate schedule, see `build_schedule`; None for a default."""

    name: str = one_of(SCHEDULES)
    warmup_epochs: float = field(
        float, lambda v: v >= 0, "a finite number >= 0 and less than epochs"
    )
    boundaries: tuple[int, ...] = field(
        tuple, _is_rising, "rising whole epochs >= 1, such as (10, 20)"
    )
    factor: float | None = number(0, ends="(]", optional=True)
    final_fraction: float | None = number(0, 1, optional=True)


@keras.saving.register_keras_serializable(package="svag_tf")
class LinearWarmup(LearningRateSchedule):
    """Raises the rate linearly over the first steps of another schedule.

    At step t = 0, 1, 2, ... the rate is `schedule(t) * min(1, (t + 1) / steps)`: the
    first step is already made with a rate above 0. `schedule` may be a float.
    """

    def __init__(self, schedule: float | LearningRateSchedule, steps: int):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step: Any) -> Any:
        done = keras.ops.cast(step, "float32") + 1.0
        return rate_at(self.schedule, step) * keras.ops.minimum(1.0, done / self.steps)

    def get_config(self) -> dict[str, Any]:
        schedule: Any = self.schedule
        if isinstance(schedule, LearningRateSchedule):
            schedule = keras.saving.serialize_keras_object(schedule)
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LinearWarmup:
        config = dict(config)
        config["schedule"] = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**config)


def rate_at(schedule: float | LearningRateSchedule, step: Any) -> Any:
    """Returns a schedule's learning rate at step 0, 1, 2, ..., or the rate itself."""
    return schedule(step) if callable(schedule) else schedule


def build_optimizer(
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    epochs: int,
    steps_per_epoch: int,
) -> keras.optimizers.Optimizer:
    """Builds the optimizer that a config describes.

    Raises:
        ExperimentError: if an argument is given that the optimizer does not have, or
            a value that it does not accept.
    """
    arguments = {k: v for k, v in vars(optimizer).items() if v is not None}
    name = arguments.pop("name")
    create = OPTIMIZERS[name]
    known = inspect.signature(create).parameters
    not_applicable = sorted(set(arguments) - set(known))
    if name == "sgd" and "momentum" in arguments:
        not_applicable.append("momentum")
    if not_applicable:
        raise ExperimentError(
            f"The optimizer '{name}' has no {_fields(not_applicable)}. Leave it None, "
            f"or use one of: {_fields(_applicable(optimizer, known))}. Received: "
            + ", ".join(f"{key}={arguments[key]!r}" for key in not_applicable)
        )
    peak = arguments.get("learning_rate", known["learning_rate"].default)
    arguments["learning_rate"] = build_schedule(schedule, peak, epochs, steps_per_epoch)
    try:
        return create(**arguments)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"The optimizer '{name}' refuses: {error}") from error


def build_schedule(
    schedule: ScheduleConfig, peak: float, epochs: int, steps_per_epoch: int
) -> float | LearningRateSchedule:
    """Builds a learning-rate schedule; it counts batches, also under accumulation.

    "constant" stays at `peak`, and is that number if there is no warm-up. "cosine"
    falls from `peak` at the end of the warm-up to `final_fraction * peak` (default 0)
    at the end of the training. "step" is multiplied by `factor` (default 0.1) at the
    end of each epoch in `boundaries`. Each starts with a linear warm-up
    (`LinearWarmup`) of `warmup_epochs`.
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    result: float | LearningRateSchedule = peak
    if schedule.name == "cosine":
        result = CosineDecay(
            initial_learning_rate=peak,
            decay_steps=max(1, epochs * steps_per_epoch - warmup),
            alpha=schedule.final_fraction or 0.0,
            warmup_target=peak if warmup else None,
            warmup_steps=warmup,
        )
    elif schedule.name == "step":
        factor = schedule.factor or DEFAULT_STEP_FACTOR
        ends = [epoch * steps_per_epoch - 1 for epoch in schedule.boundaries]
        rates = [float(peak * factor**i) for i in range(len(ends) + 1)]
        result = PiecewiseConstantDecay(ends, rates)
    return LinearWarmup(result, warmup) if warmup else result


def _applicable(optimizer: OptimizerConfig, known: Collection[str]) -> list[str]:
    hidden = {"name"} | ({"momentum"} if optimizer.name == "sgd" else set())
    return sorted((vars(optimizer).keys() & set(known)) - hidden)


def _fields(names: list[str]) -> str:
    return ", ".join(f"optimizer.{name}" for name in names)
