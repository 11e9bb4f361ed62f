"""data/policy/opted_out.csv: what matches, and that the file is the same bytes for the same wishes."""

from pathlib import Path

import pytest

from align.errors import FormatError
from align.formats.policy import Entry, OptedOut, host_of, read_opted_out, write_opted_out
from tests.support import ROOT

SHA = "ab" * 32
HEADER = "kind,value,reason,added\n"


def opted_out(*entries: tuple[str, str]) -> OptedOut:
    return OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)


@pytest.mark.parametrize(
    ("url", "page", "image_id", "entry"),
    [
        ("https://a.org/1.jpg", None, None, ("url", "https://a.org/1.jpg")),
        ("https://b.org/1.jpg", "https://a.org/1.jpg", None, ("url", "https://a.org/1.jpg")),
        ("https://a.org/1.jpg?x", None, None, None),
        ("https://x.org/", None, SHA, ("image_id", SHA)),
        ("https://x.org/", None, "cd" * 32, None),
        ("https://gone.org/1.jpg", None, None, ("host", "gone.org")),
        ("https://IMG.gone.org:8080/1.jpg", None, None, ("host", "gone.org")),
        ("https://x.org/", "http://www.gone.org/page", None, ("host", "gone.org")),
        ("https://notgone.org/1.jpg", None, None, None),
        ("https://gone.org.evil.com/1.jpg", "https://org/", None, None),
        ("https://me:secret@A.org.:443/./b/../%31.jpg#top", None, None, ("url", "https://a.org/1.jpg")),
        ("http://www.a.org//1.jpg/?utm_source=x&", None, None, ("url", "https://a.org/1.jpg")),
        ("http://[::ffff:127.0.0.1]/1.jpg", None, None, ("host", "127.0.0.1")),
        ("https://left.org/1.jpg", None, None, ("host", "www.left.org")),
        ("https://img.left.org/1.jpg", None, None, None),
        ("https://x.org/", "http://gone.org./page", None, ("host", "gone.org")),
        ("http://\uff27one\u3002org/1.jpg", None, None, ("host", "gone.org")),
        ("http://xn--bcher-kva.example/1.jpg", None, None, ("host", "b\xfccher.example")),
        ("http://0x7f.1/1.jpg", None, None, ("host", "127.0.0.1")),
        ("http://[::1", "data:image/png;sha256=00", None, None),
        (None, None, None, None),
    ],
)
def test_what_an_entry_matches(
    url: str | None, page: str | None, image_id: str | None, entry: tuple[str, str] | None
) -> None:
    policy = opted_out(
        ("url", "https://a.org/1.jpg"), ("image_id", SHA), ("host", "gone.org"), ("host", "b\xfccher.example"),
        ("host", "127.0.0.1"), ("host", "www.left.org"),
    )  # fmt: skip
    assert policy.entry(url, page, image_id) == entry
    assert policy.matches(url, page, image_id) == (entry is not None)
    assert not OptedOut().matches(url, page, image_id)


def test_equal_wishes_are_equal_bytes_and_the_first_reason_stays(tmp_path: Path) -> None:
    first = [Entry("url", "https://b/", 'said "no", thrice', "2026-01-02"), Entry("host", "a.org", "", "2026-01-02")]
    write_opted_out(tmp_path, OptedOut(first))
    before = (tmp_path / "opted_out.csv").read_bytes()
    assert before.decode() == HEADER + 'host,a.org,,2026-01-02\nurl,https://b/,"said ""no"", thrice",2026-01-02\n'
    known = read_opted_out(tmp_path)
    write_opted_out(tmp_path, OptedOut([*known.entries, Entry("url", "https://b/", "again", "2027-01-01")]))
    assert (tmp_path / "opted_out.csv").read_bytes() == before


def test_the_committed_file_is_readable_and_an_absent_one_is_empty(tmp_path: Path) -> None:
    assert read_opted_out(ROOT / "data/policy") is not None
    assert not read_opted_out(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line"),
        ("kind,value\n", "first line"),
        (HEADER + "url,https://a/,\n", "line 2: 3 columns"),
        (HEADER + "host,a.org,,2026-01-02\nkey,000000001,,2026-01-02\n", "line 3: unknown kind 'key'"),
        (HEADER + f"image_id,{SHA.upper()},,2026-01-02\n", "not a sha256"),
        (HEADER + "host,https://a.org/,,2026-01-02\n", "not a host name"),
        (HEADER + "host,A.org,,2026-01-02\n", "not a host name"),
        (HEADER + "url,,,2026-01-02\n", "empty"),
        (HEADER + f"host,a.org,{'x' * 5_000_000},2026-01-02\n", "line 2: field larger than"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "opted_out.csv").write_text(text)
    with pytest.raises(FormatError, match=says):
        read_opted_out(tmp_path)


def test_hosts() -> None:
    assert host_of("HTTPS://User@Example.ORG.:443/x") == "example.org"
    assert host_of("http://[2001:DB8::1]/x") == "2001:db8::1"
    assert host_of("http://[broken") == ""
    assert host_of("coco:1.jpg") == ""
