"""Shared by the filter's tests."""

import pytest

from tests.support.small_filter import quicken


@pytest.fixture
def quick(monkeypatch):
    """For tests of what a filter run decides; they look at no figure."""
    quicken(monkeypatch)
