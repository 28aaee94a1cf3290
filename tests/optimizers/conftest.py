"""Which of these tests are exhaustive: see CONTRIBUTING.md."""

import pytest

# One without slots, the main method, and a sign method with an adaptation. The fast
# ones of `test_table.py` compare all methods with the oracle.
FAST = ("ssd", "msvag", "msvas_gaussian")


def pytest_collection_modifyitems(items):
    """Marks tests over all methods as exhaustive, except for a few methods."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is None or item.path.parent.name != "optimizers":
            continue
        variant = parameters.params.get("variant")
        if item.path.stem != "test_table" and variant not in (None, *FAST):
            item.add_marker(pytest.mark.exhaustive)
