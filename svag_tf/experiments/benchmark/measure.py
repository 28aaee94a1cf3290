"""Measures all rows of a case in turns, and each one alone in a new process."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svag_tf.experiments import machine
from svag_tf.experiments.benchmark.cases import (
    Case,
    all_cases,
    scaling_case,
    scaling_sizes,
)
from svag_tf.experiments.benchmark.limit import build_limit
from svag_tf.experiments.benchmark.memory import GIB, REFERENCES, batches
from svag_tf.experiments.benchmark.replicas import benchmark_replicas, setups
from svag_tf.experiments.benchmark.report import write_report
from svag_tf.experiments.benchmark.rows import Row, all_rows
from svag_tf.experiments.benchmark.serving import (
    RowError,
    Server,
    closing_all,
    environment_of,
)
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import writable_folder
from svag_tf.optional import matplotlib, require

BACKENDS = ("tensorflow", "jax")
SCALING_ROWS = ("msvag", "keras-adam", "limit")
# After a parallel loop the threads of a library spin for a few milliseconds.
PAUSE = 0.01
TURN, QUICK_TURN = 0.03, 0.002
REPLICAS_WORK = 15.0  # Seconds that a number of replicas takes.


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        backend: one of `BACKENDS`.
        cases: names; empty for all.
        rows: names; empty for all.
        rounds: turns of every row, at least 1.
        memory_limit: GiB that all rows together may take; None for 3/4 of the
            available memory.
        fresh: whether to measure first step and memory, in new processes.
        scaling: whether to measure time against parameters and, on the TensorFlow
            backend, against devices and processes.
        quick: a trial with small sizes.
        workdir: the folder for the results.
        command: the command line, for the report.
    """

    workdir: Path
    backend: str = "tensorflow"
    cases: Sequence[str] = ()
    rows: Sequence[str] = ()
    rounds: int = 7
    memory_limit: float | None = None
    fresh: bool = True
    scaling: bool = False
    quick: bool = False
    command: str = ""


def benchmark(
    options: Options, report: Callable[[float, float, str], None] = lambda *_: None
) -> dict[str, Any]:
    """Measures, writes the results into the workdir, and returns them.

    Args:
        options: what to measure.
        report: called with the progress: work done, all work, and what comes next.

    Raises:
        ExperimentError: before anything is measured, for an unknown name, a bad number,
            a workdir that cannot be written to, or rows that no case has.
    """
    require(matplotlib)
    cases, rows, skipped = _chosen(options)
    workdir = writable_folder(options.workdir)
    results: dict[str, Any] = {
        "command": options.command,
        "backend": options.backend,
        "quick": options.quick,
        "rounds": options.rounds,
        "machine": machine.description(),
        "cases": {},
        "scaling": {},
        "replicas": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        program, compiled, without = None, None, None
        if not any(row.host == "c" for row in rows):
            without = "not asked for"
        else:
            program, compiled, without = build_limit(Path(folder))
            if without is not None:
                skipped |= {row.name: without for row in rows if row.host == "c"}
                rows = [row for row in rows if row.host != "c"]
        results |= {"compiler": compiled, "no_c_loop": without, "skipped": skipped}
        benchmarker = _Benchmarker(options, program, cases, rows, report)
        try:
            for case in cases:
                results["cases"][case.name] = benchmarker.case(case, rows)
            if options.scaling:
                results["scaling"] = benchmarker.scaling(rows)
                if options.backend == "tensorflow":
                    benchmarker.replicas()
                    results["replicas"] = True
        finally:  # also after an interruption
            results["machine"]["load_at_end"] = machine.load()
            write_report(results, workdir)
    return results


def _chosen(options: Options) -> tuple[list[Case], list[Row], dict[str, str]]:
    if options.backend not in BACKENDS:
        raise ExperimentError(
            f"--backend must be one of {', '.join(BACKENDS)}. "
            f"Received: {options.backend!r}"
        )
    if options.rounds < 1:
        raise ExperimentError(
            f"--rounds must be a whole number, at least 1. Received: {options.rounds}"
        )
    if options.memory_limit is not None and not options.memory_limit > 0:
        raise ExperimentError(
            "--memory_limit must be a number of GiB above 0. "
            f"Received: {options.memory_limit}"
        )
    cases, rows = all_cases(options.quick), all_rows(options.backend)
    _check_names("--cases", options.cases, cases)
    _check_names("--rows", options.rows, rows)
    # Each name once, in the order of the tables.
    chosen = [row for row in rows.values() if row.name in (options.rows or rows)]
    skipped = {row.name: why for row in chosen if (why := row.missing())}
    measured = [row for row in chosen if row.name not in skipped]
    wanted = [case for case in cases.values() if case.name in (options.cases or cases)]
    scaling = options.scaling and any(row.name in SCALING_ROWS for row in measured)
    if not scaling and not any(row.serves(case) for case in wanted for row in measured):
        raise ExperimentError(
            "Nothing to measure: none of the rows has any of the cases. Received: "
            f"cases {', '.join(case.name for case in wanted)}; rows "
            + ", ".join(
                row.name + (f" ({skipped[row.name]})" if row.name in skipped else "")
                for row in chosen
            )
        )
    return wanted, measured, skipped


def _check_names(flag: str, received: Iterable[str], known: Iterable[str]) -> None:
    unknown = [name for name in received if name not in known]
    if unknown:
        raise ExperimentError(
            f"{flag} must name some of: {', '.join(known)}. "
            f"Received: {', '.join(map(repr, unknown))}"
        )


class _Benchmarker:
    def __init__(
        self,
        options: Options,
        program: Path | None,
        cases: list[Case],
        rows: list[Row],
        report: Callable[[float, float, str], None],
    ):
        self.options = options
        self.program = program
        self.report = report
        self.threads = machine.cores()
        self.turn = QUICK_TURN if options.quick else TURN
        limit = options.memory_limit or 0.75 * (machine.available_memory() or 0) / GIB
        self.memory_limit = (limit or 8.0) * GIB
        self.done = 0.0
        self.work = sum(self._case_work(case, rows) for case in cases)
        if options.scaling:
            chosen = [row for row in rows if row.name in SCALING_ROWS]
            sizes = scaling_sizes(options.quick)
            self.work += sum(self._case_work(scaling_case(n), chosen) for n in sizes)
            if options.backend == "tensorflow":
                self.work += REPLICAS_WORK * len(setups(options.quick))

    def case(self, case: Case, rows: list[Row]) -> dict[str, Any]:
        """Measures a case; returns its entry in the results."""
        rows = [row for row in rows if row.serves(case)]
        results: dict[str, dict[str, Any]] = {
            row.name: {"title": row.title, "group": row.group} for row in rows
        }
        groups, errors = batches(case, rows, self.memory_limit)
        times: dict[str, list[float]] = {row.name: [] for row in rows}
        for batch in groups:
            measured = self._interleaved(case, batch, errors)
            medians = {name: statistics.median(s) for name, s in measured.items() if s}
            for name, seconds in measured.items():
                times[name] += seconds
                for reference in REFERENCES:
                    if name in medians and reference in medians:
                        ratio = medians[name] / medians[reference]
                        results[name][f"to_{reference}"] = ratio
        for row in rows:
            result = results[row.name]
            if row.name in errors:
                result["error"] = errors[row.name]
            elif times[row.name]:
                result |= _statistics(times[row.name], row.moved_bytes(case))
                if row.processes(case) and self.options.fresh:
                    result |= self._fresh(case, row)
        return {
            "title": case.title,
            "parameters": case.parameters or None,
            "largest_variable": 4 * case.largest or None,
            "batches": len(groups),
            "rows": results,
        }

    def scaling(self, rows: list[Row]) -> dict[str, Any]:
        """Measures time against parameters: for each row its sizes and times."""
        rows = [row for row in rows if row.name in SCALING_ROWS]
        curves: dict[str, Any] = {
            row.name: {"title": row.title, "parameters": [], "median": []}
            for row in rows
        }
        for parameters in scaling_sizes(self.options.quick):
            results = self.case(scaling_case(parameters), rows)["rows"]
            for row in rows:
                if "median" in results[row.name]:
                    curves[row.name]["parameters"].append(parameters)
                    curves[row.name]["median"].append(results[row.name]["median"])
        return curves

    def replicas(self) -> None:
        """Measures devices and processes; writes replicas.json, .md and .png."""
        options = self.options
        benchmark_replicas(
            options.workdir,
            options.quick,
            options.command,
            lambda line: self._progress(line, REPLICAS_WORK),
        )

    def _interleaved(
        self, case: Case, rows: list[Row], errors: dict[str, str]
    ) -> dict[str, list[float]]:
        """Returns the seconds of rows' steps, in turns, and errors of failed rows."""
        servers: dict[str, Server] = {}
        alive: dict[str, Server] = {}
        times: dict[str, list[float]] = {}
        with closing_all(servers):
            for row in rows:
                self._progress(f"{case.title}: builds {row.title}", 0.0)
                if row.host not in servers:
                    servers[row.host] = self._start(row.host, case)
                try:
                    servers[row.host].first(row.name)
                    alive[row.name] = servers[row.host]
                    times[row.name] = []
                except RowError as error:
                    errors[row.name] = str(error)
                self._progress("", self._build_work(case))
            shuffle = random.Random(0).shuffle
            for number in range(self.options.rounds):
                self._progress(
                    f"{case.title}: round {number + 1} of {self.options.rounds}", 0.0
                )
                order = list(alive)
                shuffle(order)
                for name in order:
                    time.sleep(PAUSE)
                    try:
                        times[name] += alive[name].turn(name, self.turn)
                    except RowError as error:
                        errors[name] = str(error)
                        del alive[name]
                    self._progress("", self._turn_work(case))
        return times

    def _fresh(self, case: Case, row: Row) -> dict[str, Any]:
        """Measures first step (median) and extra memory (least), in new processes."""
        first: list[float] = []
        memory: list[int] = []
        for _ in range(row.processes(case)):
            self._progress(f"{case.title}: first step of {row.title}", 0.0)
            server = self._start(row.host, case)
            with closing_all({row.host: server}):
                try:
                    first.append(server.first(row.name))
                    extra = server.extra_memory(row.name)
                except RowError as error:
                    return {"fresh_error": str(error)}
            if extra is not None:
                memory.append(extra)
            self._progress("", self._fresh_work(case))
        return {
            "first_step": statistics.median(first),
            "extra_memory": min(memory, default=None),
        }

    def _start(self, host: str, case: Case) -> Server:
        quick = "quick" if case.quick else "full"
        environment = {
            **environment_of(host),
            "OMP_NUM_THREADS": str(self.threads),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        if self.options.backend == "tensorflow":  # the limit is for the CPU
            environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        if host == "c":
            gradient = "0" if case.indices else "1"
            command = [str(self.program), str(case.parameters), gradient]
        else:
            module = "svag_tf.experiments.benchmark.worker"
            arguments = [host, case.name, quick, str(self.threads)]
            command = [sys.executable, "-m", module, *arguments]
        return Server(command, environment)

    # Expected seconds, for the progress.

    def _case_work(self, case: Case, rows: list[Row]) -> float:
        rows = [row for row in rows if row.serves(case)]
        groups, _ = batches(case, rows, self.memory_limit)
        built = sum(map(len, groups))
        turns = built * self.options.rounds * self._turn_work(case)
        fresh = sum(row.processes(case) for row in rows)
        fresh *= self.options.fresh
        return built * self._build_work(case) + turns + fresh * self._fresh_work(case)

    def _build_work(self, case: Case) -> float:
        return 1.0 + 0.02 * len(case.shapes) + 2.0 * bool(case.model)

    def _turn_work(self, case: Case) -> float:
        step = 0.1 * case.fit_steps if case.model else 5e-9 * case.parameters
        return PAUSE + max(self.turn, step)

    def _fresh_work(self, case: Case) -> float:
        return 4.0 + 2 * self._build_work(case) + 30e-9 * case.parameters

    def _progress(self, what: str, work: float) -> None:
        self.done += work
        self.report(min(self.done, self.work), self.work, what)


def _statistics(seconds: list[float], moved: int | None) -> dict[str, Any]:
    low, median, high = (
        statistics.quantiles(seconds, n=4, method="inclusive")
        if len(seconds) > 1
        else seconds * 3
    )
    return {
        "steps": len(seconds),
        "low": low,
        "median": median,
        "high": high,
        "bytes": moved,
        "gb_per_second": moved / median / 1e9 if moved else None,
    }
