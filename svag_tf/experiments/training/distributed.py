"""Joins the devices and processes that train one run together."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import keras

from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.training.steps import Distribution, JaxProcesses, Mirrored

MEET_WITHIN = 300.0  # Seconds that a worker waits for the others.
GO_ON = (
    "Start the same command again on all workers: it resumes after the last finished "
    "epoch."
)
HEARTBEAT_SECONDS = 20  # JAX gives up a worker that is silent for so long.


@contextlib.contextmanager
def started(name: str, replicas: int | None) -> Iterator[Distribution]:
    """Joins the devices and processes that a config names, once per process.

    Raises:
        ExperimentError: if they are not available; later, if another process is gone.
    """
    if name == "none":
        yield Distribution()
    elif name == "jax":
        with _last_words(), _jax(replicas):
            yield JaxProcesses()
    else:
        import tensorflow as tf

        try:
            if name == "mirrored":
                strategy = mirrored_strategy(replicas)
            else:
                strategy = multi_worker_strategy()
            yield Mirrored(strategy)
        except (
            tf.errors.UnavailableError,
            tf.errors.InternalError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
        ) as error:
            if name == "mirrored":
                raise
            raise ExperimentError(_gone(error)) from error


def _gone(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1]
    return (
        f"Another worker stopped or cannot be reached ({type(error).__name__}: "
        f"{' '.join(first)[:200]}). {GO_ON}"
    )


@functools.cache  # Two strategies on the same GPUs break each other's collectives.
def mirrored_strategy(count: int | None) -> Any:
    """Returns a strategy for `count` GPUs or, without GPUs, logical CPUs.

    `None` stands for all GPUs, or 2 logical CPUs; too few of them are an error.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if count is not None and count > len(gpus):
            raise ExperimentError(
                f"replicas must be in [1, {len(gpus)}], the number of GPUs. Received: "
                f"replicas={count}"
            )
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(count)]
                                              if count else None)  # fmt: skip
    count = 2 if count is None else count
    with contextlib.suppress(RuntimeError):  # The devices exist already.
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * count,
        )
    found = len(tf.config.list_logical_devices("CPU"))
    if found < count:
        raise ExperimentError(
            f"replicas={count} is not possible: this process started TensorFlow with "
            f"{found} CPU devices, and their number cannot change. Start a new process."
        )
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)],
        # In one process, not collectives: a second strategy would break them.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def multi_worker_strategy() -> Any:
    """Returns a strategy for the workers in TF_CONFIG; an error if it is not set."""
    import tensorflow as tf

    try:
        cluster = json.loads(os.environ.get("TF_CONFIG", ""))
        workers = cluster["cluster"]
        known = sum(len(workers.get(kind, ())) for kind in ("chief", "worker"))
        task = cluster["task"]["type"], int(cluster["task"]["index"])
        complete = known and task[1] < len(workers[task[0]])
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ExperimentError(
            "distribution=multi_worker needs the environment variable TF_CONFIG, such "
            'as {"cluster": {"worker": ["host1:12345", "host2:12345"]}, "task": '
            '{"type": "worker", "index": 0}}. On one machine, scripts/launch_local.py '
            f"sets it. Received: TF_CONFIG={os.environ.get('TF_CONFIG')!r}"
        )
    gpus = tf.config.list_physical_devices("GPU")
    kind = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kind.NCCL if gpus else kind.RING
    )
    with _deadline(MEET_WITHIN, "Not all workers have come"):
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


@contextlib.contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    """Ends this process with an error on stderr if it stays in the context for so long.

    TensorFlow waits for the other workers in a call that neither a thread of this
    process nor SIGTERM can end. So a second process does it.
    """
    message = f"Error: {what} within {seconds:.0f} s. {GO_ON}"
    code = (
        "import os, select, sys\n"
        "if not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:\n"
        "    print(sys.argv[3], file=sys.stderr, flush=True)\n"
        "    os.kill(int(sys.argv[2]), 9)\n"
    )
    with _watcher(code, str(seconds), str(os.getpid()), message):
        yield


@contextlib.contextmanager
def _watcher(code: str, *arguments: str) -> Iterator[None]:
    """Runs a program beside this one until a byte on its stdin says that all is well.

    If this process ends earlier, the program reads an end of file instead.
    """
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must not end it.
    )
    try:
        yield
    finally:
        process.communicate(b".")


@contextlib.contextmanager
def _jax(count: int | None) -> Iterator[None]:
    import jax

    if count is not None:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    coordinator = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", "").split(",")[0]
    if coordinator and not jax.distributed.is_initialized():
        jax.distributed.initialize(  # As in keras.distribution, with shorter timeouts.
            coordinator,
            int(os.environ["KERAS_DISTRIBUTION_NUM_PROCESSES"]),
            int(os.environ["KERAS_DISTRIBUTION_PROCESS_ID"]),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    devices = keras.distribution.list_devices()
    if jax.process_count() == 1 and count is not None and len(devices) < count:
        raise ExperimentError(
            f"replicas must be in [1, {len(devices)}], the number of JAX's devices. "
            f"Received: replicas={count}"
        )
    before = keras.distribution.distribution()
    everything = keras.distribution.DataParallel(
        devices=devices, auto_shard_dataset=False
    )
    keras.distribution.set_distribution(everything)
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # JAX raises a ValueError too; both begin with a code, "UNKNOWN: ...".
        if jax.process_count() == 1 or not re.match("[A-Z_]+: ", str(error)):
            raise
        atexit.register(_leave)
        raise ExperimentError(_gone(error)) from error
    finally:
        keras.distribution.set_distribution(before)


def _leave() -> None:
    """Ends the process: JAX would wait for the lost worker, then call `abort`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """Says what to do if this process ends without a message.

    JAX calls `abort` if its coordinator, the first process, is gone. So a second
    process waits for a sign that all is well, and prints the message if none comes.
    """
    if "KERAS_DISTRIBUTION_JOB_ADDRESSES" not in os.environ:
        yield
        return
    message = (
        "Error: This worker was ended from outside, or by JAX because another worker "
        f"stopped or cannot be reached. {GO_ON}"
    )
    code = "import sys; sys.stdin.read(1) or sys.exit(sys.argv[1])"
    with _watcher(code, message):
        yield
