"""Draws the measurements."""

# ruff: noqa: RUF001 (the paper's Greek letters in figures)
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from svag_tf.experiments.plots import legend_below, logarithmic, new_figure, save, tidy
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.gradient_noise.measurement import (
    EVERYTHING,
    LOGARITHMIC,
    QUANTITIES,
    Measurement,
)
from svag_tf.optional import matplotlib


def _colours(labels: Sequence[str]) -> list[str]:
    """Returns a colour for each layer, the same for its kernel and its bias."""
    palette = [
        *plots.DIRECTIONS["along the gradient"].values(),
        "#CC79A7",
        "#000000",
    ]
    layers = list(dict.fromkeys(_layer(label) for label in labels))
    return [palette[layers.index(_layer(label)) % len(palette)] for label in labels]


def _layer(label: str) -> str:
    return label.rpartition(" ")[0] or label


def _shown(measurements: Mapping[int, Measurement]) -> dict[int, Measurement]:
    """Returns the first, the middle and the last measurement."""
    steps = list(measurements)
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    return {step: measurements[step] for step in chosen}


def draw_scatter(
    measurements: Mapping[int, Measurement], labels: Sequence[str], path: Path
) -> None:
    """Draws elements of the sample: estimate against exact value."""
    shown = _shown(measurements)
    figure = new_figure(
        "Elements of the network: estimate against exact value",
        12,
        0.9 + 2.7 * len(shown),
    )
    quantities = ("m", "s", "eta2", "gamma")
    panels = figure.subplots(len(shown), 4, squeeze=False)
    titles = ("|m| and |G|", "s and V", "η² and ρV/G²", "γ and the best factor")
    colours = np.array(_colours(labels))
    rng = np.random.default_rng(0)
    limits = {name: _limits(name, shown) for name in quantities}
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize=11)
    for axes in panels[-1]:
        axes.set_xlabel("exact")
    for (step, measurement), row in zip(shown.items(), panels, strict=True):
        order = rng.permutation(len(measurement.layers))  # no layer hides the others
        for name, axes in zip(quantities, row, strict=True):
            estimate, exact = np.abs(measurement.sample[name])[:, order]
            axes.scatter(
                exact,
                estimate,
                s=2,
                c=colours[measurement.layers[order]],
                alpha=0.25,
                linewidths=0,
                rasterized=True,
            )
            axes.plot(
                limits[name], limits[name], color=plots.GUIDE, linewidth=1,
                label="estimate = exact value",
            )  # fmt: skip
            if name != "gamma":
                axes.set(xscale="log", yscale="log")
            axes.set(xlim=limits[name], ylim=limits[name])
            tidy(axes)
        row[0].set_ylabel(f"{step} updates\n\nestimate")
    for label, colour in zip(labels, colours, strict=True):
        panels[0, 0].plot([], [], "o", color=colour, label=_layer(label))
    handles, names = panels[0, 0].get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    figure.legend(
        unique.values(),
        unique.keys(),
        loc="outside lower center",
        ncols=min(len(unique), 6),
        frameon=False,
    )
    save(figure, path)


def _limits(name: str, shown: Mapping[int, Measurement]) -> tuple[float, float]:
    if name == "gamma":
        return (-0.03, 1.03)
    values = np.concatenate([np.abs(m.sample[name]).ravel() for m in shown.values()])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return (0.1, 10.0)
    low, high = np.percentile(values, [0.5, 99.5])
    return (low / 2, high * 2)


def draw_calibration(measurements: Mapping[int, Measurement], path: Path) -> None:
    """Draws the mean exact value of elements with about the same estimate."""
    figure = new_figure(
        "Calibration: mean exact value of elements with about the same estimate",
        15,
        3.6,
    )
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr,call-arg]
    panels = figure.subplots(1, 5)
    texts = {
        "m": ("m", "exact gradient G"),
        "s": ("s", "exact variance V"),
        "rho_s": ("ρ s", "squared error (m − G)²"),
        "eta2": ("η², median", "ρ V / G², median"),
        "gamma": ("γ", "best factor"),
    }
    shades = np.linspace(0.25, 1.0, len(measurements))
    for (name, (x, y)), axes in zip(texts.items(), panels, strict=True):
        ends = []
        for (step, measurement), shade in zip(
            measurements.items(), shades, strict=True
        ):
            estimate, exact = measurement.bins[name]
            if name in LOGARITHMIC:
                fine = (estimate > 0) & (exact > 0)
                estimate, exact = estimate[fine], exact[fine]
            axes.plot(
                estimate,
                exact,
                "o-",
                color=_shade(shade),
                markersize=3,
                linewidth=1.4,
                label=f"{step} updates",
            )
            ends += [*estimate, *exact]
        ends = [end for end in ends if np.isfinite(end)] or [0.0, 1.0]
        line = [min(ends), max(ends)]
        if name in LOGARITHMIC:
            axes.set(xscale="log", yscale="log")
            # A bin whose v - m^2 is only round-off would stretch the axes.
            line[0] = max(line[0], 1e-12 * line[1])
            limits = line[0] / 2, line[1] * 2
            axes.set(xlim=limits, ylim=limits)
        axes.plot(
            line, line, ":", color=plots.GUIDE, linewidth=1.2, label="as estimated"
        )
        if name == "m":
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
        axes.set(xlabel=x, ylabel=y)
        tidy(axes)
    legend_below(figure, panels[0], 6)
    save(figure, path)


def _shade(share: float) -> tuple[float, float, float]:
    """Returns a blue that is darker for later measurements."""
    light, dark = np.array([0.75, 0.86, 0.95]), np.array([0.0, 0.2, 0.4])
    red, green, blue = light + share * (dark - light)
    return float(red), float(green), float(blue)


def draw_layers(
    measurements: Mapping[int, Measurement], labels: Sequence[str], path: Path
) -> None:
    """Draws ratio and correlation of each layer over the updates."""
    figure = new_figure("Bias and correlation, layer by layer", 12, 5.6)
    quantities = ("m", "s", "eta2", "gamma")
    panels = figure.subplots(2, 4, sharex=True)
    steps = list(measurements)
    colours = _colours(labels)
    for column, name in enumerate(quantities):
        for row, measure in enumerate(("ratio", "correlation")):
            axes = panels[row, column]
            for label, colour in (
                *zip(labels, colours, strict=True),
                (EVERYTHING, plots.GUIDE),
            ):
                values = [
                    measurement.row(name, label)[measure]
                    for measurement in measurements.values()
                ]
                axes.plot(
                    steps,
                    values,
                    "--" if label.endswith("bias") else "-",
                    color=colour,
                    linewidth=2.4 if label == EVERYTHING else 1.4,
                    marker="o",
                    markersize=3,
                    label="all elements" if label == EVERYTHING else label,
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(matplotlib.ticker.FixedLocator(steps))
            axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            tidy(axes)
        panels[0, column].set_title(QUANTITIES[name], fontsize=11)
        panels[0, column].axhline(
            1, color=plots.GUIDE, linewidth=1, linestyle=":", label="without bias"
        )
        if name != "m":  # Its ratio can be negative.
            panels[0, column].set_ylabel("quotient")
            logarithmic(panels[0, column])
        panels[1, column].set(xlabel="updates", ylim=(-1.03, 1.03))
    panels[0, 0].set_ylabel("estimate over exact value")
    panels[1, 0].set_ylabel("correlation")
    legend_below(figure, panels[0, 0], 5)
    save(figure, path)
