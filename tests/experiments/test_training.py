"""Runs: their results, their repeatability, and what stops them."""

import csv
import dataclasses
import json
import math
import os
import shutil

import keras
import numpy as np
import pytest
from resuming import Killed, kill_at_replacement, outcome
from tiers import sampled

import svag_tf
from svag_tf.distribution import processes
from svag_tf.distribution.processes import LocalReplicas
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.optimizers import OPTIMIZERS
from svag_tf.experiments.training import preparing, run_folder, steps
from svag_tf.experiments.training import train as training
from svag_tf.experiments.training.config import checked
from svag_tf.experiments.training.run_folder import COLUMNS, RunFolder, fingerprint
from svag_tf.experiments.training.train import Batches, train
from svag_tf.noise import files as noise_files
from svag_tf.saving import commits

RESULTS = {"config.json", "metrics.csv", "train.log", "curves.png", "model.keras",
           "machine.json", "checkpoints", ".lock"}  # fmt: skip
if training.summary is not None:
    RESULTS.add("tensorboard")
CHECKPOINTS = ["epoch_2", "epoch_3"]


def snapshot(folder):
    """Every path with its content and time of change."""
    return {
        str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in (folder, *sorted(folder.rglob("*")))
    }


def test_results(make_config, tmp_path, capsys):
    rows = train(make_config(), tmp_path / "new" / "run")
    folder = tmp_path / "new" / "run"
    assert set(os.listdir(folder)) == RESULTS
    machine = json.loads((folder / "machine.json").read_text())
    assert machine["packages"]["svag_tf"] == svag_tf.__version__
    with (folder / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert tuple(table[0]) == COLUMNS
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    assert [row["step"] for row in table] == ["0", "6", "12", "18"]
    assert [row["learning_rate"] for row in table] == ["0.1"] * 4
    for read, row in zip(table, rows, strict=True):
        for name in COLUMNS:
            assert np.float32(read[name]) == np.float32(row[name])
    assert len((folder / "train.log").read_text().splitlines()) == 4
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(folder / "checkpoints")) == CHECKPOINTS
    assert json.loads((folder / "config.json").read_text())["epochs"] == 3
    model = keras.models.load_model(folder / "model.keras")
    assert int(model.optimizer.iterations) == 18
    output = capsys.readouterr().out
    for part in ("Epoch 3/3", "accuracy", "ETA", "final (epoch 3)", "curves.png"):
        assert part in output


def test_the_numbers_are_those_of_the_saved_model(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EVALUATION_BATCH", 10)  # the last one has 2 examples
    rows = train(make_config(), tmp_path / "a")
    model = keras.models.load_model(tmp_path / "a" / "model.keras")
    data = preparing.selected(checked(make_config()), None)
    loss, accuracy = model.evaluate(data.x_test, data.y_test, verbose=0)
    assert rows[-1]["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert rows[-1]["test_accuracy"] == pytest.approx(accuracy)
    n = len(data.x_test)  # as many training examples
    loss, _ = model.evaluate(data.x_train[:n], data.y_train[:n], verbose=0)
    assert rows[-1]["train_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="reads TF's files")
@pytest.mark.needs("tensorboard")
def test_tensorboard_holds_every_epoch_once(make_config, tmp_path, monkeypatch):
    import tensorflow as tf

    def read(part):
        found = {}
        for path in sorted((tmp_path / "a" / "tensorboard" / part).iterdir()):
            for event in tf.compat.v1.train.summary_iterator(str(path)):
                for value in event.summary.value:
                    number = float(tf.make_ndarray(value.tensor))
                    found.setdefault(value.tag, []).append((event.step, number))
        return found

    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 7, after=True)  # epoch 2 is committed
        train(make_config(), tmp_path / "a")
    rows = train(make_config(), tmp_path / "a")
    for part in ("train", "test"):
        found = read(part)
        for name in ("loss", "accuracy"):
            steps, values = zip(*found[name], strict=True)
            assert steps == (0, 1, 2, 3)
            assert np.allclose(values, [row[f"{part}_{name}"] for row in rows])


def test_without_tensorflow_there_is_a_line_and_no_tensorboard(
    make_config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(training, "summary", None)
    train(make_config(epochs=1), tmp_path)
    assert "No TensorBoard files" in capsys.readouterr().out
    assert set(os.listdir(tmp_path)) == RESULTS - {"tensorboard"}


@pytest.mark.parametrize("name", sampled(["msvag", "adam"], OPTIMIZERS))
def test_every_optimizer(make_config, tmp_path, name):
    fields = {"optimizer.name": name, "optimizer.learning_rate": 0.003}
    rows = train(make_config(epochs=1, **fields), tmp_path / name)
    assert all(math.isfinite(value) for value in rows[1].values())
    assert rows[1]["train_loss"] != rows[0]["train_loss"]


@pytest.mark.parametrize(
    "fields",
    sampled(
        lambda fields: "optimizer.use_ema" in fields,
        [
            {"dtype_policy": "mixed_float16"},
            {"dtype_policy": "mixed_bfloat16", "optimizer.state_dtype": "bfloat16"},
            {"optimizer.use_ema": True, "optimizer.ema_momentum": 0.8},
            {
                "optimizer.gradient_accumulation_steps": 4,
                "optimizer.weight_decay": 0.01,
            },
            {"schedule.name": "cosine", "schedule.warmup_epochs": 1.5},
        ],
    ),
    ids=lambda fields: next(iter(fields)),
)
def test_killed_and_resumed_is_bit_for_bit_the_same(
    make_config, tmp_path, monkeypatch, fields
):
    config = make_config(**fields)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 4, after=False)  # while epoch 1 is committed
        train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


# Files and folders are put in place in this order: config.json, machine.json; then for
# each of four epochs a commit, from the third on a name for the old one to delete,
# metrics.csv, train.log; then the tables again (2), curves.png and model.keras.
@pytest.mark.parametrize(
    "number, after, left",
    sampled(
        lambda case: case[:2] == (8, False),
        [
            (0, False, {".tmp-config.json"}),
            (0, True, {"config.json"}),
            (1, True, {"machine.json"}),
            (2, False, {"config.json"}),
            (2, True, {"checkpoints"}),  # after epoch 0's commit, before metrics.csv
            (8, False, {"checkpoints"}),  # before epoch 2's commit
            (8, True, {"checkpoints"}),  # after it, before epoch 0's is deleted
            (9, True, {"checkpoints"}),  # while it is deleted
            (13, True, {"checkpoints"}),  # the same after the last epoch
            (18, False, {"checkpoints", "metrics.csv"}),  # trained; before curves.png
            (19, False, {"curves.png"}),  # before model.keras
            (19, True, RESULTS),
        ],
    ),
)
def test_killed_at_any_moment(
    make_config, tmp_path, monkeypatch, whole, number, after, left
):
    config = make_config()
    if not whole.exists():
        train(config, whole)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, number, after)
        train(config, tmp_path)
    assert left <= set(os.listdir(tmp_path))
    train(config, tmp_path)
    assert outcome(tmp_path) == outcome(whole)
    assert set(os.listdir(tmp_path)) == RESULTS
    assert sorted(os.listdir(tmp_path / "checkpoints")) == CHECKPOINTS


@pytest.mark.exhaustive
def test_noise_is_measured_where_it_would_have_been_after_a_kill(
    make_config, tmp_path, monkeypatch
):
    """Of six batches an epoch every fourth is measured, in a resumed run as well."""
    config = make_config(**{"noise.preset": "economy", "noise.every": 4})
    plain = train(make_config(), tmp_path / "plain", lambda row: None)
    whole = train(config, tmp_path / "whole", lambda row: None)
    for name in ("train_loss", "test_loss"):
        assert [row[name] for row in whole] == [row[name] for row in plain]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "commit", _killed_in_epoch(2, RunFolder.commit))
        train(config, tmp_path / "parts", lambda row: None)
    train(config, tmp_path / "parts", lambda row: None)
    rows = [
        noise_files.read_table(tmp_path / name / "noise.csv", noise_files.COLUMNS)
        for name in ("whole", "parts")
    ]
    overall = [int(r["step"]) for r in rows[0] if r["layer"] == noise_files.OVERALL]
    assert overall == [4, 8, 12, 16]
    for a, b in zip(*rows, strict=True):  # Layers are counted anew in each model.
        for column in ("step", "epoch", "eta2", "gamma", "m", "sqrt_s"):
            assert a[column] == b[column]


def _killed_in_epoch(epoch, commit):
    def killed(folder, state, *arguments):
        if state.epoch == epoch:
            raise Killed
        commit(folder, state, *arguments)

    return killed


@pytest.mark.exhaustive
def test_the_seed_decides(make_config, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(make_config(seed=seed, epochs=1), tmp_path / name)
    a, b, c = (outcome(tmp_path / name) for name in "abc")
    assert a == b
    assert a[0] != c[0] and a[3] != c[3]


def test_a_finished_run_is_told_and_completed(make_config, tmp_path, capsys):
    train(make_config(epochs=1), tmp_path)
    before = outcome(tmp_path)
    for name in ("metrics.csv", "train.log", "curves.png", "model.keras"):
        (tmp_path / name).unlink()
    capsys.readouterr()
    rows = train(make_config(epochs=1), tmp_path)
    output = capsys.readouterr().out
    assert "is complete" in output and "final (epoch 1)" in output
    assert "Epoch" not in output  # no training
    assert len(rows) == 2
    assert outcome(tmp_path) == before
    assert set(os.listdir(tmp_path)) == RESULTS


@pytest.mark.exhaustive
def test_ema_evaluates_and_saves_the_average(make_config, tmp_path):
    fields = {"optimizer.use_ema": True, "optimizer.ema_momentum": 0.9}
    rows = train(make_config(**fields), tmp_path / "average")
    plain = train(make_config(), tmp_path / "plain")
    assert rows[0]["test_loss"] == plain[0]["test_loss"]
    assert rows[3]["test_loss"] != plain[3]["test_loss"]
    model = keras.models.load_model(tmp_path / "average" / "model.keras")
    data = preparing.selected(checked(make_config()), None)
    loss, _ = model.evaluate(data.x_test, data.y_test, verbose=0)
    assert rows[3]["test_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_ema_killed_before_the_model_is_saved(make_config, tmp_path, monkeypatch):
    config = make_config(**{"optimizer.use_ema": True, "optimizer.ema_momentum": 0.9})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 17, after=False)
        train(config, tmp_path / "cut")
    train(config, tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_another_config_is_refused_and_nothing_is_touched(make_config, tmp_path):
    folder = tmp_path / "run"
    train(make_config(epochs=1), folder)
    before = snapshot(folder)
    other = make_config(epochs=2, **{"optimizer.beta": 0.5})
    with pytest.raises(ExperimentError) as error:
        train(other, folder)
    assert "epochs: 1 -> 2" in str(error.value)
    assert "optimizer.beta: None -> 0.5" in str(error.value)
    assert "seed" not in str(error.value)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "name", ["metrics.csv", "model.keras", "state.json", "train.log", "curves.png"]
)
def test_results_without_a_config_are_refused(make_config, tmp_path, name):
    (tmp_path / name).write_text("precious")
    before = snapshot(tmp_path)
    with pytest.raises(ExperimentError, match=f"no config.json but holds {name}"):
        train(make_config(), tmp_path)
    assert snapshot(tmp_path) == before


def test_results_without_a_commit_are_refused(make_config, tmp_path):
    train(make_config(epochs=1), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = snapshot(tmp_path)
    with pytest.raises(ExperimentError, match=r"no checkpoints but holds metrics\.csv"):
        train(make_config(epochs=1), tmp_path)
    assert snapshot(tmp_path) == before


def test_files_of_others_do_not_matter(make_config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train(make_config(epochs=1), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def cut_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [
    ("checkpoints/epoch_2/model.keras", cut_half),
    ("checkpoints/epoch_2/model.keras", flip),
    ("checkpoints/epoch_2/model.keras", lambda path: path.unlink()),
    ("checkpoints/epoch_2/state.json", cut_half),
    ("checkpoints/epoch_2/state.json", lambda path: path.write_text("{}")),
    ("checkpoints/epoch_2/state.json", flip),
    ("checkpoints/epoch_2/SHA256SUMS", cut_half),
]


def after_epoch_2(config, folder, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_replacement(patch, 10, after=True)  # epoch 2 is committed
        train(config, folder)


@pytest.mark.parametrize("name, damage", sampled(DAMAGES[1:2], DAMAGES))
def test_goes_on_from_the_epoch_before_what_is_corrupt(
    make_config, tmp_path, monkeypatch, whole, name, damage
):
    if not whole.exists():
        train(make_config(), whole)
    folder = tmp_path / "run"
    after_epoch_2(make_config(), folder, monkeypatch)
    damage(folder / name)
    with pytest.warns(UserWarning, match="epoch_2 is damaged. Trying the one before"):
        train(make_config(), folder)
    assert outcome(folder) == outcome(whole)
    train(make_config(), folder)  # No warning is left.


@pytest.mark.filterwarnings("ignore:.*epoch_2 is damaged")
def test_damaged_at_any_byte(make_config, tmp_path, monkeypatch):
    after_epoch_2(make_config(), tmp_path, monkeypatch)
    assert RunFolder(tmp_path).ended().epoch == 2
    for path in (tmp_path / "checkpoints" / "epoch_2").iterdir():
        content = path.read_bytes()
        for position in np.linspace(0, len(content) - 1, 100).astype(int):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            for damaged in (flipped, content[:position]):
                path.write_bytes(damaged)
                assert RunFolder(tmp_path).ended().epoch == 1, (path, position)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "name, damage", sampled(DAMAGES[:2], [*DAMAGES, ("config.json", cut_half)])
)
def test_corruption_of_all_is_told_and_nothing_is_touched(
    make_config, tmp_path, monkeypatch, name, damage
):
    folder = tmp_path / "run"
    after_epoch_2(make_config(), folder, monkeypatch)
    damage(folder / name)
    flip(folder / "checkpoints" / "epoch_1" / "model.keras")
    before = snapshot(folder)
    told = name if name == "config.json" else "None of these is whole: .*epoch_2"
    with pytest.raises(ExperimentError, match=told) as error:
        train(make_config(), folder)
    assert "Delete the folder" in str(error.value) or name == "config.json"
    assert snapshot(folder) == before


def test_other_workers_get_what_the_chief_has_committed(
    make_config, tmp_path, monkeypatch
):
    config, local = checked(make_config()), [np.arange(3.0), np.eye(2)]
    folder = RunFolder(tmp_path)
    _, model = preparing.prepared(config)
    committed = run_folder.State(keras.backend.backend(), [{"epoch": 0}])
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_tables", lambda *_: None)
        folder.commit(committed, model, 3, local)
    sent, restored = [], []

    def broadcast(model, content):
        if content is not None:
            sent.append(content)
            return content
        return sent.pop(0)

    monkeypatch.setattr(
        processes, "replicas_here", lambda model: LocalReplicas(0, 1, 2)
    )
    monkeypatch.setattr(processes, "broadcast", broadcast)
    monkeypatch.setattr(steps, "set_local_state", lambda _, x: restored.append(x))
    for chief, where in ((True, folder), (False, RunFolder(tmp_path / "nothing"))):
        distribution = steps.Distribution()
        distribution.chief = chief
        _, new = preparing.prepared(dataclasses.replace(config, seed=1))
        state = folder.ended() if chief else run_folder.State("unknown")
        assert distribution.restore(new, where, state) == committed
        assert fingerprint(new) == fingerprint(model)
    assert sent == [] and len(restored) == 2
    for arrays in restored:
        for a, b in zip(arrays, local, strict=True):
            np.testing.assert_array_equal(a, b)


def change_state(folder, **fields):
    """Changes the state of epoch 1, and the sums as if it had been written so."""
    commit = folder / "checkpoints" / "epoch_1"
    state = json.loads((commit / "state.json").read_text())
    (commit / "state.json").write_text(json.dumps(state | fields))
    sums = commits._sums(commit, ["model.keras", "state.json"])
    (commit / commits.SUMS).write_text(sums)


def test_a_run_of_an_earlier_version_is_refused(make_config, tmp_path):
    train(make_config(epochs=1), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "state.json").write_text("{}")
    before = snapshot(tmp_path)
    for use in (lambda: train(make_config(epochs=1), tmp_path),
                RunFolder(tmp_path).ended):  # fmt: skip
        with pytest.raises(
            ExperimentError, match=r"state\.json was written by an earlier versi"
        ):
            use()
    assert snapshot(tmp_path) == before


def test_a_checkpoint_of_other_values_is_refused(make_config, tmp_path, monkeypatch):
    train(make_config(epochs=1), tmp_path)
    (tmp_path / "model.keras").unlink()
    change_state(tmp_path, values_sha256="0" * 64)
    with pytest.raises(ExperimentError, match="does not restore the values"):
        train(make_config(epochs=1), tmp_path)


def test_another_backend_is_refused(make_config, tmp_path):
    train(make_config(epochs=1), tmp_path)
    change_state(tmp_path, backend="numpy")
    with pytest.raises(ExperimentError, match="KERAS_BACKEND=numpy"):
        train(make_config(epochs=1), tmp_path)


@pytest.mark.parametrize("inner", [".", "below", "far/below"])
def test_a_file_where_the_workdir_should_be(make_config, tmp_path, inner):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ExperimentError, match=r"cannot be written.*not a.*folder"):
        train(make_config(), tmp_path / "file" / inner)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_workdir_that_cannot_be_made(make_config, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ExperimentError, match=r"cannot be written.*Permission denied"):
        train(make_config(), tmp_path / "a")


def test_two_at_once(make_config, tmp_path):
    import filelock

    tmp_path.joinpath("run").mkdir()
    with (
        filelock.FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(ExperimentError, match="in use by another process"),
    ):
        train(make_config(), tmp_path / "run")
    assert os.listdir(tmp_path / "run") in ([".lock"], [])
    train(make_config(epochs=1), tmp_path / "run")


def test_divergence_ends_the_run(make_config, tmp_path, capsys):
    fields = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e30}
    for _ in range(2):  # the second time, nothing is trained
        capsys.readouterr()
        with pytest.raises(
            ExperimentError, match=r"diverged in epoch 1.*learning_rate"
        ):
            train(make_config(**fields), tmp_path)
    assert "Epoch" not in capsys.readouterr().out
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert not math.isfinite(float(rows[1]["train_loss"]))
    assert not (tmp_path / "model.keras").exists()


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("batch_size", 65, r"\[1, 64\]"),
        ("train_examples", 65, "64 examples"),
        ("test_examples", 33, "32 examples"),
        ("optimizer.momentum", 0.5, "has no optimizer.momentum"),
        ("epochs", 0, "epochs must be"),
    ],
)
def test_nothing_is_written_for_a_bad_config(
    make_config, tmp_path, field, value, message
):
    with pytest.raises(ExperimentError, match=message):
        train(make_config(**{field: value}), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_limits(make_config, tmp_path):
    config = make_config(train_examples=20, test_examples=7, epochs=1)
    rows = train(config, tmp_path)
    assert rows[-1]["step"] == 2
    assert (rows[-1]["test_accuracy"] * 7) % 1 == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_train_leaves_the_dtype_policy_alone(make_config, tmp_path):
    train(make_config(epochs=1, dtype_policy="mixed_bfloat16"), tmp_path)
    assert keras.config.dtype_policy().name == "float32"


def test_batches():
    x, y = np.arange(10.0), np.arange(10)
    shuffled = Batches(x, y, 4, seed=3)
    shuffled.shuffle(0)
    first = [shuffled[i][1].tolist() for i in range(len(shuffled))]
    assert [len(batch) for batch in first] == [4, 4]  # the remainder is dropped
    seen = [label for batch in first for label in batch]
    assert len(set(seen)) == 8 and seen != sorted(seen)
    shuffled.shuffle(1)
    assert shuffled[0][1].tolist() != first[0]
    again = Batches(x, y, 4, seed=3)
    again.shuffle(0)
    assert again[0][1].tolist() == first[0]
    ordered = Batches(x, y, 4)
    assert [ordered[i][0].tolist() for i in range(len(ordered))] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9]
    ]  # fmt: skip


def test_without_a_seed_the_order_stays():
    ordered = Batches(np.arange(4), np.arange(4), 2)
    ordered.shuffle(3)
    assert [ordered[i][1].tolist() for i in range(2)] == [[0, 1], [2, 3]]


def test_batches_are_prepared_by_seed_epoch_and_number():
    def prepare(x, rng):
        return x + rng.random(len(x))

    def made(seed, epoch):
        batches = Batches(np.zeros(6), np.arange(6), 3, seed, prepare)
        batches.shuffle(epoch)
        return [batches[i][0].tolist() for i in (0, 1)]

    assert made(1, 5) == made(1, 5)
    seen = [*made(1, 5), *made(2, 5), *made(1, 6), *made(None, 5)]
    assert len({tuple(batch) for batch in seen}) == 8


@pytest.mark.slow
def test_training_and_test_inputs_are_prepared_each_in_its_way(
    make_config, tmp_path, monkeypatch
):
    config = make_config(epochs=1)
    seen = {"train": 0, "test": 0}

    def counted(name):
        def prepare(x, rng):
            seen[name] += len(x)
            return x

        return prepare

    problem = training.PROBLEMS["tiny"]
    changed = dataclasses.replace(
        problem, prepare_train=counted("train"), prepare_test=counted("test")
    )
    monkeypatch.setitem(training.PROBLEMS, "tiny", changed)
    train(config, tmp_path)
    # 6 batches of 10; twice 32 test examples and as many training examples. Keras
    # may ask for a batch once more, to learn its shape.
    assert seen["test"] >= 64 and seen["train"] >= 60 + 64
    assert seen["test"] % 32 == 0


def test_each_epoch_trains_on_its_own_order(make_config, tmp_path, monkeypatch):
    """Keras must not shuffle the batches a second time, from a global stream."""
    seen = []
    get = Batches.__getitem__

    def record(self, index):
        if self._seed is not None:
            seen.append((index, self._order.tobytes()))
        return get(self, index)

    monkeypatch.setattr(Batches, "__getitem__", record)
    train(make_config(epochs=2), tmp_path)
    rng = [np.random.default_rng([0, epoch]).permutation(64) for epoch in (0, 1)]
    orders = [order.tobytes() for order in rng]
    for order in orders:
        assert [i for i, o in seen if o == order] == list(range(6))


def test_fingerprint_sees_every_value():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5),
                              keras.layers.Dense(1)])  # fmt: skip
    model.compile(OPTIMIZERS["msvag"](), "mse")
    model.optimizer.build(model.trainable_variables)
    seen = {fingerprint(model)}
    variables = (*model.variables, *model.optimizer.variables)
    for variable in variables:
        variable.assign(variable + 1)
        seen.add(fingerprint(model))
    assert len(seen) == 1 + len(variables)
