"""Estimates and exact values of the quantities of M-SVAG, and how well they agree."""

# ruff: noqa: RUF001 (the paper's Greek letters in tables)
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from svag_tf import rules
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import replacing
from svag_tf.noise.gradients import GradientStatistics

Array = NDArray[Any]

QUANTITIES = {
    "m": "m against G",
    "s": "s against V",
    "rho_s": "ρ s against ρ V",
    "eta2": "η² against ρ V / G²",
    "gamma": "γ against the best",
}
LOGARITHMIC = ("s", "rho_s", "eta2")
EVERYTHING = "all"
BINS = 25


@dataclass(frozen=True)
class Measurement:
    """Estimates and exact values after an update.

    Attributes:
        rows: one dict per layer and quantity, see `compared`.
        sample: for each quantity, shape (2, n): estimates and exact values of
            elements drawn at random, equally many from each layer.
        layers: shape (n,), the layer's number for each element of the sample.
        bins: for each quantity, shape (2, BINS): mean estimate and mean exact value
            of bins of equally many elements; medians for eta2. For rho_s the exact
            value is the squared error (m - G)^2.
    """

    rows: list[dict[str, Any]]
    sample: dict[str, Array]
    layers: Array
    bins: dict[str, Array]

    def row(self, quantity: str, layer: str = EVERYTHING) -> dict[str, Any]:
        """Returns the row of a quantity and a layer, or of all elements."""
        return next(
            row
            for row in self.rows
            if (row["quantity"], row["layer"]) == (quantity, layer)
        )

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            f"sample_{name}": a for name, a in self.sample.items()
        }
        arrays |= {f"bins_{name}": a for name, a in self.bins.items()}
        rows = np.array(json.dumps(self.rows))
        with replacing(path) as temporary:
            np.savez(temporary, rows=rows, layers=self.layers, **arrays)

    @classmethod
    def load(cls, path: Path) -> Measurement:
        try:
            with np.load(path) as file:
                return cls(
                    json.loads(str(file["rows"])),
                    {name: file[f"sample_{name}"] for name in QUANTITIES},
                    file["layers"],
                    {name: file[f"bins_{name}"] for name in QUANTITIES},
                )
        except (OSError, ValueError, KeyError) as error:
            raise ExperimentError(f"{path} is corrupt: {error}") from error


def estimates(m_tilde: Array, v_tilde: Array, t: int, beta: float) -> dict[str, Array]:
    """Computes M-SVAG's estimates from its slots after update t >= 2.

    In float64, and so not by the rules themselves: on JAX these compute in float32.

    Returns:
        An array for each of `QUANTITIES`. eta2 is NaN and gamma 0 where m = 0.
    """
    correction, variance, mean_variance = (
        _at_update(t, beta, rule)
        for rule in (
            rules.bias_correction,
            rules.variance_factor,
            rules.mean_variance_factor,
        )
    )
    m = correction * np.asarray(m_tilde, np.float64)
    excess = np.maximum(correction * np.asarray(v_tilde, np.float64) - m * m, 0.0)
    s, rho_s = variance * excess, mean_variance * excess
    return {"m": m, "s": s, "rho_s": rho_s, **_ratios(m, rho_s)}


def exact_values(gradient: Array, variance: Array, rho: float) -> dict[str, Array]:
    """Returns the exact values of the quantities in `estimates`, from G, V and rho."""
    return {
        "m": gradient,
        "s": variance,
        "rho_s": rho * variance,
        **_ratios(gradient, rho * variance),
    }


def _ratios(mean: Array, noise: Array) -> dict[str, Array]:
    signal = mean * mean
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        eta2 = np.where(signal > 0, noise / signal, np.nan)
        gamma = np.where(signal > 0, signal / (signal + noise), 0.0)
    return {"eta2": eta2, "gamma": gamma}


def rho_of(t: int, beta: float) -> float:
    """Returns var[m] / sigma^2 after update t."""
    return _at_update(t, beta, rules.mean_variance_ratio)


def _at_update(t: int, beta: float, rule: Any) -> float:
    t = keras.ops.convert_to_tensor(float(t), "float32")
    return float(keras.ops.convert_to_numpy(rule(t, beta)))


def compared(quantity: str, estimate: Array, exact: Array) -> dict[str, float]:
    """Measures how well estimates agree with exact values, both of shape (n,).

    Returns:
        `ratio`, which is 1 without bias: sum(m G) / sum(G^2) for m, the median of the
        quotients for eta2, the quotient of the sums for the others; `correlation`,
        Pearson's, of the logarithms for `LOGARITHMIC` over the elements where both
        are positive. NaN where there is none.
    """
    usable = np.isfinite(estimate) & np.isfinite(exact)
    if quantity in LOGARITHMIC:
        usable &= (estimate > 0) & (exact > 0)
    a, b = estimate[usable], exact[usable]
    if quantity == "m":
        ratio = quotient(np.dot(estimate, exact), np.dot(exact, exact))
    elif quantity == "eta2":
        ratio = float(np.median(a / b)) if a.size else np.nan
    else:
        ratio = quotient(estimate.sum(), exact.sum())
    if quantity in LOGARITHMIC:
        a, b = np.log(a), np.log(b)
    # Round-off can make the standard deviation of equal numbers nonzero.
    spread = a.size > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if spread else np.nan
    return {"ratio": ratio, "correlation": correlation}


def quotient(a: float, b: float) -> float:
    """Returns a / b, NaN if b is 0."""
    return float(a / b) if b else float("nan")


def binned(quantity: str, estimate: Array, exact: Array) -> Array:
    """Returns the mean (eta2: median) estimate and exact value of equally filled bins.

    The bins are those of the sorted estimates.

    Returns:
        Shape (2, BINS), NaN for bins without elements.
    """
    usable = np.isfinite(estimate) & np.isfinite(exact)
    a, b = estimate[usable], exact[usable]
    middle = np.median if quantity == "eta2" else np.mean
    parts = np.array_split(np.argsort(a, kind="stable"), BINS)
    return np.array(
        [[middle(x[p]) if p.size else np.nan for p in parts] for x in (a, b)]
    )


def labels_of(model: keras.Model) -> list[str]:
    """Returns names of the trainable variables that are the same in every process.

    A name has the number of the layer among those with weights, the layer's class and
    the variable's name: "1 Conv2D kernel".
    """
    names: dict[int, str] = {}
    number = 0
    for layer in model.layers:
        if layer.trainable_variables:
            number += 1
        for variable in layer.trainable_variables:
            kind = type(layer).__name__
            names[id(variable)] = f"{number} {kind} {variable.name}"
    return [names.get(id(v), v.path) for v in model.trainable_variables]


def measured(
    model: keras.Model,
    exact: GradientStatistics,
    step: int,
    batch_size: int,
    elements: int,
    seed: int,
) -> Measurement:
    """Compares the estimates in the model's optimizer, an M-SVAG, with exact values.

    So many `elements` of each layer are kept in the sample, drawn by `seed`.
    """
    optimizer = model.optimizer
    variances = exact.mini_batch_variance(batch_size)
    rho = rho_of(step, optimizer.beta)
    rng = np.random.default_rng([seed, step, 3])
    rows, columns, sample, layers = [], [], [], []
    for i, label in enumerate(labels_of(model)):
        m_tilde, v_tilde = (
            keras.ops.convert_to_numpy(slot[i].value)
            for slot in (optimizer.m_tilde, optimizer.v_tilde)
        )
        pairs = _pairs(
            estimates(m_tilde, v_tilde, step, optimizer.beta),
            exact_values(exact.gradient[i], variances[i], rho),
        )
        rows += _rows(step, label, pairs, exact.loss)
        columns.append(pairs)
        n = pairs["m"].shape[1]
        chosen = rng.choice(n, min(n, elements), replace=False)
        sample.append({name: pair[:, chosen] for name, pair in pairs.items()})
        layers.append(np.full(len(chosen), i))
    merged = {
        name: np.concatenate([pairs[name] for pairs in columns], axis=1)
        for name in QUANTITIES
    }
    rows += _rows(step, EVERYTHING, merged, exact.loss)
    error = np.square(merged["m"][0] - merged["m"][1])
    bins = {name: binned(name, *pair) for name, pair in merged.items()}
    bins["rho_s"] = binned("rho_s", merged["rho_s"][0], error)
    return Measurement(
        rows,
        {
            name: np.concatenate([part[name] for part in sample], axis=1)
            for name in QUANTITIES
        },
        np.concatenate(layers),
        bins,
    )


def _pairs(estimate: dict[str, Array], exact: dict[str, Array]) -> dict[str, Array]:
    """Returns for each quantity, shape (2, n), the elements with any gradient."""
    alive = (exact["s"] > 0) | (estimate["m"] != 0)
    return {name: np.stack([estimate[name][alive], exact[name][alive]])
            for name in QUANTITIES}  # fmt: skip


def _rows(
    step: int, label: str, pairs: Mapping[str, Array], loss: float
) -> list[dict[str, Any]]:
    error = float(np.square(pairs["m"][0] - pairs["m"][1]).sum())
    return [
        {
            "step": step,
            "loss": loss,
            "layer": label,
            "quantity": name,
            "elements": pair.shape[1],
            **compared(name, *pair),
            # Only for m and rho s: the squared error of m, which rho s estimates.
            "squared_error_of_m": error if name in ("m", "rho_s") else float("nan"),
            "sum_of_estimates": float(np.nansum(pair[0])),
            "sum_of_exact_values": float(np.nansum(pair[1])),
        }
        for name, pair in pairs.items()
    ]
