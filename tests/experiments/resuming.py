"""Ends runs at a chosen moment, and collects what must be the same afterwards."""

import os

import keras

from svag_tf.experiments.training.run_folder import RunFolder


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def kill_at_replacement(monkeypatch, number, after):
    """Ends the run before or after its `number`-th file is put in place."""
    replace, count = os.replace, iter(range(10**6))

    def replacement(*arguments):
        kill = next(count) == number
        if kill and not after:
            raise Killed
        replace(*arguments)
        if kill:
            raise Killed

    monkeypatch.setattr(os, "replace", replacement)


def outcome(folder):
    """Returns what must be the same however often a run was interrupted."""
    state = RunFolder(folder).ended()
    model = keras.models.load_model(folder / "model.keras", compile=False)
    return (
        (folder / "metrics.csv").read_bytes(),
        state.values_sha256,
        state.random,
        [v.tobytes() for v in model.get_weights()],
    )
