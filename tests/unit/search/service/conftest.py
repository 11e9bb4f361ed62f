from pathlib import Path

import pytest

from tests.support import served


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one-coloured pictures and their index."""
    return served.write(tmp_path_factory.mktemp("served"), thumbnail_px=24)
