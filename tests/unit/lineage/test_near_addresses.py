"""What `align forget` says of addresses that are nearly those of data/raw."""

from pathlib import Path

import pytest

from align.formats.policy import Entry, OptedOut
from align.lineage.near_addresses import near_addresses
from align.lineage.take_down_requests import read_requests
from tests.support.colour_index import write_raw

SHA = "ab" * 32
ADDRESSES = (
    ("http://img.org/a/1.jpg", "https://blog.org/post?id=7"), ("https://www.img.org//a/1.jpg?utm_source=x", None),
    ("https://img.org/a/2.jpg?size=2", "https://blog.org/post?id=7"), ("https://other.org/b/3.jpg", None),
)  # fmt: skip


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw", [
        {"key": f"{number:09d}", "url": url, "page_url": page, "caption": "a", "sha256": f"{number:064x}"}
        for number, (url, page) in enumerate(ADDRESSES)
    ])  # fmt: skip
    return tmp_path / "raw"


def lines(raw: Path, *entries: tuple[str, str]) -> list[str]:
    return list(near_addresses(raw, OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)))


ABSENT = "is no address of a pair or page here"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("url", "https://img.org/a/1.jpg"), [f"covers, too: {ADDRESSES[0][0]}, {ADDRESSES[1][0]}"]),
        (("url", "https://img.org/a/2.jpg"),
         [f"{ABSENT}; near: https://img.org/a/2.jpg?size=2 (same path, other query), {ADDRESSES[0][0]} (same host), "
          f"{ADDRESSES[1][0]} (same host)"]),
        (("url", "https://cdn.net/x/3.jpg"), [f"{ABSENT}; near: https://other.org/b/3.jpg (same file name)"]),
        (("url", "https://cdn.net/"), [ABSENT]),
        (("url", "https://blog.org/post?id=7"), []),
        (("host", "img.org"), []),
        (("host", "a.img.org"), ["is the host of no pair or page here"]),
        (("image_id", SHA), []),
    ],
)  # fmt: skip
def test_what_an_entry_covers_and_misses(raw: Path, entry: tuple[str, str], said: list[str]) -> None:
    assert lines(raw, entry) == [f"{entry[1]} {line}" for line in said]


def test_without_data_nothing_is_said_to_be_missed(tmp_path: Path) -> None:
    (said,) = lines(tmp_path, ("url", "http://a.org/1.jpg"), ("host", "b.org"))
    assert said == f"{tmp_path} has no tables, so which pairs these entries cover is not known here"


def test_each_host_that_covers_something_is_known(raw: Path) -> None:
    entries = [("url", "http://img.org/a/1.jpg"), ("url", ADDRESSES[1][0]), ("host", "www.img.org"), ("host", "org")]
    assert lines(raw, *entries) == []


def test_an_address_in_another_spelling_names_the_picture(raw: Path) -> None:
    (raw.parent / "urls").write_text("HTTPS://IMG.org:443/a/./1.jpg?fbclid=3#top\n")
    recorded = {(one.kind, one.value) for one in read_requests({"urls": raw.parent / "urls"}, raw, "")}
    assert {("image_id", f"{0:064x}"), ("image_id", f"{1:064x}")} < recorded
    assert len(recorded) == 4
