"""The claims that the outcomes are judged by, and their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.noisy_quadratic.simulator import (
    ILL,
    MILD,
    TINY,
    Config,
    Outcomes,
    Quadratic,
    grid,
    sgd_floor,
)
from svag_tf.experiments.simulations.report import Finding
from svag_tf.experiments.tables import markdown


def against_sign_descent(config: Config, outcomes: Outcomes) -> Iterator[Finding]:
    """Judges the claims about SGD and sign descent, if both were run."""
    if not {"sgd", "ssd"} <= set(config.methods):
        return
    levels = config.noise_levels

    def factors(over: tuple[str, str], under: tuple[str, str]) -> list[float]:
        """Divides final losses of a (problem, method) by another's, by noise level."""
        # Without noise a loss can underflow to 0.
        finals = [
            [max(outcomes[problem, noise, method].final, TINY) for noise in levels]
            for problem, method in (over, under)
        ]
        return [a / b for a, b in zip(*finals, strict=True)]

    def words(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.3g}" for value in values)

    at = "at noise " + ", ".join(f"{noise:g}" for noise in levels)
    on_axes, off_axes = f"{ILL}, axis-aligned", f"{ILL}, rotated"
    mild = f"{MILD}, axis-aligned"
    sgd, ssd = (factors((on_axes, m), (mild, m)) for m in ("sgd", "ssd"))
    yield Finding(
        "Sign descent is less sensitive than SGD to an ill-conditioned spectrum.",
        f"From the mild to the ill-conditioned spectrum (axis-aligned) the final loss "
        f"grows by the factors {words(ssd)} for SSD and {words(sgd)} for SGD {at}.",
        all(a < b for a, b in zip(ssd, sgd, strict=True)),
        {"noise": levels, "ssd": ssd, "sgd": sgd},
    )
    aligned, rotated = (factors((p, "ssd"), (p, "sgd")) for p in (on_axes, off_axes))
    yield Finding(
        "It loses its advantage when the eigenvectors are rotated off the axes.",
        f"On the ill-conditioned spectrum SSD's final loss is {words(aligned)} times "
        f"SGD's when axis-aligned, and {words(rotated)} times when rotated, {at}.",
        any(a < 1 for a in aligned)
        and all(b > max(a, 1) for a, b in zip(aligned, rotated, strict=True)),
        {"noise": levels, "axis_aligned": aligned, "rotated": rotated},
    )
    change = {
        spectrum: factors(
            (f"{spectrum}, rotated", "sgd"), (f"{spectrum}, axis-aligned", "sgd")
        )
        for spectrum in (MILD, ILL)
    }
    yield Finding(
        "SGD does not care about the rotation.",
        f"It multiplies SGD's final loss by {words(change[MILD])} on the mild spectrum "
        f"and by {words(change[ILL])} on the ill-conditioned one {at}.",
        all(2 / 3 < x < 3 / 2 for x in (*change[MILD], *change[ILL])),
        {"noise": levels, **change},
    )


def of_the_long_run(
    config: Config, problem: Quadratic, long: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    """Judges the claims about convergence with a constant learning rate."""
    steps, noise = config.long_steps, config.long_noise
    if plots.IDEAL in long:
        slope = slope_of(long[plots.IDEAL][:, 0].mean(1))
        yield Finding(
            "The idealised SVAG converges at O(1/t) with a constant learning rate.",
            f"The mean loss falls like t^{slope:.3f} from step {steps // 10} to "
            f"{steps}, with the learning rate {config.long_rates[0]:g}/L.",
            abs(slope + 1) < 0.15,
            {"slope": slope},
        )
    if "sgd" in long:
        rates = np.array(config.long_rates)
        floors = [
            sgd_floor(problem.eigenvalues, rate, noise)
            for rate in rates / problem.eigenvalues.max()
        ]
        last = long["sgd"][-(steps // 10) :].mean((0, 2))
        ratios = (last / floors).tolist()
        yield Finding(
            "SGD with a constant learning rate stalls at a noise floor.",
            "Over the last tenth of the run its mean loss is "
            + ", ".join(
                f"{ratio:.3f} times the predicted floor {floor:.3g} ({rate:g}/L)"
                for ratio, floor, rate in zip(ratios, floors, rates, strict=True)
            )
            + ".",
            all(abs(ratio - 1) < 0.1 for ratio in ratios),
            {"rates": rates.tolist(), "floors": floors, "ratios": ratios},
        )


def slope_of(losses: np.ndarray) -> float:
    """Returns the exponent k of losses ~ t^k, from a tenth of the steps on."""
    t = np.unique(np.geomspace(len(losses) // 10, len(losses) - 1, 200).astype(int))
    return float(np.polyfit(np.log(t), np.log(losses[t]), 1)[0])


def rows_of(
    config: Config, problems: Sequence[Quadratic], outcomes: Outcomes
) -> list[dict[str, Any]]:
    """Returns a row for each problem, noise level, method and learning rate."""
    return [
        {
            "problem": problem.name,
            "noise": noise,
            "method": method,
            "learning_rate": float(np.float32(rate)),
            "mean_final_loss": float(np.float32(final)),
            "best": i == outcomes[problem.name, noise, method].best,
        }
        for problem in problems
        for noise in config.noise_levels
        for method in config.methods
        for i, (rate, final) in enumerate(
            zip(grid(config), outcomes[problem.name, noise, method].finals)
        )
    ]


def tables_of(config: Config, problems: Sequence[Quadratic], outcomes: Outcomes) -> str:
    """Returns a table for each problem, in Markdown."""
    levels, rates = config.noise_levels, grid(config)
    parts, on_the_edge = [], False
    for problem in problems:
        lines = []
        for method in config.methods:
            line = [plots.NAMES[method]]
            for noise in levels:
                outcome = outcomes[problem.name, noise, method]
                edge = outcome.best in (0, len(rates) - 1)
                on_the_edge |= edge
                line.append(
                    f"{outcome.final:.3g} ({rates[outcome.best]:.2g}{'*' * edge})"
                )
            lines.append(line)
        headings = [problem.name, *(f"noise {noise:g}" for noise in levels)]
        parts.append(markdown(headings, lines))
    caption = (
        f"Mean loss over {config.seeds} seeds after {config.steps} steps, with "
        f"the best of {len(rates)} learning rates from {rates[0]:g} to {rates[-1]:g} "
        f"(in brackets); d = {config.dimension}.\n"
    )
    if on_the_edge:
        caption += "\\* The best rate is at the edge of the grid.\n"
    return "\n".join([*parts, caption])
