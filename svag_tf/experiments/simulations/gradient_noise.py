"""Compares M-SVAG's estimates of gradient and noise with exact ones during training.

A network is trained with M-SVAG. After certain updates, at the current weights, the
exact gradient G of the mean loss over all training examples is computed, and the exact
element-wise variance V of a mini-batch's gradient, from the gradients of all single
examples. M-SVAG has estimates of both in its two slots, averages over past
mini-batches:

    m      estimates G             s      estimates V
    rho s  estimates var[m] = rho V
    eta^2 = rho s / m^2            estimates rho V / G^2
    gamma = 1 / (1 + eta^2)        estimates the Lemma's best factor for m
"""

# ruff: noqa: RUF001 (the paper's Greek letters in figures and tables)
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from svag_tf import rules
from svag_tf.experiments import machine
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.files import (
    read_json,
    replacing,
    writable_folder,
    write_json,
)
from svag_tf.experiments.problems import PROBLEMS
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.report import (
    Finding,
    checked,
    progress,
    table,
    whole,
    write_results,
)
from svag_tf.experiments.training import config as training_config
from svag_tf.experiments.training.config import Field, differences
from svag_tf.experiments.training.train import Batches, prepared
from svag_tf.noise.gradients import GradientStatistics, gradient_statistics
from svag_tf.optional import filelock, matplotlib, require

Array = NDArray[Any]

FIELDS = {
    "steps": Field(
        list | tuple,  # type: ignore[arg-type]
        lambda v: (
            len(v) > 0
            and all(isinstance(t, int) and t >= 2 for t in v)
            and list(v) == sorted(set(v))
        ),
        "rising whole numbers >= 2, such as (10, 100): the first update says nothing "
        "of the noise",
    ),
    "elements": whole(10),
    "memory": whole(1),
}
QUANTITIES = {
    "m": "m against G",
    "s": "s against V",
    "rho_s": "ρ s against ρ V",
    "eta2": "η² against ρ V / G²",
    "gamma": "γ against the best",
}
SYMBOLS = {"m": "m", "s": "s", "rho_s": "ρ s", "eta2": "η²", "gamma": "γ"}
LOGARITHMIC = ("s", "rho_s", "eta2")
EVERYTHING = "all"
PART = 50  # examples between two signs of progress
BINS = 25
# Criteria of agreement; chosen before the first run.
FACTOR = 1.25  # unbiased: a ratio of sums within this factor of 1
CORRELATION = 0.5


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
    """Computes M-SVAG's estimates from its slots after update t, in float64.

    Args:
        m_tilde: m~, of any shape.
        v_tilde: v~, of the same shape.
        t: count of the updates, at least 2.
        beta: decay of the averages.

    Returns:
        An array for each of `QUANTITIES`. eta2 is NaN and gamma 0 where m = 0.
    """
    time_step = keras.ops.convert_to_tensor(float(t), "float32")
    correction, variance, mean_variance = (
        float(keras.ops.convert_to_numpy(factor(time_step, beta)))
        for factor in (
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
    """Returns the exact values of the quantities in `estimates`.

    Args:
        gradient: G, of any shape.
        variance: V of a mini-batch, of the same shape.
        rho: var[m] / V.
    """
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
    power = beta**t
    return (1 - beta) * (1 + power) / ((1 + beta) * (1 - power))


def compared(quantity: str, estimate: Array, exact: Array) -> dict[str, float]:
    """Measures how well estimates agree with exact values.

    Args:
        quantity: one of `QUANTITIES`.
        estimate: shape (n,).
        exact: shape (n,).

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
        ratio = _quotient(np.dot(estimate, exact), np.dot(exact, exact))
    elif quantity == "eta2":
        ratio = float(np.median(a / b)) if a.size else np.nan
    else:
        ratio = _quotient(estimate.sum(), exact.sum())
    if quantity in LOGARITHMIC:
        a, b = np.log(a), np.log(b)
    # Round-off can make the standard deviation of equal numbers nonzero.
    spread = a.size > 2 and np.ptp(a) > 0 and np.ptp(b) > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if spread else np.nan
    return {"ratio": ratio, "correlation": correlation}


def _quotient(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")


def binned(quantity: str, estimate: Array, exact: Array) -> Array:
    """Returns the mean (eta2: median) estimate and exact value of equally filled bins.

    Args:
        quantity: one of `QUANTITIES`.
        estimate: shape (n,); its order defines the bins.
        exact: shape (n,).

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


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Trains, measures, and writes figures, tables and findings; resumable.

    Args:
        config: see configs/gradient_noise.py.
        workdir: folder for the results. An interrupted run resumes from `state.npz` and
            `measurements/` in it.
        command: the command line, for the report.

    Returns:
        `measurements`, a `Measurement` for each of the config's steps, and
        `findings`.

    Raises:
        ExperimentError: if config, data or workdir cannot be used, before any work.
        DivergedError: if the training diverges.
        ImportError: if filelock or matplotlib is missing, before any work.
    """
    require(filelock, matplotlib)
    own, training = _checked(config)
    everything = {**own, "training": training}
    workdir = Path(workdir)
    data, model = prepared(training)
    _check_problem(own, training, data, model)
    (writable_folder(workdir) / "measurements").mkdir(exist_ok=True)
    try:
        with filelock.FileLock(workdir / ".lock", blocking=False):
            return _simulate(everything, workdir, command, data, model)
    except filelock.Timeout:
        raise ExperimentError(
            f"The workdir {workdir} is in use by another process. Wait for it to end, "
            "or name another --workdir."
        ) from None


def _checked(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    training = config.pop("training", None)
    if not isinstance(training, Mapping):
        raise ExperimentError(
            "training must be the config of a training, see configs/digits.py. "
            f"Received: training={training!r}"
        )
    own, training = checked(config, FIELDS), training_config.checked(training)
    optimizer = training["optimizer"]
    if optimizer["name"] != "msvag":
        raise ExperimentError(
            "training.optimizer.name must be msvag, whose estimates are measured. "
            f"Received: training.optimizer.name={optimizer['name']!r}"
        )
    for name in (
        "clipnorm", "clipvalue", "global_clipnorm", "gradient_accumulation_steps",
    ):  # fmt: skip
        if optimizer[name] is not None:
            raise ExperimentError(
                f"training.optimizer.{name} must be None: the slots must hold "
                "averages of unmodified mini-batch gradients. "
                f"Received: training.optimizer.{name}={optimizer[name]!r}"
            )
    if PROBLEMS[training["problem"]].prepare_train is not None:
        raise ExperimentError(
            "training.problem must be one whose inputs are not changed at random. "
            f"Received: training.problem={training['problem']!r}"
        )
    if PROBLEMS[training["problem"]].streams is not None:
        raise ExperimentError(
            "training.problem must have independent examples. "
            f"Received: training.problem={training['problem']!r}"
        )
    return own, training


def _check_problem(
    own: Mapping[str, Any],
    training: Mapping[str, Any],
    data: Data,
    model: keras.Model,
) -> None:
    steps = len(data.x_train) // training["batch_size"] * training["epochs"]
    if own["steps"][-1] > steps:
        raise ExperimentError(
            f"steps must not exceed the {steps} updates of {training['epochs']} "
            f"epochs. Received: steps={own['steps']}"
        )
    try:  # refuses dropout layers, and too little memory
        _exact(own, training, data, model, lambda _: None, limit=2)
    except ValueError as error:
        raise ExperimentError(str(error)) from error


def _exact(
    own: Mapping[str, Any],
    training: Mapping[str, Any],
    data: Data,
    model: keras.Model,
    report: Callable[[str], None],
    limit: int | None = None,
) -> GradientStatistics:
    """Computes the exact statistics of the first `limit` examples, or of all."""

    def parts() -> Iterator[tuple[Array, Array]]:
        x, y = data.x_train[:limit], data.y_train[:limit]
        for start in range(0, len(x), PART):
            report("the exact gradients")
            yield x[start : start + PART], y[start : start + PART]

    return gradient_statistics(
        model,
        PROBLEMS[training["problem"]].loss(),
        parts(),
        training=True,
        memory=own["memory"],
        verbose=False,
    )


def _simulate(
    config: dict[str, Any],
    workdir: Path,
    command: str,
    data: Data,
    model: keras.Model,
) -> dict[str, Any]:
    about: dict[str, Any] = {
        "title": "M-SVAG's estimates of gradient and noise against exact ones",
        "command": command,
        "config": config,
        "machine": machine.description(),
    }
    seconds = _measure_all(config, workdir, data, model)
    measurements = {
        step: Measurement.load(_measurement(workdir, step)) for step in config["steps"]
    }
    findings = _findings(measurements)
    labels = labels_of(model)
    _draw_scatter(measurements, labels, workdir / "scatter.png")
    _draw_calibration(measurements, workdir / "calibration.png")
    _draw_layers(measurements, labels, workdir / "layers.png")
    about["seconds"] = seconds
    rows = [row for m in measurements.values() for row in m.rows]
    tables = _tables(measurements, labels, config, len(data.x_train))
    write_results(workdir, rows, tables, findings, about)
    return {"measurements": measurements, "findings": findings}


def _measurement(workdir: Path, step: int) -> Path:
    return workdir / "measurements" / f"step_{step:06d}.npz"


def _measure_all(
    config: dict[str, Any], workdir: Path, data: Data, model: keras.Model
) -> float:
    """Trains and writes every missing measurement; returns the seconds."""
    training = config["training"]
    begin = time.monotonic()
    first, before = _restored(workdir, config, model)
    problem = PROBLEMS[training["problem"]]
    batches = Batches(
        data.x_train,
        data.y_train,
        training["batch_size"],
        training["seed"],
        problem.prepare_train,
    )
    left = [step for step in config["steps"] if step > first]
    if not left:
        return before
    parts = -(-len(data.x_train) // PART)
    interrupted = "Interrupted. The same command resumes after the last measurement."
    if first:
        print(f"Resuming the run in {workdir} after step {first}.")
    with progress(left[-1] - first + parts * len(left), interrupted) as report:
        for step in range(first, left[-1]):
            report("training")
            epoch, batch = divmod(step, len(batches))
            batches.shuffle(epoch)
            loss = model.train_on_batch(*batches[batch], return_dict=True)["loss"]
            if not np.isfinite(loss):
                raise DivergedError(
                    f"The training diverged at step {step + 1}: the loss is not "
                    "finite. Try a lower training.optimizer.learning_rate."
                )
            if step + 1 in left:
                exact = _exact(config, training, data, model, report)
                measured = _measured(config, model, exact, step + 1)
                measured.save(_measurement(workdir, step + 1))
                seconds = before + time.monotonic() - begin
                _save_state(workdir, model, step + 1, seconds)
    return seconds


def _values(model: keras.Model) -> list[Any]:
    return [*model.weights, *model.optimizer.variables]


def _save_state(workdir: Path, model: keras.Model, step: int, seconds: float) -> None:
    """Saves the state to resume from; replacing its file commits the measurement."""
    arrays: dict[str, Any] = {
        f"value_{i}": keras.ops.convert_to_numpy(v.value)
        for i, v in enumerate(_values(model))
    }
    arrays |= {"step": step, "seconds": seconds}
    with replacing(workdir / "state.npz") as temporary:
        np.savez(temporary, **arrays)


def _restored(
    workdir: Path, config: dict[str, Any], model: keras.Model
) -> tuple[int, float]:
    """Restores the model of the last measurement; returns its step and seconds."""
    path, config_path = workdir / "state.npz", workdir / "config.json"
    if config_path.exists():
        changed = differences(read_json(config_path), config)
        if changed:
            raise ExperimentError(
                f"The workdir {workdir} holds a run of another config. Name another "
                "--workdir, or use the old values (old -> new):\n  "
                + "\n  ".join(changed)
            )
    else:
        write_json(config_path, config)
    if not path.exists():
        return 0, 0.0
    try:
        with np.load(path) as file:
            step, seconds = int(file["step"]), float(file["seconds"])
            values = [file[f"value_{i}"] for i in range(len(_values(model)))]
        for variable, value in zip(_values(model), values, strict=True):
            variable.assign(value)
    except (OSError, ValueError, KeyError) as error:
        raise ExperimentError(
            f"{path} is corrupt: {error}. Delete the folder to start afresh, or name "
            "another --workdir."
        ) from error
    return step, seconds


def _measured(
    config: Mapping[str, Any],
    model: keras.Model,
    exact: GradientStatistics,
    step: int,
) -> Measurement:
    optimizer = model.optimizer
    training = config["training"]
    variances = exact.mini_batch_variance(training["batch_size"])
    rho = rho_of(step, optimizer.beta)
    rng = np.random.default_rng([training["seed"], step, 3])
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
        chosen = rng.choice(n, min(n, config["elements"]), replace=False)
        sample.append({name: pair[:, chosen] for name, pair in pairs.items()})
        layers.append(np.full(len(chosen), i))
    together = {
        name: np.concatenate([pairs[name] for pairs in columns], axis=1)
        for name in QUANTITIES
    }
    rows += _rows(step, EVERYTHING, together, exact.loss)
    error = np.square(together["m"][0] - together["m"][1])
    bins = {name: binned(name, *pair) for name, pair in together.items()}
    bins["rho_s"] = binned("rho_s", together["rho_s"][0], error)
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


def _row(measurement: Measurement, quantity: str, layer: str) -> dict[str, Any]:
    return next(
        row
        for row in measurement.rows
        if (row["quantity"], row["layer"]) == (quantity, layer)
    )


def _findings(measurements: Mapping[int, Measurement]) -> list[Finding]:
    steps = list(measurements)
    at = "after " + ", ".join(map(str, steps)) + " updates"

    def values(quantity: str, name: str) -> list[float]:
        return [_row(m, quantity, EVERYTHING)[name] for m in measurements.values()]

    def words(numbers: Sequence[float]) -> str:
        return ", ".join(f"{number:.2f}" for number in numbers)

    def close(ratios: Sequence[float]) -> bool:
        return all(1 / FACTOR < ratio < FACTOR for ratio in ratios)

    ratios = values("s", "ratio")
    correlations = values("s", "correlation")
    errors = [
        _quotient(a, b)
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


def _tables(
    measurements: Mapping[int, Measurement],
    labels: Sequence[str],
    config: Mapping[str, Any],
    examples: int,
) -> str:
    training = config["training"]
    last = list(measurements)[-1]

    def cells(measurement: Measurement, layer: str) -> list[str]:
        pairs = [
            f"{row['ratio']:.2f} / {row['correlation']:.2f}"
            for row in (_row(measurement, name, layer) for name in QUANTITIES)
        ]
        error = _row(measurement, "rho_s", layer)
        return [
            *pairs,
            f"{_quotient(error['squared_error_of_m'], error['sum_of_estimates']):.2f}",
        ]

    quantities = [*SYMBOLS.values(), "squared error of m over ρ s"]
    over_time = [
        [str(step), f"{m.rows[0]['loss']:.3f}", *cells(m, EVERYTHING)]
        for step, m in measurements.items()
    ]
    per_layer = [
        [
            label,
            f"{_row(measurements[last], 'm', label)['elements']:,}",
            *cells(measurements[last], label),
        ]
        for label in (*labels, EVERYTHING)
    ]
    return (
        "Ratio / correlation. The ratio is 1 without bias: Σ m G / Σ G² for m, the "
        "median of the quotients for η², the quotient of the sums for the others. The "
        "correlation is that of the logarithms for s, ρ s and η².\n\n"
        + table(["updates", "loss", *quantities], over_time)
        + f"\nLayer by layer, after {last} updates:\n\n"
        + table(["", "elements", *quantities], per_layer)
        + f"\nProblem {training['problem']}, its first {examples} training examples, "
        f"batches of {training['batch_size']}, M-SVAG, seed {training['seed']}, "
        f"{last} updates ({last / (examples // training['batch_size']):.1f} epochs). "
        "Elements whose gradient is 0 for every example are left out.\n"
    )


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


def _draw_scatter(
    measurements: Mapping[int, Measurement], labels: Sequence[str], path: Path
) -> None:
    shown = _shown(measurements)
    figure = plots.new_figure(
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
            axes.plot(limits[name], limits[name], color=plots.GUIDE, linewidth=1)
            if name != "gamma":
                axes.set(xscale="log", yscale="log")
            axes.set(xlim=limits[name], ylim=limits[name])
            plots.tidy(axes)
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
    plots.save(figure, path)


def _limits(name: str, shown: Mapping[int, Measurement]) -> tuple[float, float]:
    if name == "gamma":
        return (-0.03, 1.03)
    values = np.concatenate([np.abs(m.sample[name]).ravel() for m in shown.values()])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return (0.1, 10.0)
    low, high = np.percentile(values, [0.5, 99.5])
    return (low / 2, high * 2)


def _draw_calibration(measurements: Mapping[int, Measurement], path: Path) -> None:
    figure = plots.new_figure(
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
        plots.tidy(axes)
    plots.legend_below(figure, panels[0], 6)
    plots.save(figure, path)


def _shade(share: float) -> tuple[float, float, float]:
    """Returns a blue that is darker for later measurements."""
    light, dark = np.array([0.75, 0.86, 0.95]), np.array([0.0, 0.2, 0.4])
    red, green, blue = light + share * (dark - light)
    return float(red), float(green), float(blue)


def _draw_layers(
    measurements: Mapping[int, Measurement], labels: Sequence[str], path: Path
) -> None:
    figure = plots.new_figure("Bias and correlation, layer by layer", 12, 5.6)
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
                    _row(measurement, name, label)[measure]
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
            plots.tidy(axes)
        panels[0, column].set_title(QUANTITIES[name], fontsize=11)
        panels[0, column].axhline(1, color=plots.GUIDE, linewidth=1, linestyle=":")
        if name != "m":  # Its ratio can be negative.
            panels[0, column].set_yscale("log")
            panels[0, column].yaxis.set_major_locator(
                matplotlib.ticker.LogLocator(subs=(1, 2, 5))
            )
            panels[0, column].yaxis.set_major_formatter(
                matplotlib.ticker.FormatStrFormatter("%g")
            )
            panels[0, column].yaxis.set_minor_formatter(
                matplotlib.ticker.NullFormatter()
            )
        panels[1, column].set(xlabel="updates", ylim=(-1.03, 1.03))
    panels[0, 0].set_ylabel("estimate over exact value")
    panels[1, 0].set_ylabel("correlation")
    plots.legend_below(figure, panels[0, 0], 5)
    plots.save(figure, path)
