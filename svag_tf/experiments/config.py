"""Configs: frozen dataclasses whose fields say which values they may have.

A config that the user gives, a `ConfigDict` or nested dicts, is checked once, where it
enters the package. `checked` makes a frozen object of it, which is passed on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from svag_tf.experiments.errors import ExperimentError

Config = TypeVar("Config")


def load_config(name: str) -> Any:
    """Returns the config of a file in configs/, also where it is installed.

    Args:
        name: that of the file, without `.py`.

    Raises:
        ExperimentError: if there is no such file.
    """
    folder = Path(__file__).parent / "configs"
    if not folder.is_dir():  # In a clone.
        folder = folder.parents[2] / "configs"
    files = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if name not in files:
        raise ExperimentError(
            f"The name of a config must be one of {', '.join(files)}. Received: {name}"
        )
    return runpy.run_path(str(files[name]))["get_config"]()


@dataclass(frozen=True)
class Rule:
    """The rule of a field: its type, its valid values, and their description."""

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
        kinds = (list, tuple) if self.type is tuple else self.type
        return isinstance(value, kinds) and self.valid(value)

    def typed(self, value: Any) -> Any:
        """Returns a value that is accepted: 1 as 1.0 for a float, a list as a tuple."""
        convert = value is not None and self.type in (float, tuple)
        return self.type(value) if convert else value


def field(
    type: type, valid: Callable[[Any], bool], expected: str, optional: bool = False
) -> Any:
    """Returns a field of a config: its type, which values are valid, and in words.

    A whole number may stand for a float, and a list for a tuple.
    """
    rule = Rule(type, valid, expected, optional)
    return dataclasses.field(metadata={"rule": rule})


def one_of(names: Iterable[str], optional: bool = False) -> Any:
    """Returns a field that holds one of these names."""
    return field(str, lambda v: v in names, f"one of {', '.join(names)}", optional)


def number(
    low: float, high: float = math.inf, ends: str = "[]", optional: bool = False
) -> Any:
    """Returns a field that holds a number in an interval, such as (low, high]."""

    def valid(v: float) -> bool:
        return (low < v or (v == low and ends[0] == "[")) and (
            v < high or (v == high and ends[1] == "]")
        )

    expected = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if high == math.inf:
        expected = f"a finite number {'>=' if ends[0] == '[' else '>'} {low:g}"
    return field(float, valid, expected, optional)


def whole(low: int, high: float = math.inf, optional: bool = False) -> Any:
    """Returns a field that holds a whole number in [low, high]."""
    expected = f"a whole number >= {low}"
    if high < math.inf:
        expected = f"a whole number in [{low}, {high:.0f}]"
    return field(int, lambda v: low <= v <= high, expected, optional)


def distinct(valid: Callable[[Any], bool], expected: str) -> Any:
    """Returns a field that holds one or more values, none of them twice."""

    def all_valid(values: Any) -> bool:
        return 0 < len(values) == len(set(values)) and all(map(valid, values))

    return field(tuple, all_valid, expected)


def rules_of(kind: type, prefix: str = "") -> dict[str, Rule]:
    """Returns the rules of a config's fields: `{"optimizer.name": ..., ...}`."""
    rules: dict[str, Rule] = {}
    for name, rule, group in _fields(kind):
        rules |= {prefix + name: rule} if rule else rules_of(group, f"{prefix}{name}.")
    return rules


def checked(config: Any, kind: type[Config]) -> Config:
    """Returns a config as an object of a frozen dataclass, after checking every field.

    Args:
        config: a `ConfigDict`, nested dicts, or a config of this kind.
        kind: the dataclass. Its fields are made with `field`, `whole` and so on, or are
            such dataclasses themselves.

    Raises:
        ExperimentError: with the field, its valid values, and the value it had.
    """
    if dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)  # type: ignore[arg-type]
    flat = flatten(config.to_dict() if hasattr(config, "to_dict") else config)
    rules = rules_of(kind)
    unknown, missing = sorted(flat.keys() - rules), sorted(rules.keys() - flat)
    if unknown or missing:
        raise ExperimentError(
            f"The config's fields must be: {', '.join(rules)}. "
            f"Unknown: {', '.join(unknown) or 'none'}; "
            f"missing: {', '.join(missing) or 'none'}"
        )
    for name, rule in rules.items():
        if not rule.accepts(flat[name]):
            none = " or None" if rule.optional else ""
            raise ExperimentError(
                f"{name} must be {rule.expected}{none}. Received: {name}={flat[name]!r}"
            )
    return _made(kind, flat)


def _made(kind: type[Config], flat: Mapping[str, Any], prefix: str = "") -> Config:
    values = {
        name: rule.typed(flat[prefix + name])
        if rule
        else _made(group, flat, f"{prefix}{name}.")
        for name, rule, group in _fields(kind)
    }
    return kind(**values)


def _fields(kind: Any) -> list[tuple[str, Rule | None, Any]]:
    """Returns each field's name, its rule (None for a group of fields) and its type."""
    types = get_type_hints(kind)
    return [
        (one.name, one.metadata.get("rule"), types[one.name])
        for one in dataclasses.fields(kind)
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as a flat one: `{"optimizer.name": ..., ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def plain(config: Any) -> dict[str, Any]:
    """Returns a checked config as nested dicts of the values that JSON has."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


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
