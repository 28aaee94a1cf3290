"""Budgets and their names; runs that processes share."""

import runpy
import sqlite3
from dataclasses import replace
from operator import itemgetter

import filelock
import optuna
import pytest
from conftest import ROOT

from svag_tf.experiments.comparison.baselines import published
from svag_tf.experiments.comparison.budgets import (
    BUDGETS,
    GRID,
    budgeted,
    describe,
    index_of,
    outwards,
    rate_at,
)
from svag_tf.experiments.comparison.storage import Queue, Storage
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training.config import checked

P1 = checked(runpy.run_path(str(ROOT / "configs" / "fmnist_2c2d.py"))["get_config"]())
SIZES = 60_000, 10_000


def test_the_grid_is_that_of_deepobs():
    assert len(GRID) == 36
    for problem in ("fmnist_2c2d", "tolstoi_char_rnn", "quadratic_deep"):
        for curve in published(problem).values():
            rate = curve["learning_rate"]
            assert min(abs(other / rate - 1) for other in GRID) < 1e-12
    for budget in BUDGETS.values():
        assert set(budget.rates) <= set(GRID)
    assert [len(budget.rates) for budget in BUDGETS.values()] == [12, 18, 18, 36]


def described(name, seeds=None, kept=(), problem="fmnist_2c2d", **fields):
    budget, protocol = BUDGETS[name], replace(P1, problem=problem)
    config = budgeted(replace(protocol, **fields), budget, SIZES, kept)
    seeds = range(budget.seeds) if seeds is None else seeds
    return describe(config, vars(protocol), budget, SIZES, seeds)


def test_the_budgets():
    quick, reduced, standard, full = (described(name) for name in BUDGETS)
    assert [d["name"] for d in (quick, reduced, standard, full)] == list(BUDGETS)
    size = itemgetter("epochs", "train_examples", "test_examples")
    assert size(reduced) == (20, 10_000, 10_000) and len(reduced["seeds"]) == 5
    text = described("reduced", problem="tolstoi_char_rnn", batch_size=50)
    assert size(text) == (10, 5000, 1000)
    assert (quick["epochs"], quick["train_examples"], quick["test_examples"]) == (
        4,
        2000,
        1000,
    )
    assert (standard["epochs"], standard["train_examples"]) == (20, 60_000)
    assert (full["epochs"], full["train_examples"]) == (100, 60_000)
    assert len(full["seeds"]) == 10 and full["learning_rates"] == list(GRID)
    # Data smaller than a budget is used completely.
    config = budgeted(replace(P1, epochs=3), BUDGETS["quick"], (1437, 360))
    assert config.epochs == 3
    assert config.train_examples is None and config.test_examples is None


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 1, "kept": ["epochs"]},
        {"epochs": 99},
        {"train_examples": 2000},
        {"test_examples": 100},
        {"batch_size": 64},
        {"seeds": range(3)},
        {"problem": "digits", "epochs": 4, "kept": ["epochs"]},
    ],
)
def test_what_is_less_than_full_is_not_called_full(settings):
    described_so = described("full", **settings)
    assert described_so["name"] == "custom" and described_so["changed"]


def test_what_the_user_has_set_stays():
    kept = described("quick", kept=["epochs", "train_examples"], epochs=7,
                     train_examples=10)  # fmt: skip
    assert (kept["epochs"], kept["train_examples"], kept["test_examples"]) == (
        7,
        10,
        1000,
    )
    assert kept["name"] == "custom" and kept["asked"] == "quick"
    assert "epochs is 7, not 4" in kept["changed"]
    same = described("quick", kept=["epochs"], epochs=4)
    assert same["name"] == "quick"


def test_the_grid_goes_on_beyond_its_ends():
    assert rate_at(7) == GRID[7] and rate_at(-1) == pytest.approx(10**-5.2)
    assert rate_at(36) == pytest.approx(10**2.2)
    assert [index_of(rate_at(i)) for i in range(-9, 45)] == list(range(-9, 45))


def test_the_best_rate_gets_neighbours_on_both_sides():
    budget = BUDGETS["reduced"]
    around = budget.around(0.1)
    assert around == pytest.approx((10**-1.4, 0.1, 10**-0.6))
    assert budget.beyond(around, around[1]) is None
    assert budget.beyond(around, around[0]) == pytest.approx(10**-1.8)
    assert budget.beyond(around, around[2]) == pytest.approx(10**-0.2)


def test_rates_near_the_default_come_first():
    order = outwards([0.01, 0.1, 1.0, 10.0], 0.2)
    assert order == [0.1, 1.0, 0.01, 10.0]


def queue(storage, values=(1e-2, 1e-1, 1.0), parameter="learning_rate", config=None):
    study = storage.study("a", config or {}, True, optuna.pruners.NopPruner())
    return Queue(storage, study, parameter, values), study


def made(trial, value):
    trial.set_user_attr("outcome", "completed")
    return -value


def nothing(done):
    pass


def test_every_value_is_run_once_and_remembered(tmp_path):
    storage = Storage(str(tmp_path / "s.db"), tmp_path)
    values, seen = (1.0, 0.1, 0.01), []
    with storage.opened():
        jobs, _ = queue(storage, values)

        def run(trial, value):
            seen.append(value)
            return made(trial, value)

        done = jobs.work(run, nothing)
    assert seen == list(values) == list(done)
    assert [trial.value for trial in done.values()] == [-1.0, -0.1, -0.01]
    again = Storage(str(tmp_path / "s.db"), tmp_path)
    with again.opened():
        jobs, _ = queue(again, (*values, 10.0))
        assert list(jobs.work(run, nothing)) == [*values, 10.0]
    assert seen == [*values, 10.0]


def test_other_configs_have_other_studies_and_data_may_lie_elsewhere(tmp_path):
    storage = Storage(str(tmp_path / "s.db"), tmp_path)
    names = [
        queue(storage, config=config)[1].study_name
        for config in (
            {"epochs": 1, "data_dir": "a"},
            {"epochs": 1, "data_dir": "b"},
            {"epochs": 2, "data_dir": "a"},
        )
    ]
    assert names[0] == names[1] != names[2]


def test_the_run_of_a_dead_process_is_made_again_that_of_a_living_is_not(tmp_path):
    mine = Storage(str(tmp_path / "s.db"), tmp_path)
    other = Storage(str(tmp_path / "s.db"), tmp_path)
    seen = []

    class Stop(BaseException):
        pass

    with mine.opened():
        jobs, study = queue(mine)
        life = filelock.FileLock(tmp_path / ".workers" / f"{other.worker}.lock")
        life.acquire()

        def die(trial, value):
            raise Stop

        jobs_of_other, _ = queue(other)
        with pytest.raises(Stop):
            jobs_of_other.work(die, nothing)
        (running,) = study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        assert running.params["learning_rate"] == pytest.approx(1e-2)
        assert not mine.is_dead(running)

        waits = []

        def waiting(done):
            waits.append(len(done))
            if len(done) == 2 and waits.count(2) > 1:
                life.release()

        def run(trial, value):
            seen.append(value)
            return made(trial, value)

        done = jobs.work(run, waiting)
    assert seen == [0.1, 1.0, 0.01]  # while it lived, its rate was left alone
    assert len(done) == 3


def test_a_process_helps_one_with_other_values(tmp_path):
    storage = Storage(str(tmp_path / "s.db"), tmp_path)

    def stop_after_one(trial, value):
        raise KeyboardInterrupt

    with storage.opened():
        many, study = queue(storage, (1, 2, 3), "seed")
        with pytest.raises(KeyboardInterrupt):
            many.work(stop_after_one, nothing)  # 2 and 3 wait
        few, _ = queue(storage, (1,), "seed")
        assert list(few.work(made, nothing)) == [1]
        assert list(many.finished()) == [1, 2, 3]
    failed = study.get_trials(states=[optuna.trial.TrialState.FAIL])
    assert len(failed) == 1


def test_a_retry_makes_only_what_failed(tmp_path):
    storage = Storage(str(tmp_path / "s.db"), tmp_path)
    seen = []

    def run(trial, value):
        seen.append(value)
        ended = {0.1: "failed", 1.0: "diverged"}.get(value, "completed")
        trial.set_user_attr("outcome", ended if len(seen) < 4 else "completed")
        return 0.0

    with storage.opened():
        jobs, _ = queue(storage)
        jobs.work(run, nothing)
        jobs.retry()
        done = jobs.work(run, nothing)
    assert seen == [0.01, 0.1, 1.0, 0.1]
    assert done[0.1].user_attrs["outcome"] == "completed"


def test_an_interrupted_run_is_free_again(tmp_path):
    storage = Storage(str(tmp_path / "s.db"), tmp_path)

    def interrupted(trial, value):
        raise KeyboardInterrupt

    with storage.opened():
        jobs, _ = queue(storage, (5, 2**32 - 1), "seed")
        with pytest.raises(KeyboardInterrupt):
            jobs.work(interrupted, nothing)
        assert list(jobs.work(made, nothing)) == [5, 2**32 - 1]


@pytest.mark.parametrize(
    "place, message",
    [
        ("nosuch://host/x", "nosuch"),
        ("postgresql+nosuch://u:secret@host/x", "nosuch"),
        ("{tmp}/no/folder/s.db", "unable to open"),
        ("{tmp}/text.db", "not a database"),
    ],
)
def test_a_storage_that_cannot_be_used(tmp_path, place, message):
    (tmp_path / "text.db").write_text("this is no database\n" * 100)
    with pytest.raises(ExperimentError, match=message) as error:
        Storage(place.format(tmp=tmp_path), tmp_path)
    assert "--storage must be" in str(error.value)
    assert "secret" not in str(error.value)


def test_any_database_url_is_taken(tmp_path):
    path = tmp_path / "url.db"
    storage = Storage(f"sqlite:///{path}", tmp_path)
    with storage.opened():
        queue(storage)[0].work(made, nothing)
    with sqlite3.connect(path) as connection:
        (count,) = connection.execute("select count(*) from trials").fetchone()
    assert count == 3
