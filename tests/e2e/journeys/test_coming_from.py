"""docs/coming-from.md as it is typed: what users of other tools have, in one project."""

import pyarrow.parquet as pq
import pytest
from webdataset import TarWriter

from tests.support import given_tars, own_model
from tests.support.journeys import travel
from tests.support.small_data import jpeg
from tests.support.web_server import WebServer, response

_LINES = 12
_TEXT = "a group of people waits beside the old river, number"


def write_classes(root):
    """Writes `root/sets/classes` in CLIP_benchmark's layout."""
    folder = root / "sets/classes"
    (folder / "test").mkdir(parents=True)
    (folder / "test/nshards.txt").write_text("1")
    (folder / "classnames.txt").write_text("fox\nowl")
    (folder / "zeroshot_classification_templates.txt").write_text("a picture of a {c}")
    with TarWriter(str(folder / "test/0.tar")) as tar:
        for number in range(8):
            tar.write({"__key__": f"p{number}", "jpg": jpeg(number, 64, 48), "cls": number % 2})


@pytest.mark.journeys
def test_what_users_of_other_tools_type_here(folder):
    own_model.write(folder, 12)
    given_tars.write(folder / "tars", num_tars=4)
    write_classes(folder)
    with WebServer() as server:
        for number in range(_LINES):
            server.routes[f"/{number}.jpg"] = response(jpeg(number, 320, 240))
        (folder / "train.tsv").write_text(
            "".join(f"{_TEXT} {number}\t{server.url(f'/{number}.jpg')}\n" for number in range(_LINES))
        )
        said = travel(folder, "coming-from", "coming-from")
    project = folder / "moved"
    assert f"ingest: {_LINES} pairs of {_LINES} images" in said and "00000.tar" in said.split()
    named = ["url", "caption", "key", "status", "error_message", "width", "height", "sha256"]
    assert set(named) <= set(pq.read_schema(project / "data/raw/00000.parquet").names)
    assert "12 images" in said and (project / "photos.parquet").is_file()
    assert "classes/zero_shot/accuracy" in (project / "measured/metrics.json").read_text()
    assert (project / "for-open-clip/open_clip_config.json").is_file()
