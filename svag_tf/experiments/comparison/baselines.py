"""DeepOBS' published results on its problems, for comparison with our runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svag_tf.experiments.files import read_json

PATH = Path(__file__).with_name("deepobs_baselines.json")


def published(problem: str) -> dict[str, dict[str, Any]]:
    """Returns DeepOBS' ten-seed baselines for a problem (Schneider et al. 2019).

    Returns:
        For "sgd", "momentum" (0.99, not our default of 0.9) and "adam" a dict:
        `learning_rate`, `batch_size`, `epochs`, `seeds`, and lists over the epochs 0
        (before training) to `epochs`: `test_losses_mean`, `test_losses_std`,
        `train_losses_*` and, if the problem has an accuracy, `test_accuracies_*` and
        `train_accuracies_*`. Empty if nothing has been published on the problem.
    """
    return read_json(PATH).get(problem, {})
