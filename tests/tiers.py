"""Three tiers of tests: fast, slow and exhaustive; see CONTRIBUTING.md.

`pytest` runs the fast ones. Those marked `slow` check something else, and CI runs them
too. Those marked `exhaustive` are the other cases of tests of which some are fast.
"""

import collections
import zlib

import pytest

# Of the cases of these files one in so many is fast: a sample, always the same.
SAMPLED = {
    "tests/experiments/test_own_problem.py": 3,
    "tests/experiments/test_training.py": 6,
    "tests/optimizers/test_extremes.py": 5,
    "tests/optimizers/test_fit.py": 4,
    "tests/optimizers/test_identities.py": 2,
    "tests/optimizers/test_keras_arguments.py": 3,
    "tests/optimizers/test_restoring.py": 8,
    "tests/optimizers/test_saving.py": 3,
    "tests/optimizers/test_slots.py": 3,
    "tests/optimizers/test_sparse.py": 7,
    "tests/optimizers/test_table.py": 5,
    "tests/optimizers/test_variables.py": 7,
    "tests/test_callbacks.py": 4,
    "tests/test_export.py": 5,
    "tests/test_exported_data.py": 8,
    "tests/test_final_weights.py": 3,
    "tests/test_gradients.py": 2,
    "tests/test_kernels.py": 3,
    "tests/test_native.py": 5,
}


def mark_all_but_a_sample(items):
    """Marks the cases `exhaustive` that are not of the sample.

    Of each test at least one case stays.
    """
    cases = collections.defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for test, of_test in cases.items():
        one_in = SAMPLED.get(test.partition("::")[0], 1)
        numbers = [zlib.crc32(item.nodeid.encode()) for item in of_test]
        for item, number in zip(of_test, numbers, strict=True):
            if number % one_in and number != min(numbers):
                item.add_marker(pytest.mark.exhaustive)


def sampled(fast, cases, ids=None):
    """Cases for `parametrize`, exhaustive but for some.

    Args:
        fast: Function of a case that says whether it is fast; or those that are.
        cases: A list, or a dict for its keys. A tuple holds several arguments.
        ids: As for `parametrize`. Defaults to `None`: pytest's own.
    """
    cases = list(cases)
    is_fast = fast if callable(fast) else fast.__contains__
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if is_fast(case) else pytest.mark.exhaustive,
            id=None if ids is None else ids[i],
        )
        for i, case in enumerate(cases)
    ]
