"""Where does variance adaptation help? M-SVAG, estimated and exact, against M-SGD.

Least squares on random data: L = 1/(2n) sum (x_i' theta - y_i)^2. Each example's
gradient is a residual times x_i, so the exact gradient G and the exact variance
sigma^2 of a mini-batch's gradient are at hand at every step. "Exact" is the step
gamma m of M-SVAG with gamma = G^2 / (G^2 + rho sigma^2) in place of its estimate.
"""

# ruff: noqa: RUF001 (the paper's Greek letters in figures and tables)
from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from svag_tf import rules
from svag_tf.experiments.config import checked, number, whole
from svag_tf.experiments.plots import legend_below, new_figure, save, tidy
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.report import Finding, Report, progress
from svag_tf.experiments.tables import markdown
from svag_tf.optional import matplotlib, require, scipy

Array = NDArray[Any]
METHODS = ("msgd", "msvag", "exact")
ADAPTED = {"msvag": "estimated γ", "exact": "exact γ"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """See configs/where_it_helps.py."""

    seed: int = whole(0)
    seeds: int = whole(10)
    examples: int = whole(2)
    dimension: int = whole(1)
    steps: int = whole(20)
    rates: int = whole(2)
    lowest_rate: float = number(0, ends="(]")
    highest_rate: float = number(0, ends="(]")


@dataclass(frozen=True)
class Setting:
    """What varies: each panel changes one of these."""

    batch_size: int = 32
    beta: float = 0.9
    freedom: float = math.inf  # of the labels' Student-t noise; inf: normal
    density: float = 1.0  # share of the features that are not 0
    length: float = 1.0  # of the training, times the config's steps


PANELS: dict[str, tuple[str, tuple[float, ...]]] = {
    "batch_size": ("batch size", (8, 32, 128, 512)),
    "beta": ("β", (0.0, 0.5, 0.9, 0.99)),
    "freedom": ("degrees of freedom of the noise", (1.5, 2.5, 5.0, math.inf)),
    "density": ("share of non-zero features", (0.01, 0.1, 1.0)),
    "length": ("length of the training", (0.2, 1.0, 5.0)),
}


@dataclass(frozen=True)
class Problem:
    """One problem for each seed: x (seeds, n, d), y (seeds, n, 1) and the minimum."""

    x: Array
    y: Array
    minimum: Array

    @property
    def hessian(self) -> Array:
        return np.swapaxes(self.x, 1, 2) @ self.x / self.x.shape[1]


def problem(config: Config, setting: Setting, first: int) -> Problem:
    """Draws `config.seeds` problems, numbered from `first`.

    Feature j has the standard deviation 10^(-j/(d-1)), from 1 to 0.1.
    """
    rng = np.random.default_rng([config.seed, first])
    n, d = config.examples, config.dimension
    x = rng.standard_normal((config.seeds, n, d)) * np.geomspace(1.0, 0.1, d)
    kept = rng.random(x.shape) < setting.density
    x *= kept / math.sqrt(setting.density)
    truth = rng.standard_normal((config.seeds, d, 1))
    normal = rng.standard_normal((config.seeds, n, 1))
    if setting.freedom < math.inf:  # Student's t is a normal over a chi variable.
        chi2 = rng.chisquare(setting.freedom, normal.shape)
        normal /= np.sqrt(chi2 / setting.freedom)
    y = x @ truth + normal
    minimum = np.linalg.pinv(x) @ y
    return Problem(*(a.astype(np.float32) for a in (x, y, minimum)))


def exact_moments(x: Array, y: Array, theta: Array, batch: int) -> tuple[Array, Array]:
    """Returns the exact gradient and the variance of a mini-batch's gradient.

    Args:
        x: shape (seeds, n, d).
        y: shape (seeds, n, 1).
        theta: shape (seeds, d, rates); that of both results.
        batch: number of examples, drawn with replacement.
    """
    residual, columns = x @ theta - y, np.swapaxes(x, 1, 2)
    gradient = columns @ residual / x.shape[1]
    square = np.square(columns) @ np.square(residual) / x.shape[1]
    return gradient, np.maximum(square - np.square(gradient), 0.0) / batch


def excess_losses(
    method: str, drawn: Problem, setting: Setting, rates: Array, config: Config
) -> Array:
    """Trains on all problems with all rates; all methods see the same batches.

    Returns:
        The loss above its minimum, mean of the last tenth of the steps: shape (seeds,
        rates), inf where the training diverged.
    """
    rng = np.random.default_rng(config.seed)
    steps, beta = round(setting.length * config.steps), setting.beta
    t = ops.arange(1, steps + 1, dtype="float32")
    correction, ratio, estimate = (
        ops.convert_to_numpy(of(t, beta))
        for of in (
            rules.bias_correction, rules.mean_variance_ratio, rules.mean_variance_factor
        )
    )  # fmt: skip
    seeds, n, d = drawn.x.shape
    m_tilde = v_tilde = theta = np.zeros((seeds, d, len(rates)), np.float32)
    rates, hessian = rates.astype(np.float32), drawn.hessian
    total, measured = np.zeros((seeds, len(rates))), max(1, steps // 10)
    for step in range(steps):
        rows = rng.integers(n, size=(seeds, setting.batch_size, 1))
        x = np.take_along_axis(drawn.x, rows, axis=1)
        residual = x @ theta - np.take_along_axis(drawn.y, rows, axis=1)
        g = np.swapaxes(x, 1, 2) @ residual / np.float32(setting.batch_size)
        m_tilde = rules.moving_average(m_tilde, g, beta)
        v_tilde = rules.moving_average(v_tilde, np.square(g), beta)
        m, v = m_tilde * correction[step], v_tilde * correction[step]
        if method == "msvag":
            m = m * _gamma(*rules.signal_and_noise(*_tensors(m, v), estimate[step]))
        elif method == "exact":
            moments = exact_moments(drawn.x, drawn.y, theta, setting.batch_size)
            signal, noise = rules.signal_and_variance(*_tensors(*moments), ratio[step])
            m = m * _gamma(signal, noise)
        theta = theta - rates * m
        if step >= steps - measured:
            error = theta - drawn.minimum
            total += 0.5 * np.sum(error * (hessian @ error), axis=1) / measured
    return np.where(np.isfinite(total), total, math.inf)


def _tensors(one: Array, other: Array) -> tuple[Any, Any]:
    return ops.convert_to_tensor(one), ops.convert_to_tensor(other)


def _gamma(signal: Any, noise: Any) -> Array:
    return ops.convert_to_numpy(rules.gamma_gradient(signal, noise))


def interval(values: Array) -> tuple[float, float, float]:
    """Returns the mean of some values and its 95 % interval by Student's t."""
    t = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    mean = float(np.mean(values))
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def compare(config: Config, setting: Setting) -> dict[str, Any]:
    """Tunes each method on problems of its own and compares them on others.

    Returns:
        Each method's best rate, and, relative to M-SGD, the geometric mean of the
        quotients of the excess losses on the same problem, with its interval.
    """
    rates = np.geomspace(config.lowest_rate, config.highest_rate, config.rates)
    tuning, reported = (problem(config, setting, first) for first in (0, 1))
    logs, row = {}, {}
    for method in METHODS:
        with np.errstate(all="ignore"):  # Rates that are too high diverge.
            tried = excess_losses(method, tuning, setting, rates, config)
            best = int(np.argmin(np.log(tried).mean(axis=0)))
            found = excess_losses(
                method, reported, setting, rates[best : best + 1], config
            )
        # Finite also where no feature is left, or a training diverged.
        logs[method] = np.log(np.clip(found[:, 0], 1e-30, 1e30))
        row[f"{method}_rate"] = float(rates[best])
        row[f"{method}_at_edge"] = best in (0, len(rates) - 1)
        row[f"{method}_excess"] = float(np.exp(logs[method].mean()))
    for method in ADAPTED:
        mean, low, high = np.exp(interval(logs[method] - logs["msgd"]))
        row |= {
            f"{method}_ratio": float(mean),
            f"{method}_low": float(low),
            f"{method}_high": float(high),
        }
    return row


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Compares the methods in every panel; writes figure, table and findings.

    Returns:
        `results`, one dict for each panel and value, and `findings`.
    """
    require(matplotlib, scipy)
    config = checked(config, Config)
    report = Report("Where does variance adaptation help?", config, workdir, command)
    rows, done = [], {}
    with progress(sum(len(values) for _, values in PANELS.values())) as show:
        for panel, (title, values) in PANELS.items():
            for value in values:
                show(f"{title}: {value:g}")
                changed: dict[str, Any] = {panel: value}
                setting = replace(Setting(), **changed)
                if setting not in done:
                    done[setting] = compare(config, setting)
                rows.append({"panel": panel, "value": f"{value:g}", **done[setting]})
    findings = [_finding(rows, panel) for panel in PANELS]
    _draw(rows, report.folder / "where_it_helps.png")
    report.write(rows, f"{_problem(config)}\n{_table(rows)}", findings)
    return {"results": rows, "findings": findings}


def _finding(rows: list[dict[str, Any]], panel: str) -> Finding:
    title, _ = PANELS[panel]
    own = [row for row in rows if row["panel"] == panel]
    texts = []
    for method, name in ADAPTED.items():
        quotients = [f"{_quotient(row, method)} at {row['value']}" for row in own]
        texts.append(f"{name}: {', '.join(quotients)}")
    helps = [row["msvag_high"] < 1 for row in own]
    hurts = [row["msvag_low"] > 1 for row in own]
    verdict = True if all(helps) else False if any(hurts) else None
    claim = f"M-SVAG ends below M-SGD whatever the {title}."
    return Finding(claim, f"{'. '.join(texts)}.", verdict, {"panel": panel})


def _quotient(row: dict[str, Any], method: str) -> str:
    low, high = row[f"{method}_low"], row[f"{method}_high"]
    return f"{row[f'{method}_ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _problem(config: Config) -> str:
    setting = Setting()
    return (
        f"Least squares on {config.examples} random examples with {config.dimension} "
        "features, whose standard deviations fall from 1 to 0.1; normal noise of the "
        "labels. Where nothing else is said: mini-batches of "
        f"{setting.batch_size}, β = {setting.beta}, dense features, {config.steps} "
        "steps from θ = 0 at a constant rate. The length is in these steps. Each "
        f"method has the best of {config.rates} rates from {config.lowest_rate:g} to "
        f"{config.highest_rate:g} for {config.seeds} problems, and is then compared on "
        f'{config.seeds} others. "Exact γ" is M-SVAG with the exact gradient and '
        "variance in place of its estimates, which no training has.\n"
    )


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            PANELS[row["panel"]][0],
            row["value"],
            f"{row['msgd_excess']:.3g}",
            *(_quotient(row, method) for method in ADAPTED),
            *(
                f"{row[f'{m}_rate']:.3g}{'*' * row[f'{m}_at_edge']}" for m in METHODS
            ),
        ]
        for row in rows
    ]  # fmt: skip
    headings = [
        "varied", "value", "M-SGD's excess loss",
        *(f"{name} / M-SGD" for name in ADAPTED.values()),
        "rate of M-SGD", *(f"rate, {name}" for name in ADAPTED.values()),
    ]  # fmt: skip
    return (
        f"{markdown(headings, lines)}\n"
        "Excess loss: the training loss above its minimum at the end. Quotients: "
        "geometric mean over the seeds and its 95 % interval, paired; below 1 variance "
        "adaptation helps. *: the best rate is at the edge of the grid. \"Agrees\": "
        "every interval of the estimated γ is below 1; \"disagrees\": one is above.\n\n"
        "![Quotients of the excess losses](where_it_helps.png)\n"
    )  # fmt: skip


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = new_figure(
        "Excess training loss relative to M-SGD's, with 95 % intervals", 9, 6
    )
    colours = (plots.GRADIENT["msvag"], plots.GRADIENT[plots.IDEAL])
    columns = min(len(PANELS), 3)
    shape = math.ceil(len(PANELS) / columns), columns
    grid = figure.subplots(*shape, sharey=True, squeeze=False)
    panels = grid.flat[: len(PANELS)]
    for empty in grid.flat[len(PANELS) :]:
        empty.remove()
    for axes, (panel, (title, _)) in zip(panels, PANELS.items(), strict=True):
        own = [row for row in rows if row["panel"] == panel]
        places = np.arange(len(own))
        axes.axhline(1, color=plots.GUIDE, linewidth=1, label="M-SGD")
        shifts = (-0.08, 0.08)
        for (method, name), shift, colour in zip(
            ADAPTED.items(), shifts, colours, strict=True
        ):
            middle, low, high = (
                np.array([row[f"{method}_{end}"] for row in own])
                for end in ("ratio", "low", "high")
            )
            axes.errorbar(
                places + shift, middle, (middle - low, high - middle),
                color=colour, marker="o", markersize=4, linewidth=1.4, label=name,
            )  # fmt: skip
        axes.set(yscale="log", xlabel=title)
        axes.set_xticks(places, [row["value"] for row in own])
        tidy(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("relative loss")
    legend_below(figure, panels[0], 3)
    save(figure, path)
