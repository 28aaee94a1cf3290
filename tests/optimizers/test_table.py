"""Every method x beta x mode x dtype x {dense, sparse} against the oracle."""

import functools
import itertools

import pytest
import table

CASES = tuple(itertools.product(table.DTYPES, (False, True)))
# An eager step of eight variables takes tens of ms, a traced one takes one.
STEPS = {"eager": 40, "graph": table.STEPS, "xla": table.STEPS}


@functools.cache
def record(variant, beta, mode):
    """One optimizer runs all dtypes, dense and sparse, as variables side by side."""
    return dict(zip(CASES, table.run(variant, beta, mode, CASES, STEPS[mode])))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", table.DTYPES)
@pytest.mark.parametrize("mode", table.MODES)
@pytest.mark.parametrize("beta", table.BETAS)
@pytest.mark.parametrize("variant", table.VARIANTS)
def test_agrees_with_the_oracle(variant, beta, mode, dtype, sparse):
    actual = record(variant, beta, mode)[dtype, sparse]
    table.compare(actual, variant, beta, dtype, sparse)


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_agrees_in_eager_mode_over_all_steps(variant):
    table.check(variant, 0.9, "eager")


@pytest.mark.parametrize("variant", table.VARIANTS)
def test_agrees_op_by_op(variant):
    """Without the kernels that XLA compiles."""
    records = table.run(variant, 0.9, "graph", CASES, jit_compile=False)
    for (dtype, sparse), actual in zip(CASES, records):
        table.compare(actual, variant, 0.9, dtype, sparse)
