"""Web archives, pages and picture headers, damaged and lying ones included."""

import gzip
import io
from pathlib import Path

import pytest
from PIL import Image

from align.errors import DataError
from align.pairs.archive import Archive
from align.pairs.pages import PageImage, canonical_url, decode_html, page_images
from align.pairs.picture import PictureError, decode, read_header
from tests.warc_records import page, picture, png_header, response, write_archive

RECORDS = [
    page("http://x/", "<p>hi"),
    response("http://x/a.png", picture(2, 2) * 50, "image/png"),
    response("http://x/b.png", bytes(range(256)) * 20, "image/png", "404 Not Found"),
]


def urls(path: Path, *, allow_truncated: bool = False) -> list[str]:
    with Archive(path) as archive:
        return [found.url for found in archive.scan(allow_truncated=allow_truncated)]


def test_scan_and_random_access(tmp_path: Path) -> None:
    with Archive(write_archive(tmp_path / "a.warc.gz", RECORDS)) as archive:
        found = list(archive.scan(allow_truncated=False))
        assert [(one.url, one.status, one.is_html) for one in found] == [
            ("http://x/", 200, True),
            ("http://x/a.png", 200, False),
            ("http://x/b.png", 404, False),
        ]
        for one, expected in reversed(list(zip(found, (b"<p>hi", picture(2, 2) * 50), strict=False))):
            body = archive.read(one)
            assert body is not None
            assert body.data == expected
        assert archive.truncated == {}


def test_uncompressed_archive_and_a_folder_of_two(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"".join(RECORDS[:2]))
    write_archive(tmp_path / "b.warc.gz", RECORDS[2:])
    assert urls(tmp_path) == ["http://x/", "http://x/a.png", "http://x/b.png"]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("cut", [4, 12, 60, "body", "header"])
def test_every_cut_is_found_and_named(tmp_path: Path, cut: int | str, compressed: bool) -> None:
    parts = [gzip.compress(record, mtime=0) if compressed else record for record in RECORDS]
    data = b"".join(parts)
    keep = {"body": len(data) - len(parts[2]) // 2, "header": len(parts[0]) + len(parts[1]) + 40}.get(str(cut))
    if keep is None:
        keep = len(data) - int(cut)
    if not compressed and cut == 4:
        return  # only the empty lines after the last record are gone: it is whole
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    path.write_bytes(data[:keep])
    with pytest.raises(DataError, match=rf"{path.name}: cut off or damaged at byte [\d,]+ of {keep:,}"):
        urls(path)
    assert urls(path, allow_truncated=True)[:2] == ["http://x/", "http://x/a.png"]


def test_damaged_byte_no_archive_and_whole_gzip(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.warc.gz", RECORDS)
    data = bytearray(path.read_bytes())
    data[len(gzip.compress(RECORDS[0], mtime=0)) + 60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="cut off or damaged"):
        urls(path)
    path.write_bytes(b"hello world " * 100)
    with pytest.raises(DataError, match="not a web archive"):
        urls(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a web archive"):
        urls(path)
    path.write_bytes(gzip.compress(b"".join(RECORDS)))
    with pytest.raises(DataError, match="compressed as a whole"):
        urls(path)
    with pytest.raises(DataError, match=r"paths\.archive"):
        Archive(tmp_path / "nothing.warc.gz")


def test_content_encoding_is_undone_or_none(tmp_path: Path) -> None:
    good = page("http://x/", gzip.compress(b"<p>zipped"), headers="Content-Encoding: gzip\r\n")
    bad = page("http://x/bad", b"no gzip at all" * 9, headers="Content-Encoding: gzip\r\n")
    with Archive(write_archive(tmp_path / "a.warc.gz", [good, bad])) as archive:
        first, second = archive.scan(allow_truncated=False)
        body = archive.read(first)
        assert body is not None
        assert body.data == b"<p>zipped"
        assert archive.read(second) is None


def test_page_images() -> None:
    html = (
        '<head><base href="//cdn.example/pics/"></head><img src=" a b.png#top " alt="caf&eacute; &quot;x&quot;">'
        '<IMG SRC="HTTP://Other.example:80/C.jpg"><img alt="no source"><img src="../up.png" alt="">'
        '<!-- <img src=comment.png> --><img src="data:image/png;base64,AAAA" alt=inline><img src="http://[" alt=bad>'
        '<img src="ftp://x/y.png">'
    )
    assert page_images(html.encode(), "https://x.example/dir/page.html", None) == [
        PageImage("https://cdn.example/pics/a%20b.png", 'café "x"'),
        PageImage("http://other.example/C.jpg", ""),
        PageImage("https://cdn.example/up.png", ""),
        PageImage("data:image/png;base64,AAAA", "inline", "data: URL"),
        PageImage("http://[", "bad", "invalid URL"),
        PageImage("ftp://x/y.png", "", "not http or https"),
    ]
    assert page_images(b"", "http://x/", None) == []


def test_canonical_url_is_stable() -> None:
    once = canonical_url("HTTP://X.example:80/a b/ü.png?q=1 2#f")
    assert once == "http://x.example/a%20b/%C3%BC.png?q=1%202"
    assert canonical_url(once) == once


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        ("Grüße €".encode(), "iso-8859-1"),  # the header lies: the bytes are UTF-8
        ("Grüße €".encode("cp1252"), "utf-8"),  # the header lies the other way round
        ("Grüße €".encode("cp1252"), None),
        ("Grüße €".encode("utf-8-sig"), "shift_jis"),
        ("Grüße €".encode("utf-16"), None),
        ("<meta charset=windows-1252>Grüße €".encode("cp1252"), None),
        ("Grüße €".encode("cp1252"), "no-such-charset"),
    ],
)
def test_wrong_charset_is_read_as_what_it_is(body: bytes, charset: str | None) -> None:
    assert decode_html(body, charset).endswith("Grüße €")


def test_declared_charsets_are_used() -> None:
    assert decode_html("日本".encode("shift_jis"), "Shift_JIS") == "日本"
    assert decode_html("<meta charset=euc-jp>日本".encode("euc_jp"), None).endswith("日本")


def test_header_of_a_huge_picture_costs_nothing() -> None:
    data = png_header(20_000, 10_000)
    assert (read_header(data).width_px, read_header(data).height_px) == (20_000, 10_000)
    with pytest.raises(PictureError, match="too many pixels: 20000 x 10000"):
        decode(data, max_pixels=100_000_000)
    with pytest.raises(PictureError):
        decode(png_header(200, 100), max_pixels=100_000_000)  # small enough, but it holds no pixels


def test_bytes_decide_what_a_picture_is() -> None:
    assert read_header(picture(3, 2, kind="JPEG")).format == "JPEG"
    for lie in (b"<html>not a picture", b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
        with pytest.raises(PictureError):
            read_header(lie)


def test_transparent_parts_become_white() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), max_pixels=100).getpixel((0, 0)) == (255, 255, 255)
