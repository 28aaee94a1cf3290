"""A server process of one host: `python -m ...worker HOST CASE QUICK THREADS`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from svag_tf.experiments.benchmark.cases import Case, case_named
from svag_tf.experiments.benchmark.serving import Step, serve


def _builder(host: str, case: Case, threads: int) -> Callable[[str], Step]:
    if host == "torch":
        from svag_tf.experiments.benchmark.torch_rows import TorchRows

        return TorchRows(case, threads)
    from svag_tf.experiments.benchmark.keras_rows import FitRows, UpdateRows

    rows = FitRows(case) if case.model else UpdateRows(case)
    if host == "tensorflow":
        return rows
    from svag_tf.experiments.benchmark.jax_rows import JaxRows

    return JaxRows(case, rows)


if __name__ == "__main__":
    host, name, quick, threads = sys.argv[1:]
    serve(_builder(host, case_named(name, quick == "quick"), int(threads)))
