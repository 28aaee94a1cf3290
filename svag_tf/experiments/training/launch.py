"""Starts, watches and stops several processes of one training on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from svag_tf.experiments.errors import ExperimentError

STOP_SECONDS = 10.0
SHOWN_LINES = 15


def environments(workers: int) -> list[dict[str, str]]:
    """Returns each process's environment, with free ports of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for one in sockets:
            one.bind(("localhost", 0))
        hosts = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    return [
        {
            "TF_CONFIG": json.dumps(
                {
                    "cluster": {"worker": hosts},
                    "task": {"type": "worker", "index": index},
                }
            ),
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": hosts[0],
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(workers),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
        for index in range(workers)
    ]


def launch(
    script: str | os.PathLike[str],
    workers: int,
    flags: Sequence[str],
    logdir: str | os.PathLike[str],
) -> None:
    """Runs a training script in several processes; returns when all are done.

    The first worker's output is shown as well as logged. As soon as one worker fails,
    all others are stopped, by force if needed.

    Args:
        script: `scripts/train.py`, or one that takes its flags.
        workers: number of processes, at least 1.
        flags: the script's flags. --config.distribution defaults to `multi_worker`,
            or `jax` with KERAS_BACKEND=jax.
        logdir: folder for the logs, `worker-0.log`, `worker-1.log`, ...

    Raises:
        ExperimentError: if a worker fails, with the end of its log.
    """
    if workers < 1:
        raise ExperimentError(
            f"workers must be a whole number >= 1. Received: workers={workers}"
        )
    flags = list(flags)
    if not any(flag.startswith("--config.distribution") for flag in flags):
        jax = os.environ.get("KERAS_BACKEND") == "jax"
        flags.append(f"--config.distribution={'jax' if jax else 'multi_worker'}")
    folder = Path(logdir)
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"worker-{index}.log" for index in range(workers)]
    with _started(script, workers, flags, logs) as processes, logs[0].open() as shown:
        while True:
            codes = [p.poll() for p in processes]
            print(shown.read(), end="", flush=True)
            failed = {code: i for i, code in enumerate(codes) if code}
            if failed:
                break
            if None not in codes:
                return
            time.sleep(0.1)
    # If one is killed, others may have ended because of it: blame the first.
    code, index = min(failed.items())
    lines = logs[index].read_text(errors="replace").splitlines()[-SHOWN_LINES:]
    raise ExperimentError(
        f"Worker {index} {_ending(code)}; the others were stopped. "
        f"The end of {logs[index]}:\n" + "\n".join(f"  {line}" for line in lines)
    )


@contextlib.contextmanager
def _started(
    script: str | os.PathLike[str], workers: int, flags: list[str], logs: list[Path]
) -> Iterator[list[subprocess.Popen]]:
    """Yields the processes; none is left at the end, whatever happens."""
    processes: list[subprocess.Popen] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for environment, log in zip(environments(workers), logs):
            with log.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, os.fspath(script), *flags],
                    env={**os.environ, **environment},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        signal.signal(signal.SIGTERM, before)


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"
