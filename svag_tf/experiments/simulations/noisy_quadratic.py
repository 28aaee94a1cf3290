"""SGD against sign descent on noisy quadratics.

L(theta) = 0.5 theta' Q theta with stochastic gradients g = Q theta + noise, the noise
normal with variance nu for every element. The optimum is 0; for these methods, any
other would only move the origin.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf import rules
from svag_tf.experiments import machine
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import writable_folder
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.report import (
    Finding,
    checked,
    list_of,
    progress,
    table,
    whole,
    write_results,
)
from svag_tf.experiments.training.config import Field
from svag_tf.optional import matplotlib
from svag_tf.optional import tensorflow as tf

METHODS = (
    "sgd", "msgd", "svag", "msvag", plots.IDEAL, "ssd", "mssd", "svas", "msvas",
)  # fmt: skip
MILD, ILL = "mild", "ill-conditioned"
TINY = float(np.finfo(np.float32).tiny)


def _positive(expected: str) -> Field:
    return Field(float, lambda v: v > 0, expected)


FIELDS = {
    "seed": whole(0),
    "seeds": whole(2),
    "dimension": whole(10),
    "noise_levels": list_of(
        lambda v: isinstance(v, int | float) and 0 <= v < math.inf,
        "finite numbers >= 0, at least one and none twice, such as (0.0, 0.1)",
    ),
    "methods": list_of(
        lambda v: v in METHODS,
        f"of {', '.join(METHODS)}, at least one and none twice",
    ),
    "steps": whole(2),
    "rates": whole(2),
    "lowest_rate": _positive("a finite number > 0"),
    "highest_rate": _positive("a finite number > lowest_rate"),
    "long_steps": whole(100),
    "long_noise": _positive("a finite number > 0"),
    "long_rates": list_of(
        lambda v: isinstance(v, int | float) and 0 < v < 2,
        "numbers in (0, 2), at least one and none twice: rates relative to 1/L",
    ),
}


@dataclass(frozen=True)
class Quadratic:
    """A problem: the eigenvalues of Q, and its eigenvectors as columns of a matrix."""

    spectrum: str
    rotated: bool
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.spectrum}, {'rotated' if self.rotated else 'axis-aligned'}"

    @property
    def matrix(self) -> np.ndarray:
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T


@dataclass(frozen=True)
class Outcome:
    """The outcome of a method on a problem with a noise level.

    Attributes:
        finals: mean over the seeds of the last loss, for each learning rate; inf where
            it diverged.
        best: index of the learning rate with the lowest loss.
        losses: the losses with that rate, shape (steps + 1, seeds).
    """

    finals: np.ndarray
    best: int
    losses: np.ndarray

    @property
    def final(self) -> float:
        return float(self.finals[self.best])


Outcomes = Mapping[tuple[str, float, str], Outcome]


def quadratics(dimension: int, seed: int) -> list[Quadratic]:
    """Returns four problems: two spectra, with eigenvectors on the axes or rotated."""
    rng = np.random.default_rng([seed, 0])
    steep = dimension // 10
    spectra = {
        MILD: rng.uniform(0.1, 1.1, dimension),
        ILL: np.concatenate(
            [rng.uniform(0, 1, dimension - steep), rng.uniform(30, 60, steep)]
        ),
    }
    q, r = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    rotation = q * np.sign(np.diag(r))  # uniform among the rotations and reflections
    return [
        Quadratic(name, rotated, spectrum, rotation if rotated else np.eye(dimension))
        for name, spectrum in spectra.items()
        for rotated in (False, True)
    ]


def simulator(
    method: str,
    rates: Sequence[float] | np.ndarray,
    seeds: int,
    dimension: int,
    steps: int,
) -> Callable[[np.ndarray, float, np.ndarray, int], np.ndarray]:
    """Makes a function that runs a method, with all learning rates and seeds at once.

    Its direction of descent depends only on the gradients, not on theta. So one
    optimizer with learning rate 1 serves all rates: a variable that is set to 0 before
    each step then holds minus the direction, for every rate and seed.

    Args:
        method: one of `METHODS`.
        rates: learning rates, one for each run.
        seeds: number of runs for each rate; all rates see the same noise.
        dimension: d.
        steps: number of updates.

    Returns:
        Function of the matrix Q, the noise's variance, the starting points (shape
        (seeds, d)) and the noise's seed. It returns the losses before and after each
        step: shape (steps + 1, rates, seeds).
    """
    shape = (len(rates), seeds, dimension)
    rate = tf.reshape(tf.constant(rates, tf.float32), (-1, 1, 1))
    descent = keras.Variable(tf.zeros(shape))
    fresh = []
    if method != plots.IDEAL:
        optimizer = OPTIMIZERS[method](learning_rate=1.0)
        optimizer.build([descent])
        fresh = [(v, v.numpy()) for v in optimizer.variables]

    def descended(gradient: Any, exact: Any, noise: Any) -> Any:
        if method == plots.IDEAL:
            signal = tf.square(exact)
            gamma = rules.gamma_gradient(signal, tf.broadcast_to(noise, shape))
            return -gamma * gradient
        descent.assign(tf.zeros(shape))
        optimizer.apply([gradient], [descent])
        return descent.value

    def loop(matrix: Any, noise: Any, start: Any, seed: Any) -> Any:
        def step(t: Any, theta: Any, losses: Any) -> tuple[Any, Any, Any]:
            exact = tf.reshape(tf.reshape(theta, (-1, dimension)) @ matrix, shape)
            losses = losses.write(t, 0.5 * tf.reduce_sum(theta * exact, -1))
            normal = tf.random.stateless_normal(shape[1:], tf.stack([seed, t]))
            gradient = exact + tf.sqrt(noise) * normal
            return t + 1, theta + rate * descended(gradient, exact, noise), losses

        losses = tf.TensorArray(tf.float32, steps + 1, element_shape=shape[:2])
        first = (tf.constant(0), tf.broadcast_to(start, shape), losses)
        return tf.while_loop(lambda t, *_: t <= steps, step, first)[2].stack()

    compiled = tf.function(loop, jit_compile=True, autograph=False)
    compiled = compiled.get_concrete_function(
        tf.TensorSpec((dimension, dimension)),
        tf.TensorSpec(()),
        tf.TensorSpec(shape[1:]),
        tf.TensorSpec((), tf.int32),
    )

    def run(
        matrix: np.ndarray, noise: float, start: np.ndarray, seed: int
    ) -> np.ndarray:
        for variable, value in fresh:
            variable.assign(value)
        numbers = [tf.constant(x, tf.float32) for x in (matrix, noise, start)]
        return compiled(*numbers, tf.constant(seed)).numpy()

    return run


def sgd_floor(eigenvalues: np.ndarray, rate: float, noise: float) -> float:
    """Returns the loss at which SGD with a constant learning rate stalls.

    In the direction of an eigenvalue l, theta finally has the variance
    rate^2 noise / (1 - (1 - rate l)^2), and the loss is 0.5 l times that.
    """
    return float(0.5 * rate * noise * np.sum(1.0 / (2.0 - rate * eigenvalues)))


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Runs the whole simulation and writes its figures, tables and findings.

    Args:
        config: see configs/noisy_quadratic.py.
        workdir: folder for the results.
        command: the command line, for the report.

    Returns:
        `outcomes`, `long` (losses of each method of the long run, shape
        (steps + 1, rates, seeds)) and `findings`.

    Raises:
        ExperimentError: before any work, if the config, the workdir or the backend
            cannot be used.
    """
    config = checked(config, FIELDS)
    if config["highest_rate"] <= config["lowest_rate"]:
        raise ExperimentError(
            "highest_rate must be greater than lowest_rate. Received: "
            f"highest_rate={config['highest_rate']}, "
            f"lowest_rate={config['lowest_rate']}"
        )
    if keras.backend.backend() != "tensorflow":
        raise ExperimentError(
            "This simulation needs Keras' TensorFlow backend: set "
            f"KERAS_BACKEND=tensorflow. Received: {keras.backend.backend()}"
        )
    workdir = writable_folder(workdir)
    about = {
        "title": "SGD against sign descent on noisy quadratics",
        "command": command,
        "config": config,
        "machine": machine.description(),
    }
    begin = time.monotonic()
    problems = quadratics(config["dimension"], config["seed"])
    rng = np.random.default_rng([config["seed"], 1])
    seeds, dimension = config["seeds"], config["dimension"]
    starts = rng.normal(size=(seeds, dimension))
    long_methods = [
        m for m in ("sgd", "svag", "msvag", plots.IDEAL) if m in config["methods"]
    ]
    cases = len(problems) * len(config["noise_levels"])
    with progress(len(config["methods"]) * cases + len(long_methods)) as report:
        outcomes = dict(_outcomes(config, problems, starts, report))
        long = {}
        for method in long_methods:
            report(f"{plots.NAMES[method]}, long run")
            rates = np.array(config["long_rates"]) / problems[0].eigenvalues.max()
            run = simulator(method, rates, seeds, dimension, config["long_steps"])
            noise = config["long_noise"]
            long[method] = run(problems[0].matrix, noise, starts, config["seed"])
    findings = [
        *_against_sign_descent(config, outcomes),
        *_of_the_long_run(config, problems[0], long),
    ]
    _draw(config, problems, outcomes, long, workdir)
    about["seconds"] = time.monotonic() - begin
    rows = _rows(config, problems, outcomes)
    write_results(workdir, rows, _tables(config, problems, outcomes), findings, about)
    return {"outcomes": outcomes, "long": long, "findings": findings}


def _grid(config: Mapping[str, Any]) -> np.ndarray:
    return np.geomspace(config["lowest_rate"], config["highest_rate"], config["rates"])


def _outcomes(
    config: Mapping[str, Any],
    problems: Sequence[Quadratic],
    starts: np.ndarray,
    report: Callable[[str], None],
) -> Iterator[tuple[tuple[str, float, str], Outcome]]:
    for method in config["methods"]:
        run = simulator(
            method,
            _grid(config),
            config["seeds"],
            config["dimension"],
            config["steps"],
        )
        for problem, noise in itertools.product(problems, config["noise_levels"]):
            report(f"{plots.NAMES[method]}, {problem.name}, noise {noise:g}")
            # The starts are rotated with the problem, so the first losses are equal.
            start = starts @ problem.eigenvectors.T
            losses = run(problem.matrix, noise, start, config["seed"])
            finite = np.isfinite(losses).all((0, 2))
            finals = np.full(len(finite), np.inf)
            finals[finite] = losses[-1, finite].mean(1, dtype=np.float64)
            best = int(finals.argmin())
            yield (
                (problem.name, noise, method),
                Outcome(finals, best, losses[:, best]),
            )


def _against_sign_descent(
    config: Mapping[str, Any], outcomes: Outcomes
) -> Iterator[Finding]:
    if not {"sgd", "ssd"} <= set(config["methods"]):
        return
    levels = config["noise_levels"]

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


def _of_the_long_run(
    config: Mapping[str, Any], problem: Quadratic, long: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    steps, noise = config["long_steps"], config["long_noise"]
    if plots.IDEAL in long:
        slope = slope_of(long[plots.IDEAL][:, 0].mean(1))
        yield Finding(
            "The idealised SVAG converges at O(1/t) with a constant learning rate.",
            f"The mean loss falls like t^{slope:.3f} from step {steps // 10} to "
            f"{steps}, with the learning rate {config['long_rates'][0]:g}/L.",
            abs(slope + 1) < 0.15,
            {"slope": slope},
        )
    if "sgd" in long:
        rates = np.array(config["long_rates"])
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


def _rows(
    config: Mapping[str, Any], problems: Sequence[Quadratic], outcomes: Outcomes
) -> list[dict[str, Any]]:
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
        for noise in config["noise_levels"]
        for method in config["methods"]
        for i, (rate, final) in enumerate(
            zip(_grid(config), outcomes[problem.name, noise, method].finals)
        )
    ]


def _tables(
    config: Mapping[str, Any], problems: Sequence[Quadratic], outcomes: Outcomes
) -> str:
    levels, rates = config["noise_levels"], _grid(config)
    parts, on_the_edge = [], False
    for problem in problems:
        lines = []
        for method in config["methods"]:
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
        parts.append(table(headings, lines))
    caption = (
        f"Mean loss over {config['seeds']} seeds after {config['steps']} steps, with "
        f"the best of {len(rates)} learning rates from {rates[0]:g} to {rates[-1]:g} "
        f"(in brackets); d = {config['dimension']}.\n"
    )
    if on_the_edge:
        caption += "\\* The best rate is at the edge of the grid.\n"
    return "\n".join([*parts, caption])


def _draw(
    config: Mapping[str, Any],
    problems: Sequence[Quadratic],
    outcomes: Outcomes,
    long: Mapping[str, np.ndarray],
    workdir: Path,
) -> None:
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
        colours = {m: c for m, c in colours.items() if m in config["methods"]}
        if colours:
            path = workdir / f"{name}.png"
            _draw_problems(config, problems, outcomes, title, colours, path)
    if long:
        _draw_long(config, problems[0], long, workdir / "long_run.png")


def _draw_problems(
    config: Mapping[str, Any],
    problems: Sequence[Quadratic],
    outcomes: Outcomes,
    title: str,
    colours: Mapping[str, str],
    path: Path,
) -> None:
    """Draws a row of panels per problem and a column per noise level."""
    levels = config["noise_levels"]
    figure = plots.new_figure(title, 1.2 + 2.9 * len(levels), 1.3 + 2.1 * len(problems))
    panels = figure.subplots(
        len(problems), len(levels), sharex=True, sharey="col", squeeze=False
    )
    steps = np.arange(config["steps"] + 1)
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
            plots.tidy(axes)
    for noise, axes, (low, high) in zip(levels, panels[0], limits, strict=True):
        axes.set_title("no noise" if noise == 0 else f"noise variance {noise:g}")
        # Losses above the start come down again, or are not drawn at all.
        if high > 0:
            axes.set_ylim(max(0.5 * low, 1e-8 * high), 2 * high)
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for axes in panels[-1]:
        axes.set_xlabel("steps")
        axes.set_xlim(0, config["steps"])
    plots.legend_below(figure, panels[0, 0], len(colours))
    plots.save(figure, path)


def _draw_long(
    config: Mapping[str, Any],
    problem: Quadratic,
    long: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    steps, noise, rates = (
        config[name] for name in ("long_steps", "long_noise", "long_rates")
    )
    title = f"Constant learning rates, {problem.name}, noise variance {noise:g}"
    figure = plots.new_figure(title, 8.5, 4.6)
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
    plots.tidy(axes)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    plots.save(figure, path)
