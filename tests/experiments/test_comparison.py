"""Comparisons: their runs, tuning, ranking, tables, and what stops them."""

import csv
import json
import os
import runpy
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import results_page

from svag_tf.experiments.comparison import compare as comparison
from svag_tf.experiments.comparison.budgets import (
    BUDGETS,
    EXTENSIONS,
    NEIGHBOURS,
    TUNING_SEED,
)
from svag_tf.experiments.comparison.compare import compare
from svag_tf.experiments.comparison.faithfulness import published_variants
from svag_tf.experiments.comparison.page import mean_and_deviation
from svag_tf.experiments.comparison.plan import planned
from svag_tf.experiments.comparison.report import COLUMNS, TUNING_COLUMNS
from svag_tf.experiments.comparison.results import steps_to, summary
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.problems import PROBLEMS
from svag_tf.experiments.training.run_folder import RunFolder
from svag_tf.experiments.training.train import train


def values(folder):
    return RunFolder(folder).ended().values_sha256


def visible(folder):
    return sorted(name for name in os.listdir(folder) if name[0] != ".")


@pytest.mark.slow
def test_results(make_config, tmp_path, capsys):
    folder = tmp_path / "all"
    results = compare(make_config(), ["ssd", "msvag"], folder, seeds=[3, 1])
    output = capsys.readouterr().out
    for part in ("M-SVAG, seed 1", "4/4", "ETA", "test accuracy", "curves.png"):
        assert part in output
    assert "Epoch 1/3" not in output  # the runs are quiet
    runs = {("ssd", 3), ("ssd", 1), ("msvag", 3), ("msvag", 1)}
    assert {(r["optimizer"], r["seed"]) for r in results} == runs
    names = [f"{name}-seed{seed}" for name, seed in runs]
    files = ["config.json", "curves.png", "results.csv", "results.json", "results.md",
             "study.db"]  # fmt: skip
    assert visible(folder) == sorted(names + files)

    # Every run is the one that `train` makes alone.
    rows = train(make_config(seed=1, **{"optimizer.name": "ssd"}), tmp_path / "alone")
    assert values(tmp_path / "alone") == values(folder / "ssd-seed1")
    (result,) = (r for r in results if (r["optimizer"], r["seed"]) == ("ssd", 1))
    assert result["test_loss"] == rows[-1]["test_loss"]
    rates = {r["optimizer"]: r["learning_rate"] for r in results}
    assert rates == pytest.approx({"ssd": 0.001, "msvag": 0.1})
    assert all(r["epochs"] == 3 and r["ms_per_step"] > 0 for r in results)
    seconds = sum(row["train_seconds"] for row in rows)
    assert 0 < result["train_seconds"] < 20 * seconds

    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    (line,) = (r for r in table if (r["optimizer"], r["seed"]) == ("ssd", "1"))
    assert float(line["test_loss"]) == pytest.approx(rows[-1]["test_loss"])
    everything = json.loads((folder / "results.json").read_text())
    assert everything["results"] == results
    assert (
        everything["runs"]["ssd"][1]["rows"][-1]["test_loss"] == (rows[-1]["test_loss"])
    )
    assert everything["machine"]["packages"]["keras"]
    assert everything["budget"]["name"] == "none"

    accuracy = {
        name: statistics.fmean(
            r["test_accuracy"] for r in results if r["optimizer"] == name
        )
        for name in ("ssd", "msvag")
    }
    best = max(accuracy, key=accuracy.get)
    page = (folder / "results.md").read_text()
    title = {"ssd": "SSD | 0.001", "msvag": "M-SVAG | 0.1"}[best]
    assert f"| 1 | {title} | {100 * accuracy[best]:.2f} ± " in page
    assert "learning rates are not tuned" in page and "## Tuning" not in page


@pytest.mark.exhaustive
def test_finished_runs_are_not_made_again(make_config, tmp_path):
    config = make_config(epochs=1)
    first = compare(config, ["ssd"], tmp_path, seeds=[0, 1])
    states = [tmp_path / f"ssd-seed{i}" / "checkpoints" / "epoch_1" for i in (0, 1)]
    times = [state.stat().st_mtime_ns for state in states]
    again = compare(config, ["ssd", "mssd"], tmp_path, seeds=[0, 1])
    mine = [r | {"rank": 1} for r in again if r["optimizer"] == "ssd"]
    assert [r | {"steps_to_target": 0} for r in mine] == [
        r | {"steps_to_target": 0} for r in first
    ]
    assert len(again) == 4
    assert times == [state.stat().st_mtime_ns for state in states]


@pytest.mark.slow
def test_a_run_that_diverges_is_last_and_does_not_stop_the_others(
    make_config, tmp_path, capsys
):
    names = ["sgd:learning_rate=1e30", "ssd"]
    results = compare(make_config(), names, tmp_path, seeds=[0])
    assert [r["optimizer"] for r in results] == ["ssd", "sgd:learning_rate=1e+30"]
    assert results[1]["ended"] == "diverged" and results[1]["epochs"] == 1
    assert "diverged in epoch 1" in capsys.readouterr().out
    page = (tmp_path / "results.md").read_text()
    assert "| 2 | SGD (1 of 1 diverged) | 1e+30 | - |" in page


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
        (["msvag:momentum=0.5"], [0], {}, "'msvag' has no optimizer.momentum"),
        (["msvag:beta=1.5"], [0], {}, r"optimizer.beta must be a number in \[0, 1\)"),
    ],
)
def test_what_is_refused_before_any_training(
    make_config, tmp_path, optimizers, seeds, fields, message
):
    with pytest.raises(ExperimentError, match=message):
        compare(make_config(**fields), optimizers, tmp_path / "a", seeds=seeds)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "fields, arguments, message",
    [
        (
            {},
            {"budget": "huge"},
            "budget must be one of quick, reduced, standard, full",
        ),
        ({"optimizer.learning_rate": 0.1}, {"budget": "quick"}, "is what is tuned"),
        ({}, {"target": 1.5}, r"target must be an accuracy in \(0, 1\]"),
        (
            {"problem": "quadratic_deep", "batch_size": 128},
            {"target": float("nan")},
            "target must be a finite loss",
        ),
    ],
)
def test_more_that_is_refused(make_config, tmp_path, fields, arguments, message):
    with pytest.raises(ExperimentError, match=message):
        compare(make_config(**fields), ["ssd"], tmp_path / "a", **arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_folder_of_another_config_is_refused_first(make_config, tmp_path):
    compare(make_config(epochs=1), ["mssd"], tmp_path, seeds=[0])
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ExperimentError, match="epochs: 1 -> 2"):
        compare(make_config(epochs=2), ["ssd", "mssd"], tmp_path, seeds=[0])
    with pytest.raises(ExperimentError, match="epochs: 1 -> 2"):
        compare(make_config(epochs=2), ["ssd"], tmp_path, seeds=[0])
    assert sorted(os.listdir(tmp_path)) == before


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, 3.0], ".2f") == "2.00 ± 1.00"
    assert mean_and_deviation([1.5], ".1f") == "1.5"
    assert mean_and_deviation([], ".1f") == "-"


def test_summary_leaves_out_what_diverged():
    run = dict.fromkeys(COLUMNS, 0.5) | {"optimizer": "ssd", "ended": "completed"}
    rows = summary([run, run | {"ended": "diverged", "test_loss": float("nan")}])
    (row,) = rows
    assert row["runs"] == 2 and row["diverged"] == 1 and row["failed"] == 0
    assert row["test_loss"] == [0.5]


@pytest.mark.slow
def test_a_problem_without_accuracy_is_ranked_by_its_loss(
    make_config, tmp_path, capsys
):
    config = make_config(problem="quadratic_deep", epochs=1, batch_size=128)
    results = compare(config, ["ssd", "msgd:learning_rate=0.01"], tmp_path, seeds=[0])
    losses = [r["test_loss"] for r in results]
    assert losses == sorted(losses) and [r["rank"] for r in results] == [1, 2]
    assert results[0]["optimizer"] == "msgd:learning_rate=0.01"
    page = (tmp_path / "results.md").read_text()
    assert f"| 1 | M-SGD | 0.01 | {losses[0]:.4f} | " in page
    assert "Published by DeepOBS" in page and "105.33" in page  # of SGD, epoch 1
    assert "accuracy" not in page + capsys.readouterr().out.split("Results in")[0]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_steps_to_a_target():
    rows = [
        {"step": 10 * i, "test_accuracy": a, "test_loss": 1 - a}
        for i, a in enumerate((0.125, 0.75, 0.625, 0.875))
    ]
    assert steps_to(rows, 0.65, accuracy=True) == 10
    assert steps_to(rows, 0.875, accuracy=True) == 30
    assert steps_to(rows, 0.95, accuracy=True) is None
    assert steps_to(rows, 0.25, accuracy=False) == 10
    assert steps_to(rows, 0.0625, accuracy=False) is None


# Tuning: the rates 0.01, 0.1, 1, 10, 100 of a training that is made up.
RATES = (0.01, 0.1, 1.0, 10.0, 100.0)


@pytest.fixture
def made_up(monkeypatch):
    """Replaces trainings by fake ones; yields the list of those that were made."""
    budget = replace(BUDGETS["quick"], stride=5, seeds=2)
    monkeypatch.setitem(BUDGETS, "quick", budget)
    made = []

    def play(config, folder, report, data):
        name, rate = config.optimizer.name, config.optimizer.learning_rate
        folder.mkdir(parents=True, exist_ok=True)
        made.append((name, rate, config.seed))
        final = {1e-3: 0.7, 0.01: 0.8, 0.1: 0.9, 1.0: 0.9}.get(rate, 0.2)
        final -= 0.05 * (name == "msgd")
        for epoch in range(config.epochs + 1):
            loss = 1.0 - final * epoch / config.epochs - 0.01 * (rate == 1.0)
            if epoch == 1 and (rate == 10.0 or (name, config.seed) == ("ssd", 1)):
                loss = float("nan")
            if epoch == 1 and rate == 100.0:
                raise RuntimeError("out of memory\nand more")
            row = {
                "epoch": epoch,
                "step": 10 * epoch,
                "learning_rate": rate,
                "train_seconds": 0.5,
                "seconds": 1.0,
            }
            accuracy = 0.1 + (final - 0.1) * epoch / config.epochs
            if config.problem == "quadratic_deep":
                accuracy = float("nan")
            for part in ("train", "test"):
                row |= {f"{part}_loss": loss, f"{part}_accuracy": accuracy}
            report(row)
            if loss != loss:
                raise DivergedError("no")

    monkeypatch.setattr(comparison, "train", play)
    return made


def test_tuning(make_config, tmp_path, made_up, capsys):
    config = make_config(epochs=4)
    names = ["ssd", "msgd", "msvag", "sgd:learning_rate=0.01"]
    results = compare(config, names, tmp_path, budget="quick", target=0.3, command="me")
    # Of equal accuracies the lower loss wins, which 1.0 has. SSD has
    # the same accuracy as M-SVAG, but a run of it diverges.
    assert [(r["rank"], r["optimizer"]) for r in results[::2]] == [
        (1, "msvag"), (2, "msgd"), (3, "sgd:learning_rate=0.01"), (4, "ssd"),
    ]  # fmt: skip
    by_name = {r["optimizer"]: r["learning_rate"] for r in results}
    assert by_name["msvag"] == by_name["msgd"] == by_name["ssd"] == 1.0
    assert [r["ended"] for r in results[-2:]] == ["completed", "diverged"]
    assert results[0]["steps_to_target"] == 10  # 0.1 + 0.8 / 4 = 0.3
    assert results[0]["train_seconds"] == 2.5  # five rows of 0.5

    tried = list(csv.DictReader((tmp_path / "tuning.csv").open()))
    assert tuple(tried[0]) == TUNING_COLUMNS and len(tried) == 3 * 8
    mine = {float(r["learning_rate"]): r for r in tried if r["optimizer"] == "msvag"}
    ended = {rate: row["ended"] for rate, row in mine.items()}
    assert ended.pop(10.0) == "diverged" and ended.pop(100.0) == "failed"
    assert mine[100.0]["error"] == "RuntimeError: out of memory"
    assert {rate for rate, row in mine.items() if row["best"] == "True"} == {1.0}
    # Hopeless from the first epoch, they end with the first quarter.
    assert {rate for rate, how in ended.items() if how == "stopped"} >= {1e-5, 1e-4}
    assert all(r["epochs"] == "1" for r in tried if r["ended"] == "stopped")
    assert not (tmp_path / "tuning").exists()

    page = (tmp_path / "results.md").read_text()
    assert "**Budget: quick.** 8 of the 36 learning rates" in page
    assert "This is not the full protocol." in page and "full." not in page.replace(
        "full protocol.", ""
    )
    assert "SSD (1 of 2 diverged)" in page and "0.01 (given)" in page
    assert "| M-SVAG | 8 | " in page and "    me\n" in page
    # M-SGD's training loss ends at 0.14, which M-SVAG has at an accuracy of 0.8556.
    assert (
        "| variance adaptation | M-SVAG | M-SGD | +5.00 [+5.00, +5.00] "
        "| +0.56 [+0.56, +0.56] | 2 |"
    ) in page
    results_page.check(tmp_path)
    everything = json.loads((tmp_path / "results.json").read_text())
    assert everything["budget"]["name"] == "quick"
    assert everything["ranking"][0] == "msvag"
    pair, ssd_and_sgd = everything["differences"]
    assert ssd_and_sgd["without"] == "sgd:learning_rate=0.01"
    assert pair["at_end"]["mean"] == pytest.approx(0.05)
    assert pair["at_equal_loss"]["mean"] == pytest.approx(0.8 * 0.85 / 0.9 - 0.75)
    assert len(everything["tuning_runs"]["msvag"]) == 8
    output = capsys.readouterr().out
    assert "stopped as hopeless after epoch 1" in output
    assert "failed: RuntimeError: out of memory" in output
    for name in ("curves.png", "sensitivity.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_problem_may_be_tuned_by_its_training_loss(
    make_config, tmp_path, made_up, monkeypatch
):
    config, play = make_config(epochs=4), comparison.train
    problem = replace(PROBLEMS[config.problem], tuned_by="train_loss")
    monkeypatch.setitem(PROBLEMS, config.problem, problem)

    def fits_worse_at_one(config, folder, report, data):
        factor = 1 + (config.optimizer.learning_rate == 1.0)
        play(
            config,
            folder,
            lambda row: report(row | {"train_loss": factor * row["train_loss"]}),
            data,
        )

    monkeypatch.setattr(comparison, "train", fits_worse_at_one)
    results = compare(config, ["msvag"], tmp_path, budget="quick")
    assert [r["learning_rate"] for r in results] == [pytest.approx(0.1)] * 2
    assert "by the final training loss: " in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_a_scout_goes_first_and_rates_at_the_edge_are_extended(
    make_config, tmp_path, made_up, monkeypatch
):
    budget = replace(BUDGETS["reduced"], scout="scout", seeds=2, stride=10)
    monkeypatch.setitem(BUDGETS, "reduced", budget)
    scout = replace(BUDGETS["quick"], epochs=2, stride=35)
    monkeypatch.setitem(BUDGETS, "scout", scout)
    compare(make_config(epochs=4), ["msvag"], tmp_path, budget="reduced")
    # The scout tries 1e-5 and 100 of 1e-5, 100; both are at the edge, but 100 failed.
    tried = list(csv.DictReader((tmp_path / "tuning.csv").open()))
    stages = {"scouting": [], "tuning": []}
    for row in tried:
        stages[row["stage"]].append(float(row["learning_rate"]))
        assert row["ended"] != "completed" or row["epochs"] == (
            "2" if row["stage"] == "scouting" else "4"
        )
    # A factor of 10^7 at a time, at most five times, as the lowest is always best.
    assert len(stages["scouting"]) == 2 + EXTENSIONS
    assert stages["scouting"] == pytest.approx(
        [10.0 ** (-5 - 7 * i) for i in range(EXTENSIONS, -1, -1)] + [100.0]
    )
    assert len(stages["tuning"]) == NEIGHBOURS + EXTENSIONS
    assert {seed for _, _, seed in made_up[: len(tried)]} == {TUNING_SEED}
    assert {seed for _, _, seed in made_up[len(tried) :]} == {0, 1}
    assert sum(row["best"] == "True" for row in tried) == 2
    page = (tmp_path / "results.md").read_text()
    assert "tried by a scout (2 epochs" in page
    assert "at the edge of the rates tried" in page
    before = len(made_up)
    compare(make_config(epochs=4), ["msvag"], tmp_path, budget="reduced")
    assert len(made_up) == before
    assert not (tmp_path / "scouting").exists()


@pytest.mark.slow
def test_interrupted_tuning_goes_on(make_config, tmp_path, made_up, monkeypatch):
    play, config = comparison.train, make_config(epochs=2)

    def interrupted(*arguments, **more):
        if len(made_up) == 3:
            raise KeyboardInterrupt
        play(*arguments, **more)

    monkeypatch.setattr(comparison, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(config, ["msvag"], tmp_path, budget="quick")
    assert not (tmp_path / "results.md").exists()
    monkeypatch.setattr(comparison, "train", play)
    compare(config, ["msvag"], tmp_path, budget="quick")
    assert len(made_up) == len(set(made_up)) == 8 + 2  # Nothing twice.

    # Failed runs are repeated on request, diverged ones are not.
    before = len(made_up)
    compare(config, ["msvag"], tmp_path, budget="quick", retry_failed=True)
    assert made_up[before:] == [("msvag", 100.0, TUNING_SEED)]


def test_an_optimizer_of_which_no_rate_goes_through(
    make_config, tmp_path, made_up, monkeypatch
):
    def fail(*arguments, **more):
        raise MemoryError("too large")

    monkeypatch.setattr(comparison, "train", fail)
    results = compare(make_config(), ["ssd"], tmp_path, budget="quick")
    assert {r["ended"] for r in results} == {"failed"}
    page = (tmp_path / "results.md").read_text()
    assert "SSD (2 of 2 failed)" in page and "no rate went through" in page
    assert results[0]["error"] == "MemoryError: too large"


@pytest.mark.exhaustive
def test_another_storage_serves_other_workdirs(make_config, tmp_path, made_up):
    storage = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    compare(
        make_config(), ["ssd"], tmp_path / "a", budget="quick", storage=storage,
        command=f"python compare.py --storage={storage}",
    )  # fmt: skip
    assert not (tmp_path / "a" / "study.db").exists()
    assert (tmp_path / "elsewhere.db").exists()
    # Another workdir, as on another machine, finds everything made.
    before = len(made_up)
    results = compare(
        make_config(), ["ssd"], tmp_path / "b", budget="quick", storage=storage
    )
    assert len(made_up) == before and len(results) == 2


@pytest.mark.exhaustive
def test_the_published_optimizers_are_set_beside_their_curves(
    make_config, tmp_path, made_up
):
    config = make_config(problem="quadratic_deep", epochs=2, batch_size=128)
    names = [*published_variants("quadratic_deep").values(), "ssd"]
    compare(config, names, tmp_path, seeds=[0], command="me")
    page = (tmp_path / "faithfulness.md").read_text()
    assert page.count("| SGD, momentum 0.99 |") == 3 * 2  # epochs, losses
    assert "Not a test" not in page and "    me\n" in page and "SSD" not in page
    everything = json.loads((tmp_path / "results.json").read_text())
    assert len(everything["faithfulness"]) == 3 * 3 * 2
    assert not all(check["agrees"] for check in everything["faithfulness"])

    config.train_examples = 500
    compare(config, names, tmp_path / "part", seeds=[0])
    page = (tmp_path / "part" / "faithfulness.md").read_text()
    assert "Not a test of faithfulness: an epoch has 500 of 1,000 training" in page


def test_the_documented_problem_of_ones_own(tmp_path, monkeypatch):
    root = Path(__file__).resolve().parents[2]
    text = (root / "docs" / "compare.md").read_text()
    path = tmp_path / "my_problem.py"
    path.write_text(text.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(root)
    monkeypatch.setitem(PROBLEMS, "mine", None)  # removed in the end
    config = runpy.run_path(str(path))["get_config"]()
    config.epochs = 2
    (row,) = compare(config, ["msvag"], tmp_path / "compared", seeds=[0])
    assert row["ended"] == "completed" and row["test_accuracy"] > 0.8


@pytest.mark.parametrize(
    "other, rates, scouts", [("ssd", 12, True), ("ssd:learning_rate=0.1", 0, False)]
)
def test_rates_are_tried_unless_all_are_given(
    make_config, tmp_path, other, rates, scouts
):
    names = ["msgd:learning_rate=0.1", other]
    plan = planned(make_config(), names, tmp_path, "reduced", [0], None, (), False)
    assert len(plan.described["learning_rates"]) == rates
    assert (plan.scout is not None) == (plan.described["scout"] is not None) == scouts
