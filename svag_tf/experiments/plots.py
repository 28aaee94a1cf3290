"""Pictures of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FormatStrFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from svag_tf.experiments.files import replacing

# Okabe and Ito's palette, told apart by the colour-blind.
TRAIN_COLOUR, TEST_COLOUR = "#0072B2", "#D55E00"


def save_curves(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draws loss and accuracy over the epochs, on the training and the test set.

    Args:
        rows: one dict an epoch with `epoch`, `train_loss`, `train_accuracy`,
            `test_loss` and `test_accuracy`.
        title: of the whole figure.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for part, colour, style in (
            ("train", TRAIN_COLOUR, "--"),
            ("test", TEST_COLOUR, "-"),
        ):
            axes.plot(
                epochs,
                [row[f"{part}_{name}"] for row in rows],
                style,
                color=colour,
                linewidth=1.8,
                marker="o" if len(rows) <= 15 else None,
                markersize=3.5,
                label=part,
            )
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.margins(x=0.02)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    if all(row[f"{part}_loss"] > 0 for row in rows for part in ("train", "test")):
        loss.set(yscale="log", ylabel="loss (log scale)")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        loss.yaxis.set_minor_formatter(NullFormatter())
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    with replacing(path) as temporary:
        figure.savefig(temporary)
