"""Formats numbers for people."""

from __future__ import annotations

NOTHING = "-"


def number(value: float | None) -> str:
    """Formats a number with two or three significant digits."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:#.2g}" if value else "0"


def seconds(value: float | None) -> str:
    """Formats a time in a suitable unit: "41.3 ms"."""
    if value is None:
        return NOTHING
    unit, scale = _unit(value)
    return f"{number(value * scale)} {unit}"


def spread(low: float, high: float) -> str:
    """Formats two times in one unit: "40.9 to 42.0 ms"."""
    unit, scale = _unit(high)
    return f"{number(low * scale)} to {number(high * scale)} {unit}"


def mebibytes(value: int | None) -> str:
    """Formats bytes in MiB."""
    return NOTHING if value is None else number(value / 2**20)


def counted(count: int, thing: str) -> str:
    """Formats a number of things: "1 round", "7 rounds"."""
    return f"{count} {thing}" + ("" if count == 1 else "s")


def _unit(value: float) -> tuple[str, float]:
    if value >= 1:
        return "s", 1.0
    return ("ms", 1e3) if value >= 1e-3 else ("µs", 1e6)
