"""The figure of a comparison's results against the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svag_tf.experiments.files import replacing
from svag_tf.experiments.plots import (
    DIRECTIONS,
    line_styles,
    logarithmic,
    plain_grid,
    scale_of,
    spread_near_one,
)
from svag_tf.optional import matplotlib


def save_sensitivity(
    tried: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    title: str,
    accurate: bool,
    titles: Mapping[str, str],
    path: Path,
) -> None:
    """Draws the final test accuracy (or loss) against the learning rate.

    A panel for each direction, as in `plots.save_comparison`. Filled circles are runs
    that finished, hollow ones were stopped as hopeless (their last value), crosses at
    the worst end diverged or failed. A star is the mean of the runs with the best
    rate, its bar their standard deviation; stars are shifted a little where they would
    hide each other.

    Args:
        tried: dicts with `optimizer` (label), `learning_rate`, `ended`,
            `test_accuracy` and `test_loss`.
        results: the same for the runs with the best rate.
        title: title of the whole figure.
        accurate: whether the problem has an accuracy.
        titles: titles of the labels.
        path: the PNG to write.
    """
    field = "test_accuracy" if accurate else "test_loss"
    labels = list(dict.fromkeys(row["optimizer"] for row in tried))
    styles = line_styles(labels)
    groups = {
        heading: mine
        for heading, colours in DIRECTIONS.items()
        if (mine := [x for x in labels if x.partition(":")[0] in colours])
    }
    figure = matplotlib.figure.Figure(
        figsize=(6 * len(groups), 5.2), layout="constrained", dpi=150
    )
    figure.suptitle(title, fontsize=12, fontweight="bold")
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    all_rates = [row["learning_rate"] for row in tried]
    for (group, mine), axes in zip(groups.items(), panels, strict=True):
        for label in mine:
            colour, style = styles[label]
            rows = sorted(
                (row for row in tried if row["optimizer"] == label),
                key=lambda row: row["learning_rate"],
            )
            finite = [
                row
                for row in rows
                if row["ended"] in ("completed", "stopped") and np.isfinite(row[field])
            ]
            rates = [row["learning_rate"] for row in finite]
            values = [row[field] for row in finite]
            axes.plot(
                rates,
                values,
                linestyle=style,
                color=colour,
                linewidth=1.4,
                zorder=2,
                label=titles[label],
            )
            for ended, fill in (("completed", colour), ("stopped", "white")):
                points = [
                    (r, v)
                    for r, v, row in zip(rates, values, finite)
                    if row["ended"] == ended
                ]
                axes.scatter(
                    *np.reshape(points, (-1, 2)).T,
                    s=22,
                    facecolors=fill,
                    edgecolors=colour,
                    zorder=3,
                )
            bad = [row["learning_rate"] for row in rows if row not in finite]
            height = 0.02 + 0.03 * labels.index(label)
            height = height if accurate else 1 - height
            axes.scatter(
                bad,
                [height] * len(bad),
                marker="x",
                s=24,
                color=colour,
                transform=axes.get_xaxis_transform(),
                zorder=3,
            )
            chosen = [
                row
                for row in results
                if row["optimizer"] == label and row["ended"] == "completed"
            ]
            scores = [row[field] for row in chosen]
            if scores:
                aside = 10 ** (0.07 * (mine.index(label) - (len(mine) - 1) / 2))
                axes.errorbar(
                    chosen[0]["learning_rate"] * aside,
                    np.mean(scores),
                    np.std(scores, ddof=1) if len(scores) > 1 else 0,
                    fmt="*",
                    markersize=13,
                    markeredgecolor="white",
                    color=colour,
                    capsize=3,
                    zorder=4,
                )
        plain_grid(axes)
        axes.set(
            xscale="log",
            xlim=(min(all_rates) / 1.5, max(all_rates) * 1.5),
            xlabel="learning rate (log scale)",
            title=group,
        )
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, frameon=False)
    figure.legend(
        handles=_marks(tried, results),
        loc="outside lower center",
        ncols=len(groups),
        frameon=False,
        fontsize=9,
    )
    if accurate:
        spread_near_one(panels)
    else:
        logarithmic(panels[0])
    panels[0].set_ylabel(f"final {field.replace('_', ' ')}" + scale_of(panels[0].yaxis))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _marks(
    tried: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> list[matplotlib.lines.Line2D]:
    """Returns the legend of the circles, crosses and stars that are drawn."""
    ended = {row["ended"] for row in tried}
    grey = "#555555"
    marks = (
        ("completed" in ended, "o", grey, "a run that went through"),
        ("stopped" in ended, "o", "white", "stopped as hopeless: its last value"),
        (ended & {"diverged", "failed"}, "x", grey, "diverged or failed"),
        (
            any(row["ended"] == "completed" for row in results),
            "*",
            grey,
            "the best rate with all seeds: mean ± deviation",
        ),
    )
    return [
        matplotlib.lines.Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            color=grey,
            markerfacecolor=fill,
            markersize=10 if marker == "*" else 5,
            label=label,
        )
        for drawn, marker, fill, label in marks
        if drawn
    ]
