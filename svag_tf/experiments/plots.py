"""Plots of runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svag_tf.experiments.files import replacing
from svag_tf.experiments.optimizers import METHODS, TITLES
from svag_tf.optional import matplotlib

# Okabe and Ito's palette, safe for the colour-blind.
TRAIN_COLOUR, TEST_COLOUR = "#0072B2", "#D55E00"
PARTS = ("train", "test")

# As many lines fit into one panel; their colours are Okabe and Ito's too.
LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Heading -> the colour of each optimizer below it.
DIRECTIONS = {
    heading: {n: m.colour for n, m in METHODS.items() if m.direction == direction}
    for heading, direction in (
        ("along the gradient", "gradient"),
        ("along its sign", "sign"),
    )
}


def save_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs, on the training and the test set.

    Args:
        rows: one dict per epoch with `epoch`, `train_loss`, `train_accuracy`,
            `test_loss` and `test_accuracy`. If no accuracy is a number, only the loss
            is drawn.
        title: title of the whole figure.
        path: the PNG to write.
    """
    names = ["loss"]
    if any(np.isfinite(row[f"{part}_accuracy"]) for row in rows for part in PARTS):
        names.append("accuracy")
    figure = matplotlib.figure.Figure(
        figsize=(4.5 * len(names) + (len(names) == 1), 3.8),
        layout="constrained",
        dpi=150,
    )
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
        logarithmic(panels[0])
        panels[0].set(ylabel="loss" + scale_of(panels[0].yaxis))
    for axes in panels[1:]:
        axes.yaxis.set_major_formatter(
            matplotlib.ticker.PercentFormatter(1.0, symbol=" %")
        )
    with replacing(path) as temporary:
        figure.savefig(temporary)


def save_comparison(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    title: str,
    path: Path,
    titles: Mapping[str, str] | None = None,
    published: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Draws test accuracy (or loss), training loss and gap of several optimizers.

    The gap is that of generalization: test loss minus training loss.

    Up to six lines share a panel. More have one row of panels for the methods that step
    along the gradient, one for those that step along its sign; each shows the others'
    lines in grey. A line is the mean over an optimizer's runs, the band around it their
    range. Published curves are dotted, their bands mean ± standard deviation. Values
    that are not finite are left out.

    Args:
        runs: for each optimizer's label (`name` or `name:...`), its runs: rows as for
            `save_curves`.
        title: title of the whole figure.
        path: the PNG to write.
        titles: titles of the labels. Defaults to `None`: those of the names.
        published: as `baselines.published` returns it, or None.
    """
    titles = titles or {}
    published = published or {}
    accurate = any(
        np.isfinite(_table(made, "test_accuracy")).any() for made in runs.values()
    )
    fields = ("test_accuracy" if accurate else "test_loss", "train_loss", "gap")
    names = list(dict.fromkeys(x.partition(":")[0] for x in (*runs, *published)))
    if len(runs) + len(published) <= len(LINES):
        groups = {"": dict(zip(names, LINES))}
    else:
        groups = {
            heading: colours
            for heading, colours in DIRECTIONS.items()
            if colours.keys() & set(names)
        }
    styles = line_styles(list(runs))
    figure = matplotlib.figure.Figure(
        figsize=(12, 0.8 + 2.7 * len(groups)), layout="constrained", dpi=150
    )
    figure.suptitle(title, fontsize=12, fontweight="bold")
    panels = figure.subplots(
        len(groups), len(fields), sharex=True, sharey="col", squeeze=False
    )
    epochs = max((len(rows) for made in runs.values() for rows in made), default=1)
    for (group, colours), row in zip(groups.items(), panels, strict=True):
        mine = [label for label in runs if label.partition(":")[0] in colours]
        for axes, field in zip(row, fields, strict=True):
            others = [_table(runs[label], field) for label in runs if label not in mine]
            for i, values in enumerate(others):
                label = "" if i else "the other direction's methods"
                axes.plot(_mean(values), color="#c8c8c8", linewidth=1.0, label=label)
            for name in (n for n in colours if n in published and field != "gap"):
                _draw_published(
                    axes, published[name], name, colours[name], field, epochs
                )
            for label in mine:
                values = _table(runs[label], field)
                colour, style = colours[label.partition(":")[0]], styles[label][1]
                axes.plot(
                    _mean(values),
                    color=colour,
                    linestyle=style,
                    linewidth=1.8,
                    label=titles.get(label) or TITLES[label.partition(":")[0]],
                )
                low, high = np.fmin.reduce(values), np.fmax.reduce(values)
                axes.fill_between(
                    np.arange(len(low)), low, high, color=colour, alpha=0.15, lw=0
                )
            _plain(axes)
        row[-1].legend(
            *row[0].get_legend_handles_labels(),
            title=group,
            alignment="left",
            loc="upper left",
            bbox_to_anchor=(1.02, 1.0),
            frameon=False,
        )
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    for column, field in zip(panels.T, fields, strict=True):
        if field == "test_accuracy":
            spread_near_one(column)
        elif field != "gap":
            logarithmic(column[0])
        name = field.replace("_", " ").replace("train ", "training ")
        for axes in column:
            if field == "gap":
                axes.axhline(0, color="#888888", linewidth=0.8)
                name = "test loss minus training loss"
            axes.set_ylabel(name + scale_of(axes.yaxis))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def line_styles(labels: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Returns each optimizer's colour, and a line style to tell its variants apart."""
    colours = {
        name: colour for group in DIRECTIONS.values() for name, colour in group.items()
    }
    styles = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
    seen: dict[str, int] = {}
    result = {}
    for label in labels:
        name = label.partition(":")[0]
        number = seen[name] = seen.get(name, -1) + 1
        result[label] = colours[name], styles[number % len(styles)]
    return result


def _draw_published(
    axes: matplotlib.axes.Axes,
    curve: Mapping[str, Any],
    name: str,
    colour: str,
    field: str,
    epochs: int,
) -> None:
    """Draws one of DeepOBS' curves, as long as ours."""
    key = field.replace("accuracy", "accuracies").replace("loss", "losses")
    mean, deviation = (
        np.asarray(curve[f"{key}_{part}"][:epochs]) for part in ("mean", "std")
    )
    title = TITLES[name] + (" 0.99" if name == "momentum" else "")
    axes.plot(
        mean, ":", color=colour, linewidth=1.8, label=f"{title}, published (DeepOBS)"
    )
    axes.fill_between(
        np.arange(len(mean)),
        mean - deviation,
        mean + deviation,
        color=colour,
        alpha=0.15,
        lw=0,
    )


def spread_near_one(panels: np.ndarray) -> None:
    """Sets a common scale of accuracy for the panels of a column.

    Near 1 the error matters, so the scale is stretched there. It ends at the first mark
    above all values. If that is not above 0.9, it is an ordinary scale.
    """
    marks = (0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1)
    highest = max(axes.dataLim.y1 for axes in panels)
    if highest <= 0.9:
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


def scale_of(axis: matplotlib.axis.Axis) -> str:
    """Returns what an axis' label says of its scale; nothing if it is ordinary."""
    scales = {"log": " (log scale)", "function": " (stretched near 100 %)"}
    return scales.get(axis.get_scale(), "")


def _mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the runs that have a value; NaN where none has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of an empty mean
        return np.nanmean(values, axis=0)


def _table(runs: Sequence[Sequence[Mapping[str, Any]]], field: str) -> np.ndarray:
    """Returns a field's values, shape (runs, epochs), NaN where a run has none.

    The field "gap" is the test loss minus the training loss.
    """
    if field == "gap":
        return _table(runs, "test_loss") - _table(runs, "train_loss")
    values = np.full((len(runs), max(map(len, runs))), np.nan)
    for i, rows in enumerate(runs):
        values[i, : len(rows)] = [row[field] for row in rows]
    return np.where(np.isfinite(values), values, np.nan)


def _plain(axes: matplotlib.axes.Axes) -> None:
    axes.xaxis.set_major_locator(
        matplotlib.ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10])
    )
    plain_grid(axes)


def plain_grid(axes: matplotlib.axes.Axes) -> None:
    """Draws a light grid behind everything, and no frame."""
    axes.margins(x=0.02)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axes: matplotlib.axes.Axes) -> None:
    """Sets a logarithmic scale if any value is positive."""
    if not np.isfinite(axes.dataLim.minposy):  # no positive value
        return
    axes.set(yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(
        matplotlib.ticker.LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,))
    )
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
