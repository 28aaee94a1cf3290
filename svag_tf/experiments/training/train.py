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
from rich.console import Console
from rich.table import Table

from svag_tf.callbacks import GradientNoise
from svag_tf.distribution import check_replicas, local_state
from svag_tf.experiments.errors import DivergedError, ExperimentError
from svag_tf.experiments.optimizers import build_optimizer
from svag_tf.experiments.plots import save_curves
from svag_tf.experiments.problems import PROBLEMS, Prepare, checks
from svag_tf.experiments.problems.data import Data
from svag_tf.experiments.problems.made_of import made_of
from svag_tf.experiments.training.config import JIT_COMPILE, TrainingConfig, checked
from svag_tf.experiments.training.distributed import Distribution, started
from svag_tf.experiments.training.run_folder import (
    Row,
    RunFolder,
    State,
    has_accuracy,
    log_line,
)
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
            `curves.png`, `model.keras`, `tensorboard/`, and `checkpoints/`, from
            which an interrupted run resumes. With `noise.preset`
            also `noise.csv`, see `svag_tf.callbacks.GradientNoise`; make a page of it
            with `python -m svag_tf.report`.
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
    with started(config) as distribution, contextlib.ExitStack() as stack:
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


def prepared(
    config: TrainingConfig,
    data: Data | None = None,
    distribution: Distribution | None = None,
) -> tuple[Data, keras.Model]:
    """Returns the data and the new, compiled model of a run; sets the global seeds.

    Args:
        config: a checked one.
        data: the problem's data, if already loaded. Defaults to `None`: it is loaded.
        distribution: where the model is to be trained. Defaults to `None`: on one
            device.

    Raises:
        ExperimentError: if one of them cannot be made.
    """
    data = _selected(config, data)
    steps = len(data.x_train) // config.batch_size
    return data, _build_model(config, steps, distribution or Distribution())


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
        title = f"{_title(config)} (learning rate {rate:g})"
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
        _print_results(config, folder, state.rows, _parameters(model))
        _print_exchanged(model)


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


class Batches(keras.utils.PyDataset):
    """Batches of arrays that depend only on a seed, the epoch and their number.

    Args:
        x: inputs, shape (n, ...).
        y: labels, shape (n, ...).
        batch_size: examples in a batch.
        seed: None for the given order and a last batch that may be smaller; a number
            for shuffled batches of equal size, the remainder left out.
        prepare: takes the inputs of a batch and a random generator, returns the model's
            inputs; None for the inputs themselves.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        prepare: Prepare | None = None,
    ):
        super().__init__()
        self._x, self._y, self._batch_size, self._seed = x, y, batch_size, seed
        self._prepare = prepare
        self._order = np.arange(len(x))
        self._epoch = 0

    def shuffle(self, epoch: int) -> None:
        """Takes the order of epoch 0, 1, 2, ...; without a seed it never changes."""
        self._epoch = epoch
        if self._seed is not None:
            rng = np.random.default_rng([self._seed, epoch])
            self._order = rng.permutation(len(self._x))

    def __len__(self) -> int:
        whole, rest = divmod(len(self._x), self._batch_size)
        return whole + (self._seed is None and rest > 0)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.part(index, slice(None))

    def size(self, index: int) -> int:
        """Returns the number of examples in batch 0, 1, 2, ..."""
        return min(self._batch_size, len(self._x) - index * self._batch_size)

    def part(self, index: int, positions: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples at some positions, as they are in the whole batch."""
        start = index * self._batch_size
        chosen = self._order[start : start + self._batch_size]
        y = self._y[chosen[positions]]
        if self._prepare is None:
            return self._x[chosen[positions]], y
        # The last number separates this from other streams of the same seed and epoch.
        key = [self._seed or 0, self._epoch, index, 2]
        x = self._prepare(self._x[chosen], np.random.default_rng(key))
        return x[positions], y


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


def _selected(config: TrainingConfig, data: Data | None) -> Data:
    """Returns the examples that the config selects."""
    problem = PROBLEMS[config.problem]
    if data is None:
        data = checks.load(config.problem, problem, config.data_dir)
    train, test = config.train_examples, config.test_examples
    for name, limit, n in (
        ("train_examples", train, len(data.x_train)),
        ("test_examples", test, len(data.x_test)),
    ):
        if limit is not None and limit > n:
            raise ExperimentError(
                f"{name} must not exceed the {n} examples of '{config.problem}'. "
                f"Received: {name}={limit}"
            )
    data = Data(
        data.x_train[:train], data.y_train[:train],
        data.x_test[:test], data.y_test[:test],
    )  # fmt: skip
    if config.batch_size > len(data.x_train):
        raise ExperimentError(
            f"batch_size must be in [1, {len(data.x_train)}], the number of training "
            f"examples. Received: batch_size={config.batch_size}"
        )
    if problem.streams is not None:
        train, test = (
            len(x) // problem.streams * problem.streams
            for x in (data.x_train, data.x_test)
        )
        if test == 0:
            raise ExperimentError(
                f"test_examples must be at least {problem.streams}, the batch size of "
                f"'{config.problem}'. Received: "
                f"test_examples={config.test_examples}"
            )
        data = Data(
            data.x_train[:train], data.y_train[:train],
            data.x_test[:test], data.y_test[:test],
        )  # fmt: skip
    return data


def _build_model(
    config: TrainingConfig, steps_per_epoch: int, distribution: Distribution
) -> keras.Model:
    jit_compile = JIT_COMPILE[config.jit_compile]
    keras.utils.set_random_seed(config.seed)
    if keras.backend.backend() == "tensorflow" and jit_compile is not True:
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    problem = PROBLEMS[config.problem]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.dtype_policy)
    try:
        with distribution.scope():
            model = checks.build(config.problem, problem)
            distribution.prepare(model, config.batch_size)
            optimizer = build_optimizer(
                config.optimizer,
                config.schedule,
                config.epochs,
                steps_per_epoch,
            )
            model.compile(
                optimizer=distribution.optimizer(optimizer, config.dtype_policy),
                loss=checks.loss(config.problem, problem),
                jit_compile=jit_compile,
                **distribution.metrics(["accuracy"] if problem.accuracy else []),
            )
            model.optimizer.build(model.trainable_variables)
    finally:
        keras.config.set_dtype_policy(before)
    if jit_compile is True and not model.jit_compile:
        raise ExperimentError(
            "jit_compile='true' is not possible: Keras does not compile this model in "
            "this process. Use jit_compile='auto'."
        )
    return model


def _learning_rate(model: keras.Model) -> float:
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def _parameters(model: keras.Model) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


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


def _title(config: TrainingConfig) -> str:
    return f"{config.problem}, {config.optimizer.name}"


def _print_exchanged(model: keras.Model) -> None:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    payload = getattr(optimizer, "exchanged", None)
    if payload is None:
        return
    n = model.distribute_strategy.num_replicas_in_sync
    print(
        f"{n} replicas; each puts {payload.bytes:,} bytes into the exchange of a "
        f"step, {8 * payload.bytes / payload.parameters:.1f} bits a parameter, and in "
        f"a ring sends {2 * (n - 1) / n * payload.bytes:,.0f}"
    )


def _print_results(
    config: TrainingConfig, folder: RunFolder, rows: list[Row], parameters: int
) -> None:
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
    table = Table(title=_title(config))
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
