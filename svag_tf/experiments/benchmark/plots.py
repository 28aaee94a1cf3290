"""Plots of the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from svag_tf.experiments.benchmark.cases import KERAS, LIMIT, OURS, PEERS
from svag_tf.experiments.benchmark.texts import number, seconds
from svag_tf.experiments.plots import save, tidy
from svag_tf.optional import matplotlib

# Okabe and Ito's palette, safe for the colour-blind.
COLOURS = {OURS: "#0072B2", KERAS: "#D55E00", PEERS: "#8c8c8c", LIMIT: "#000000"}
LABELS = {OURS: "svag_tf", KERAS: "Keras", PEERS: "others"}
BAR, MARGIN = 0.235, 1.5  # inches


def save_bars(case: dict[str, Any], path: Path) -> None:
    """Draws a case, an entry of "cases": time per step relative to the limit's."""
    rows = _bars(case)
    figure = matplotlib.figure.Figure(
        figsize=(7.5, len(rows) * BAR + MARGIN), layout="constrained", dpi=130
    )
    reference = _draw_bars(figure.subplots(), case)
    used = {row["group"] for row in rows}
    key: list[Any] = [
        matplotlib.patches.Patch(color=COLOURS[group], label=label)
        for group, label in LABELS.items()
        if group in used
    ]
    for style, label in (("--", reference), ("-", "quartiles")):
        if label:
            line = matplotlib.lines.Line2D([], [], color="black", ls=style, label=label)
            key.append(line)
    figure.legend(
        handles=key, loc="outside upper center", ncols=len(key), frameon=False,
        fontsize=9,
    )  # fmt: skip
    save(figure, path)


def _bars(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the measured rows, the slowest first; the limit is a line."""
    rows = [
        row
        for row in case["rows"].values()
        if "median" in row and row["group"] != LIMIT
    ]
    return sorted(rows, key=lambda row: -row["median"])


def _bar(case: dict[str, Any], row: dict[str, Any], reference: str) -> float:
    """Returns the length of a bar: the ratio to the reference, as in the tables.

    If not all rows were measured at once, it is the ratio within a batch.
    """
    if not reference:
        return row["median"]
    pooled = row["median"] / case["rows"][reference]["median"]
    return row.get(f"to_{reference}", pooled)


def _draw_bars(axes: matplotlib.axes.Axes, case: dict[str, Any]) -> str:
    """Draws a bar for each row; returns what the dashed line is, if there is one."""
    rows = _bars(case)
    reference, line, label = "", "", "time, seconds"
    for name, text in (("limit", "the limit"), ("keras-adam", "Keras Adam")):
        if "median" in case["rows"].get(name, {}):
            reference, line = name, text
            label = f"time a step over {text}'s, also in brackets"
            axes.axvline(1.0, color="black", linewidth=1.2, linestyle="--", zorder=3)
            break
    scales = np.array([_bar(case, row, reference) / row["median"] for row in rows])
    medians, lows, highs = (
        scales * [row[name] for row in rows] for name in ("median", "low", "high")
    )
    places = [float(i) for i in range(len(rows))]
    axes.barh(
        places,
        medians,
        height=0.74,
        color=[COLOURS[row["group"]] for row in rows],
        xerr=(medians - lows, highs - medians),
        error_kw={"elinewidth": 1.0, "ecolor": "#333333"},
    )
    # A few slow steps must not squeeze all bars.
    right = min(highs.max(), 1.5 * medians.max())
    gap, width = 0.012 * right, 0.24 * right  # The largest of a label.
    for place, row, high, median in zip(places, rows, highs, medians):
        left = min(max(high, median), right) + gap
        if reference and left - gap < 1.0 < left + width:
            left = 1.0 + gap  # Beside the dashed line, not on it.
        axes.text(
            left,
            place,
            seconds(row["median"]) + (f"  ({number(median)})" if reference else ""),
            va="center",
            fontsize=8,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axes.set_yticks(places, [row["title"] for row in rows], fontsize=8.5)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlim(0, 1.28 * right)
    axes.set_title(case["title"], fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    tidy(axes, "x")
    return line


def save_scaling(curves: dict[str, Any], path: Path) -> None:
    """Draws time per step against parameters, both logarithmic, from "scaling"."""
    figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained", dpi=150)
    axes = figure.subplots()
    colours = {"msvag": COLOURS[OURS], "keras-adam": COLOURS[KERAS], "limit": "black"}
    highest = None
    for name, curve in curves.items():
        n, t = np.array(curve["parameters"], float), np.array(curve["median"])
        if not len(n):
            continue
        label = f"{curve['title']}: {seconds(t[0])} for {n[0]:,.0f} parameters;\n"
        label += f"{number(t[-1] / n[-1] * 1e9)} ns a parameter for {n[-1]:,.0f}"
        axes.plot(n, t, "o-", color=colours[name], ms=5, lw=1.4, label=label)
        if highest is None or t[-1] > highest[1]:
            highest = (n, t[-1])
    if highest is not None:
        n, top = highest
        guide = 2.0 * top * np.array([n.min(), n.max()]) / n.max()
        axes.plot(
            [n.min(), n.max()],
            guide,
            color="#8c8c8c",
            linestyle=":",
            label="proportional to the parameters",
        )
    axes.set(xscale="log", yscale="log", xlabel="parameters")
    axes.set_ylabel("seconds a step")
    axes.set_title("Time of a step against parameters", fontsize=12)
    tidy(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    save(figure, path)


# Colours of the mean gradient and the majority vote.
EXCHANGES = {"mean": "#D55E00", "majority_vote": "#0072B2"}


def save_replicas(results: dict[str, Any], path: Path) -> None:
    """Draws the measured cost of several replicas, from `benchmark_replicas`."""
    figure = matplotlib.figure.Figure(figsize=(11, 3.8), layout="constrained", dpi=130)
    grey = "#555555"
    measured = results["measured"]
    columns = {
        "time a step, ms": lambda row: 1e3 * row["seconds"],
        "efficiency": lambda row: row["efficiency"],
        "payload a replica, MB": lambda row: row["payload_bytes"] / 1e6,
    }
    for axes, (title, of_row) in zip(figure.subplots(1, 3), columns.items()):
        _draw_measured(axes, measured, of_row)
        if title == "efficiency":
            counts = sorted({row["replicas"] for row in measured})
            axes.plot(counts, [1 / n for n in counts], color=grey, linestyle=":")
        axes.set_title(title, fontsize=10, loc="left")
    figure.legend(
        handles=[
            matplotlib.patches.Patch(color=EXCHANGES["mean"], label="mean gradient"),
            matplotlib.patches.Patch(
                color=EXCHANGES["majority_vote"], label="majority vote"
            ),
            matplotlib.lines.Line2D(
                [], [], color=grey, marker="o", label="devices of one process"
            ),
            matplotlib.lines.Line2D(
                [], [], color=grey, marker="s", ls="", mfc="white", label="processes"
            ),
            matplotlib.lines.Line2D(
                [], [], color=grey, ls=":", label="1/n: the cores are shared"
            ),
        ],
        loc="outside upper center",
        ncols=5,
        frameon=False,
    )
    save(figure, path)


def _draw_measured(
    axes: matplotlib.axes.Axes,
    rows: list[dict[str, Any]],
    of_row: Callable[[dict[str, Any]], float],
) -> None:
    for aggregation, colour in EXCHANGES.items():
        for kind, style in (
            ("devices", {"marker": "o"}),
            ("processes", {"marker": "s", "linestyle": "", "mfc": "white", "ms": 9}),
        ):
            own = [
                (row["replicas"], of_row(row))
                for row in rows
                if (row["aggregation"], row["kind"]) == (aggregation, kind)
            ]
            axes.plot(*zip(*own), color=colour, zorder=4 - len(own) / 2, **style)
    counts = sorted({row["replicas"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlim(counts[0] / 1.4, counts[-1] * 1.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("replicas", fontsize=9)
    axes.tick_params(labelsize=8)
    tidy(axes)
