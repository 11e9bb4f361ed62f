"""What several test files share: servers, small data, small models."""

import os
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]


def missing(reason: str) -> NoReturn:
    """Skips a test whose tool this machine lacks. With CI=true it fails: there, a skip would hide a missing install."""
    import pytest  # here: the tools that measure our models import this package where there is no pytest

    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)
