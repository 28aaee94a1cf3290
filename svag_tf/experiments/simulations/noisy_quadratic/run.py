"""Runs the simulation: every method on every problem, and a long run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from svag_tf.experiments.config import checked
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.noisy_quadratic.figures import draw
from svag_tf.experiments.simulations.noisy_quadratic.findings import (
    against_sign_descent,
    of_the_long_run,
    rows_of,
    tables_of,
)
from svag_tf.experiments.simulations.noisy_quadratic.simulator import (
    Config,
    Outcome,
    Quadratic,
    grid,
    quadratics,
    simulator,
)
from svag_tf.experiments.simulations.report import Report, progress
from svag_tf.optional import matplotlib, require


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Runs the whole simulation and writes its figures, tables and findings.

    Returns:
        `outcomes`, `long` (losses of each method of the long run, shape
        (steps + 1, rates, seeds)) and `findings`.
    """
    require(matplotlib)
    config = checked(config, Config)
    if config.highest_rate <= config.lowest_rate:
        raise ExperimentError(
            "highest_rate must be greater than lowest_rate. Received: "
            f"highest_rate={config.highest_rate}, "
            f"lowest_rate={config.lowest_rate}"
        )
    if keras.backend.backend() != "tensorflow":
        raise ExperimentError(
            "This simulation needs Keras' TensorFlow backend: set "
            f"KERAS_BACKEND=tensorflow. Received: {keras.backend.backend()}"
        )
    title = "SGD against sign descent on noisy quadratics"
    report = Report(title, config, workdir, command)
    problems = quadratics(config.dimension, config.seed)
    rng = np.random.default_rng([config.seed, 1])
    seeds, dimension = config.seeds, config.dimension
    starts = rng.normal(size=(seeds, dimension))
    long_methods = [
        m for m in ("sgd", "svag", "msvag", plots.IDEAL) if m in config.methods
    ]
    cases = len(problems) * len(config.noise_levels)
    with progress(len(config.methods) * cases + len(long_methods)) as show:
        outcomes = dict(_outcomes(config, problems, starts, show))
        long = {}
        for method in long_methods:
            show(f"{plots.NAMES[method]}, long run")
            rates = np.array(config.long_rates) / problems[0].eigenvalues.max()
            run = simulator(method, rates, seeds, dimension, config.long_steps)
            noise = config.long_noise
            long[method] = run(problems[0].matrix, noise, starts, config.seed)
    findings = [
        *against_sign_descent(config, outcomes),
        *of_the_long_run(config, problems[0], long),
    ]
    draw(config, problems, outcomes, long, report.folder)
    rows = rows_of(config, problems, outcomes)
    report.write(rows, tables_of(config, problems, outcomes), findings)
    return {"outcomes": outcomes, "long": long, "findings": findings}


def _outcomes(
    config: Config,
    problems: Sequence[Quadratic],
    starts: np.ndarray,
    show: Callable[[str], None],
) -> Iterator[tuple[tuple[str, float, str], Outcome]]:
    for method in config.methods:
        run = simulator(
            method,
            grid(config),
            config.seeds,
            config.dimension,
            config.steps,
        )
        for problem, noise in itertools.product(problems, config.noise_levels):
            show(f"{plots.NAMES[method]}, {problem.name}, noise {noise:g}")
            # The starts are rotated with the problem, so the first losses are equal.
            start = starts @ problem.eigenvectors.T
            losses = run(problem.matrix, noise, start, config.seed)
            finite = np.isfinite(losses).all((0, 2))
            finals = np.full(len(finite), np.inf)
            finals[finite] = losses[-1, finite].mean(1, dtype=np.float64)
            best = int(finals.argmin())
            yield (
                (problem.name, noise, method),
                Outcome(finals, best, losses[:, best]),
            )
