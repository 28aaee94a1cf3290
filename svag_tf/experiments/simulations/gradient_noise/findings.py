"""The claims that the measurements are judged by, and their tables."""

# ruff: noqa: RUF001 (the paper's Greek letters in tables)
from __future__ import annotations

from collections.abc import Mapping, Sequence

from svag_tf.experiments.simulations.gradient_noise.measurement import (
    EVERYTHING,
    QUANTITIES,
    Measurement,
    quotient,
)
from svag_tf.experiments.simulations.report import Finding
from svag_tf.experiments.tables import markdown
from svag_tf.experiments.training.config import TrainingConfig

SYMBOLS = {"m": "m", "s": "s", "rho_s": "ρ s", "eta2": "η²", "gamma": "γ"}
# Criteria of agreement; chosen before the first run.
FACTOR = 1.25  # unbiased: a ratio of sums within this factor of 1
CORRELATION = 0.5


def findings_of(measurements: Mapping[int, Measurement]) -> list[Finding]:
    """Judges the paper's claims by the measurements, by the count of updates."""
    steps = list(measurements)
    at = "after " + ", ".join(map(str, steps)) + " updates"

    def values(quantity: str, name: str) -> list[float]:
        return [m.row(quantity)[name] for m in measurements.values()]

    def words(numbers: Sequence[float]) -> str:
        return ", ".join(f"{number:.2f}" for number in numbers)

    def close(ratios: Sequence[float]) -> bool:
        return all(1 / FACTOR < ratio < FACTOR for ratio in ratios)

    ratios = values("s", "ratio")
    correlations = values("s", "correlation")
    errors = [
        quotient(a, b)
        for a, b in zip(
            values("rho_s", "squared_error_of_m"),
            values("rho_s", "sum_of_estimates"),
            strict=True,
        )
    ]
    gammas = values("gamma", "ratio")
    tells = values("gamma", "correlation")
    return [
        Finding(
            "s is an unbiased estimate of the mini-batch gradient's variance.",
            f"Summed over all elements, s is {words(ratios)} times the exact variance "
            f"{at}.",
            close(ratios),
            {"steps": steps, "ratios": ratios},
        ),
        Finding(
            "s tells noisy elements from quiet ones.",
            "The correlation of log s with the logarithm of the exact variance is "
            f"{words(correlations)} {at}.",
            all(c > CORRELATION for c in correlations),
            {"steps": steps, "correlations": correlations},
        ),
        Finding(
            "ρ s is the variance of m about the gradient.",
            f"Summed over all elements, the squared error of m is {words(errors)} "
            f"times ρ s {at}.",
            close(errors),
            {"steps": steps, "ratios": errors},
        ),
        Finding(
            "γ is the Lemma's best factor for m.",
            f"On average γ is {words(gammas)} times the best factor {at}; their "
            f"correlation is {words(tells)}.",
            close(gammas),
            {"steps": steps, "ratios": gammas, "correlations": tells},
        ),
    ]


def tables_of(
    measurements: Mapping[int, Measurement],
    labels: Sequence[str],
    training: TrainingConfig,
    examples: int,
) -> str:
    """Returns tables over time and layer by layer, in Markdown.

    The measurements are given by the count of updates; for the labels see `labels_of`.
    """
    last = list(measurements)[-1]

    def cells(measurement: Measurement, layer: str) -> list[str]:
        pairs = [
            f"{row['ratio']:.2f} / {row['correlation']:.2f}"
            for row in (measurement.row(name, layer) for name in QUANTITIES)
        ]
        error = measurement.row("rho_s", layer)
        return [
            *pairs,
            f"{quotient(error['squared_error_of_m'], error['sum_of_estimates']):.2f}",
        ]

    quantities = [*SYMBOLS.values(), "squared error of m over ρ s"]
    over_time = [
        [str(step), f"{m.rows[0]['loss']:.3f}", *cells(m, EVERYTHING)]
        for step, m in measurements.items()
    ]
    per_layer = [
        [
            label,
            f"{measurements[last].row('m', label)['elements']:,}",
            *cells(measurements[last], label),
        ]
        for label in (*labels, EVERYTHING)
    ]
    return (
        "Ratio / correlation. The ratio is 1 without bias: Σ m G / Σ G² for m, the "
        "median of the quotients for η², the quotient of the sums for the others. The "
        "correlation is that of the logarithms for s, ρ s and η².\n\n"
        + markdown(["updates", "loss", *quantities], over_time)
        + f"\nLayer by layer, after {last} updates:\n\n"
        + markdown(["", "elements", *quantities], per_layer)
        + f"\nProblem {training.problem}, its first {examples} training examples, "
        f"batches of {training.batch_size}, M-SVAG, seed {training.seed}, "
        f"{last} updates ({last / (examples // training.batch_size):.1f} epochs). "
        "Elements whose gradient is 0 for every example are left out.\n"
    )
