import pytest

from tests.support import colour_index


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    """Shards of one-coloured pictures and their index."""
    root = tmp_path_factory.mktemp("served")
    colour_index.build(root, thumbnail_px=24, pages={"000000002": None})
    return root
