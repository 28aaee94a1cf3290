"""Names and colours in the simulations' plots, and a line with its band."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from svag_tf.experiments.optimizers import DIRECTIONS, TITLES
from svag_tf.optional import matplotlib

IDEAL = "ideal"
NAMES = {**TITLES, IDEAL: "SVAG, ideal"}
GRADIENT = {**DIRECTIONS["along the gradient"], IDEAL: "#CC79A7"}
SIGN = DIRECTIONS["along its sign"]
OTHERS = "#c8c8c8"
GUIDE = "#555555"


def line_with_band(
    axes: matplotlib.axes.Axes,
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    """Draws the median over the seeds, and a band from the 5th to the 95th percentile.

    The values have the shape (points, seeds).
    """
    low, middle, high = np.percentile(values, [5, 50, 95], axis=1)
    axes.plot(x, middle, style, color=colour, linewidth=1.8, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
