"""What several test files share: servers, small data, small models."""

import os
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]


def wait_until(true, timeout_s=240, *, alive=lambda: True, says=str, pause_s=0.1):
    """Asks again and again for what came true; fails, with what `says` returns, once time is up or what should live
    does not.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := true()):
        assert alive() and time.monotonic() < deadline, says()
        time.sleep(pause_s)
    return found


def answers(url):
    """Whether a server answers, with 200, at this address."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def missing(reason):
    """Skips a test whose tool this machine lacks. With CI=true it fails: there, a skip would hide a missing install."""
    import pytest  # here: the tools that measure our models import this package where there is no pytest

    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)
