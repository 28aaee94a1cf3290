"""Writes and reads the files of `svag_tf.callbacks.GradientNoise`, without Keras."""

import csv
import io
import math
import warnings
from typing import Any

import numpy as np

from svag_tf.files import make_writable, whole_file

QUANTITIES = (
    "eta2",
    "gamma",
    "m",
    "sqrt_s",
    "update_to_weight",
    "noise_scale",
    "noise_scale_error",
    "critical_batch_size",
)
COLUMNS = ("step", "epoch", "seconds", "learning_rate", "loss", "layer", *QUANTITIES)
OVERALL = "all"
BINS = 20
# Ranges of bins of equal width: gamma, the decimal logarithm of eta^2. The first and
# the last bin also count what lies outside.
RANGES = {"gamma": (0.0, 1.0), "log10_eta2": (-5.0, 5.0)}
HISTOGRAM_COLUMNS = ("step", "layer", "quantity", *(f"bin_{i}" for i in range(BINS)))


def _tensorboard():
    """Returns tf.summary and TensorBoard's histogram metadata; None, None without them.

    Imported here: on other backends TensorFlow takes seconds to import.
    """
    try:
        from tensorboard.plugins.histogram import metadata
        from tensorflow import summary
    except ImportError:
        return None, None
    return summary, metadata


class Files:
    """Writes `noise.csv`, `noise_histograms.csv` and TensorBoard's files.

    Lines are appended, one measurement at a time. A killed process leaves at most one
    incomplete line, which is dropped when training resumes.
    """

    def __init__(self, folder, step):
        self._tables = {
            "noise.csv": COLUMNS,
            "noise_histograms.csv": HISTOGRAM_COLUMNS,
        }
        self._folder = folder
        self._writer: Any = None
        kept = {}
        for name, columns in self._tables.items():
            kept[name] = read_table(folder / name, columns) if step else []
            kept[name] = [row for row in kept[name] if int(row["step"]) <= step]
            if kept[name] or name == "noise.csv":
                lines = [columns, *(list(row.values()) for row in kept[name])]
                with whole_file(folder / name) as temporary:
                    temporary.write_text(_lines(lines), encoding="utf-8")
            else:
                (folder / name).unlink(missing_ok=True)
        self._summary, self._metadata = _tensorboard()
        if self._summary is None:
            warnings.warn(
                "No TensorBoard files: they need the packages tensorflow and "
                "tensorboard.",
                stacklevel=2,
            )
            return
        events = folder / "tensorboard" / "noise"
        make_writable("log_dir", events)
        for old in events.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = self._summary.create_file_writer(str(events))
        for row in kept["noise.csv"]:
            values = {name: float(row[name]) for name in QUANTITIES if row[name]}
            self._show(int(row["step"]), row["layer"], values)
        for row in kept["noise_histograms.csv"]:
            counts = [int(row[f"bin_{i}"]) for i in range(BINS)]
            self._show_histogram(
                int(row["step"]), row["layer"], row["quantity"], counts
            )

    def write(self, about, latest):
        """Adds the lines of a measurement, one per layer."""
        lines = [
            [*about, layer, *(values.get(name, "") for name in QUANTITIES)]
            for layer, values in latest.items()
        ]
        self._append("noise.csv", lines)
        if self._writer is not None:
            for layer, values in latest.items():
                self._show(about[0], layer, values)
            self._writer.flush()

    def write_histograms(self, step, counts):
        """Adds the histograms of a measurement."""
        lines = [
            [step, layer, name, *row.tolist()] for (layer, name), row in counts.items()
        ]
        self._append("noise_histograms.csv", lines)
        if self._writer is not None:
            for (layer, name), row in counts.items():
                self._show_histogram(step, layer, name, row.tolist())
            self._writer.flush()

    def close(self):
        if self._writer is not None:
            self._writer.close()

    def _append(self, name, lines):
        path = self._folder / name
        if not path.exists():
            lines = [self._tables[name], *lines]
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines(lines))
        except OSError as error:
            raise OSError(f"Cannot write {path}: {error}") from error

    def _show(self, step, layer, values):
        with self._writer.as_default(step=step):
            for name, value in values.items():
                if math.isfinite(value):
                    self._summary.scalar(f"noise_{name}/{layer}", value)

    def _show_histogram(self, step, layer, name, counts):
        low, high = RANGES[name]
        edges = np.linspace(low, high, BINS + 1)
        with self._writer.as_default(step=step):
            self._summary.write(
                f"noise_histogram_{name}/{layer}",
                np.stack([edges[:-1], edges[1:], np.asarray(counts, float)], axis=1),
                metadata=self._metadata.create_summary_metadata(None, None),
            )


def _lines(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(f"{x:.7g}" if isinstance(x, float) else x for x in row)
    return text.getvalue()


def read_table(path, columns):
    """Reads the whole lines of one of the callback's CSV files, as dicts of strings.

    Args:
        path: The file; it need not exist.
        columns: Columns that its first line must have.

    Raises:
        ValueError: If it does not have them.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    text = text[: text.rfind("\n") + 1]  # A line that is still being written.
    rows = list(csv.reader(text.splitlines()))
    if rows and tuple(rows[0]) != tuple(columns):
        raise ValueError(
            f"{path} must start with the columns {', '.join(columns)}. "
            f"Found: {', '.join(rows[0])}"
        )
    return [dict(zip(columns, row)) for row in rows[1:] if len(row) == len(columns)]
