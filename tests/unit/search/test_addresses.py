"""Addresses from data/raw: of the right pair, or none at all."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError, FormatError
from align.search import index as addresses
from align.search.index import read_addresses, read_rules
from tests.support.colour_index import RULES, write_raw, write_report


def row(key: str, **values: Any) -> dict[str, Any]:
    return {"key": key, "url": f"https://a.example/{key}.jpg", "caption": key, "sha256": f"id-{key}",
            "page_url": f"https://a.example/{key}"} | values  # fmt: skip


def pairs(*keys: str) -> pa.Table:
    return pa.table({"key": pa.array(keys, pa.string()), "image_id": pa.array([f"id-{key}" for key in keys])})


def found(raw: Path, *keys: str) -> list[tuple[str, str]]:
    pages, pictures = read_addresses(raw, pairs(*keys))
    return list(zip(pages.to_pylist(), pictures.to_pylist(), strict=True))


@pytest.mark.parametrize("rows_at_once", [1, 1 << 18])
def test_they_follow_the_order_of_the_pairs_over_all_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(addresses, "_ROWS_AT_ONCE", rows_at_once)
    write_raw(tmp_path, [row("a"), row("b"), row("dropped", sha256=None, status="failed_to_download")], "00000")
    write_raw(tmp_path, [row("c", page_url=None), row("d", url="HTTP://b.example/d.png")], "00001")
    assert found(tmp_path, "d", "a", "c") == [
        ("https://a.example/d", "HTTP://b.example/d.png"), ("https://a.example/a", "https://a.example/a.jpg"),
        ("", "https://a.example/c.jpg"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["/home/somebody/photographs/1.jpg", "file:///etc/passwd", "javascript:alert(1)", "data:image/png;sha256=0", ""],
)
def test_only_a_web_address_of_a_picture_counts(tmp_path: Path, url: str) -> None:
    write_raw(tmp_path, [row("a", url=url, page_url="javascript:alert(1)")])
    assert found(tmp_path, "a") == [("javascript:alert(1)", "")]  # shown as text: what the source says of its page


def test_another_version_of_the_data_is_refused(tmp_path: Path) -> None:
    write_raw(
        tmp_path, [row("a"), row("b", sha256="id-of another picture"), row("c", sha256=None, status="failed_to_resize")]
    )
    for key in ("b", "c", "d"):
        with pytest.raises(DataError, match=f"has not 1 of the 2 pairs of the shards, such as {key}: .*dvc repro"):
            found(tmp_path, "a", key)


def test_a_table_of_img2dataset_knows_no_pictures_and_perhaps_no_pages(tmp_path: Path) -> None:
    """Its sha256 is of other bytes; the tar beside it is empty, so nothing reads it."""
    table = {"url": ["https://a.example/1"], "caption": ["x"], "key": ["000000000"], "status": ["success"],
             "sha256": ["0" * 64]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    (tmp_path / "00000.tar").write_bytes(b"")
    assert found(tmp_path, "000000000") == [("", "https://a.example/1")]


def test_no_tables_damaged_ones_and_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `align ingest`"):
        found(tmp_path, "a")
    write_raw(tmp_path, [row("a")])
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"00000.parquet: not a readable parquet file"):
        found(tmp_path, "a")
    with pytest.raises(DataError, match="run `align filter` first"):
        read_rules(tmp_path)
    assert read_rules(write_report(tmp_path / "filter")) == RULES
    for text in (b"", b"{", b"[]", b'{"funnel": 1}', b'{"funnel": [{"reason": "a"}]}', b"\xff"):
        (tmp_path / "filter/report.json").write_bytes(text)
        with pytest.raises(FormatError, match="names no rules; run `align filter` again"):
            read_rules(tmp_path / "filter")
