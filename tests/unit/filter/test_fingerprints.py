"""Perceptual hash and the near-duplicates that it finds, on real pictures."""

import io
import math
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align.config.filter import FilterConfig
from align.durable.processes import in_threads
from align.filter.near_duplicates import Fingerprints, by_content, near_duplicates
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, distinct_pictures, held
from align.pairs.perceptual_hash import image_signals, perceptual_hash
from align.pairs.picture import decode
from tests.support.params import load_params
from tests.support.warc_records import picture, png_header

MAX_PIXELS = 10**8


@pytest.fixture(scope="module")
def pictures(sample: Path) -> list[bytes]:
    """200 real emoji: many of one outline."""
    with tarfile.open(sample / "evaluation" / "concepts.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")][:200]
        return [file.read() for member in members if (file := tar.extractfile(member))]


def fingerprints(images: list[bytes]) -> Fingerprints:
    return Fingerprints.of((str(index), image_signals(data, MAX_PIXELS)) for index, data in enumerate(images))


def matches(left: list[bytes], right: list[bytes]) -> list[tuple[int, int]]:
    config = load_params().section(FilterConfig)
    return near_duplicates(
        fingerprints(left),
        fingerprints(right),
        max_phash_distance=config.max_phash_distance,
        correlation_above=config.thumbnail_correlation_above,
    )


def changed(data: bytes, scale: float, kind: str, quality: int) -> bytes:
    image = decode(data, max_pixels=MAX_PIXELS)
    image = image.resize(
        (max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.LANCZOS
    )
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("scale", "kind", "quality"), [(1, "JPEG", 60), (0.5, "JPEG", 85), (0.31, "PNG", 0), (1, "WEBP", 70), (2, "PNG", 0)]
)
def test_copies_are_found(pictures: list[bytes], scale: float, kind: str, quality: int) -> None:
    originals = pictures[:25]
    pairs = matches([changed(data, scale, kind, quality) for data in originals], originals)
    assert {(index, index) for index in range(len(originals))} <= set(pairs)


def test_different_pictures_are_kept_apart(pictures: list[bytes]) -> None:
    different = [pair for pair in matches(pictures, pictures) if pair[0] != pair[1]]
    identical = [(a, b) for a, b in different if pictures[a] == pictures[b]]
    assert len(different) - len(identical) <= 2  # of 39,800


def test_plain_colours_match_only_their_own() -> None:
    reds, blue = [picture(300, 300, "red"), picture(80, 80, "red", "JPEG")], picture(300, 300, "blue")
    assert matches(reds, [reds[0], blue]) == [(0, 0), (1, 0)]


def test_nothing_to_compare_with() -> None:
    assert matches([picture(9, 9)], []) == []
    assert matches([], [picture(9, 9)]) == []


def test_perceptual_hash_against_a_double_loop() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    values = []
    for u in range(8):
        for v in range(8):
            total = 0.0
            for y in range(32):
                for x in range(32):
                    wave = math.cos(math.pi * u * (2 * y + 1) / 64) * math.cos(math.pi * v * (2 * x + 1) / 64)
                    total += float(pixels[y, x]) * wave
            values.append(total)
    median = float(np.median(values))
    expected = int("".join("1" if value > median else "0" for value in values), 2)
    assert perceptual_hash(Image.fromarray(pixels)) == expected


def test_bad_bytes_are_measured_not_raised() -> None:
    assert image_signals(b"no picture", MAX_PIXELS).width_px is None
    huge = image_signals(png_header(20_000, 10_000), MAX_PIXELS)
    assert (huge.width_px, huge.height_px, huge.phash) == (20_000, 10_000, None)
    broken = image_signals(picture(300, 300, kind="JPEG")[:700], MAX_PIXELS)
    assert (broken.width_px, broken.phash) == (300, None)


def test_in_threads_keeps_order_and_passes_errors_on() -> None:
    assert list(in_threads(lambda x: x * x, range(500), 3)) == [x * x for x in range(500)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // x, [1, 0], 2))


def test_an_image_is_looked_at_once_and_found_under_each_of_its_names() -> None:
    looked: list[tuple[str, bytes]] = []

    def look(images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, int]]:
        for name, data in images:
            looked.append((name, data))
            if data != b"undecodable":
                yield name, len(data)

    def of(name: str, **pictures: bytes) -> EvaluationSet:
        items = [EvaluationImage(key, key, ("x",), None, None, "query") for key in pictures]
        return EvaluationSet(name, "retrieval", "", items, (), (), held(list(pictures.values())))

    sets = [of("a", one=b"one", two=b"undecodable"), of("b", three=b"three", seven=b"one")]
    assert list(by_content(look, distinct_pictures(sets))) == [("a/one", 3), ("b/seven", 3), ("b/three", 5)]
    assert [name for name, _ in looked] == ["a/one", "a/two", "b/three"]
