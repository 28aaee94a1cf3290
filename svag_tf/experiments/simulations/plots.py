"""Helpers for the simulations' plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from svag_tf.experiments.files import replacing
from svag_tf.experiments.optimizers import TITLES
from svag_tf.experiments.plots import DIRECTIONS, scale_of
from svag_tf.optional import matplotlib

IDEAL = "ideal"
NAMES = {**TITLES, IDEAL: "SVAG, ideal"}
GRADIENT = {**DIRECTIONS["along the gradient"], IDEAL: "#CC79A7"}
SIGN = DIRECTIONS["along its sign"]
OTHERS = "#c8c8c8"
GUIDE = "#555555"


def new_figure(title: str, width: float, height: float) -> matplotlib.figure.Figure:
    """Returns an empty figure, sizes in inches, to be written by `save`."""
    figure = matplotlib.figure.Figure(
        figsize=(width, height), layout="constrained", dpi=150
    )
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all; labels name their scale."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if label := axis.get_label_text():
                axis.set_label_text(label + scale_of(axis))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def tidy(axes: matplotlib.axes.Axes) -> None:
    """Draws a light grid behind the data, and no frame."""
    axes.grid(color="#dddddd", linewidth=0.6)
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


def line_with_band(
    axes: matplotlib.axes.Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """Draws the median over the seeds, and a band from the 5th to the 95th percentile.

    Args:
        axes: the axes to draw on.
        x: shape (points,).
        values: shape (points, seeds).
        colour: colour of line and band.
        label: label for the legend.
        style: style of the line.
    """
    low, middle, high = np.percentile(values, [5, 50, 95], axis=1)
    axes.plot(x, middle, style, color=colour, linewidth=1.8, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
