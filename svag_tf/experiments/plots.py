"""Pictures of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from svag_tf.experiments.files import replacing
from svag_tf.experiments.optimizers import TITLES

# Okabe and Ito's palette, told apart by the colour-blind.
TRAIN_COLOUR, TEST_COLOUR = "#0072B2", "#D55E00"

# Methods that step along a gradient in cold colours, those along its sign in warm.
GRADIENT = {
    "sgd": "#8c8c8c",
    "momentum": "#1b2a6b",
    "msgd": "#0072b2",
    "svag": "#56b4e9",
    "msvag": "#009e73",
}
SIGN = {
    "ssd": "#e6c229",
    "mssd": "#e69f00",
    "svas": "#cc79a7",
    "msvas": "#d55e00",
    "adam": "#7b1e3b",
    "lion": "#8c510a",
}


def save_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs, on the training and the test set.

    Args:
        rows: one dict an epoch with `epoch`, `train_loss`, `train_accuracy`,
            `test_loss` and `test_accuracy`.
        title: of the whole figure.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
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
        _plain(axes)
        axes.legend(frameon=False)
    if all(row[f"{part}_loss"] > 0 for row in rows for part in ("train", "test")):
        _logarithmic(loss)
        loss.set(ylabel="loss (log scale)")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def save_comparison(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str, path: Path
) -> None:
    """Draws the test accuracy and training loss of several optimizers.

    A line is the mean over an optimizer's runs, the band around it their range. What
    is not finite is left out.

    Args:
        runs: for each optimizer's name, its runs: rows as for `save_curves`.
        title: of the whole figure.
        path: the PNG to write.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    accuracy, loss, legend = figure.subplots(1, 3, width_ratios=(10, 10, 3))
    legend.set_axis_off()
    for group, colours, style, place in (
        ("along the gradient", GRADIENT, "-", "upper left"),
        ("along its sign", SIGN, (0, (4, 1.5)), "lower left"),
    ):
        lines = []
        for name in (name for name in colours if name in runs):
            for axes, field in ((accuracy, "test_accuracy"), (loss, "train_loss")):
                values = _table(runs[name], field)
                epochs = np.arange(values.shape[1])
                colour = colours[name]
                (line,) = axes.plot(
                    epochs, values.mean(0), linestyle=style, color=colour, linewidth=1.8
                )
                axes.fill_between(
                    epochs, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0
                )
            line.set_label(TITLES[name])
            lines.append(line)
        if lines:
            legend.add_artist(
                legend.legend(
                    handles=lines,
                    title=group,
                    loc=place,
                    frameon=False,
                    alignment="left",
                    borderaxespad=0,
                    handlelength=2.4,
                )
            )
    for axes, name in ((accuracy, "test accuracy"), (loss, "training loss")):
        axes.set_title(name, fontsize=11)
        axes.set(xlabel="epoch")
        _plain(axes)
    # Near 1 it is the error that counts: a scale that spreads it, and ends at 1.
    accuracy.set_yscale(
        "function",
        functions=(lambda a: -np.log(1.01 - a), lambda y: 1.01 - np.exp(-y)),
    )
    accuracy.yaxis.set_major_locator(
        FixedLocator([0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1.0])
    )
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, 0, symbol=" %"))
    accuracy.yaxis.set_minor_locator(FixedLocator([]))
    _logarithmic(loss)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _table(runs: Sequence[Sequence[Mapping[str, Any]]], field: str) -> np.ndarray:
    """Values of a field, shape (runs, epochs), NaN where a run has none."""
    values = np.full((len(runs), max(map(len, runs))), np.nan)
    for i, rows in enumerate(runs):
        values[i, : len(rows)] = [row[field] for row in rows]
    return np.where(np.isfinite(values), values, np.nan)


def _plain(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes: Axes) -> None:
    axes.set(yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
