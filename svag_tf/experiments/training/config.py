"""Checks a config before anything is trained or written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import METHODS, OPTIMIZERS, SCHEDULES
from svag_tf.experiments.problems import PROBLEMS
from svag_tf.noise.callback import PRESETS

DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
MEASURABLE = tuple(  # By GradientNoise.
    name
    for name, method in METHODS.items()
    if name == "adam" or getattr(method.create, "damping", None)
)
STATE_DTYPES = ("float16", "bfloat16", "float32", "float64")
DISTRIBUTIONS = ("none", "mirrored", "multi_worker", "jax")
JIT_COMPILE: dict[str, bool | str] = {"auto": "auto", "true": True, "false": False}
# Keras' own optimizers, which get some things wrong under tf.distribute.
KERAS_OPTIMIZERS = tuple(n for n, method in METHODS.items() if not method.is_ours)
NOT_OF_KERAS = tuple(
    f"optimizer.{name}"
    for name in (
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "ema_overwrite_frequency",
        "gradient_accumulation_steps",
    )
)


@dataclass(frozen=True)
class Field:
    """One field: its type, its valid values, and their description."""

    type: type
    valid: Callable[[Any], bool]
    expected: str
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether `value` has the right type and range; a bool is no number."""
        if value is None:
            return self.optional
        if self.type is float:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            return math.isfinite(value) and self.valid(value)
        if self.type is int and isinstance(value, bool):
            return False
        return isinstance(value, self.type) and self.valid(value)


def _one_of(names: Any, optional: bool = False) -> Field:
    return Field(str, lambda v: v in names, f"one of {', '.join(names)}", optional)


def _number(low: float, high: float = math.inf, ends: str = "[]") -> Field:
    def valid(v: float) -> bool:
        return (low < v or (v == low and ends[0] == "[")) and (
            v < high or (v == high and ends[1] == "]")
        )

    expected = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if high == math.inf:
        expected = f"a finite number {'>=' if ends[0] == '[' else '>'} {low:g}"
    return Field(float, valid, expected, optional=True)


def _whole(low: int, high: float = math.inf, optional: bool = False) -> Field:
    expected = f"a whole number >= {low}"
    if high < math.inf:
        expected = f"a whole number in [{low}, {high:.0f}]"
    return Field(int, lambda v: low <= v <= high, expected, optional)


def _is_rising(epochs: Any) -> bool:
    whole = all(isinstance(e, int) and not isinstance(e, bool) for e in epochs)
    return whole and list(epochs) == sorted({e for e in epochs if e >= 1})


FIELDS: dict[str, Field] = {
    "problem": _one_of(PROBLEMS),
    "seed": _whole(0, 2**32 - 1),
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "data_dir": Field(str, bool, "a folder", optional=True),
    "train_examples": _whole(1, optional=True),
    "test_examples": _whole(1, optional=True),
    "dtype_policy": _one_of(DTYPE_POLICIES),
    "jit_compile": _one_of(JIT_COMPILE),
    "distribution": _one_of(DISTRIBUTIONS),
    "replicas": _whole(1, optional=True),
    "optimizer.name": _one_of(OPTIMIZERS),
    "optimizer.learning_rate": _number(0),
    "optimizer.beta": _number(0, 1, "[)"),
    "optimizer.adaptation": _one_of(("gaussian", "adam"), optional=True),
    "optimizer.state_dtype": _one_of(STATE_DTYPES, optional=True),
    "optimizer.aggregation": _one_of(("mean", "majority_vote"), optional=True),
    "optimizer.variance": _one_of(("time", "replicas"), optional=True),
    "optimizer.momentum": _number(0, 1),
    "optimizer.beta_1": _number(0, 1, "[)"),
    "optimizer.beta_2": _number(0, 1, "[)"),
    "optimizer.epsilon": _number(0),
    "optimizer.weight_decay": _number(0),
    "optimizer.clipnorm": _number(0, ends="(]"),
    "optimizer.clipvalue": _number(0, ends="(]"),
    "optimizer.global_clipnorm": _number(0, ends="(]"),
    "optimizer.use_ema": Field(bool, lambda v: True, "True or False", optional=True),
    "optimizer.ema_momentum": _number(0, 1),
    "optimizer.ema_overwrite_frequency": _whole(1, optional=True),
    "optimizer.loss_scale_factor": _number(0, ends="(]"),
    "optimizer.gradient_accumulation_steps": _whole(2, optional=True),
    "noise.preset": _one_of(PRESETS, optional=True),
    "noise.every": _whole(1),
    "schedule.name": _one_of(SCHEDULES),
    "schedule.warmup_epochs": Field(
        float, lambda v: v >= 0, "a finite number >= 0 and less than epochs"
    ),
    "schedule.boundaries": Field(
        list | tuple,  # type: ignore[arg-type]
        _is_rising,
        "rising whole epochs >= 1, such as (10, 20)",
    ),
    "schedule.factor": _number(0, ends="(]"),
    "schedule.final_fraction": _number(0, 1),
}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a config as a flat dict: `{"optimizer.name": ..., ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def checked(config: Any) -> dict[str, Any]:
    """Checks every field of a config, and fields against each other.

    Args:
        config: a `ConfigDict`, or nested dicts.

    Returns:
        The config as nested dicts of plain JSON values.

    Raises:
        ExperimentError: with the field, its valid values, and the value it had.
    """
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    flat = flatten(config)
    unknown, missing = sorted(flat.keys() - FIELDS), sorted(FIELDS.keys() - flat)
    if unknown or missing:
        raise ExperimentError(
            f"The config's fields must be: {', '.join(FIELDS)}. "
            f"Unknown: {', '.join(unknown) or 'none'}; "
            f"missing: {', '.join(missing) or 'none'}"
        )
    for name, field in FIELDS.items():
        if not field.accepts(flat[name]):
            none = " or None" if field.optional else ""
            raise ExperimentError(
                f"{name} must be {field.expected}{none}. Received: "
                f"{name}={flat[name]!r}"
            )
    _check_together(flat)
    for name, field in FIELDS.items():  # 1 and 1.0 are one config
        if field.type is float and flat[name] is not None:
            flat[name] = float(flat[name])
    return json.loads(json.dumps(_nested(flat)))


def _check_together(flat: Mapping[str, Any]) -> None:
    streams = PROBLEMS[flat["problem"]].streams
    _require(
        streams in (None, flat["batch_size"]),
        f"batch_size must be {streams} for this problem, whose text is cut into so "
        "many streams",
        flat, "problem", "batch_size",
    )  # fmt: skip
    _check_distribution(flat)
    schedule, epochs = flat["schedule.name"], flat["epochs"]
    boundaries = flat["schedule.boundaries"]
    _require(
        (schedule == "step") == bool(boundaries),
        "schedule.boundaries must name epochs for the schedule 'step', and must be "
        "empty for others",
        flat, "schedule.name", "schedule.boundaries",
    )  # fmt: skip
    _require(
        not boundaries or boundaries[-1] < epochs,
        "schedule.boundaries must be less than epochs",
        flat, "schedule.boundaries", "epochs",
    )  # fmt: skip
    for name, owner in (("factor", "step"), ("final_fraction", "cosine")):
        _require(
            schedule == owner or flat[f"schedule.{name}"] is None,
            f"schedule.{name} applies to the schedule '{owner}' only",
            flat, "schedule.name", f"schedule.{name}",
        )  # fmt: skip
    _require(
        flat["schedule.warmup_epochs"] < epochs,
        "schedule.warmup_epochs must be less than epochs",
        flat, "schedule.warmup_epochs", "epochs",
    )  # fmt: skip
    _require(
        flat["noise.preset"] is None
        or (flat["optimizer.name"] in MEASURABLE and flat["optimizer.beta"] != 0),
        f"noise.preset needs one of the optimizers {', '.join(MEASURABLE)}, with "
        "beta > 0: the others do not hold what is measured",
        flat, "noise.preset", "optimizer.name", "optimizer.beta",
    )  # fmt: skip
    _require(
        flat["noise.preset"] is None or flat["optimizer.variance"] != "replicas",
        "noise.preset must be None with optimizer.variance='replicas', which keeps no "
        "average of the squared gradient",
        flat, "noise.preset", "optimizer.variance",
    )  # fmt: skip
    for name in ("optimizer.ema_momentum", "optimizer.ema_overwrite_frequency"):
        _require(
            flat["optimizer.use_ema"] or flat[name] is None,
            f"{name} needs optimizer.use_ema=True",
            flat, name, "optimizer.use_ema",
        )  # fmt: skip


def _check_distribution(flat: Mapping[str, Any]) -> None:
    name = flat["distribution"]
    _require(
        name in ("mirrored", "jax") or flat["replicas"] is None,
        "replicas applies to distribution=mirrored and distribution=jax; with "
        "multi_worker all GPUs of each worker are used",
        flat, "distribution", "replicas",
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
        PROBLEMS[flat["problem"]].streams is None,
        "distribution must be 'none' for this problem, whose model keeps a state for "
        "each stream of its text",
        flat, "problem", "distribution",
    )  # fmt: skip
    _require(
        name == "jax" or flat["jit_compile"] != "true",
        "jit_compile must be 'auto' or 'false' with this distribution: XLA compiles "
        "for one device. The optimizer's kernels are compiled on each",
        flat, "jit_compile", "distribution",
    )  # fmt: skip
    if name == "jax" or flat["optimizer.name"] not in KERAS_OPTIMIZERS:
        return
    for field in NOT_OF_KERAS:
        _require(
            flat[field] is None,
            f"{field} must be None: Keras' own optimizers clip before the gradients "
            "are summed over the replicas, and cannot accumulate or overwrite there. "
            "Use an optimizer of svag_tf",
            flat, "optimizer.name", "distribution", field,
        )  # fmt: skip
    _require(
        flat["dtype_policy"] != "mixed_float16",
        "dtype_policy must not be 'mixed_float16' for Keras' own optimizers, whose "
        "loss scaling fails on several replicas. Use an optimizer of svag_tf, or "
        "mixed_bfloat16",
        flat, "optimizer.name", "distribution", "dtype_policy",
    )  # fmt: skip


def _require(fine: Any, rule: str, flat: Mapping[str, Any], *names: str) -> None:
    if not fine:
        received = ", ".join(f"{name}={flat[name]!r}" for name in names)
        raise ExperimentError(f"{rule}. Received: {received}")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, key = name.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[key] = value
    return nested


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the fields in which two configs differ, as lines `name: old -> new`."""
    old, new = flatten(old), flatten(new)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (
            repr(flat[name]) if name in flat else "(absent)" for flat in (old, new)
        )
        if before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines
