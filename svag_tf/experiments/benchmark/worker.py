"""A server process of one host: `python -m ...worker HOST CASE QUICK THREADS`."""

from __future__ import annotations

import sys

from svag_tf.experiments.benchmark.cases import Case, case_named
from svag_tf.experiments.benchmark.serving import serve


def main(host: str, case: Case, threads: int) -> None:
    """Serves the rows of a host until the input ends."""
    if host == "torch":
        from svag_tf.experiments.benchmark.torch_rows import TorchRows

        serve(TorchRows(case, threads))
        return
    from svag_tf.experiments.benchmark.keras_rows import (
        FitRows,
        UpdateRows,
        tensorflow_meter,
    )

    rows = FitRows(case) if case.model else UpdateRows(case)
    if host == "tensorflow":
        serve(rows, tensorflow_meter)
        return
    from svag_tf.experiments.benchmark.jax_rows import JaxRows, jax_meter

    serve(JaxRows(case, rows), jax_meter)


if __name__ == "__main__":
    host, name, quick, threads = sys.argv[1:]
    main(host, case_named(name, quick == "quick"), int(threads))
