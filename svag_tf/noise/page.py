"""Composes the page: its text, style and script."""

# ruff: noqa: RUF001 (the paper's Greek letters in figures and tables)

from __future__ import annotations

import html
import json
import string
from collections.abc import Iterator, Sequence
from typing import Any

from svag_tf.noise import figures
from svag_tf.noise.runs import Run
from svag_tf.optional import plotly


def page(runs: Sequence[Run], refresh: int | None = None) -> str:
    """Returns the page as HTML.

    Args:
        runs: at least one.
        refresh: seconds after which a browser reloads the page; None for never.
    """
    sections = []
    drawn: list[Any] = []
    for title, text, made in _sections(runs):
        body = [f"<h2>{html.escape(title)}</h2>", f"<p>{text}</p>"]
        if made and isinstance(made[0], str):
            body += made
        else:
            ids = [f"figure-{len(drawn) + i}" for i in range(len(made))]
            body.append('<div class="figures">')
            body += [f'<div class="figure" id="{i}"></div>' for i in ids]
            body.append("</div>")
            drawn += [json.loads(figure.to_json()) for figure in made]
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
        figures=_script_json(drawn),
        templates=_script_json(templates),
    )


def _script_json(value: Any) -> str:
    """Returns JSON that cannot end the script element that holds it."""
    return json.dumps(value).replace("<", "\\u003c")


def _sections(runs: Sequence[Run]) -> Iterator[tuple[str, str, list[Any]]]:
    what = (
        "Loss and accuracy over the epochs."
        if any(run.metrics for run in runs)
        else "The training loss as fit shows it: the mean since the start of the epoch."
    )
    yield "Curves", what, figures.curves(runs)
    yield (
        "Noise",
        "All layers together. η² is the noise-to-signal ratio of a mini-batch's "
        "gradient, γ the mean factor that damps a step, the noise scale the batch size "
        "at which noise and signal are equal, with its standard error. A gap: no "
        "signal can be told from the noise.",
        [figures.noise(runs)],
    )
    yield (
        "Layers over time",
        "log₁₀ η²: the brighter, the noisier, on one scale for all runs. No signal: "
        "none can be told from the noise. A gap: no noise, or not measured.",
        figures.heat_maps(runs, "eta2"),
    )
    yield (
        "γ of the layers",
        "The mean of γ: near 0 steps are damped away, at 1 they are left alone.",
        figures.heat_maps(runs, "gamma"),
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
                for figure in (
                    figures.gamma_over_time(run),
                    figures.gamma_histograms(run),
                )
            ],
        )
    yield (
        "Learning rate and time",
        "As they were at each measurement.",
        [figures.rates(runs)],
    )
    yield (
        "Noisiest layers",
        f"The last measurement, at most {figures.NOISIEST} layers of each run.",
        [figures.table(run) for run in runs],
    )


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
