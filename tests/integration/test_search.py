"""`align index` and `align search` as a user calls them, with the real (untrained) model on real files."""

import json
import shutil

import pytest

from align.cli import main
from align.formats.shards import iter_samples
from tests.support import colour_index, colour_shards, tiny_model
from tests.support.params import PARAMS_FILE, at, sets


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with model and shards, indexed."""
    root = tmp_path_factory.mktemp("world")
    tiny_model.write(root)
    colour_index.write_data(root, root / "reports")
    assert align(root, "index") == 0
    return root


def align(root, verb, *words):
    values = (*at(root, "raw", "shards", "index", "reports", "runtime"), f"paths.finetuned={root / 'model'}")
    return main([verb, "--params", str(PARAMS_FILE), *sets(*values, "index.queries=null"), *words])


def found(root, capsys, *words):
    assert align(root, "search", "--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def test_an_image_finds_itself_and_its_key_does_not(world, tmp_path, capsys):
    sample = next(iter_samples(world / "shards", "test"))
    (tmp_path / "query.jpg").write_bytes(sample.image)
    rows = found(world, capsys, "--image", str(tmp_path / "query.jpg"), "-k", "11")
    assert [row["rank"] for row in rows] == list(range(1, 12))
    # The untrained model confuses shades of a colour, but nothing is nearer than the image itself.
    assert {row["key"]: row["score"] for row in rows}[sample.key] == pytest.approx(rows[0]["score"], abs=1e-5)
    assert sample.key not in [row["key"] for row in found(world, capsys, "--key", sample.key)]


def test_a_text_gives_a_table_and_a_page(world, tmp_path, capsys):
    assert align(world, "search", "a red heart", "-k", "4", "--html", str(tmp_path / "page.html")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "key", "text"]
    assert len(lines) == 5
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "a red heart" in page


def test_plus_and_minus_change_what_an_image_finds(world, capsys):
    alone, plus, minus = (
        [row["score"] for row in found(world, capsys, "--key", "000000000", *words)]
        for words in ((), ("--plus", "a red heart"), ("--minus", "a red heart"))
    )
    assert alone != plus != minus


def test_no_index_another_model_and_other_shards(world, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(world, root)
    page = tmp_path / "page.html"
    shutil.rmtree(root / "shards")
    assert align(root, "search", "--key", "000000000", "-k", "4", "--html", str(page)) == 0  # with thumbnails
    assert page.read_text().count("data:image/jpeg;base64,") == 5
    colour_shards.write(root / "shards", image_px=40)
    assert align(root, "index", "--set", "index.thumbnail_px=0") == 0
    assert align(root, "search", "a red heart", "--html", str(page)) == 0
    colour_shards.write(root / "shards")
    assert align(root, "search", "a red heart", "--html", str(page)) == 1
    assert "has another version of the data than the index" in capsys.readouterr().err
    shutil.rmtree(root / "model")
    tiny_model.write(root, seed=1)
    assert align(root, "search", "a red heart") == 1
    assert "another model" in capsys.readouterr().err
    shutil.rmtree(root / "index")
    assert align(root, "search", "a red heart") == 1
    assert "run `align index` first" in capsys.readouterr().err
