"""Marks the cases of large tests `slow`, but for a few: see CONTRIBUTING.md.

What is slow is left out unless it is asked for with `-m slow`, as .ci/run does.
"""

import pytest


def slow_but(fast, cases, ids=None):
    """Cases for `parametrize`, slow but for some.

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
            marks=() if is_fast(case) else pytest.mark.slow,
            id=None if ids is None else ids[i],
        )
        for i, case in enumerate(cases)
    ]
