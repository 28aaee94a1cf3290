"""Pictures of runs."""

from __future__ import annotations

import warnings
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
PARTS = ("train", "test")

# One colour for each way to treat a direction: plain, averaged, variance-adapted,
# both; and one for each method outside the grid.
DIRECTIONS = {
    "along the gradient": {
        "sgd": "#E69F00",
        "msgd": "#0072B2",
        "svag": "#009E73",
        "msvag": "#D55E00",
        "momentum": "#56B4E9",
    },
    "along its sign": {
        "ssd": "#E69F00",
        "mssd": "#0072B2",
        "svas": "#009E73",
        "msvas": "#D55E00",
        "adam": "#CC79A7",
        "lion": "#000000",
    },
}


def save_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs, on the training and the test set.

    Args:
        rows: one dict an epoch with `epoch`, `train_loss`, `train_accuracy`,
            `test_loss` and `test_accuracy`. If no accuracy is a number, the loss is
            drawn alone.
        title: of the whole figure.
        path: the PNG to write.
    """
    names = ["loss"]
    if any(np.isfinite(row[f"{part}_accuracy"]) for row in rows for part in PARTS):
        names.append("accuracy")
    figure = Figure(
        figsize=(4.5 * len(names) + (len(names) == 1), 3.8),
        layout="constrained",
        dpi=150,
    )
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
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
        _plain(axes)
        axes.legend(frameon=False)
    if all(row[f"{part}_loss"] > 0 for row in rows for part in PARTS):
        _logarithmic(panels[0])
        panels[0].set(ylabel="loss (log scale)")
    for axes in panels[1:]:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def save_comparison(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], title: str, path: Path
) -> None:
    """Draws the test accuracy (or loss) and training loss of several optimizers.

    One row of panels for the methods that step along the gradient, one for those that
    step along its sign; each shows the others' lines in grey. A line is the mean over
    an optimizer's runs, the band around it their range. What is not finite is left
    out.

    Args:
        runs: for each optimizer's name, its runs: rows as for `save_curves`.
        title: of the whole figure.
        path: the PNG to write.
    """
    accurate = any(
        np.isfinite(_table(made, "test_accuracy")).any() for made in runs.values()
    )
    fields = ("test_accuracy" if accurate else "test_loss", "train_loss")
    groups = {
        title: {name: colour for name, colour in colours.items() if name in runs}
        for title, colours in DIRECTIONS.items()
    }
    groups = {title: colours for title, colours in groups.items() if colours}
    figure = Figure(figsize=(10, 0.8 + 3 * len(groups)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    panels = figure.subplots(len(groups), 2, sharex=True, sharey="col", squeeze=False)
    for (group, colours), row in zip(groups.items(), panels, strict=True):
        for axes, field in zip(row, fields, strict=True):
            for name in (name for name in runs if name not in colours):
                values = _table(runs[name], field)
                axes.plot(_mean(values), color="#dcdcdc", linewidth=1.0)
            for name, colour in colours.items():
                values = _table(runs[name], field)
                axes.plot(
                    _mean(values), color=colour, linewidth=1.8, label=TITLES[name]
                )
                low, high = np.fmin.reduce(values), np.fmax.reduce(values)
                axes.fill_between(
                    np.arange(len(low)), low, high, color=colour, alpha=0.15, lw=0
                )
            _plain(axes)
        row[0].legend(
            title=group,
            alignment="left",
            loc="lower right" if accurate else "upper right",
            ncols=2,
            framealpha=0.8,
            edgecolor="none",
        )
    for axes, field in zip(panels[0], fields, strict=True):
        name = field.replace("_", " ").replace("train ", "training ")
        axes.set_title(name, fontsize=11)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    first, loss = panels[0]
    if accurate:
        _spread_near_one(panels[:, 0])
    else:
        _logarithmic(first)
    _logarithmic(loss)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _spread_near_one(panels: np.ndarray) -> None:
    """A scale of accuracy for the panels of a column that share it.

    Near 1 it is the error that counts: it is spread there, and ends at 1.
    """
    for axes in panels:
        axes.set_yscale(
            "function",
            functions=(lambda a: -np.log(1.01 - a), lambda y: 1.01 - np.exp(-y)),
        )
    axes = panels[0]
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(
        FixedLocator([0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1])
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, symbol=" %"))
    axes.yaxis.set_minor_locator(FixedLocator([]))


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the runs that have a value; NaN where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of an empty mean
        return np.nanmean(values, axis=0)


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
    if not np.isfinite(axes.dataLim.minposy):  # nothing that has a logarithm
        return
    axes.set(yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,))
    )
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
