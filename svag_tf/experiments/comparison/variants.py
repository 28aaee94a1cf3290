"""Optimizers of a comparison, each with its own arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from svag_tf.experiments.config import rules_of
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS, TITLES, OptimizerConfig

RULES = rules_of(OptimizerConfig)
ARGUMENTS = tuple(name for name in RULES if name != "name")


@dataclass(frozen=True)
class Variant:
    """An optimizer and its own arguments.

    Attributes:
        name: a name in `OPTIMIZERS`.
        arguments: names and values of fields of the config's `optimizer`.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """Its form on the command line: `adam:epsilon=1e-08`."""
        parts = [self.name, *(f"{k}={_shown(v)}" for k, v in self.arguments)]
        return ":".join(parts)

    @property
    def folder(self) -> str:
        """The label as part of a folder's name."""
        return self.label.replace(":", "-")

    @property
    def learning_rate(self) -> float | None:
        """Its own learning rate, or None."""
        return dict(self.arguments).get("learning_rate")


def parse_variant(text: str) -> Variant:
    """Reads `name` or `name:argument=value:argument=value`.

    Args:
        text: such as `"adam"` or `"momentum:momentum=0.99:learning_rate=0.0025"`.

    Raises:
        ExperimentError: if the optimizer or an argument is unknown, or a value is of
            the wrong type. Ranges are checked with the config.

    Example:

    >>> parse_variant("adam:epsilon=1e-8").arguments
    (('epsilon', 1e-08),)
    """
    name, *parts = text.split(":")
    if name not in OPTIMIZERS:
        raise ExperimentError(
            f"optimizers must be of {', '.join(OPTIMIZERS)}. Received: {name}"
        )
    arguments: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or key not in ARGUMENTS or key in arguments:
            raise ExperimentError(
                f"An optimizer's arguments are written {name}:argument=value, each "
                f"once, with arguments of {', '.join(ARGUMENTS)}. Received: {text}"
            )
        arguments[key] = _value(key, value, text)
    return Variant(name, tuple(arguments.items()))


def titles(variants: Sequence[Variant]) -> dict[str, str]:
    """Returns the variants' titles in tables and figures, by their labels.

    Titles are the papers' names with arguments in brackets. The learning rate is among
    them only if nothing else tells two variants apart.
    """

    def title(variant: Variant, all_arguments: bool) -> str:
        name, arguments = TITLES[variant.name], dict(variant.arguments)
        if variant.name == "momentum" and "momentum" in arguments:
            name += f" {_shown(arguments.pop('momentum'))}"
        if not all_arguments:
            arguments.pop("learning_rate", None)
        shown = ", ".join(
            f"{key.replace('_', ' ')} {_shown(value)}"
            for key, value in arguments.items()
        )
        return name + (f" ({shown})" if shown else "")

    count = Counter(title(variant, False) for variant in variants)
    return {v.label: title(v, count[title(v, False)] > 1) for v in variants}


def _value(key: str, text: str, whole: str) -> Any:
    kind = RULES[key].type
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ExperimentError(
            f"optimizer.{key} must be {RULES[key].expected}. Received: {whole}"
        ) from None


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
