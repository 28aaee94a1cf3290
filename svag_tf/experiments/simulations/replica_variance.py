"""Compares two estimates of the variance of a gradient that is a mean over replicas.

Replica i of n has the gradient g_i = G + noise of variance sigma^2, and the update uses
their mean g, whose variance is sigma^2/n. M-SVAG estimates that from the past of g:

    s = (v - m^2) / (1 - rho)              (rules.py; the gradient must not change)

The replicas could estimate it from one another, at the cost of a second all-reduce:

    c = sum over i of (g_i - g)^2 / (n (n - 1)),      averaged over time as m is

Both are compared with sigma^2/n, for a constant gradient G and for one that changes,
and the step gamma m, gamma = m^2/(m^2 + rho s), is compared with G.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from svag_tf import rules
from svag_tf.experiments.files import writable_folder, write_json, write_text

Array = NDArray[np.float64]

REPLICAS = (2, 4, 8)
PERIOD = 50  # Steps in one oscillation of a changing gradient.
SIGNALS = {
    "constant": lambda t: np.ones_like(t),
    "changing": lambda t: np.cos(2 * np.pi * t / PERIOD),
}
ETA = 1.0  # sigma / sqrt(n) over the size of G: the noise of the mean gradient.


def estimates(gradients: Array, beta: float) -> tuple[Array, Array, Array, float]:
    """Returns s from time and from replicas, m, and rho after the last step.

    The gradients have the shape (steps, replicas, elements), s and m (elements,).
    """
    steps, n, _ = gradients.shape
    weights = (1 - beta) * beta ** np.arange(steps)[::-1] / (1 - beta**steps)
    g = gradients.mean(1)
    m = np.tensordot(weights, g, 1)
    v = np.tensordot(weights, g**2, 1)
    rho = float((weights**2).sum())
    across = ((gradients - g[:, None]) ** 2).sum(1) / (n * (n - 1))
    over_time = np.maximum(v - m**2, 0) / (1 - rho)
    return over_time, np.tensordot(weights, across, 1), m, rho


def _gamma(signal: Array, noise: Array) -> Array:
    gamma = rules.gamma_gradient(*map(ops.convert_to_tensor, (signal, noise)))
    return ops.convert_to_numpy(gamma)


def simulate(elements: int, steps: int, beta: float, seed: int) -> list[dict[str, Any]]:
    """Measures bias and deviation of both estimates, and the error of the step.

    Returns:
        A dict for each number of replicas, signal and estimate; bias and deviation in
        units of sigma^2/n, the step's error (its mean square) in units of the mean
        G^2. In the changing gradient every element has another phase.
    """
    rows = []
    for n in REPLICAS:
        for signal, function in SIGNALS.items():
            rng = np.random.default_rng([seed, n])
            phase = rng.uniform(0, PERIOD, elements)
            truth = function(np.arange(steps)[:, None] + phase)
            sigma = ETA * np.sqrt(n)
            noise = sigma * rng.normal(size=(steps, n, elements))
            *both, m, rho = estimates(truth[:, None] + noise, beta)
            for name, s in zip(("time", "replicas"), both):
                relative = s / ETA**2
                gamma = _gamma(m**2, rho * s)
                error = (gamma * m - truth[-1]) ** 2
                rows.append(
                    {
                        "replicas": n,
                        "gradient": signal,
                        "estimate": name,
                        "bias": float(relative.mean() - 1),
                        "deviation": float(relative.std()),
                        "step_error": float(error.mean() / (truth[-1] ** 2).mean()),
                    }
                )
    return rows


def write_simulation(
    workdir: str | os.PathLike[str],
    elements: int = 20_000,
    steps: int = 100,
    beta: float = 0.9,
    seed: int = 0,
    command: str = "",
) -> str:
    """Simulates; writes `results.json` and `results.md`, and returns the latter."""
    folder = writable_folder(workdir)
    rows = simulate(elements, steps, beta, seed)
    lines = [
        "# The noise of a mean gradient, from its past and from its replicas",
        "",
        f"`{command}`",
        "",
        f"beta = {beta:g}, after {steps} steps, {elements:,} repetitions, seed {seed}; "
        f"noise of the mean gradient over its size: {ETA:g}; a changing gradient "
        f"oscillates once in {PERIOD} steps. Bias and deviation of s are in units "
        "of the true variance; the step's error is E (gamma m - G)^2 / E G^2.",
        "",
        "| gradient | replicas | s from | bias | deviation | error of the step |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda r: (r["gradient"], r["replicas"])):
        lines.append(
            f"| {row['gradient']} | {row['replicas']} | {row['estimate']} "
            f"| {row['bias']:+.3f} | {row['deviation']:.3f} | {row['step_error']:.3f} |"
        )
    text = "\n".join(lines) + "\n"
    write_json(folder / "results.json", {"command": command, "rows": rows})
    write_text(folder / "results.md", text)
    return text
