"""`align ingest --plan`: files, bytes, tasks, memory and disk; it reads no record and writes nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.ingest.sources.archives.warc import Warc
from align.ingest.sources.tables import Tables
from tests.support.params import PARAMS_FILE, at, sets
from tests.support.ranges import ranges
from tests.support.warc_records import page, write_archive
from tests.support.web_server import WebServer


def planned(root: Path, archive: object, *values: object, code: int = 0) -> None:
    """Runs it; nothing is written."""
    before = sorted(root.rglob("*"))
    folders = at(root / "written", "raw", "reports", "runtime", "policy")
    arguments = sets(f"paths.archive={archive}", *folders, *values)
    assert main(["ingest", "--params", str(PARAMS_FILE), *arguments, "--plan"]) == code
    assert sorted(root.rglob("*")) == before


def _refuses(*_: object, **__: object) -> None:
    raise AssertionError("a record was read")


@pytest.fixture(autouse=True)
def no_record_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Warc, "scan", _refuses)
    monkeypatch.setattr(Warc, "read", _refuses)


def test_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        write_archive(tmp_path / f"{name}.warc.gz", [page("http://x/", name * 999)]).stat().st_size for name in "abc"
    ]
    planned(tmp_path, f"{tmp_path}/*.warc.gz", "engine.num_workers=3", "engine.memory_limit=2GB")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/*.warc.gz: 3 file(s), {sum(sizes):,} bytes (ingest.source: warc)",
        "tasks: 3 to scan; then a shard for each 10,000 pairs, which the scan counts",
        "memory: 3 tasks at a time on this machine (engine.num_workers), 300 MB each; to plan, here: 2GB "
        "(engine.memory_limit) and 400 MB",
        "disk: to plan, here: 300 bytes a pair, until data/raw is there; that has the pictures, and 4,000 bytes "
        "more for each",
    ]


def parquet(path: Path, num_rows: int) -> Path:
    pq.write_table(pa.table({"url": ["http://x/a.png"] * num_rows, "caption": ["a text"] * num_rows}), path)
    return path


def test_tables_whose_footers_tell_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    parquet(tables / "a.parquet", 1000)
    parquet(tables / "b.parquet", 1501)
    values = ["ingest.source=url_table", "ingest.shard_size=1000", "engine.runner=slurm"]
    planned(tmp_path, tables, *values)
    first, tasks, memory, disk = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tables}: 2 file(s), ")
    assert tasks == "tasks: 2 to scan; then 3 shards, as the tables have 2,501 rows"
    assert memory.startswith("memory: one task a core on the cluster (slurm)")
    assert disk.startswith("disk: to plan, here: 750.3 kB, 300 bytes a pair")
    (tables / "b.parquet").write_bytes(b"damaged")
    planned(tmp_path, tables, *values)
    assert "which the scan counts" in capsys.readouterr().out


def test_of_a_table_without_a_footer_only_the_first_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, num_rows = Tables.rows, 0

    def counted(self: Tables, *arguments: Any) -> Any:
        nonlocal num_rows
        for row in read(self, *arguments):
            num_rows += 1
            yield row

    monkeypatch.setattr(Tables, "rows", counted)
    (tmp_path / "a.tsv").write_text("url\tcaption\n" + "http://x/a.png\ta text\n" * 5000)
    planned(tmp_path, tmp_path / "a.tsv", "ingest.source=url_table")
    assert "tasks: 1 to scan; then a shard for each 10,000 pairs" in capsys.readouterr().out
    assert num_rows <= 100


def test_a_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, text in (("a.png", "x" * 500), ("a.txt", "a text"), ("b.png", "y" * 400)):
        (folder / name).write_text(text)
    planned(tmp_path, folder, "ingest.source=folder")
    assert f"{folder}: 3 file(s), 906 bytes" in capsys.readouterr().out


def test_files_on_a_web_server_are_asked_for_one_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WebServer() as server:
        server.routes["/a.warc.gz"] = ranges(bytes(1_234_567))
        planned(tmp_path, server.url("/a.warc.gz"), "download.allow_networks=[127.0.0.0/8]")
        assert "1 file(s), 1.2 MB" in capsys.readouterr().out
        assert server.count("/a.warc.gz") == 1


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("", (), "no file that ends in .warc"),
        ("missing", (), "no file that ends in .warc"),
        ("missing.parquet", ("ingest.source=url_table",), "check the path"),
        ("", ("ingest.source=folder",), "check the path"),
    ],
)
def test_nothing_there_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, values: Sequence[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    planned(tmp_path, tmp_path / "empty" / name, *values, code=1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert says in printed.err
    assert printed.err.count("\n") == 1
