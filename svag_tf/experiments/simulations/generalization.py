"""A least-squares problem on which sign methods fit the training set but learn nothing.

After A. Wilson, R. Roelofs, M. Stern, N. Srebro, B. Recht, "The Marginal Value of
Adaptive Gradient Methods in Machine Learning", NIPS 2017, section 3.3: minimise
1/(2n) ||X theta - y||^2 from theta = 0, y = 1 with probability p > 1/2, else -1. The
first feature of an example is its label, the next two are 1, and then come features
that no other example has: one if y = 1, five if y = -1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from svag_tf.experiments.config import checked, number, whole
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.plots import legend_below, new_figure, save, tidy
from svag_tf.experiments.simulations import plots
from svag_tf.experiments.simulations.report import Finding, Report, progress
from svag_tf.experiments.tables import markdown
from svag_tf.optional import matplotlib, require

Array = NDArray[Any]

GRADIENT_METHODS = ("sgd", "msgd", "svag", "msvag")
SIGN_METHODS = ("ssd", "mssd", "svas", "msvas", "adam")
METHODS = GRADIENT_METHODS + SIGN_METHODS
OWN = 5  # features that only one example may have, beside the three of all
EXACT = 1e-5  # float32 has 1.2e-7; a hundred steps add up some of it


@dataclass(frozen=True, kw_only=True)
class Config:
    """See configs/generalization.py."""

    seed: int = whole(0)
    data_sets: int = whole(1)
    examples: int = whole(2)
    test_examples: int = whole(1)
    majority: float = number(0.5, 1, "()")
    steps: int = whole(2)
    exact_steps: int = whole(1)
    gradient_rate: float = number(0, ends="(]")
    sign_rate: float = number(0, ends="(]")
    epsilon: float = number(0, ends="(]")


def features(labels: Array) -> Array:
    """Returns the matrix X of a training set, shape (n, 3 + 5n), for n labels 1, -1."""
    n = len(labels)
    own = np.zeros((n, n, OWN))
    own[range(n), range(n), 0] = 1
    own[range(n), range(n), 1:] = (labels < 0)[:, None]
    shared = np.stack([labels, np.ones(n), np.ones(n)], 1)
    return np.concatenate([shared, own.reshape(n, -1)], 1)


def draw_labels(rng: np.random.Generator, n: int, majority: float) -> Array:
    """Draws n labels, again until 1 is the majority, as the problem assumes."""
    while True:
        labels = np.where(rng.random(n) < majority, 1.0, -1.0)
        if labels.sum() > 0:
            return labels


def train(
    optimizer: keras.optimizers.Optimizer,
    x: Array,
    y: Array,
    steps: int,
) -> tuple[Array, Array]:
    """Trains on full batches from 0, in float32.

    Args:
        optimizer: makes the steps.
        x: features of several data sets, shape (sets, n, d).
        y: labels, shape (sets, n).
        steps: number of updates.

    Returns:
        theta, shape (sets, d); and for each step the largest `deviation` of the sets.
    """
    theta = keras.Variable(np.zeros((x.shape[0], x.shape[2])), dtype="float32")
    optimizer.build([theta])
    transposed = (x.swapaxes(1, 2) / x.shape[1]).astype(np.float32)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    sign = np.sign(np.einsum("snd,sn->sd", x, y))
    deviations = []
    for _ in range(steps):
        errors = x32 @ _numpy(theta)[..., None] - y32[..., None]
        gradient = (transposed @ errors)[..., 0]
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [theta])
        deviations.append(deviation(_numpy(theta).astype(np.float64), sign).max())
    return _numpy(theta).astype(np.float64), np.array(deviations)


def _numpy(variable: keras.Variable) -> Array:
    return keras.ops.convert_to_numpy(variable)


def accuracy(scores: Array, labels: Array) -> Array:
    """Returns the share of scores with the label's sign, for each data set."""
    return np.mean(np.sign(scores) == labels, axis=-1)


def new_scores(theta: Array, labels: Array) -> Array:
    """Returns theta's scores of new examples, shape (sets, examples).

    Their own features occur in no training example, so their gradient and weight are 0:
    only the shared features count.
    """
    return theta[:, :1] * labels + theta[:, 1:2] + theta[:, 2:3]


def deviation(theta: Array, sign: Array) -> Array:
    """Returns max |theta - c sign| / c with the best c, for each data set."""
    c = (theta * sign).sum(-1) / np.abs(sign).sum(-1)
    return np.abs(theta - c[:, None] * sign).max(-1) / np.abs(c)


def simulate(
    config: Any, workdir: str | os.PathLike[str], command: str = ""
) -> dict[str, Any]:
    """Trains every method on several data sets and writes figure, tables, findings.

    Returns:
        `results`, one dict per method, with lists of one value per data set;
        `deviations` from sign(X'y), for each method an array with one value per step;
        and `findings`.
    """
    require(matplotlib)
    config = checked(config, Config)
    if config.exact_steps > config.steps:
        raise ExperimentError(
            "exact_steps must be at most steps. Received: "
            f"exact_steps={config.exact_steps}, steps={config.steps}"
        )
    title = "Generalization: least squares after Wilson et al."
    report = Report(title, config, workdir, command)
    rng = np.random.default_rng(config.seed)
    sets, p = config.data_sets, config.majority
    y = np.stack([draw_labels(rng, config.examples, p) for _ in range(sets)])
    x = np.stack([features(labels) for labels in y])
    new = np.where(rng.random((sets, config.test_examples)) < p, 1.0, -1.0)
    results, deviations = [], {}
    with progress(len(METHODS)) as show:
        for method in METHODS:
            show(plots.NAMES[method])
            optimizer = _optimizer(method, config)
            result, deviations[method] = _result(
                method, optimizer, x, y, new, config.steps
            )
            results.append(result)
    share = np.mean(new > 0, axis=-1).tolist()
    exact = {m: d[: config.exact_steps].max() for m, d in deviations.items()}
    findings = _findings(results, share, exact, config.exact_steps)
    _draw(results, float(np.mean(share)), report.folder / "generalization.png")
    path = report.folder / "proportional.png"
    _draw_deviations(deviations, config.exact_steps, path)
    tables = _table(results, share, exact, deviations, config)
    rows = _rows(results, share)
    report.write(rows, tables, findings, majority_in_test_sets=share)
    return {"results": results, "deviations": deviations, "findings": findings}


def _optimizer(method: str, config: Config) -> keras.optimizers.Optimizer:
    in_gradient = method in GRADIENT_METHODS
    rate = config.gradient_rate if in_gradient else config.sign_rate
    # Adam is a sign method as long as epsilon is negligible beside sqrt(v).
    extra = {"epsilon": config.epsilon} if method == "adam" else {}
    create: Callable[..., keras.optimizers.Optimizer] = OPTIMIZERS[method]
    return create(learning_rate=rate, **extra)


def _result(
    method: str,
    optimizer: keras.optimizers.Optimizer,
    x: Array,
    y: Array,
    new: Array,
    steps: int,
) -> tuple[dict[str, Any], Array]:
    theta, deviations = train(optimizer, x, y, steps)
    scores = (x @ theta[..., None])[..., 0]
    result = {
        "method": method,
        "learning_rate": float(np.float32(optimizer.learning_rate)),
        "train_accuracy": accuracy(scores, y).tolist(),
        "test_accuracy": accuracy(new_scores(theta, new), new).tolist(),
        "train_loss": (0.5 * np.mean((scores - y) ** 2, -1)).tolist(),
        # New examples with y = -1 are recognised if this is greater than 1.
        "label_to_constant": (theta[:, 0] / (theta[:, 1] + theta[:, 2])).tolist(),
    }
    return result, deviations


def _findings(
    results: list[dict[str, Any]],
    share: list[float],
    exact: Mapping[str, float],
    exact_steps: int,
) -> list[Finding]:
    def names(methods: tuple[str, ...]) -> str:
        return ", ".join(plots.NAMES[method] for method in methods)

    def of(methods: tuple[str, ...], measure: str) -> Array:
        return np.array([r[measure] for r in results if r["method"] in methods])

    train = {m: of(m, "train_accuracy") for m in (GRADIENT_METHODS, SIGN_METHODS)}
    test = {m: of(m, "test_accuracy") for m in (GRADIENT_METHODS, SIGN_METHODS)}
    off = np.abs(test[SIGN_METHODS] - share).max()
    largest = {method: float(exact[method]) for method in SIGN_METHODS}
    return [
        Finding(
            "Sign methods fit the training set and predict the majority on new data.",
            f"{names(SIGN_METHODS)}: training accuracy at least "
            f"{train[SIGN_METHODS].min():.4f}; test accuracy "
            f"{test[SIGN_METHODS].mean():.4f}, at most {off:.1g} from the majority's "
            f"share in any test set, on average {np.mean(share):.4f}.",
            bool(train[SIGN_METHODS].min() == 1 and off == 0),
            {"test_accuracy": test[SIGN_METHODS].tolist(), "majority": share},
        ),
        Finding(
            "Gradient methods fit the training set and separate new data fully.",
            f"{names(GRADIENT_METHODS)}: training accuracy at least "
            f"{train[GRADIENT_METHODS].min():.4f}, test accuracy at least "
            f"{test[GRADIENT_METHODS].min():.4f}.",
            bool(min(train[GRADIENT_METHODS].min(), test[GRADIENT_METHODS].min()) == 1),
            {"test_accuracy": test[GRADIENT_METHODS].tolist()},
        ),
        Finding(
            "Sign methods stay proportional to sign(X'y).",
            f"Largest relative deviation of an element in steps 1 to {exact_steps}: "
            + ", ".join(f"{plots.NAMES[m]} {value:.1e}" for m, value in largest.items())
            + ".",
            max(largest.values()) < EXACT,
            largest,
        ),
    ]


def _rows(results: list[dict[str, Any]], share: list[float]) -> list[dict[str, Any]]:
    return [
        {
            name: values[i] if isinstance(values, list) else values
            for name, values in result.items()
        }
        | {"data_set": i, "majority_in_test_set": share[i]}
        for result in results
        for i in range(len(share))
    ]


def _table(
    results: list[dict[str, Any]],
    share: list[float],
    exact: Mapping[str, float],
    deviations: Mapping[str, Array],
    config: Config,
) -> str:
    lines = [
        [
            plots.NAMES[result["method"]],
            f"{result['learning_rate']:g}",
            f"{np.mean(result['train_accuracy']):.4f}",
            f"{np.mean(result['test_accuracy']):.4f}",
            f"{np.mean(result['train_loss']):.1e}",
            f"{np.mean(result['label_to_constant']):.3f}",
            f"{exact[result['method']]:.1e}",
            f"{deviations[result['method']].max():.1e}",
        ]
        for result in results
    ]
    headings = [
        "method",
        "learning rate",
        "training accuracy",
        "test accuracy",
        "training loss",
        "θ₁/(θ₂ + θ₃)",
        f"deviation to step {config.exact_steps}",
        "deviation at all",
    ]
    return (
        f"{markdown(headings, lines)}\n"
        f"Means over {len(share)} data sets after {config.steps} steps; "
        f"{config.examples} training and {config.test_examples} test examples "
        f"each, p = {config.majority:g}, Adam with epsilon {config.epsilon:g}. "
        f"In the test sets {np.mean(share):.4f} of the labels are 1. Deviation: of "
        "theta from a multiple of sign(X'y), relative, the largest element of all data "
        "sets and steps.\n"
    )


def _draw(results: list[dict[str, Any]], share: float, path: Path) -> None:
    figure = new_figure("Least squares after Wilson et al.", 9, 3.9)
    accuracies, ratios = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    colours = plots.GRADIENT | plots.SIGN
    for i, result in enumerate(results):
        colour = colours[result["method"]]
        for axes, measure in (
            (accuracies, "test_accuracy"),
            (ratios, "label_to_constant"),
        ):
            axes.plot(np.mean(result[measure]), i, "o", color=colour, markersize=8)
        accuracies.plot(
            np.mean(result["train_accuracy"]), i, "o",
            color=colour, markersize=13, fillstyle="none",
        )  # fmt: skip
    marks = {"color": plots.GUIDE, "linestyle": ":", "linewidth": 1.2, "zorder": 0}
    accuracies.axvline(share, **marks)
    accuracies.text(share, -0.75, "majority's share ", ha="right", color=plots.GUIDE)
    ratios.axvline(1, **marks)
    ratios.text(1, -0.75, " new data separated", color=plots.GUIDE)
    accuracies.plot([], [], "o", color=plots.GUIDE, markersize=8, label="test set")
    accuracies.plot(
        [], [], "o",
        color=plots.GUIDE, markersize=13, fillstyle="none", label="training set",
    )  # fmt: skip
    accuracies.set(
        yticks=range(len(results)),
        yticklabels=[plots.NAMES[result["method"]] for result in results],
        ylim=(len(results) - 0.4, -1.1),
        xlim=(0.45, 1.03),
        xlabel="accuracy",
    )
    accuracies.xaxis.set_major_formatter(
        matplotlib.ticker.PercentFormatter(1.0, symbol=" %")
    )
    ratios.set(xlim=(0, None), xlabel="weight of the label over the constant features'")
    ratios.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    for axes in (accuracies, ratios):
        tidy(axes)
    legend_below(figure, accuracies, 2)
    save(figure, path)


def _draw_deviations(
    deviations: Mapping[str, Array], exact_steps: int, path: Path
) -> None:
    figure = new_figure("How far θ is from a multiple of sign(X'y)", 9, 3.9)
    axes = figure.subplots()
    zero, resolution = 1e-8, float(np.finfo(np.float32).eps)
    steps = np.arange(1, len(deviations["ssd"]) + 1)
    for method in METHODS:
        colour, label = plots.OTHERS, "gradient methods"
        if method in SIGN_METHODS:
            colour, label = plots.SIGN[method], plots.NAMES[method]
        elif method != GRADIENT_METHODS[0]:
            label = "_"  # one entry in the legend for all of them
        values = np.maximum(deviations[method], zero)
        style, width = ("--", 2.4) if method == "mssd" else ("-", 1.6)
        axes.plot(steps, values, style, color=colour, linewidth=width, label=label)
    axes.axvline(exact_steps, color=plots.GUIDE, linestyle=":", linewidth=1.2)
    axes.text(exact_steps, 1, " checked up to here", color=plots.GUIDE)
    axes.axhline(resolution, color=plots.GUIDE, linestyle=":", linewidth=1.2)
    axes.text(
        steps[-1], resolution / 1.4, "float32's resolution",
        ha="right", va="top", color=plots.GUIDE,
    )  # fmt: skip
    axes.set(xlabel="steps", ylabel="largest relative deviation", yscale="log")
    axes.set(xlim=(1, steps[-1]), ylim=(zero / 1.5, 100))
    ticks = [zero, 1e-6, 1e-4, 1e-2, 1, 100]
    axes.set_yticks(ticks, ["0", "1e-6", "1e-4", "0.01", "1", "100"])
    tidy(axes)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside right center", frameon=False
    )
    save(figure, path)
