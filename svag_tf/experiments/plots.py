"""Draws the curves of a run, and sets the axes of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from svag_tf.experiments.files import replacing
from svag_tf.optional import matplotlib

# Okabe and Ito's palette, safe for the colour-blind.
TRAIN_COLOUR, TEST_COLOUR = "#0072B2", "#D55E00"
PARTS = ("train", "test")


def new_figure(title: str, width: float, height: float) -> matplotlib.figure.Figure:
    """Returns an empty figure, sizes in inches, to be written by `save`."""
    figure = matplotlib.figure.Figure(
        figsize=(width, height), layout="constrained", dpi=150
    )
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all; labels name their scale."""
    scales = {"log": " (log scale)", "function": " (stretched near 100 %)"}
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if label := axis.get_label_text():
                axis.set_label_text(label + scales.get(axis.get_scale(), ""))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def tidy(axes: matplotlib.axes.Axes, grid: Literal["both", "x"] = "both") -> None:
    """Draws a light grid behind the data, and no frame."""
    axes.grid(axis=grid, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(
    figure: matplotlib.figure.Figure, axes: matplotlib.axes.Axes, columns: int
) -> None:
    """Adds one legend for a whole figure, below its panels."""
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )


def save_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs, on the training and the test set.

    Without any accuracy that is a number, only the loss is drawn.

    Args:
        rows: one dict per epoch with `epoch`, `train_loss`, `train_accuracy`,
            `test_loss` and `test_accuracy`.
        title: title of the whole figure.
        path: the PNG to write.
    """
    names = ["loss"]
    if any(np.isfinite(row[f"{part}_accuracy"]) for row in rows for part in PARTS):
        names.append("accuracy")
    figure = new_figure(title, 4.5 * len(names) + (len(names) == 1), 3.8)
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(panels, names, strict=True):
        for part, colour, style in (
            ("train", TRAIN_COLOUR, "--"),
            ("test", TEST_COLOUR, "-"),
        ):
            axes.plot(
                epochs,
                [row[f"{part}_{name}"] for row in rows],
                style,
                color=colour,
                linewidth=1.8,
                marker="o" if len(rows) <= 15 else None,
                markersize=3.5,
                label=part,
            )
        axes.set(xlabel="epoch", ylabel=name)
        plain_epochs(axes)
        axes.legend(frameon=False)
    if all(row[f"{part}_loss"] > 0 for row in rows for part in PARTS):
        logarithmic(panels[0])
    for axes in panels[1:]:
        axes.yaxis.set_major_formatter(
            matplotlib.ticker.PercentFormatter(1.0, symbol=" %")
        )
    save(figure, path)


def spread_near_one(panels: np.ndarray) -> None:
    """Sets a common scale of accuracy for the panels of a column.

    Near 1 the error matters, so the scale is stretched there. It ends at the first mark
    above all values. If that is not above 0.8, it is an ordinary scale.
    """
    marks = (0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1)
    highest = max(axes.dataLim.y1 for axes in panels)
    if highest <= 0.8:
        panels[0].set_ylim(bottom=0)
        panels[0].yaxis.set_major_formatter(
            matplotlib.ticker.PercentFormatter(1.0, 0, symbol=" %")
        )
        return
    for axes in panels:
        axes.set_yscale(
            "function",
            functions=(lambda a: -np.log(1.01 - a), lambda y: 1.01 - np.exp(-y)),
        )
    axes = panels[0]
    axes.set_ylim(0, next((mark for mark in marks[1:] if mark > highest), 1))
    axes.yaxis.set_major_locator(matplotlib.ticker.FixedLocator(marks))
    axes.yaxis.set_major_formatter(
        matplotlib.ticker.PercentFormatter(1.0, 0, symbol=" %")
    )
    axes.yaxis.set_minor_locator(matplotlib.ticker.FixedLocator([]))


def plain_epochs(axes: matplotlib.axes.Axes) -> None:
    """Draws whole numbers along the x axis, and a plain grid."""
    axes.xaxis.set_major_locator(
        matplotlib.ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10])
    )
    axes.margins(x=0.02)
    tidy(axes)


def logarithmic(axes: matplotlib.axes.Axes) -> None:
    """Sets a logarithmic scale if any value is positive."""
    if not np.isfinite(axes.dataLim.minposy):  # no positive value
        return
    axes.set(yscale="log")
    mark_decades(axes.yaxis)


def mark_decades(axis: matplotlib.axis.Axis) -> None:
    """Marks an axis of logarithmic scale: the decades, or 1, 2 and 5 of a few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(
        matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high < 1e2 * low else (1,))
    )
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
