"""Draws the outcomes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from svag_tf.experiments.plots import legend_below, new_figure, save, tidy
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.noisy_quadratic.simulator import (
    TINY,
    Config,
    Outcomes,
    Quadratic,
    sgd_floor,
)
from svag_tf.optional import matplotlib


def draw(
    config: Config,
    problems: Sequence[Quadratic],
    outcomes: Outcomes,
    long: Mapping[str, np.ndarray],
    workdir: Path,
) -> None:
    """Draws three comparisons at the best learning rates, and the long run."""
    pair = {"sgd": plots.GRADIENT["sgd"], "ssd": "#000000"}
    for name, title, colours in (
        (
            "sgd_against_sign_descent",
            "SGD against sign descent, at the best constant rate",
            pair,
        ),
        (
            "gradient_methods",
            "Along the gradient, at the best constant rate",
            plots.GRADIENT,
        ),
        ("sign_methods", "Along its sign, at the best constant rate", plots.SIGN),
    ):
        colours = {m: c for m, c in colours.items() if m in config.methods}
        if colours:
            path = workdir / f"{name}.png"
            _draw_problems(config, problems, outcomes, title, colours, path)
    if long:
        _draw_long(config, problems[0], long, workdir / "long_run.png")


def _draw_problems(
    config: Config,
    problems: Sequence[Quadratic],
    outcomes: Outcomes,
    title: str,
    colours: Mapping[str, str],
    path: Path,
) -> None:
    """Draws a row of panels per problem and a column per noise level."""
    levels = config.noise_levels
    figure = new_figure(title, 1.2 + 2.9 * len(levels), 1.3 + 2.1 * len(problems))
    panels = figure.subplots(
        len(problems), len(levels), sharex=True, sharey="col", squeeze=False
    )
    steps = np.arange(config.steps + 1)
    limits = np.array([[np.inf, 0.0]] * len(levels))
    for problem, row in zip(problems, panels, strict=True):
        row[0].set_ylabel(f"{problem.name}\nloss")
        for noise, axes, limit in zip(levels, row, limits, strict=True):
            for method, colour in colours.items():
                losses = outcomes[problem.name, noise, method].losses
                if not np.isfinite(losses).all():
                    continue
                shown = np.maximum(losses, TINY)
                label = plots.NAMES[method]
                style = "--" if method == plots.IDEAL else "-"  # SGD's without noise
                plots.line_with_band(axes, steps, shown, colour, label, style)
                limit[0] = min(limit[0], shown[-1].min())
                limit[1] = max(limit[1], shown[0].max())
            axes.set_yscale("log")
            tidy(axes)
    for noise, axes, (low, high) in zip(levels, panels[0], limits, strict=True):
        axes.set_title("no noise" if noise == 0 else f"noise variance {noise:g}")
        # Losses above the start come down again, or are not drawn at all.
        if high > 0:
            axes.set_ylim(max(0.5 * low, 1e-8 * high), 2 * high)
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for axes in panels[-1]:
        axes.set_xlabel("steps")
        axes.set_xlim(0, config.steps)
    legend_below(figure, panels[0, 0], len(colours))
    save(figure, path)


def _draw_long(
    config: Config,
    problem: Quadratic,
    long: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    steps, noise, rates = config.long_steps, config.long_noise, config.long_rates
    title = f"Constant learning rates, {problem.name}, noise variance {noise:g}"
    figure = new_figure(title, 8.5, 4.6)
    axes = figure.subplots()
    t = np.unique(np.geomspace(1, steps, 300).astype(int))
    for method, losses in long.items():
        styles = itertools.cycle(["-", "--", "-."])
        for i, rate in enumerate(rates[:1] if method != "sgd" else rates):
            style = next(styles)
            label = f"{plots.NAMES[method]}, rate {rate:g}/L"
            colour = plots.GRADIENT[method]
            if np.isfinite(losses[:, i]).all():
                plots.line_with_band(axes, t, losses[t, i], colour, label, style)
            if method == "sgd":
                floor = sgd_floor(
                    problem.eigenvalues, rate / problem.eigenvalues.max(), noise
                )
                axes.axhline(floor, color=plots.GUIDE, linewidth=1, linestyle=":")
    axes.plot([], [], ":", color=plots.GUIDE, linewidth=1, label="SGD's floor, theory")
    if plots.IDEAL in long:
        last = t[t >= steps / 100]
        guide = 2.5 * long[plots.IDEAL][-1, 0].mean() * steps / last
        axes.plot(last, guide, color=plots.GUIDE, linewidth=1, label="slope of 1/t")
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="loss", xlim=(1, steps))
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator())
    tidy(axes)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    save(figure, path)
