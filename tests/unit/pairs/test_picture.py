"""Picture headers, lying ones included."""

import io

import pytest
from PIL import Image

from align.pairs.picture import PictureError, decode, read_header
from tests.support.warc_records import picture, png_header


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
