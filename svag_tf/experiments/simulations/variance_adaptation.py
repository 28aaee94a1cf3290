"""The factors of variance adaptation, and a Monte-Carlo test of the paper's Lemma.

For a gradient g with mean G and standard deviation eta |G| the Lemma says that
E (gamma g - G)^2 is smallest for gamma = 1/(1 + eta^2), and
E (gamma sign(g) - sign(G))^2 for gamma = 2 P[sign(g) = sign(G)] - 1, which for normal
noise is erf(1/(sqrt(2) eta)).
"""

# ruff: noqa: RUF001 (the paper's Greek letters in figures and tables)
from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from svag_tf import rules
from svag_tf.experiments.config import checked, distinct, whole
from svag_tf.experiments.optimizers import DIRECTIONS
from svag_tf.experiments.plots import legend_below, new_figure, save, tidy
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.report import Finding, Report, progress
from svag_tf.experiments.tables import markdown
from svag_tf.optional import matplotlib, require

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """See configs/variance_adaptation.py."""

    seed: int = whole(0)
    etas: tuple[float, ...] = distinct(
        lambda v: isinstance(v, int | float) and 0 < v < math.inf,
        "finite numbers > 0, at least one and none twice, such as (0.5, 1.0)",
    )
    batches: int = whole(10)
    samples: int = whole(10)


KINDS = {"gradient": "γ g against ∇L", "sign": "γ sign(g) against sign(∇L)"}
FACTORS = {
    "gradient": rules.gamma_gradient,
    "sign": rules.gamma_sign,
    "adam": rules.gamma_sign_adam,
}
GAMMAS = np.linspace(0.0, 1.0, 21)
STANDARD_ERRORS = 4  # a true statement is farther off once in 16,000 times
ROUND_OFF = 1e-12  # largest difference of equal minima after the fit


def factor(name: str, eta: Any) -> Array:
    """Returns one of svag_tf's gammas, for a noise-to-signal ratio of any shape."""
    noise = keras.ops.convert_to_tensor(np.square(np.asarray(eta, np.float32)))
    gamma = FACTORS[name](keras.ops.ones_like(noise), noise)
    return keras.ops.convert_to_numpy(gamma).astype(np.float64)


def squared_errors(
    kind: str, eta: float, batches: int, samples: int, rng: np.random.Generator
) -> Array:
    """Measures mean squared errors of gamma g, or gamma sign(g), for G = 1.

    Each of the `batches` is a mean over `samples` gradients with the deviation eta.

    Returns:
        Shape (batches, len(GAMMAS)).
    """
    errors = np.empty((batches, len(GAMMAS)))
    for batch in errors:
        g = 1.0 + eta * rng.standard_normal(samples)
        if kind == "sign":
            g = np.sign(g)
        batch[:] = [np.mean(np.square(gamma * g - 1.0)) for gamma in GAMMAS]
    return errors


def minimiser(errors: Array) -> Array:
    """Returns where each batch's errors are smallest: the vertex of their parabola."""
    a, b, _ = np.polyfit(GAMMAS, errors.T, 2)
    return -b / (2.0 * a)


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Draws the factors, tests the Lemma, and writes figures, tables and findings.

    Returns:
        `results`, one dict for each kind and eta, and `findings`.
    """
    require(matplotlib)
    config = checked(config, Config)
    title = "Variance adaptation: the factors and the Lemma"
    report = Report(title, config, workdir, command)
    rng = np.random.default_rng(config.seed)
    results, curves = [], {}
    with progress(len(KINDS) * len(config.etas)) as show:
        for kind in KINDS:
            for eta in config.etas:
                show(f"{kind}, eta = {eta:g}")
                errors = squared_errors(kind, eta, config.batches, config.samples, rng)
                curves[kind, eta] = errors
                results.append(_result(kind, eta, errors))
    findings = _findings(results)
    _draw_factors(report.folder / "factors.png")
    _draw_errors(config.etas, curves, results, report.folder / "lemma.png")
    report.write(results, _table(results, config), findings)
    return {"results": results, "findings": findings}


def _result(kind: str, eta: float, errors: Array) -> dict[str, Any]:
    least = minimiser(errors)
    theory = float(factor(kind, eta))
    error = 0.0
    if np.ptp(least) > ROUND_OFF:
        error = float(least.std(ddof=1) / math.sqrt(len(least)))
    return {
        "kind": kind,
        "eta": eta,
        "measured": float(least.mean()),
        "standard_error": error,
        "theory": theory,
        "standard_errors_off": (float(least.mean()) - theory) / error
        if error
        else None,
        "adam": float(factor("adam", eta)),
    }


def _findings(results: list[dict[str, Any]]) -> list[Finding]:
    findings = []
    for kind, formula in (
        ("gradient", "1/(1 + η²)"),
        ("sign", "2 P[sign(g) is right] - 1 = erf(1/(√2 η))"),
    ):
        rows = [row for row in results if row["kind"] == kind]
        off = [row["standard_errors_off"] for row in rows]
        farthest = max((abs(x) for x in off if x is not None), default=None)
        verdict = "no standard error to judge by"
        if farthest is not None:
            verdict = f"at most {farthest:.1f} standard errors away"
        equal = [f"{row['eta']:g}" for row in rows if not row["standard_error"]]
        if equal:
            verdict += (
                f"; all batches gave the same for η = {', '.join(equal)}, where only "
                "more samples would tell"
            )
        findings.append(
            Finding(
                f"Lemma: the best factor for the {kind} is {formula}.",
                "The measured error is least at "
                + ", ".join(
                    f"{row['measured']:.4f} ± {row['standard_error']:.4f} "
                    f"(Lemma {row['theory']:.4f})"
                    for row in rows
                )
                + " for η = "
                + ", ".join(f"{row['eta']:g}" for row in rows)
                + f": {verdict}.",
                None if farthest is None else farthest < STANDARD_ERRORS,
                {"standard_errors_off": off},
            )
        )
    eta = np.geomspace(1e-3, 1e3, 100_001)
    difference = factor("adam", eta) - factor("sign", eta)
    worst = int(np.abs(difference).argmax())
    numbers = {"difference": float(difference[worst]), "eta": float(eta[worst])}
    findings.append(
        Finding(
            "Adam's factor (1 + η²)^(-1/2) is close to the best one for the sign.",
            f"They differ by at most {abs(numbers['difference']):.4f}, at "
            f"η = {numbers['eta']:.2f}.",
            abs(numbers["difference"]) < 0.15,
            numbers,
        )
    )
    return findings


def _table(results: list[dict[str, Any]], config: Config) -> str:
    lines = [
        [
            KINDS[row["kind"]],
            f"{row['eta']:g}",
            f"{row['measured']:.5f} ± {row['standard_error']:.5f}",
            f"{row['theory']:.5f}",
            f"{row['standard_errors_off']:+.1f}" if row["standard_error"] else "-",
        ]
        for row in results
    ]
    headings = ["", "η", "measured best γ", "the Lemma's γ", "standard errors off"]
    return (
        f"{markdown(headings, lines)}\n"
        f"Measured: mean and standard error of {config.batches} batches of "
        f"{config.samples} gradients. The error is a parabola in γ; its vertex is "
        "the best γ.\n"
    )


def _draw_factors(path: Path) -> None:
    figure = new_figure("Factors of variance adaptation", 9, 3.8)
    factors, differences = figure.subplots(1, 2, width_ratios=(1.3, 1))
    eta = np.geomspace(0.05, 50, 500)
    for name, label, colour, style in (
        ("gradient", "gradient: 1/(1 + η²)", plots.GRADIENT["svag"], "-"),
        ("sign", "sign: erf(1/(√2 η))", plots.SIGN["msvas"], "-"),
        ("adam", "Adam: 1/√(1 + η²)", plots.SIGN["adam"], "--"),
    ):
        gamma = factor(name, eta)
        factors.plot(eta, gamma, style, color=colour, linewidth=1.8, label=label)
    differences.plot(
        eta,
        factor("adam", eta) - factor("sign", eta),
        color=plots.SIGN["adam"],
        linewidth=1.8,
    )
    differences.axhline(0, color=plots.GUIDE, linewidth=1)
    factors.set(ylabel="γ", ylim=(0, 1.02))
    differences.set(title="Adam's minus the best for the sign", ylim=(-0.16, 0.16))
    for axes in (factors, differences):
        axes.set(xscale="log", xlabel="η, noise over signal", xlim=(eta[0], eta[-1]))
        tidy(axes)
    legend_below(figure, factors, 3)
    save(figure, path)


def _draw_errors(
    etas: Sequence[float],
    curves: Mapping[tuple[str, float], Array],
    results: list[dict[str, Any]],
    path: Path,
) -> None:
    figure = new_figure("The Lemma: expected squared error of a factor γ", 9, 4.4)
    palette = [*DIRECTIONS["along the gradient"].values(), *plots.SIGN.values()]
    all_axes = figure.subplots(1, 2)
    for kind, axes in zip(KINDS, all_axes, strict=True):
        for eta, colour in zip(etas, palette, strict=False):
            errors = curves[kind, eta]
            mean = errors.mean(0)
            bars = errors.std(0, ddof=1) / math.sqrt(len(errors))
            label = f"η = {eta:g}"
            axes.errorbar(
                GAMMAS, mean, bars,
                color=colour, marker=".", markersize=4, linewidth=1.4, label=label,
            )  # fmt: skip
            row = next(r for r in results if (r["kind"], r["eta"]) == (kind, eta))
            least = np.polyval(np.polyfit(GAMMAS, mean, 2), row["measured"])
            axes.plot(
                row["measured"], least, "o",
                color=colour, markersize=9, fillstyle="none", markeredgewidth=1.8,
            )  # fmt: skip
            axes.plot([row["theory"]] * 2, [0, least], ":", color=colour, linewidth=1.4)
        axes.set(title=KINDS[kind], xlabel="γ", xlim=(-0.03, 1.03), ylim=(-0.06, 2.2))
        tidy(axes)
    all_axes[0].set_ylabel("mean squared error")
    marks = {"color": plots.GUIDE}
    all_axes[0].plot(
        [], [], "o",
        markersize=9, fillstyle="none", markeredgewidth=1.8, label="measured minimum",
        **marks,
    )  # fmt: skip
    all_axes[0].plot([], [], ":", label="the Lemma's γ", **marks)
    legend_below(figure, all_axes[0], 4)
    save(figure, path)
