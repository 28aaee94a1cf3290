"""Backups of a training run that survive faults."""

import os
import re
import warnings
from pathlib import Path
from typing import Any

import keras

from svag_tf import internals
from svag_tf.files import make_writable
from svag_tf.saving.commits import Commits, restore_state, save_state
from svag_tf.saving.mismatch import all_or_error
from svag_tf.saving.model_state import parts_of


class BackupAndRestore(keras.callbacks.Callback):
    """Backs up training after each epoch, and resumes from there in the next `fit`.

    `keras.callbacks.BackupAndRestore` overwrites its only file and trusts what it finds
    there. This callback survives a full disk, a killed process, and files that are
    truncated or have flipped bits. Each backup is a new folder, which appears once all
    of it is on the disk, and the previous backup is kept. All files have checksums
    (`SHA256SUMS`, as `sha256sum --check` reads it), which are compared before anything
    is restored. The random states of dropout and the like are saved too, so that k + k
    epochs equal 2k epochs, bit for bit, if the data comes in the same order. (Not with
    functions of `keras.random` without a seed: they draw from a stream of the process.)
    It works with all of Keras' optimizers, and with models that have several optimizers
    as attributes.

    Args:
        backup_dir: Folder for the backups, `epoch_1`, `epoch_2`, and so on.
        delete_checkpoint: Whether to delete the backups at the end of `fit`. Defaults
            to `True`.

    Raises:
        OSError: At the start of `fit`, if `backup_dir` is not a writable folder; later,
            if a backup cannot be written. The message names it, and earlier backups
            stay whole.
        ValueError: At the start of `fit`, if there are backups and none is whole, or
            if the last whole one belongs to another model or optimizer, which is named.

    Warns:
        UserWarning: For each damaged backup, with its name.

    Example:

    >>> import os, tempfile
    >>> import keras, numpy as np, svag_tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> folder = tempfile.mkdtemp()
    >>> backup = svag_tf.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    >>> x, y = np.ones((4, 3)), np.ones((4, 1))
    >>> _ = model.fit(x, y, epochs=3, callbacks=[backup], verbose=0)
    >>> sorted(os.listdir(folder))
    ['epoch_2', 'epoch_3']
    """

    def __init__(
        self, backup_dir: str | os.PathLike[str], delete_checkpoint: bool = True
    ):
        super().__init__()
        if not isinstance(backup_dir, str | os.PathLike) or not os.fspath(backup_dir):
            raise ValueError(
                "Argument `backup_dir` must be the path of a folder. "
                f"Received: backup_dir={backup_dir!r}"
            )
        self.backup_dir = Path(backup_dir)
        self.delete_checkpoint = delete_checkpoint
        self._commits = Commits(self.backup_dir)

    def on_train_begin(self, logs=None):
        """Restores the last whole backup."""
        make_writable("backup_dir", self.backup_dir)
        try:
            last = self._commits.last()
        except ValueError as error:
            raise ValueError(f"{error} Delete them to start afresh.") from None
        if last:
            # As Keras' callback of this name does.
            state = restore_state(self.model, last)
            internals.set_first_epoch(self.model, state["epoch"])

    def on_epoch_end(self, epoch, logs=None):
        """Makes a backup, and removes all but this one and the one before."""
        with self._commits.new(epoch + 1) as folder:
            save_state(self.model, folder, epoch=epoch + 1)

    def on_train_end(self, logs=None):
        """Deletes the backups, unless they are to be kept."""
        if self.delete_checkpoint:
            self._commits.delete()


def restore_latest(manager: Any) -> str | None:
    """Restores the newest whole checkpoint in a manager's folder.

    `manager.restore_or_initialize()` fails on a damaged checkpoint, perhaps after
    restoring part of it, and starts afresh if the manager's own list is damaged. This
    function looks at the files themselves. It reads every tensor of a checkpoint (each
    has a checksum) before it restores any, and falls back to the checkpoint before if
    that fails.

    Args:
        manager: `tf.train.CheckpointManager`.

    Returns:
        The path of what was restored, or `None` if there are no checkpoints.

    Warns:
        UserWarning: For each damaged checkpoint, with its name and the error.

    Raises:
        ValueError: If there are checkpoints and none is whole, or if a whole one
            belongs to another optimizer.

    Example:

    >>> import tempfile
    >>> import keras, svag_tf, tensorflow as tf
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(svag_tf.MSVAG(0.1), "mse")
    >>> model.optimizer.build(model.trainable_variables)
    >>> folder = tempfile.mkdtemp()
    >>> manager = tf.train.CheckpointManager(tf.train.Checkpoint(model), folder, 3)
    >>> path = manager.save()
    >>> svag_tf.restore_latest(manager) == path
    True
    """
    import tensorflow as tf

    files = sorted(Path(manager.directory).glob("*.index"), key=_number, reverse=True)
    paths = [str(file.with_suffix("")) for file in files]
    for path in paths:
        try:
            reader = tf.train.load_checkpoint(path)
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)
        except Exception as error:  # The reader raises many kinds.
            warnings.warn(
                f"The checkpoint {path} is damaged: {error}. Trying the one before.",
                stacklevel=2,
            )
            continue
        for model in parts_of(vars(manager.checkpoint), keras.Model).values():
            # Before anything is restored, so that nothing is if this is another model.
            optimizer = getattr(model, "optimizer", None)
            if model.built and optimizer and not optimizer.built:
                optimizer.build(model.trainable_variables)
        with all_or_error():
            manager.checkpoint.restore(path)
        return path
    if paths:
        raise ValueError(f"None of these checkpoints is whole: {', '.join(paths)}")
    return None


def _number(path: Path) -> int:
    """Returns the number at the end of a checkpoint's name."""
    digits = re.search(r"(\d+)$", path.stem)
    return int(digits[1]) if digits else -1
