"""One self-contained page on how noisy the gradients of a run, or of several, are.

    python -m svag_tf.report WORKDIR [WORKDIR ...] [--output=PAGE] [--watch]

Reads what `svag_tf.callbacks.GradientNoise` wrote with `log_dir=WORKDIR`, and what
`scripts/train.py` wrote beside it (`metrics.csv`). The page needs no network. Exit
code: 0 if it was written, else not 0.
"""

# ruff: noqa: RUF001 (the paper's Greek letters in figures and tables)

from __future__ import annotations

import argparse
import csv
import html
import json
import math
import string
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svag_tf.files import whole_file
from svag_tf.noise.files import (
    BINS,
    COLUMNS,
    HISTOGRAM_COLUMNS,
    OVERALL,
    QUANTITIES,
    read_table,
)
from svag_tf.optional import plotly

# Okabe and Ito's palette, safe for the colour-blind, without its black.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442",
)  # fmt: skip
NOISIEST = 12  # rows of the table for each run


class ReportError(Exception):
    """A folder that cannot be reported on; the message is meant for the user."""


class NothingMeasured(ReportError):
    """A folder without a measurement, or without one yet."""


@dataclass(frozen=True)
class Run:
    """The measurements of a run.

    Attributes:
        name: the name for legends.
        noise: for each layer, and `OVERALL`, a dict of columns: arrays over the
            measurements.
        histograms: for each layer the gamma histogram of the last measurement; empty
            unless the preset was "full".
        gamma_over_time: steps, and shape (BINS, steps): shares of all elements.
        metrics: columns of `metrics.csv`; empty without one.
        complete: whether the training has ended; None if unknown.
    """

    name: str
    noise: dict[str, dict[str, np.ndarray]]
    histograms: dict[str, np.ndarray]
    gamma_over_time: tuple[np.ndarray, np.ndarray]
    metrics: dict[str, np.ndarray]
    complete: bool | None


def read_run(folder: Path, name: str) -> Run:
    """Reads the files of a run, which may still be written to.

    Raises:
        ReportError: if a file is missing or malformed; names it.
    """
    try:
        rows = read_table(folder / "noise.csv", COLUMNS)
        histograms = read_table(folder / "noise_histograms.csv", HISTOGRAM_COLUMNS)
        # The line of all layers comes last: without it a measurement is incomplete.
        steps = list(dict.fromkeys(r["step"] for r in rows if r["layer"] == OVERALL))
        if not steps:
            raise NothingMeasured(
                f"{folder} holds no measurements: {folder / 'noise.csv'} must have "
                "been written by svag_tf.callbacks.GradientNoise(log_dir=...), or by "
                "scripts/train.py with --config.noise.preset=full"
            )
        at = {step: i for i, step in enumerate(steps)}
        noise: dict[str, dict[str, np.ndarray]] = {}
        for row in rows:
            if row["step"] in at:
                columns = noise.setdefault(
                    row["layer"],
                    {c: np.full(len(at), math.nan) for c in COLUMNS if c != "layer"},
                )
                for column, values in columns.items():
                    values[at[row["step"]]] = float(row[column] or math.nan)
        gamma = [row for row in histograms if row["quantity"] == "gamma"]
        counts = {
            (int(row["step"]), row["layer"]): np.array(
                [int(row[f"bin_{i}"]) for i in range(BINS)]
            )
            for row in gamma
        }
    except (OSError, ValueError) as error:
        raise ReportError(f"{folder} cannot be read: {error}") from error
    last = max((step for step, _ in counts), default=0)
    counted = sorted(step for step, layer in counts if layer == OVERALL)
    over_time = np.array([counts[step, OVERALL] for step in counted]).T
    metrics = _metrics(folder / "metrics.csv")
    return Run(
        name,
        noise,
        {layer: row for (step, layer), row in counts.items() if step == last},
        (np.array(counted), over_time / np.maximum(over_time.sum(0), 1)),
        metrics,
        _complete(folder, metrics),
    )


def _metrics(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return {
            name: np.array([float(row[name] or math.nan) for row in rows])
            for name in (rows[0] if rows else ())
        }
    except (OSError, ValueError, TypeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from error


def _complete(folder: Path, metrics: dict[str, np.ndarray]) -> bool | None:
    try:
        epochs = float(json.loads((folder / "config.json").read_text())["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return bool("epoch" in metrics and metrics["epoch"][-1] >= epochs)


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def page(runs: Sequence[Run], refresh: int | None = None) -> str:
    """Returns the page as HTML.

    Args:
        runs: at least one.
        refresh: seconds after which a browser reloads the page; None for never.
    """
    sections = []
    figures: list[Any] = []
    for title, text, made in _sections(runs):
        body = [f"<h2>{html.escape(title)}</h2>", f"<p>{text}</p>"]
        if made and isinstance(made[0], str):
            body += made
        else:
            ids = [f"figure-{len(figures) + i}" for i in range(len(made))]
            body.append('<div class="figures">')
            body += [f'<div class="figure" id="{i}"></div>' for i in ids]
            body.append("</div>")
            figures += [json.loads(figure.to_json()) for figure in made]
        sections.append(f"<section>{''.join(body)}</section>")
    templates = {
        mode: json.loads(plotly.io.json.to_json_plotly(plotly.io.templates[name]))
        for mode, name in (("light", "plotly_white"), ("dark", "plotly_dark"))
    }
    return string.Template(_PAGE).substitute(
        title=html.escape("Gradient noise: " + ", ".join(run.name for run in runs)),
        refresh=(f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""),
        sections="\n".join(sections),
        plotly=plotly.offline.get_plotlyjs(),
        figures=_script_json(figures),
        templates=_script_json(templates),
    )


def _script_json(value: Any) -> str:
    """Returns JSON that cannot end the script element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")


def _sections(runs: Sequence[Run]) -> Iterator[tuple[str, str, list[Any]]]:
    yield "Curves", "Loss and accuracy over the epochs.", _curves(runs)
    yield (
        "Noise",
        "All layers together. η² is the noise-to-signal ratio of a mini-batch's "
        "gradient, γ the mean factor that damps a step, the noise scale the batch size "
        "at which noise and signal are equal, with its standard error. A gap: no "
        "signal can be told from the noise.",
        [_noise(runs)],
    )
    yield (
        "Layers over time",
        "log₁₀ η²: the brighter, the noisier. The brightest is a layer without a "
        "detectable signal, a gap one without noise.",
        [_heat_map(run, "eta2") for run in runs],
    )
    yield (
        "γ of the layers",
        "The mean of γ: near 0 steps are damped away, at 1 they are left alone.",
        [_heat_map(run, "gamma") for run in runs],
    )
    with_histograms = [run for run in runs if run.histograms]
    if with_histograms:
        yield (
            "Histograms of γ",
            "Shares of the elements: of all layers over time, and of each layer at the "
            "last measurement.",
            [
                figure
                for run in with_histograms
                for figure in (_gamma_over_time(run), _gamma_histograms(run))
            ],
        )
    yield "Learning rate and time", "As they were at each measurement.", [_rates(runs)]
    yield (
        "Noisiest layers",
        f"The last measurement, at most {NOISIEST} layers of each run.",
        [_table(run) for run in runs],
    )


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
    figure.add_trace(
        plotly.graph_objects.Scatter(
            x=_plain(x),
            y=values,
            name=run.name + label,
            legendgroup=run.name + label,
            showlegend=at == 0,
            # A point between two gaps has no line.
            mode="lines+markers" if len(x) < 40 or None in values else "lines",
            line={"color": _colour(i), "width": 2, "dash": dash},
            marker={"size": 5},
        ),
        row=at // 2 + 1,
        col=at % 2 + 1,
    )


def _plain(values: Any) -> list[float | None]:
    """Replaces NaN and infinity, which JSON lacks, by None: gaps."""
    return [float(v) if math.isfinite(v) else None for v in values]


def _curves(runs: Sequence[Run]) -> list[Any]:
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


def _noise(runs: Sequence[Run]) -> Any:
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


def _heat_map(run: Run, name: str) -> Any:
    layers = _layers(run)
    values = np.array([run.noise[layer][name] for layer in layers])
    lowest, highest = (0.0, 1.0) if name == "gamma" else (None, None)
    if name == "eta2":
        with np.errstate(divide="ignore"):
            values = np.log10(values)
        # No signal at all is the brightest of all.
        finite = values[np.isfinite(values)]
        brightest = finite.max() + 0.5 if finite.size else 0.0
        if not finite.size:
            lowest, highest = brightest - 1, brightest
        values = np.where(values == np.inf, brightest, values)
    figure = plotly.graph_objects.Figure(
        plotly.graph_objects.Heatmap(
            z=[_plain(row) for row in values],
            x=[f"{step:.0f}" for step in run.noise[OVERALL]["step"]],
            y=layers,
            colorscale="Viridis",
            zmin=lowest,
            zmax=highest,
            showscale=name == "gamma" or finite.size > 0,
            colorbar={"title": "γ" if name == "gamma" else "log₁₀ η²"},
        )
    )
    figure.update_layout(
        title=run.name,
        height=max(260, 22 * len(layers) + 130),
        margin={"l": 20, "r": 20, "t": 50, "b": 60},
    )
    figure.update_xaxes(title="updates", type="category", nticks=12)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _bins() -> np.ndarray:
    return (np.arange(BINS) + 0.5) / BINS


def _gamma_over_time(run: Run) -> Any:
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


def _gamma_histograms(run: Run) -> Any:
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


def _rates(runs: Sequence[Run]) -> Any:
    figure = _subplots(["learning rate", "seconds since the start"])
    for i, run in enumerate(runs):
        columns = run.noise[OVERALL]
        for at, name in enumerate(("learning_rate", "seconds")):
            _add(figure, at, run, i, columns["step"], columns[name])
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(title="updates")
    return figure


def _table(run: Run) -> str:
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


def write_report(
    folders: Sequence[Path], output: Path, refresh: int | None = None
) -> list[Run]:
    """Reads the runs in `folders` and writes the page atomically."""
    runs = [
        read_run(folder, name)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    if output.is_dir():
        raise ReportError(f"Cannot write {output}: it is a folder")
    try:
        with whole_file(output) as temporary:
            temporary.write_text(page(runs, refresh), encoding="utf-8")
    except OSError as error:
        raise ReportError(str(error)) from error
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m svag_tf.report",
        description="Writes one HTML page on the gradients' noise in one or more runs.",
    )
    parser.add_argument("workdir", nargs="+", type=Path, help="the folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        help="the page; default: report.html in the folder, or, of several folders, "
        "here",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="rewrite it until the runs are complete, and let the browser follow",
    )
    parser.add_argument(
        "--interval", type=int, default=10, help="seconds between (default: 10)"
    )
    flags = parser.parse_args(arguments)
    if flags.interval < 1:
        parser.error(f"--interval must be at least 1. Received: {flags.interval}")
    folders = list(dict.fromkeys(flags.workdir))
    output = flags.output or (
        folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    )
    try:
        if not flags.watch:
            write_report(folders, output)
            print(f"Wrote {output}")
            return
        _watch(folders, output, flags.interval)
    except (ImportError, ReportError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted.")


def _watch(folders: Sequence[Path], output: Path, interval: int) -> None:
    told = ""
    while True:
        try:
            runs = write_report(folders, output, interval)
            if all(run.complete for run in runs):
                write_report(folders, output)
                print(f"Wrote {output}: complete")
                return
            text = f"Writing {output} every {interval} s; Ctrl-C ends"
        except NothingMeasured as error:
            text = f"Waiting: {error}"
        if text != told:
            print(text, flush=True)
        told = text
        time.sleep(interval)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
$refresh
<title>$title</title>
<style>
:root { --paper: #ffffff; --ink: #1d1d1f; --line: #d8d8dc; --soft: #6b6b70; }
:root[data-mode="dark"] { --paper: #16181c; --ink: #e8e8ea; --line: #3a3d44;
  --soft: #a2a2a8; }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 1200px;
  padding: 1rem; font: 15px/1.5 system-ui, sans-serif; }
header { display: flex; justify-content: space-between; align-items: baseline;
  gap: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 0; }
h3 { font-size: 1rem; }
p { color: var(--soft); margin: .2rem 0 .6rem; }
button { background: none; color: inherit; border: 1px solid var(--line);
  border-radius: 6px; padding: .3rem .7rem; cursor: pointer; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr));
  gap: 1rem; }
.figure { min-width: 0; }
.figure.wide { grid-column: 1 / -1; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .8rem;
  text-align: right; }
th:first-child, td:first-child { text-align: left; }
section { overflow-x: auto; }
</style>
</head>
<body>
<header><h1>$title</h1><button id="mode" type="button">light / dark</button></header>
$sections
<script>$plotly</script>
<script>
const figures = $figures;
const templates = $templates;
const system = matchMedia("(prefers-color-scheme: dark)");
let mode = system.matches ? "dark" : "light";
try { mode = localStorage.getItem("svag-tf-mode") || mode; } catch (error) {}
function layoutOf(figure) {
  return {...figure.layout, template: templates[mode], autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    modebar: {bgcolor: "rgba(0,0,0,0)"}};
}
function draw() {
  document.documentElement.dataset.mode = mode;
  figures.forEach((figure, i) => {
    const element = document.getElementById("figure-" + i);
    if (figure.layout.meta && figure.layout.meta.wide) element.classList.add("wide");
    Plotly.react(element, figure.data, layoutOf(figure),
      {responsive: true, displaylogo: false});
  });
}
document.getElementById("mode").addEventListener("click", () => {
  mode = mode === "dark" ? "light" : "dark";
  try { localStorage.setItem("svag-tf-mode", mode); } catch (error) {}
  draw();
});
system.addEventListener("change", () => { mode = system.matches ? "dark" : "light";
  draw(); });
draw();
</script>
</body>
</html>
"""
