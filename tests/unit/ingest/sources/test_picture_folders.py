"""img2dataset's tables without a tar: none is left out without a word, and their pictures decide the key."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.sources import open_source
from align.services.files.files import StoreFiles
from tests.support.local_store import config
from tests.support.params import load_params
from tests.support.reading import rows_of, source_at
from tests.support.tars import tar
from tests.support.warc_records import picture

RED, BLUE = picture(3, 2), picture(4, 2, "blue", "JPEG")


def table(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"url": ["http://x/0", "http://x/1"], "caption": ["a", "b"], "key": ["0", "1"], "status": ["success"] * 2}
    pq.write_table(pa.table({name: value for name, value in {**columns, **changes}.items() if value}), path)
    return path


def of_tar(folder: Path) -> None:
    table(folder / "00000.parquet")
    tar(folder / "00000.tar", {"0.jpg": BLUE, "1.jpg": RED})


def of_files(folder: Path) -> None:
    table(folder / "00000.parquet")
    (folder / "00000").mkdir()
    (folder / "00000/0.jpg").write_bytes(BLUE)
    (folder / "00000/1.jpg").write_bytes(RED)


def names(root: Path, location: object) -> list[str]:
    return [str(Path(file).relative_to(root)) for file in source_at(location, "source=shards").files]


def test_folders_of_pictures_are_read_beside_those_of_tars(tmp_path: Path) -> None:
    of_tar(tmp_path / "a")
    of_files(tmp_path / "c")
    assert names(tmp_path, tmp_path) == ["a/00000.tar", "c/00000.parquet"]
    assert len([row for row in rows_of(source_at(tmp_path, "source=shards"))[0] if row["file"]]) == 4


@pytest.mark.parametrize("evidence", ["columns", "statistics", "folder", "damage"])
def test_a_tar_that_is_lost_in_another_folder_is_named(tmp_path: Path, evidence: str) -> None:
    of_tar(tmp_path / "a")
    lost = table(
        tmp_path / "b/00000.parquet", status=["success"] * 2 if evidence in ("columns", "statistics") else None
    )
    if evidence == "statistics":
        lost = lost.rename(lost.with_name("all.parquet"))
        lost.with_name("all_stats.json").write_text("{}")
    elif evidence == "folder":
        lost.with_suffix("").mkdir()
        (lost.with_suffix("") / "0.jpg").write_bytes(RED)
    elif evidence == "damage":
        lost.write_bytes(lost.read_bytes()[:-9])
    says = {"folder": "no column 'status'", "damage": "not a readable parquet file"}.get(evidence, r"\.tar: missing")
    with pytest.raises(DataError, match=rf"b/.*{says}"):
        rows_of(source_at(tmp_path, "source=shards"))


def test_tables_that_are_left_out_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_tar(tmp_path / "a")
    table(tmp_path / "urls/00000.parquet", key=None, status=None)
    for number in range(12):
        table(tmp_path / f"metadata/of-{number:02d}.parquet")
    assert names(tmp_path, tmp_path) == ["a/00000.tar"]
    said = capsys.readouterr().err
    assert f"{tmp_path}: 13 tables left out: they have no tar, nor are they img2dataset's: " in said
    assert "metadata/of-09.parquet and 3 more" in said
    assert "of-10" not in said
    assert names(tmp_path, tmp_path / "a") == ["a/00000.tar"]
    assert "left out" not in capsys.readouterr().err


def stamps(location: Path) -> list[str]:
    files = StoreFiles(config(location))
    source = open_source(load_params(overrides=["ingest.source=shards"]).section(IngestConfig), str(location), files)
    return [f"{file} {stamp}" for file, stamp in zip(source.inputs, files.stamps(source.inputs), strict=True)]


def test_a_change_of_a_picture_is_a_change_of_the_source(tmp_path: Path) -> None:
    of_files(tmp_path)
    seen = [stamps(tmp_path)]
    assert stamps(tmp_path) == seen[0]
    pictures = tmp_path / "00000"

    def added() -> None:
        (pictures / "2.jpg").write_bytes(RED)

    def larger() -> None:
        (pictures / "2.jpg").write_bytes(BLUE * 2)

    def later() -> None:
        os.utime(pictures / "2.jpg", ns=(1, 1))

    def renamed() -> None:
        (pictures / "2.jpg").rename(pictures / "3.jpg")

    def gone() -> None:
        (pictures / "3.jpg").unlink()

    def link_to_nothing() -> None:
        (pictures / "4.jpg").symlink_to("nothing")

    for change in (added, larger, later, renamed, gone, link_to_nothing):
        before = pictures.stat()
        change()
        os.utime(pictures, ns=(before.st_atime_ns, before.st_mtime_ns))
        seen.append(stamps(tmp_path))
    assert seen[5] == seen[6] == seen[0]
    assert len({str(each) for each in seen}) == 5
