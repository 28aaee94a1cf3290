"""Backups are exact, and whatever fails, the last whole one is restored."""

import os
import re
import shutil

import keras
import numpy as np
import pytest

import svag_tf
from svag_tf.callbacks import BackupAndRestore
from svag_tf.saving import commits

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(8, 3)).astype("float32"), RNG.normal(size=(8, 1))


def model_of(units=4, optimizer=svag_tf.MSVAG):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    if optimizer != "adam":
        optimizer = optimizer(schedule, jit_compile=False)
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def fit(model, folder, epochs, delete=False):
    callback = BackupAndRestore(folder, delete)
    model.fit(X, Y, 4, epochs, shuffle=False, verbose=0, callbacks=[callback])
    return model


def state(model):
    variables = (*model.variables, *model.optimizer.variables)
    metrics = {id(v) for v in model.metrics_variables}
    return [
        keras.ops.convert_to_numpy(v).tolist()
        for v in variables
        if id(v) not in metrics
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Backups after two epochs, and the states after 1, 2 and 3 epochs."""
    folder = tmp_path_factory.mktemp("backups") / "made"
    states = [
        state(fit(model_of(), folder.parent / "other", n, True)) for n in (1, 2, 3)
    ]
    fit(model_of(), folder, 2)
    return folder, states


@pytest.fixture
def backups(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "backups")
    return tmp_path / "backups"


def test_goes_on_bit_for_bit(made, backups):
    assert state(fit(model_of(), backups, 3)) == made[1][2]
    assert sorted(os.listdir(backups)) == ["epoch_2", "epoch_3"]
    fit(model_of(), backups, 3, delete=True)
    assert os.listdir(backups) == []


def test_damaged_at_any_byte(backups):
    """A truncated file or a flipped bit is noticed."""
    last = backups / "epoch_2"
    assert commits.is_whole(last)
    for path in sorted(last.iterdir()):
        whole = path.read_bytes()
        for position in np.linspace(0, len(whole) - 1, 150).astype(int):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << position % 8
            for damaged in (flipped, whole[:position]):
                path.write_bytes(damaged)
                assert not commits.is_whole(last), (path, position)
        path.write_bytes(whole)
    assert commits.is_whole(last)


@pytest.mark.parametrize("name", [commits.VALUES, commits.STATE, commits.SUMS])
def test_goes_on_from_the_one_before(made, backups, name):
    path = backups / "epoch_2" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=re.escape(f"{path.parent} is damaged")):
        assert state(fit(model_of(), backups, 3)) == made[1][2]
    (backups / "epoch_3" / name).unlink()
    (backups / "epoch_2" / name).unlink()
    with (
        pytest.warns(UserWarning, match="epoch_3 is damaged"),
        pytest.raises(
            ValueError, match=r"None of these is whole: .*epoch_2.*Delete them"
        ),
    ):
        fit(model_of(), backups, 3)


def test_killed_while_it_wrote(made, backups):
    """Its remains are no backup, and are cleared."""
    left = backups / ".tmp-epoch_3"
    shutil.copytree(backups / "epoch_2", left)
    (left / commits.VALUES).write_bytes(b"a part")
    assert state(fit(model_of(), backups, 3)) == made[1][2]
    assert sorted(os.listdir(backups)) == ["epoch_2", "epoch_3"]


def test_killed_while_it_deleted(made, backups, monkeypatch):
    """Its remains are no backup: the next `fit` resumes from the others."""

    def killed(folder, ignore_errors=False):
        if folder.exists():
            (folder / commits.STATE).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        BackupAndRestore(backups).on_train_end()
    assert sorted(os.listdir(backups)) == [".tmp-epoch_2", "epoch_1"]
    assert state(fit(model_of(), backups, 3, delete=True)) == made[1][2]
    assert os.listdir(backups) == []


def test_full_disk(made, backups, disk_of):
    """A write that ends after so many bytes leaves the backups as they were."""
    size = (backups / "epoch_2" / commits.VALUES).stat().st_size
    model = fit(model_of(), backups, 2)
    callback = BackupAndRestore(backups)
    callback.set_model(model)
    for n in (0, 1, 100, size // 3, size // 2, size - 1):
        message = r"Cannot write .*epoch_3"
        with disk_of(n), pytest.raises(OSError, match=message):
            callback.on_epoch_end(2)
        assert sorted(os.listdir(backups)) == ["epoch_1", "epoch_2"]
    assert state(fit(model_of(), backups, 3)) == made[1][2]


def test_of_another_model(backups):
    message = r"epoch_2 is that of another model or optimizer. Expected"
    for model in (model_of(5), model_of(4, svag_tf.MSGD), model_of(4, "adam")):
        before = state(model)
        with pytest.raises(ValueError, match=message):
            fit(model, backups, 3)
        assert state(model)[: len(before)] == before
    with pytest.raises(ValueError, match="must be the path of a folder"):
        BackupAndRestore("")


def test_a_folder_that_cannot_be_written(tmp_path):
    """The error comes before the first step."""
    (tmp_path / "file").write_text("")
    model = model_of()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        message = re.escape(f"Received: backup_dir={str(path)!r}: ")
        with pytest.raises(OSError, match=f"`backup_dir` must be a folder.*{message}"):
            fit(model, path, 1)
    assert int(model.optimizer.iterations) == 0
