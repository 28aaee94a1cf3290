"""Makes one training run from a config, resumable at every epoch."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from svag_tf.callbacks import GradientNoise
from svag_tf.distribution import check_replicas, local_state
from svag_tf.experiments import machine
from svag_tf.experiments.errors import DivergedError
from svag_tf.experiments.files import write_json
from svag_tf.experiments.plots import save_curves
from svag_tf.experiments.problems import PROBLEMS
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.problems.made_of import made_of
from svag_tf.experiments.training.config import TrainingConfig, checked
from svag_tf.experiments.training.console import (
    print_payload,
    print_results,
    title_of,
)
from svag_tf.experiments.training.distributed import started
from svag_tf.experiments.training.preparing import Batches, prepared
from svag_tf.experiments.training.run_folder import (
    Row,
    RunFolder,
    State,
    has_accuracy,
    log_line,
)
from svag_tf.experiments.training.steps import Distribution
from svag_tf.optional import filelock, matplotlib, require

try:  # optional
    import tensorboard  # noqa: F401
    from tensorflow import summary
except ImportError:
    summary = None

EVALUATION_BATCH = 500


def train(
    config: Any,
    workdir: str | os.PathLike[str],
    report: Callable[[Row], None] | None = None,
    data: Data | None = None,
    fresh: bool = False,
) -> list[Row]:
    """Trains as `config` says, or resumes the run in `workdir`.

    Evaluates before training (epoch 0) and after each epoch, on the test set and on as
    many training examples as that has. The same config gives the same numbers, whether
    or not the run was interrupted. Sets the global random seeds and, on the TensorFlow
    backend, switches the process to deterministic operations (unless
    `jit_compile="true"`, with which Keras does not allow them).

    Args:
        config: a `ConfigDict` with the fields of `configs/digits.py`, nested dicts, or
            a checked `TrainingConfig`.
        workdir: folder for the results: `config.json`, `metrics.csv`, `train.log`,
            `curves.png`, `model.keras`, `tensorboard/`, `machine.json` with machine,
            versions and commit of the last start, and `checkpoints/`, from which an
            interrupted run resumes. With `noise.preset` also `noise.csv`, see
            `svag_tf.callbacks.GradientNoise`; make a page of it with
            `python -m svag_tf.report`.
        report: called with the row of every epoch, those of an earlier start first;
            nothing is printed then. Defaults to `None`: a progress bar, a line per
            epoch and a table of results are printed.
        data: the problem's data, if already loaded. Defaults to `None`: it is loaded.
        fresh: delete a run of other data or another model instead of refusing it.
            Defaults to `False`.

    Returns:
        One dict per epoch: `epoch`, `step` (batches so far), `learning_rate` (of the
        epoch's first batch), `train_loss`, `train_accuracy`, `test_loss`,
        `test_accuracy`, `train_seconds` (the batches alone), `seconds` (all). The
        accuracies are NaN if the problem has none.

    Raises:
        ExperimentError: if the config, the data or the workdir cannot be used, before
            anything is written.
        DivergedError: if the training diverges.
        ImportError: before any work, if a package is missing.
    """
    require(filelock, matplotlib)
    config = checked(config)
    folder = RunFolder(workdir)
    with (
        started(config.distribution, config.replicas) as distribution,
        contextlib.ExitStack() as stack,
    ):
        if not distribution.chief:
            # All processes must save together; these discard the result.
            folder = RunFolder(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.check(config)
        data, model = prepared(config, data, distribution)
        found = made_of(
            config.problem, data, model, try_batches=config.distribution == "none"
        )
        state = stack.enter_context(folder.opened(config, found, fresh))
        state = distribution.restore(model, folder, state)
        _train_on(config, folder, state, model, data, report, distribution)
    return state.rows


def _train_on(
    config: TrainingConfig,
    folder: RunFolder,
    state: State,
    model: keras.Model,
    data: Data,
    report: Callable[[Row], None] | None,
    distribution: Distribution,
) -> None:
    epochs = config.epochs
    trained = state.epoch < epochs and not state.diverged
    chief = distribution.chief
    if trained:
        write_json(folder.machine, machine.description())
    if not chief:
        report = _no_report
    if report is None:
        _print_start(folder, state, trained)
    else:
        for row in state.rows:
            report(row)
    with _tensorboard(folder.tensorboard, state.rows, chief) as show:

        def tell(row: Row) -> None:
            show(row)
            if report is None:
                print(log_line(state.rows, epochs), flush=True)
            else:
                report(row)

        recorder = _Recorder(config, folder, state, data, tell, distribution)
        if state.epoch < 0:
            recorder.record(model)
        if trained and not state.diverged:
            distribution.fit(
                model,
                recorder.batches,
                initial_epoch=state.epoch,
                epochs=epochs,
                # The progress bar comes first, so that its line ends before ours.
                callbacks=[
                    *([keras.callbacks.ProgbarLogger()] if report is None else []),
                    keras.callbacks.TerminateOnNaN(),
                    *_noise(config, folder),
                    recorder,
                ],
                verbose=1 if report is None else 0,
            )
    folder.write_tables(state, epochs)
    if chief and (trained or not folder.curves.exists()):
        rate = state.rows[0]["learning_rate"]
        title = f"{title_of(config)} (learning rate {rate:g})"
        save_curves(state.rows, title, folder.curves)
    if state.diverged:
        raise DivergedError(
            f"The training diverged in epoch {state.epoch}: the loss is not finite. "
            "Try a lower optimizer.learning_rate (it was "
            f"{state.rows[-1]['learning_rate']:g}). The epochs so far are in "
            f"{folder.metrics} and {folder.curves}."
        )
    if trained or not distribution.everywhere(model, folder.model.exists()):
        if config.optimizer.use_ema:
            model.optimizer.finalize_variable_values(model.trainable_variables)
        folder.save_model(model, folder.model)
    if report is None:
        print_results(config, folder, state.rows, model)
        print_payload(model)


def _noise(config: TrainingConfig, folder: RunFolder) -> list[GradientNoise]:
    """Returns the callback that measures the gradients' noise, if configured."""
    preset, every = config.noise.preset, config.noise.every
    if preset is None:
        return []
    # The batch size is given because Keras would count padding too.
    return [GradientNoise(every, preset, folder.path, config.batch_size)]


def _no_report(row: Row) -> None:
    """Reports nothing, for workers other than the chief."""


def _print_start(folder: RunFolder, state: State, trained: bool) -> None:
    if state.diverged:
        print(f"The run in {folder.path} has ended.")
    elif not trained:
        print(f"The run in {folder.path} is complete.")
    elif state.epoch >= 0:
        print(f"Resuming the run in {folder.path} after epoch {state.epoch}.")
    if summary is None:
        print(
            "No TensorBoard files: they need the packages tensorflow and tensorboard."
        )


class _Recorder(keras.callbacks.Callback):
    """Sets each epoch's order, and afterwards evaluates and commits the epoch."""

    def __init__(
        self,
        config: TrainingConfig,
        folder: RunFolder,
        state: State,
        data: Data,
        tell: Callable[[Row], None],
        distribution: Distribution,
    ):
        super().__init__()
        self._config, self._folder, self._state = config, folder, state
        self._tell, self._distribution = tell, distribution
        problem = PROBLEMS[config.problem]
        self.batches = Batches(
            data.x_train,
            data.y_train,
            config.batch_size,
            config.seed if problem.streams is None else None,
            problem.prepare_train,
        )
        n = min(len(data.x_train), len(data.x_test))
        size = problem.streams or EVALUATION_BATCH
        self._train_part = Batches(
            data.x_train[:n], data.y_train[:n], size, prepare=problem.prepare_train
        )
        self._test_part = Batches(
            data.x_test, data.y_test, size, prepare=problem.prepare_test
        )
        self._step = state.rows[-1]["step"] if state.rows else 0
        self._start = time.monotonic()
        self._learning_rate = float("nan")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.monotonic()
        self._learning_rate = _learning_rate(self.model)
        self.batches.shuffle(epoch)
        if keras.backend.backend() == "torch":  # its dropout draws from a global stream
            rng = np.random.default_rng([self._config.seed, epoch, 1])
            keras.utils.set_random_seed(int(rng.integers(2**32)))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.record(self.model)
        if self._state.diverged:
            self.model.stop_training = True

    def record(self, model: keras.Model) -> None:
        """Evaluates the model as it is and commits the epoch."""
        trained = time.monotonic() - self._start
        first = not self._state.rows
        with _averaged(model, self._config.optimizer.use_ema and not first):
            train_part = _evaluated(model, self._train_part, self._distribution)
            test_part = _evaluated(model, self._test_part, self._distribution)
        row: Row = {
            "epoch": len(self._state.rows),
            "step": self._step,
            "learning_rate": _learning_rate(model) if first else self._learning_rate,
            "train_loss": float(train_part["loss"]),
            "train_accuracy": float(train_part.get("accuracy", np.nan)),
            "test_loss": float(test_part["loss"]),
            "test_accuracy": float(test_part.get("accuracy", np.nan)),
            "train_seconds": round(0.0 if first else trained, 3),
            "seconds": round(time.monotonic() - self._start, 3),
        }
        self._state.rows.append(row)
        check_replicas(model)
        local = local_state(model)  # From all processes.
        self._folder.commit(self._state, model, self._config.epochs, local)
        self._tell(row)


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _evaluated(
    model: keras.Model, batches: Batches, distribution: Distribution
) -> dict[str, float]:
    """Returns loss and metrics; recurrent layers start and end at zero."""
    _reset_state(model)
    result = distribution.evaluate(model, batches)
    _reset_state(model)
    return result


def _reset_state(model: keras.Model) -> None:
    for layer in model.layers:
        if hasattr(layer, "reset_state"):
            layer.reset_state()


@contextlib.contextmanager
def _averaged(model: keras.Model, averaged: Any) -> Iterator[None]:
    """Gives the model the averages of its weights within it, if `averaged`."""
    if not averaged:
        yield
        return
    kept = [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    yield
    for variable, value in zip(model.trainable_variables, kept, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def _tensorboard(folder: Path, rows: list[Row], chief: bool) -> Iterator[Any]:
    """Writes event files of all epochs, those in `rows` and later ones."""
    if summary is None or not chief:
        yield lambda row: None
        return
    for old in folder.glob("*/events.out.tfevents.*"):
        old.unlink()
    with contextlib.ExitStack() as stack:
        writers = {
            part: stack.enter_context(
                contextlib.closing(summary.create_file_writer(str(folder / part)))
            )
            for part in ("train", "test")
        }

        def show(row: Row) -> None:
            for part, writer in writers.items():
                with writer.as_default(step=row["epoch"]):
                    summary.scalar("loss", row[f"{part}_loss"])
                    if has_accuracy(row):
                        summary.scalar("accuracy", row[f"{part}_accuracy"])
                    if part == "train":
                        summary.scalar("learning_rate", row["learning_rate"])
                writer.flush()

        for row in rows:
            show(row)
        yield show
