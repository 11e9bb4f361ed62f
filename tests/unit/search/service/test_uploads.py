"""Pictures of strangers are decoded apart, as the model sees them, or refused in one line."""

import io
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from align.errors import DataError
from align.model.preprocess import centre_crop, decode
from align.search.service.uploads import Decoders, from_base64
from tests.support import hostile_pictures
from tests.support.colours import square


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders(1, max_pixels=1_000_000, timeout_s=200.0)
    yield made
    made.close()


def photograph(format: str, size: tuple[int, int] = (300, 200)) -> bytes:
    drawn = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_pixels_are_those_that_training_and_the_index_see(decoders: Decoders, format: str) -> None:
    data = photograph(format)
    expected = centre_crop(decode(data, 72), 64)
    found = decoders.crop(data, 72, 64)
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).mean() < (3 if format == "JPEG" else 0.01)  # another JPEG decoder


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg>",
        hostile_pictures.EPS,
        photograph("JPEG")[:600],
        photograph("PNG")[:200],
        hostile_pictures.png(1001),
    ],
)
def test_what_is_no_picture_is_refused_and_the_next_one_decodes(decoders: Decoders, data: bytes) -> None:
    with pytest.raises(DataError) as refused:
        decoders.cost(data)
        decoders.crop(data, 72, 64)
    assert "\n" not in str(refused.value)
    assert decoders.crop(square("red"), 48, 48).shape == (48, 48, 3)


def test_a_picture_costs_by_its_pixels_and_scans(decoders: Decoders) -> None:
    plain, progressive = photograph("JPEG", (1000, 1000)), io.BytesIO()
    Image.open(io.BytesIO(plain)).save(progressive, "JPEG", progressive=True)
    last = progressive.getvalue().rfind(b"\xff\xda")
    slow = progressive.getvalue()[:-2] + progressive.getvalue()[last:-2] * 80 + b"\xff\xd9"
    costs = [decoders.cost(data) for data in (square("red"), plain, progressive.getvalue(), slow)]
    assert costs == pytest.approx([0.5, 0.5, 3.0, 27.0]) and decoders.cost(photograph("PNG", (1000, 1000))) == 2.5


def test_a_picture_that_takes_too_long_is_killed_and_the_next_one_decodes() -> None:
    made = Decoders(1, max_pixels=100_000_000, timeout_s=200.0)
    made.crop(square("red"), 48, 48)  # the process has started
    (helper,) = made._free.queue
    made._timeout_s = 0.05
    with pytest.raises(DataError, match=r"did not decode within 0\.05 s"):
        made.crop(hostile_pictures.png(9000), 72, 64)
    assert helper is not None and helper._process.wait(60) == -signal.SIGKILL
    made._timeout_s = 200.0
    assert made.crop(square("red"), 48, 48).shape == (48, 48, 3)
    made.close()


def test_base64_may_have_line_breaks_and_nothing_else() -> None:
    assert from_base64("aGFs\nbG8=\n") == b"hallo"
    for text in ("aGFsbG8", "####", "a", "äöü", "aGFsbG8=\x00"):
        with pytest.raises(DataError, match="not base64"):
            from_base64(text)
