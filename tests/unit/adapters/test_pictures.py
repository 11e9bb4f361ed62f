import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align.adapters.pictures import crop
from align.errors import DataError
from align.model.preprocess import centre_crop, decode
from tests.support.tiny_model import TINY


def _noise(mode: str, size: tuple[int, int] = (50, 40)) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels != 3 else None)


def _file(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _ours(data: bytes) -> np.ndarray:
    return centre_crop(decode(data, TINY.resize_px), TINY.image_px)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_a_picture_of_pillow_has_the_pixels_of_its_file(mode: str) -> None:
    picture = _noise(mode)
    assert np.array_equal(crop(picture, TINY), _ours(_file(picture)))


def test_what_png_does_not_hold_becomes_rgb() -> None:
    picture = _noise("RGB").convert("CMYK")
    assert np.array_equal(crop(picture, TINY), _ours(_file(picture.convert("RGB"))))


def test_a_picture_of_pillow_is_turned_upright_as_its_file_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _file(_noise("RGB"), "JPEG", exif=exif, quality=95)
    assert not np.array_equal(_ours(data), _ours(_file(Image.open(io.BytesIO(data)))))
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(crop(opened, TINY), _ours(data))
    assert np.array_equal(crop(opened.convert("RGB"), TINY), _ours(data))


def test_bytes_are_the_file_also_where_we_decode_at_half_its_size() -> None:
    data = _file(_noise("RGB", (400, 300)), "JPEG", quality=95)
    exact = _ours(data)
    assert np.array_equal(crop(data, TINY), exact)
    assert np.array_equal(crop({"bytes": data, "path": None}, TINY), exact)
    assert not np.array_equal(crop(Image.open(io.BytesIO(data)), TINY), exact)  # why tools' bytes are asked for


def test_an_undecoded_picture_of_datasets_may_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_file(_noise("RGB")))
    assert np.array_equal(crop({"bytes": None, "path": str(tmp_path / "a.png")}, TINY), crop(_noise("RGB"), TINY))
    with pytest.raises(DataError, match=r"b\.png: No such file"):
        crop({"bytes": None, "path": str(tmp_path / "b.png")}, TINY)


@pytest.mark.parametrize(
    ("given", "words"),
    [(b"", "not an image"), (_file(_noise("RGB"))[:200], "not an image"), (None, "not a picture but NoneType"),
     ({"bytes": None, "path": None}, "not a picture but dict"), ([[1, 2]], "not a picture but list")],
    ids=["empty", "truncated", "nothing", "no-bytes", "numbers"],
)  # fmt: skip
def test_what_is_no_picture_is_one_line(given: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        crop(given, TINY)
    assert "\n" not in str(caught.value)
