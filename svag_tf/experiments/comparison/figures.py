"""Draws the figures of a comparison: curves, and results against learning rates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svag_tf.experiments.optimizers import DIRECTIONS, TITLES
from svag_tf.experiments.plots import (
    logarithmic,
    mark_decades,
    new_figure,
    plain_epochs,
    save,
    spread_near_one,
    tidy,
)
from svag_tf.optional import matplotlib

# As many lines fit into one panel; their colours are Okabe and Ito's too.
LINES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


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
    figure = new_figure(title, 10, 0.8 + 2.9 * len(groups))
    panels = figure.subplots(
        len(groups), len(fields), sharex=True, sharey="col", squeeze=False
    )
    epochs = max((len(rows) for made in runs.values() for rows in made), default=1)
    for (group, colours), row in zip(groups.items(), panels, strict=True):
        mine = [label for label in runs if label.partition(":")[0] in colours]
        for axes, field in zip(row, fields, strict=True):
            others = [_table(runs[label], field) for label in runs if label not in mine]
            for i, values in enumerate(others):
                label = "" if i else "the other methods"
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
            plain_epochs(axes)
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
            axes.set_ylabel(name)
    save(figure, path)


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


def save_sensitivity(
    tried: Sequence[Mapping[str, Any]],
    results: Sequence[Mapping[str, Any]],
    title: str,
    accurate: bool,
    titles: Mapping[str, str],
    path: Path,
) -> None:
    """Draws the final test accuracy (or loss) against the learning rate.

    A panel for each direction, as in `save_comparison`. Filled circles are runs that
    finished, hollow ones were stopped as hopeless (their last value), crosses at the
    worst end diverged or failed. A star is the mean of the runs with the best rate, its
    bar their standard deviation; stars are shifted a little where they would hide each
    other.

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
    figure = new_figure(title, 4.5 * len(groups), 4.8)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
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
        rates = [row["learning_rate"] for row in tried if row["optimizer"] in mine]
        tidy(axes)
        axes.set(
            xscale="log",
            xlim=(min(rates) / 1.5, max(rates) * 1.5),
            xlabel="learning rate",
            title=group,
        )
        mark_decades(axes.xaxis)
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
    panels[0].set_ylabel(f"final {field.replace('_', ' ')}")
    save(figure, path)


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
