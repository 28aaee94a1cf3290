"""Comparisons: their runs, tables and figure, and what stops them."""

import csv
import json
import os
import statistics

import pytest

from svag_tf.experiments.comparison import (
    COLUMNS,
    compare,
    mean_and_deviation,
    summary,
)
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training import train


def values(folder):
    return json.loads((folder / "state.json").read_text())["values_sha256"]


def test_results(make_config, tmp_path, capsys):
    folder = tmp_path / "all"
    results = compare(make_config(), ["ssd", "msvag"], [3, 1], folder)
    output = capsys.readouterr().out
    for part in ("M-SVAG, seed 1", "4/4", "ETA", "test accuracy", "curves.png"):
        assert part in output
    assert "Epoch 1/3" not in output  # the runs are quiet
    runs = [("ssd", 3), ("ssd", 1), ("msvag", 3), ("msvag", 1)]
    assert [(r["optimizer"], r["seed"]) for r in results] == runs
    names = [f"{name}-seed{seed}" for name, seed in runs]
    files = ["curves.png", "results.csv", "results.json", "results.md"]
    assert sorted(os.listdir(folder)) == sorted(names + files)

    # Every run is the one that `train` makes alone.
    rows = train(make_config(seed=1, **{"optimizer.name": "ssd"}), tmp_path / "alone")
    assert values(tmp_path / "alone") == values(folder / "ssd-seed1")
    assert results[1]["test_loss"] == rows[-1]["test_loss"]
    assert results[1]["learning_rate"] == pytest.approx(0.001)
    assert results[3]["learning_rate"] == pytest.approx(0.1)
    assert all(r["epochs"] == 3 and r["ms_per_step"] > 0 for r in results)

    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert float(table[1]["test_loss"]) == pytest.approx(rows[-1]["test_loss"])
    everything = json.loads((folder / "results.json").read_text())
    assert everything["results"] == results
    assert everything["runs"][1]["epochs"][-1]["test_loss"] == rows[-1]["test_loss"]
    assert everything["environment"]["keras"]

    mean = statistics.fmean(r["test_accuracy"] for r in results[:2])
    line = (folder / "results.md").read_text().splitlines()[2]
    assert line.startswith(f"| SSD | 0.001 | {100 * mean:.2f} ± ")


def test_finished_runs_are_not_made_again(make_config, tmp_path):
    first = compare(make_config(epochs=1), ["ssd"], [0, 1], tmp_path)
    times = [
        (tmp_path / f"ssd-seed{i}" / "state.json").stat().st_mtime_ns for i in (0, 1)
    ]
    again = compare(make_config(epochs=1), ["ssd", "mssd"], [0, 1], tmp_path)
    assert again[:2] == first and len(again) == 4
    assert times == [
        (tmp_path / f"ssd-seed{i}" / "state.json").stat().st_mtime_ns for i in (0, 1)
    ]


def test_a_run_that_diverges_does_not_stop_the_others(make_config, tmp_path, capsys):
    config = make_config(**{"optimizer.learning_rate": 1e30})
    results = compare(config, ["sgd", "ssd"], [0], tmp_path)
    assert results[0]["diverged"] and results[0]["epochs"] == 1
    assert "diverged in epoch 1" in capsys.readouterr().out
    assert (
        "| SGD (1 of 1 diverged) | 1e+30 | - |" in (tmp_path / "results.md").read_text()
    )


@pytest.mark.parametrize(
    "optimizers, seeds, fields, message",
    [
        ([], [0], {}, "optimizers must name at least one"),
        (["ssd", "ssd"], [0], {}, "none twice"),
        (["ssd"], [], {}, "seeds must name at least one"),
        (["ssd"], [1, 1], {}, "none twice"),
        (["ssd", "sdg"], [0], {}, "Received: sdg"),
        (["ssd"], [-1], {}, "seed must be a whole number"),
        (["ssd"], [0], {"epochs": 0}, "epochs must be"),
        (["msvag", "adam"], [0], {"optimizer.beta": 0.5}, "'adam' has no"),
    ],
)
def test_what_is_refused_before_any_training(
    make_config, tmp_path, optimizers, seeds, fields, message
):
    with pytest.raises(ExperimentError, match=message):
        compare(make_config(**fields), optimizers, seeds, tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_a_folder_of_another_config_is_refused_first(make_config, tmp_path):
    compare(make_config(epochs=1), ["mssd"], [0], tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ExperimentError, match="epochs: 1 -> 2"):
        compare(make_config(epochs=2), ["ssd", "mssd"], [0], tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, 3.0], ".2f") == "2.00 ± 1.00"
    assert mean_and_deviation([1.5], ".1f") == "1.5"
    assert mean_and_deviation([], ".1f") == "-"


def test_summary_leaves_out_what_diverged():
    run = dict.fromkeys(COLUMNS, 0.5) | {"optimizer": "ssd", "diverged": False}
    rows = summary([run, run | {"diverged": True, "test_loss": float("nan")}])
    (row,) = rows
    assert row["runs"] == 2 and row["diverged"] == 1
    assert row["test_loss"] == [0.5]


def test_a_problem_without_accuracy(make_config, tmp_path, capsys):
    config = make_config(problem="quadratic_deep", epochs=1, batch_size=128)
    compare(config, ["msvag", "ssd"], [0], tmp_path)
    line = (tmp_path / "results.md").read_text().splitlines()[2]
    assert line.startswith("| M-SVAG | 0.1 | - | - | ")
    assert "accuracy nan" not in capsys.readouterr().out.lower()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
