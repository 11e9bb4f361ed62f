"""A table that is given alone: its pictures decide the work, too, and where DVC would not see them it is refused."""

from pathlib import Path

import pytest

from align.errors import DataError
from align.ingest.sources import require_seen_by_dvc
from tests.support.reading import read_all, short, source_at
from tests.support.warc_records import picture

RED, BLUE = picture(3, 2), picture(4, 2, "blue", "JPEG")


def photos(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "unnamed.png"):
        (root / "images" / name).write_bytes(RED)
    (root / "captions.csv").write_text("file,caption\nimages/a.png,red\nb.png,also red\nnone.png,gone\n")
    return root


def test_its_pictures_are_inputs(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    named = [str(root / name) for name in ("captions.csv", "images/a.png", "images/b.png")]
    assert source_at(root / "captions.csv", "source=folder").inputs == named
    for location in (root, root / "captions.csv"):
        assert source_at(location, "source=url_table").inputs == named[:2]  # this one looks for no other names
    web = root / "web.tsv"
    web.write_text("url\tcaption\nhttp://x/a.png\tred\n")
    assert source_at(web, "source=url_table").inputs == [str(web)]


@pytest.mark.parametrize("source", ["folder", "url_table"])
def test_where_dvc_would_not_see_them_it_is_refused(tmp_path: Path, source: str) -> None:
    root = photos(tmp_path / "photos")
    raw = tmp_path / "data/raw"
    table = str(root / "captions.csv")
    with pytest.raises(DataError) as raised:
        require_seen_by_dvc(source_at(table, f"source={source}"), table, raw)
    assert str(raised.value) == (
        f"{table}: DVC would see this alone, and no change of the pictures that it names; give the folder, so that "
        f"DVC sees its pictures: paths.archive: {root}"
    )
    require_seen_by_dvc(source_at(root, f"source={source}"), str(root), raw)
    with pytest.raises(DataError, match=r"put it and its pictures into a folder of their own, .* paths\.archive"):
        require_seen_by_dvc(source_at(table, f"source={source}"), table, root / "data/raw")


def test_a_table_of_addresses_may_be_alone(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url,caption\nhttp://x/a.png,red\n")
    table = str(tmp_path / "t.csv")
    require_seen_by_dvc(source_at(table, "source=url_table"), table, tmp_path / "raw")


def test_flickr_s_own_table_may_be_given_alone(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images/a.png").write_bytes(RED)
    (tmp_path / "captions.txt").write_text("image,caption\na.png,red\na.png,also red\n")
    rows = read_all(tmp_path / "captions.txt", "folder")
    assert short(rows, "url", "text", "bytes") == [("Images/a.png", "red", RED), ("Images/a.png", "also red", RED)]
