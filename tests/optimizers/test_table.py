"""Every method x beta x mode x dtype x {dense, sparse} against the oracle."""

import functools
import itertools

import pytest
import table
from tiers import sampled

# An eager step of eight variables takes tens of ms, a traced one takes one.
STEPS = {"eager": 25, "graph": table.STEPS, "xla": table.STEPS}


def cases(beta):
    """(dtype, sparse) pairs; half precision with the beta that it cannot hold."""
    dtypes = table.DTYPES if beta == 0.999 else ("float32", "float64")
    return tuple(itertools.product(dtypes, (False, True)))


@functools.cache
def record(variant, beta, mode):
    """One optimizer runs all its cases, as variables side by side."""
    records = table.run(variant, beta, mode, cases(beta), STEPS[mode])
    return dict(zip(cases(beta), records))


ROWS = [
    pytest.param(
        *(variant, beta, mode, dtype, sparse),
        id=f"{variant}-{beta}-{mode}-{dtype}-{'sparse' if sparse else 'dense'}",
        # Fast: all of M-SVAG, and of the others one beta in a graph.
        marks=()
        if variant == "msvag" or (beta, mode) == (0.9, "graph")
        else pytest.mark.exhaustive,
    )
    for variant in table.VARIANTS
    for beta in table.BETAS
    for mode in table.MODES
    for dtype, sparse in cases(beta)
]


@pytest.mark.parametrize("variant, beta, mode, dtype, sparse", ROWS)
def test_agrees_with_the_oracle(variant, beta, mode, dtype, sparse):
    actual = record(variant, beta, mode)[dtype, sparse]
    table.compare(actual, variant, beta, dtype, sparse)


@pytest.mark.parametrize("variant", sampled(["msvag"], table.VARIANTS))
def test_agrees_in_eager_mode_over_all_steps(variant):
    table.check(variant, 0.9, "eager")


@pytest.mark.parametrize("variant", sampled(["msvag", "svag"], table.VARIANTS))
def test_agrees_op_by_op(variant):
    """Without the kernels that XLA compiles."""
    beta = 0.999
    records = table.run(variant, beta, "graph", cases(beta), jit_compile=False)
    for (dtype, sparse), actual in zip(cases(beta), records):
        table.compare(actual, variant, beta, dtype, sparse)
