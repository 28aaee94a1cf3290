"""Run by `test_launch.py`: workers that are killed, on TensorFlow or KERAS_BACKEND=jax.

The workers are forked from this process, which has imported everything and computed
nothing: real processes, that start in no time.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
from resuming import outcome

import svag_tf
from svag_tf import distribution
from svag_tf.experiments.training import train as training
from svag_tf.experiments.training.launch import environments, launch

TRAIN = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
FORK = multiprocessing.get_context("fork")
JAX = keras.backend.backend() == "jax"
WITHIN = 600  # Seconds; a few suffice, but a busy machine is not a hang.
FIELDS = {
    "epochs": 3,
    "train_examples": 64,
    "test_examples": 33,
    "batch_size": 15,  # Uneven: 8 and 7.
    "optimizer.name": "msvag" if JAX else "mssd",
}
# After which epochs which worker is killed.
KILLED = ((0, 0), (1, 1)) if JAX else ((0, 0),)
if not JAX:
    FIELDS["epochs"] = 2
    FIELDS["optimizer.aggregation"] = "majority_vote"


def flags(workdir, distribution_name):
    fields = {**FIELDS, "distribution": distribution_name}
    return [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]


def train(arguments):
    """Does what `python scripts/train.py` does."""
    sys.argv = [str(TRAIN), *arguments]
    sys.path.insert(0, str(TRAIN.parent))
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    if JAX:  # An interpreter does this at its end, a fork does not.
        import jax

        jax.distributed.shutdown()


def work(variables, log, target, arguments):
    os.environ.update(variables)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    target(*arguments)


def start(folder, target, arguments, workers=2):
    """Workers as a cluster's scheduler starts them, without supervision."""
    processes = []
    for index, variables in enumerate(environments(workers)):
        order = (variables, folder / f"{index}.log", target, arguments)
        process = FORK.Process(target=work, args=order, daemon=True)
        process.start()
        processes.append(process)
    return processes


def finish(folder, target, *arguments, workers=2):
    for process in start(folder, target, arguments, workers):
        process.join(WITHIN)
        assert process.exitcode == 0, logs(folder)


def logs(folder):
    return "\n".join(log.read_text() for log in folder.glob("*.log"))


def finished_epochs(workdir):
    commits = (workdir / "checkpoints").glob("epoch_*")
    return max((int(path.name.removeprefix("epoch_")) for path in commits), default=-1)


def train_until(epoch, victim, arguments):
    """`train`, but one worker stops after an epoch and waits to be killed."""
    if os.environ["KERAS_DISTRIBUTION_PROCESS_ID"] == str(victim):
        shuffle = training.Batches.shuffle

        def shuffle_or_wait(batches, next_epoch):
            if next_epoch == epoch:
                signal.pause()
            shuffle(batches, next_epoch)

        training.Batches.shuffle = shuffle_or_wait
    train(arguments)


def kill_after(epoch, victim, arguments, workdir, folder):
    """Kills one worker once an epoch is finished; the other one says what to do."""
    processes = start(folder, train_until, (epoch, victim, arguments))
    other = processes[1 - victim]
    try:
        while finished_epochs(workdir) < epoch:
            assert all(p.exitcode is None for p in processes), logs(folder)
            time.sleep(0.02)
        os.kill(processes[victim].pid, signal.SIGKILL)
        other.join(WITHIN)
        assert other.exitcode not in (None, 0)
    finally:
        for process in processes:
            process.kill()
            process.join()
    log = folder / f"{1 - victim}.log"
    end = time.monotonic() + WITHIN
    while "Start the same command again" not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    assert "worker stopped or cannot be reached" in log.read_text()
    assert finished_epochs(workdir) < FIELDS["epochs"]


def check_killed_workers_go_on(folder):
    """The chief, and on JAX the other one later: the result is unchanged."""
    whole, broken = folder / "whole", folder / "broken"
    if JAX:
        finish(folder, train, flags(whole, "jax"))  # As launch does, but forked.
        finish(folder, train, flags(folder / "one", "none"), workers=1)
    else:
        launch(TRAIN, 2, flags(whole, "multi_worker"), folder)
    arguments = flags(broken, "jax" if JAX else "multi_worker")
    for epoch, victim in KILLED:
        kill_after(epoch, victim, arguments, broken, folder)
    finish(folder, train, arguments)


def fit(folder):
    """A user's own program, with no special code for `fit`."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = fitted()
        refused = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        refused.compile(svag_tf.MSVAG(), "mse", steps_per_execution=2)
    try:
        refused.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0)
    except ValueError as error:
        assert "Received: steps_per_execution=2" in str(error), error
    else:
        raise AssertionError("not refused")
    distribution.check_replicas(model)
    name = f"fit-{strategy.cluster_resolver.task_id}.npz"
    np.savez(folder / name, *model.get_weights())


def fitted():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(21, 3)).astype("float32") for _ in "xy")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(svag_tf.MSVAG(0.1, global_clipnorm=0.5), "mse", metrics=["mae"])
    history = model.fit(
        x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(x, y)
    ).history  # The last batch: 3 and 2.
    assert history["val_loss"][-1] < history["val_loss"][0]
    loss, error = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loss, history["val_loss"][-1], rtol=1e-6)
    predicted = model.predict(x, verbose=0)
    np.testing.assert_allclose(abs(predicted - y).mean(), error, rtol=1e-5)
    return model


def main(folder):
    # Makes workers compile fast: they run little.
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    check_killed_workers_go_on(folder)
    if not JAX:
        finish(folder, fit, folder)
    # From here on this process computes, and must not be forked again.
    assert outcome(folder / "broken") == outcome(folder / "whole")
    if JAX:
        one, two = (
            keras.models.load_model(folder / name / "model.keras", compile=False)
            for name in ("one", "whole")
        )
        for a, b in zip(one.get_weights(), two.get_weights()):
            np.testing.assert_allclose(a, b, atol=1e-6)
    else:
        one = fitted()
        for index in range(2):
            with np.load(folder / f"fit-{index}.npz") as two:
                for a, b in zip(one.get_weights(), two.values()):
                    np.testing.assert_allclose(a, b, atol=1e-6)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
