"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# time limits say more of a busy machine than of the code, and the same examples fail for everyone
settings.register_profile(
    "steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published experimental records that lie beside a checkout; present in CI, not on a user's machine."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the published records are not beside this checkout")
    return folder
