"""Prints the results of a run."""

from __future__ import annotations

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from svag_tf.experiments.training.config import TrainingConfig
from svag_tf.experiments.training.run_folder import Row, RunFolder, has_accuracy


def title_of(config: TrainingConfig) -> str:
    """Returns a title for tables and figures."""
    return f"{config.problem}, {config.optimizer.name}"


def print_payload(model: keras.Model) -> None:
    """Prints what the replicas exchange at a step, if there are several."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    payload = getattr(optimizer, "payload", None)
    if payload is None:
        return
    n = model.distribute_strategy.num_replicas_in_sync
    print(
        f"{n} replicas; each puts {payload.bytes:,} bytes into the exchange of a "
        f"step, {8 * payload.bytes / payload.parameters:.1f} bits a parameter, and in "
        f"a ring sends {2 * (n - 1) / n * payload.bytes:,.0f}"
    )


def print_results(
    config: TrainingConfig, folder: RunFolder, rows: list[Row], model: keras.Model
) -> None:
    """Prints the last and the best epoch, and what files there are."""
    parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    measures = {"loss": ".4f"}
    if has_accuracy(rows[0]):
        measures["accuracy"] = ".2%"
        best = max(rows, key=lambda row: (row["test_accuracy"], -row["test_loss"]))
    else:
        best = min(rows, key=lambda row: row["test_loss"])
    columns = {
        f"{part}_{measure}": form
        for part in ("train", "test")
        for measure, form in measures.items()
    }
    table = Table(title=title_of(config))
    table.add_column("")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, row in (
        (f"final (epoch {rows[-1]['epoch']})", rows[-1]),
        (f"best (epoch {best['epoch']})", best),
    ):
        table.add_row(name, *(format(row[c], form) for c, form in columns.items()))
    seconds = sum(row["seconds"] for row in rows)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(
        f"{parameters:,} parameters, {rows[-1]['step']:,} steps in {seconds:.1f} s, "
        f"learning rate {rows[0]['learning_rate']:g} at the start and "
        f"{rows[-1]['learning_rate']:g} in the last epoch",
    )
    console.print(f"Results in {folder.path}:")
    for path, what in (
        (folder.curves, " and ".join(measures)),
        (folder.metrics, "the same as numbers"),
        (folder.model, "the trained model"),
        (folder.log, "one line an epoch"),
        (folder.config, "the config"),
        (folder.tensorboard, "event files: tensorboard --logdir"),
    ):
        if path.exists():
            console.print(f"  {path.name:12} {what}")
