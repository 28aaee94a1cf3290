"""Finds which rows of a case fit in memory at once."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from svag_tf.experiments.benchmark.cases import Case
from svag_tf.experiments.benchmark.rows import LARGE, Row
from svag_tf.experiments.machine import cores

GIB = 2**30
# The references of ratios; measured in every batch with room for them.
REFERENCES = ("limit", "keras-adam")
# Memory of a process's libraries, and of a fitted model.
LIBRARIES, MODEL, LARGE_MODEL = 0.8 * GIB, 0.25 * GIB, 1.0 * GIB
# Temporary bytes of a step per parameter of the variables being updated, from the
# column "extra MiB"; other rows need almost none.
TEMPORARIES = {
    "msvag-portable": 28,
    "plain": 12,
    "keras-adam": 8,
    "keras-sgd": 8,
    "keras-lion": 8,
    "torch-adamw-foreach": 12,
    "torch-msvag": 12,
}


def batches(
    case: Case, rows: Sequence[Row], limit: float
) -> tuple[list[list[Row]], dict[str, str]]:
    """Puts rows into batches, each of which fits into `limit` bytes of memory at once.

    Returns:
        The batches, each with the references if those fit beside another row; and, by
        name, why a row is in no batch.
    """
    references = [row for row in rows if row.name in REFERENCES]
    if references and footprint(case, references) > limit:
        references = []
    result: list[list[Row]] = [list(references)]
    too_large = {}
    for row in rows:
        if row in references:
            continue
        for others in (result[-1], references, []):
            if footprint(case, [*others, row]) <= limit:
                if others is result[-1]:
                    others.append(row)
                else:
                    result.append([*others, row])
                break
        else:
            too_large[row.name] = (
                f"It would take {footprint(case, [row]) / GIB:.1f} GiB; the memory "
                f"limit is {limit / GIB:.1f} GiB."
            )
    if len(result) > 1 and result[0] == references:  # nothing beside them
        covered = any(set(references) <= set(batch) for batch in result[1:])
        result = result[1:] if covered else result
    return [batch for batch in result if batch], too_large


def footprint(case: Case, rows: Sequence[Row]) -> float:
    """Returns the bytes that rows of a case are expected to take at once."""
    hosts = {row.host for row in rows} - {"c"}
    if case.model:
        each = LARGE_MODEL if case.model in LARGE else MODEL
        return LIBRARIES * len(hosts) + each * len(rows)
    held = 0
    for row in rows:
        if row.host != "c":
            held += (4 + row.state) * case.parameters
        if row.name == "msvag-dense":
            held += 4 * case.parameters
    held += 4 * case.parameters * len(hosts)  # the gradients
    held += (
        16 * case.parameters * any(row.host == "c" for row in rows)
    )  # the four vectors of limit.c
    temporary = max(TEMPORARIES.get(row.name, 0) * _in_work(case, row) for row in rows)
    return LIBRARIES * len(hosts) + held + temporary


def _in_work(case: Case, row: Row) -> int:
    """Returns the parameters of the variables that are updated at the same time."""
    if row.host == "torch":  # foreach: all
        return case.parameters
    return sum(heapq.nlargest(cores(), map(math.prod, case.shapes)))
