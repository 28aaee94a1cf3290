"""Draws the figures of the page, and its table."""

# ruff: noqa: RUF001 (the paper's Greek letters in figures and tables)

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from svag_tf.noise.files import BINS, OVERALL, QUANTITIES
from svag_tf.noise.runs import Run
from svag_tf.optional import plotly

# Okabe and Ito's palette, safe for the colour-blind, without its black.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442",
)  # fmt: skip
NO_SIGNAL = "#D55E00"  # far from all of the heat maps' colours
NOISIEST = 12  # rows of the table for each run


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _subplots(titles: Sequence[str]) -> Any:
    rows = -(-len(titles) // 2)
    figure = plotly.subplots.make_subplots(
        rows=rows, cols=min(2, len(titles)), subplot_titles=titles,
        vertical_spacing=0.16 if rows > 1 else 0, horizontal_spacing=0.1,
    )  # fmt: skip
    figure.update_layout(
        height=320 * rows + 60,
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        legend={"orientation": "h", "y": -0.12 if rows > 1 else -0.2},
        meta={"wide": True},
    )
    return figure


def _add(
    figure: Any, at: int, run: Run, i: int, x: Any, y: Any, dash: str = "solid",
    label: str = "",
) -> None:  # fmt: skip
    """Adds a line of a run to panel number `at`; its legend is in the first panel."""
    values = _plain(y)
    known = [False, *(value is not None for value in values), False]
    alone = [not before and not after for before, after in zip(known, known[2:])]
    figure.add_trace(
        plotly.graph_objects.Scatter(
            x=_plain(x),
            y=values,
            name=run.name + label,
            legendgroup=run.name + label,
            showlegend=at == 0,
            mode="lines+markers",
            line={"color": _colour(i), "width": 2, "dash": dash},
            # A point between two gaps has no line.
            marker={
                "size": [5 if single else 0 for single in alone],
                "opacity": 1,
                "line": {"width": 0},
            },
        ),
        row=at // 2 + 1,
        col=at % 2 + 1,
    )


def _plain(values: Any) -> list[float | None]:
    """Replaces NaN and infinity, which JSON lacks, by None: gaps."""
    return [float(v) if math.isfinite(v) else None for v in values]


def curves(runs: Sequence[Run]) -> list[Any]:
    with_metrics = [(i, run) for i, run in enumerate(runs) if run.metrics]
    if not with_metrics:
        figure = _subplots(["training loss"])
        for i, run in enumerate(runs):
            rows = run.noise[OVERALL]
            _add(figure, 0, run, i, rows["step"], rows["loss"])
        figure.update_xaxes(title="updates")
        return [figure]
    accurate = any(
        np.isfinite(run.metrics.get("test_accuracy", np.array([]))).any()
        for _, run in with_metrics
    )
    names = ["loss", "accuracy"] if accurate else ["loss"]
    figure = _subplots(names)
    for i, run in with_metrics:
        for at, name in enumerate(names):
            for part, dash in (("test", "solid"), ("train", "dot")):
                values = run.metrics.get(f"{part}_{name}")
                if values is not None:
                    x = run.metrics["epoch"]
                    _add(figure, at, run, i, x, values, dash, f", {part}")
    figure.update_xaxes(title="epoch")
    return [figure]


def noise(runs: Sequence[Run]) -> Any:
    titles = {"eta2": "η²", "gamma": "γ", "noise_scale": "noise scale, examples"}
    if any(np.isfinite(run.noise[OVERALL]["update_to_weight"]).any() for run in runs):
        titles["update_to_weight"] = "update over weight"
    else:
        titles["sqrt_s"] = "√s, deviation of a mini-batch's gradient"
    figure = _subplots(list(titles.values()))
    for at, name in enumerate(titles):
        row, col = at // 2 + 1, at % 2 + 1
        for i, run in enumerate(runs):
            columns = run.noise[OVERALL]
            _add(figure, at, run, i, columns["step"], columns[name])
            if name == "noise_scale":
                x, y = _band(columns)
                figure.add_trace(
                    plotly.graph_objects.Scatter(
                        x=x, y=y,
                        fill="toself", fillcolor=_colour(i), opacity=0.18,
                        line={"width": 0}, hoverinfo="skip", showlegend=False,
                        legendgroup=run.name,
                    ),
                    row=row, col=col,
                )  # fmt: skip
        if name == "gamma":
            figure.update_yaxes(range=[0, 1.02], row=row, col=col)
        else:
            values = np.concatenate([run.noise[OVERALL][name] for run in runs])
            figure.update_yaxes(
                type="log",
                exponentformat="power",
                dtick=_step_of_log_axis(values),
                row=row,
                col=col,
            )
            if np.isinf(values).any() and not np.isfinite(values).any():
                figure.update_yaxes(showticklabels=False, row=row, col=col)
                figure.add_annotation(
                    text="no signal can be told from the noise",
                    x=0.5, y=0.5, xref="x domain", yref="y domain", showarrow=False,
                    row=row, col=col,
                )  # fmt: skip
    figure.update_xaxes(title="updates")
    return figure


def _step_of_log_axis(values: np.ndarray) -> int | str | None:
    """Returns the ticks' step: whole powers of ten, at most about seven ticks.

    With less than two powers on the axis, also 2 and 5 times them; `None`, Plotly's own
    choice, if there may be none.
    """
    shown = np.log10(values[np.isfinite(values) & (values > 0)])
    decades = np.ptp(shown) if shown.size else 0.0
    if decades < 1:
        return None
    return "D2" if decades < 1.5 else math.ceil(decades / 6)


def _band(columns: dict[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    """Returns the outline of noise scale +- error; a gap splits it."""
    scale, error = columns["noise_scale"], columns["noise_scale_error"]
    fine = np.isfinite(scale) & np.isfinite(error)
    x: list[Any] = []
    y: list[Any] = []
    for part in np.split(np.arange(len(fine)), np.flatnonzero(np.diff(fine)) + 1):
        if len(part) and fine[part[0]]:
            middle, e = scale[part], error[part]
            low, high = np.maximum(middle - e, middle / 10), middle + e
            x += [*_plain(columns["step"][part]), *_plain(columns["step"][part[::-1]])]
            x.append(None)
            y += [*_plain(high), *_plain(low[::-1]), None]
    return x, y


def _layers(run: Run) -> list[str]:
    return [layer for layer in run.noise if layer != OVERALL]


def heat_maps(runs: Sequence[Run], name: str) -> list[Any]:
    """Draws eta2 or gamma of every layer over the updates, all on one scale."""
    tables = [np.array([run.noise[x][name] for x in _layers(run)]) for run in runs]
    lowest, highest = 0.0, 1.0
    if name == "eta2":
        with np.errstate(divide="ignore"):
            tables = [np.log10(table) for table in tables]
        shown = np.concatenate([table[np.isfinite(table)] for table in tables])
        if shown.size:
            lowest, highest = shown.min(), shown.max()
    return [
        _heat_map(run, table, name, lowest, highest)
        for run, table in zip(runs, tables, strict=True)
    ]


def _heat_map(
    run: Run, values: np.ndarray, name: str, lowest: float, highest: float
) -> Any:
    layers = _layers(run)
    axes = {"x": [f"{step:.0f}" for step in run.noise[OVERALL]["step"]], "y": layers}
    figure = plotly.graph_objects.Figure(
        plotly.graph_objects.Heatmap(
            **axes,
            z=[_plain(row) for row in values],
            colorscale="Viridis",
            zmin=lowest,
            zmax=highest,
            showscale=bool(np.isfinite(values).any()),
            colorbar={"title": "γ" if name == "gamma" else "log₁₀ η²"},
        )
    )
    if (values == np.inf).any():
        figure.add_trace(
            plotly.graph_objects.Heatmap(
                **axes,
                z=[_plain(row) for row in np.where(values == np.inf, 1, np.nan)],
                colorscale=[[0, NO_SIGNAL], [1, NO_SIGNAL]],
                showscale=False,
                showlegend=True,
                name="no signal",
                hovertemplate="%{x}, %{y}: no signal<extra></extra>",
            )
        )
    figure.update_layout(
        title=run.name,
        height=max(260, 22 * len(layers) + 130),
        margin={"l": 20, "r": 20, "t": 50, "b": 60},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02,
                "yanchor": "bottom"},
    )  # fmt: skip
    figure.update_xaxes(title="updates", type="category", nticks=12)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _bins() -> np.ndarray:
    return (np.arange(BINS) + 0.5) / BINS


def gamma_over_time(run: Run) -> Any:
    steps, shares = run.gamma_over_time
    figure = plotly.graph_objects.Figure(
        plotly.graph_objects.Heatmap(
            z=[_plain(row) for row in shares],
            x=[str(step) for step in steps],
            y=_plain(_bins()),
            colorscale="Viridis",
            zmin=0,
            colorbar={"title": "share"},
        )
    )
    figure.update_layout(
        title=f"{run.name}: all layers",
        height=340,
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
    )
    figure.update_xaxes(title="updates", type="category", nticks=12)
    figure.update_yaxes(title="γ", range=[0, 1])
    return figure


def gamma_histograms(run: Run) -> Any:
    figure = plotly.graph_objects.Figure()
    layers = [layer for layer in run.histograms if layer != OVERALL]
    for i, layer in enumerate(layers):
        counts = run.histograms[layer]
        figure.add_trace(
            plotly.graph_objects.Scatter(
                x=_plain(_bins()),
                y=_plain(counts / max(counts.sum(), 1)),
                name=layer,
                line={"shape": "hvh", "color": _colour(i)},
                visible=True if i < len(COLOURS) else "legendonly",
            )
        )
    figure.update_layout(
        title=f"{run.name}: each layer, last measurement",
        height=340,
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        showlegend=True,
    )
    figure.update_xaxes(title="γ", range=[0, 1])
    figure.update_yaxes(title="share", rangemode="tozero")
    return figure


def rates(runs: Sequence[Run]) -> Any:
    figure = _subplots(["learning rate", "seconds since the start"])
    for i, run in enumerate(runs):
        columns = run.noise[OVERALL]
        for at, name in enumerate(("learning_rate", "seconds")):
            _add(figure, at, run, i, columns["step"], columns[name])
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(title="updates")
    return figure


def table(run: Run) -> str:
    last = {layer: run.noise[layer] for layer in _layers(run)}

    def noisiness(layer: str) -> float:
        value = last[layer]["eta2"][-1]
        return -math.inf if math.isnan(value) else value

    shown = [
        name
        for name in QUANTITIES
        if any(not math.isnan(columns[name][-1]) for columns in last.values())
    ]
    titles = {
        "eta2": "η²", "gamma": "γ", "m": "|m|", "sqrt_s": "√s",
        "update_to_weight": "update / weight", "noise_scale": "noise scale",
        "noise_scale_error": "± error", "critical_batch_size": "critical batch size",
    }  # fmt: skip
    lines = [
        "<tr><th>" + "</th><th>".join(["layer", *(titles[n] for n in shown)]) + "</th>"
    ]
    for layer in sorted(last, key=noisiness, reverse=True)[:NOISIEST]:
        cells = [html.escape(layer), *(f"{last[layer][n][-1]:.3g}" for n in shown)]
        lines.append("<tr><td>" + "</td><td>".join(cells) + "</td>")
    step = run.noise[OVERALL]["step"][-1]
    return (
        f"<h3>{html.escape(run.name)}, after {step:.0f} updates</h3>"
        f"<table>{''.join(line + '</tr>' for line in lines)}</table>"
    )
