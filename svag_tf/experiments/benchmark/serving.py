"""A process that serves rows: it makes steps on request.

A request is a line on the standard input, its answer a line of JSON on the standard
output:

    first ROW            builds the row, makes its first step: {"seconds": [s]}
    turn ROW SECONDS     makes steps, at least one, for so long: {"seconds": [s, ...]}
    memory ROW           makes steps, measures their memory: {"bytes": n or null}

A request that fails is answered with {"error": "..."}. The end of the input ends the
process. `limit.c` serves the same requests, without "memory".
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import svag_tf

# Makes one step, waits until it is done, and returns the seconds that it took.
Step = Callable[[], float]


# Called before some steps; returns a function to call after them, which gives the bytes
# by which the memory in use rose in between; None if unknown.
Meter = Callable[[], Callable[[], int | None]]


class RowError(Exception):
    """A row that cannot be measured. The message says why."""


def timed(step: Callable[[], object]) -> Step:
    """Returns a timed step; it must be done when `step` returns."""

    def run() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return run


def serve(build: Callable[[str], Step], meter: Meter = lambda: lambda: 0) -> None:
    """Serves until the input ends.

    `build` returns the step of the row of a name, and `meter` measures the memory of
    the library's own allocator.
    """
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        verb, name, *rest = line.split()
        answer: dict[str, Any]
        try:
            if verb == "first":
                steps[name] = build(name)
                answer = {"seconds": [steps[name]()]}
            elif verb == "turn":
                answer = {"seconds": _turn(steps[name], float(rest[0]))}
            else:
                answer = {"bytes": _extra_memory(steps[name], meter)}
        except Exception as error:  # the next row may still work
            steps.pop(name, None)
            answer = {"error": f"{type(error).__name__}: {_cause(error)}"}
        print(json.dumps(answer), file=answers, flush=True)


def _cause(error: Exception) -> str:
    """Returns the message in one line; of TensorFlow's long traces, the end."""
    text = str(error).strip()
    if text.startswith("in user code"):
        text = text.splitlines()[-1]
    return " ".join(text.split())[:400]


def _turn(step: Step, seconds: float) -> list[float]:
    gc.collect()
    gc.disable()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        times.append(step())
    gc.enable()
    return times


def _extra_memory(step: Step, meter: Meter) -> int | None:
    """Returns by how many bytes memory rises in three steps, above that between them.

    Takes resident memory, or the allocator's own count if that is more: memory freed
    into a pool stays resident. None if neither is known (resident memory needs Linux
    and glibc).
    """
    for _ in range(2):
        step()
    gc.collect()
    try:
        # Return freed memory to the system, or the next step would reuse it.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the present
        before = _status_kilobytes("VmRSS")
        risen = meter()
        for _ in range(3):
            step()
        given_out = risen()
        peak = _status_kilobytes("VmHWM")
    except (AttributeError, OSError):
        return None
    return None if given_out is None else max((peak - before) * 1024, given_out)


def _status_kilobytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def environment_of(backend: str) -> dict[str, str]:
    """Returns environment variables for a process that imports this package."""
    paths = [str(Path(svag_tf.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


class Server:
    """A process that serves rows, seen from the outside."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def first(self, row: str) -> float:
        """Builds a row and returns the seconds of its first step."""
        return self._ask(f"first {row}")["seconds"][0]

    def turn(self, row: str, seconds: float) -> list[float]:
        """Returns the seconds of a row's steps, at least one, made for so long."""
        return self._ask(f"turn {row} {seconds}")["seconds"]

    def extra_memory(self, row: str) -> int | None:
        """Returns the bytes that a row's steps need temporarily; None if unknown."""
        return self._ask(f"memory {row}")["bytes"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _ask(self, request: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise RowError(self._how_it_ended())
        result = json.loads(answer)
        if "error" in result:
            raise RowError(result["error"])
        return result

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = [line for line in self._errors.read().splitlines() if line.strip()][-1:]
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        memory = " (out of memory?)" if code == -9 else ""
        return f"The process ended with {how}{memory}. {''.join(last).strip()}".strip()


@contextlib.contextmanager
def closing_all(servers: dict[str, Server]) -> Iterator[None]:
    """Closes, at the end, the servers that are then in the dict."""
    try:
        yield
    finally:
        for server in servers.values():
            server.close()
