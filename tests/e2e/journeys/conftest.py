"""Each journey starts in a fresh folder, and leaves the demo of this checkout as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.journeys import demo_state


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A fresh folder, outside the checkout."""
    before = demo_state()
    yield tmp_path
    assert demo_state() == before, "a journey touched the demo of this checkout"
