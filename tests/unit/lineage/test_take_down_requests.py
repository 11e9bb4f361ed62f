"""Take-downs of pairs by key: what is recorded covers these pictures, in every ingest, and no other one."""

import hashlib
from pathlib import Path

import pytest

from align.errors import DataError
from align.ingest.writer import RawShardWriter, write_raw_manifest
from align.lineage.take_down_requests import read_requests
from tests.support.small_data import jpeg

A = jpeg(1)
SHA_A = hashlib.sha256(A).hexdigest()


def raw_folder(raw: Path, *pairs: tuple[str, bytes | None]) -> Path:
    """(address or name, picture or None) as ingest writes them."""
    raw.mkdir(parents=True)
    with RawShardWriter(raw, "00000", 4, keep_tar=lambda tar, sha256: None) as writer:
        for url, image in pairs:
            key, size = writer.next_key, 260 if image else None
            row = {
                "url": url, "caption": "a text", "key": key, "status": "success" if image else "failed_to_download",
                "error_message": None if image else "no such file", "width": size, "height": size,
                "original_width": size, "original_height": size, "page_url": None, "retryable": False,
                "sha256": hashlib.sha256(image).hexdigest() if image else None, "text_source": "caption",
                "image_key": key if image else None,
            }  # fmt: skip
            writer.add(row, image, key)
    write_raw_manifest(raw, ["00000"])
    return raw


def recorded(raw: Path, keys: str) -> list[tuple[str, str]]:
    (raw.parent / "keys").write_text(keys)
    return [(entry.kind, entry.value) for entry in read_requests({"keys": raw.parent / "keys"}, raw, "")]


@pytest.mark.parametrize("name", ["6.jpg", "a/6.jpg", "file:///photos/6.jpg", "//img.org", "http:6.jpg", "http://[x"])
def test_a_name_of_a_file_is_not_recorded_but_its_picture_is(tmp_path: Path, name: str) -> None:
    raw = raw_folder(tmp_path / "raw", (name, A), ("https://img.org/6.jpg", A), ("https://img.org/7.jpg", None))
    assert recorded(raw, "000000000\n") == [("image_id", SHA_A)]
    assert recorded(raw, "000000001\n") == [("image_id", SHA_A), ("url", "https://img.org/6.jpg")]
    assert recorded(raw, "000000002\n") == [("url", "https://img.org/7.jpg")]


def test_a_pair_with_neither_address_nor_picture_cannot_be_recorded_by_its_key(tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", ("6.jpg", None))
    with pytest.raises(DataError) as refused:
        recorded(raw, "000000000\n")
    assert str(refused.value).endswith(
        "keys, line 1: '000000000': this pair has neither a web address nor a picture, by which later ingests would "
        "know it; to refuse every picture of its name, give the name with --urls"
    )
