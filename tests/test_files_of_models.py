"""Fine-tuning: files between models that are not the same; see `restoring_checks`."""

import pytest
import restoring_checks
from tiers import sampled

FAST = (restoring_checks.check_frozen_and_unfrozen,)


@pytest.mark.parametrize(
    "check", sampled(FAST, restoring_checks.CHECKS), ids=lambda c: c.__name__[6:]
)
def test_on_tensorflow(check, tmp_path):
    check(str(tmp_path))
