"""Measures the cost of an optimizer step, compared with peers and the memory's limit.

    python scripts/benchmark.py
    python scripts/benchmark.py --cases=matrices,tiny --rows=msvag,keras-adam,limit
    python scripts/benchmark.py --targets     # what the targets compare, 15 minutes
    python scripts/benchmark.py --backend=jax
    python scripts/benchmark.py --scaling     # also against parameters and devices
    python scripts/benchmark.py --replicas    # devices and processes alone
    python scripts/benchmark.py --fill=docs/kernels.md --workdir=docs/benchmark

Writes benchmark.json, benchmark.md and plots into the workdir; docs/benchmarks.md
says how to read them. Exit code: 0 if all is measured, else not 0.
"""

from pathlib import Path

import command
from absl import flags

_CASES = flags.DEFINE_list("cases", [], "Names of cases. Default: all.")
_ROWS = flags.DEFINE_list("rows", [], "Names of rows, the methods. Default: all.")
_TARGETS = flags.DEFINE_bool(
    "targets", False, "Only the cases and rows that the targets compare."
)
_BACKEND = flags.DEFINE_string("backend", "tensorflow", "tensorflow or jax.")
_ROUNDS = flags.DEFINE_integer("rounds", None, "Turns of every row. Default: 7.")
_MEMORY_LIMIT = flags.DEFINE_float(
    "memory_limit",
    None,
    "GiB that may be taken; rows that do not fit at once take turns in batches. "
    "Default: 3/4 of what is available.",
)
_FRESH = flags.DEFINE_bool(
    "fresh", True, "Measure first step and extra memory, in new processes."
)
_SCALING = flags.DEFINE_bool(
    "scaling", False, "Also: time against parameters, and what --replicas measures."
)
_REPLICAS = flags.DEFINE_bool(
    "replicas",
    False,
    "Alone: step time and bytes exchanged on several devices and processes. Writes "
    "replicas.json, replicas.md and replicas.png.",
)
_FILL = flags.DEFINE_list(
    "fill",
    [],
    "Alone: files whose marked tables are filled from the workdir's benchmark.json.",
)
_QUICK = flags.DEFINE_bool("quick", False, "Small sizes: to try the command.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")


def main() -> None:
    from svag_tf.experiments.benchmark.console import benchmark_with_progress
    from svag_tf.experiments.benchmark.documents import fill
    from svag_tf.experiments.benchmark.measure import Options
    from svag_tf.experiments.benchmark.targets import needed

    if _FILL.value:
        fill(Path(_WORKDIR.value), _FILL.value)
        return
    if _REPLICAS.value:
        from svag_tf.experiments.benchmark.replicas import benchmark_replicas

        benchmark_replicas(_WORKDIR.value, _QUICK.value, command.LINE, report=print)
        print(f"Results: {Path(_WORKDIR.value) / 'replicas.md'}")
        return
    cases, rows = needed() if _TARGETS.value else (_CASES.value, _ROWS.value)
    rounds = (2 if _QUICK.value else 7) if _ROUNDS.value is None else _ROUNDS.value
    benchmark_with_progress(
        Options(
            workdir=Path(_WORKDIR.value),
            backend=_BACKEND.value,
            cases=cases,
            rows=rows,
            rounds=rounds,
            memory_limit=_MEMORY_LIMIT.value,
            fresh=_FRESH.value,
            scaling=_SCALING.value,
            quick=_QUICK.value,
            command=command.LINE,
        )
    )


if __name__ == "__main__":
    command.run(main)
