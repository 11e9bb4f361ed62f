"""Tars that others made: which samples can be trained on, and what is left out and why."""

import io
import json
import struct
import zlib
from collections import Counter
from typing import BinaryIO, cast

import pytest

from align.formats.sample_texts import texts_in
from align.pairs.text import MAX_CHARACTERS
from align.training.given_samples import given_samples
from tests.support import given_tars
from tests.support.hostile_pictures import chunk
from tests.support.tars import tar

#: By its header 400 megapixels.
HUGE = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b""))
)


class Forwards(io.FileIO):
    """A file whose bytes are read once, in order; only its end may be looked for."""

    _read = 0

    def read(self, size=-1, /):
        assert self.tell() >= self._read
        data = super().read(size)
        self._read = self.tell()
        return data


def read(path, held_out=False):
    """Of each sample its members' names, its picture and its texts; and what is left out."""
    left_out = Counter[str]()
    with Forwards(path) as file:
        samples = list(given_samples(cast(BinaryIO, file), lambda _: held_out, left_out))
    whole = path.read_bytes()
    for is_held_out, *parts in samples:
        assert is_held_out == held_out
        assert all(whole[member.offset : member.offset + member.size] == data for member, data in parts)
    return [(a.name, data, texts_in(text)) for _, (a, data), (_, text) in samples], left_out


def test_samples_are_those_of_webdataset_and_img2dataset(tmp_path):
    folder = given_tars.write(tmp_path, num_tars=1, per_tar=8)
    samples, left_out = read(folder / "00000.tar")
    assert len(samples) == 8 and not left_out
    for index, (name, data, texts) in enumerate(samples):
        own, form = given_tars.text(index), ("JPEG", "PNG", "WEBP")[index % 3]
        assert texts == ([own, f"also {own}"] if index % 4 == 3 else [own])
        assert name.startswith(f"{index:09d}.") and data == given_tars.picture(index, form)


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    good = given_tars.picture(0)
    path = tar(tmp_path / "a.tar", {
        "1.jpg": good, "1.txt": b"first",
        "2.jpg": good, "2.txt": b" \n", "2.json": json.dumps({"caption": "from the json", "text": 7}).encode(),
        "3.jpg": good, "3.json": b'{"caption": null, "url": "x"}',
        "4.txt": b"no picture",
        "5.jpg": b"no picture at all", "5.txt": b"broken",
        "6.png": HUGE, "6.txt": b"too many pixels",
        "7.jpg": good, "7.txt": b"x" * (2 << 20),
        "classes.list": b"no part of a sample",
        "8.jpg": good, "8.txt": b"in a tar that is cut off next",
        "9.jpg": good * 100,
    })  # fmt: skip
    path.write_bytes(path.read_bytes()[: -50 * len(good)])
    samples, left_out = read(path)
    assert [(name, texts) for name, _, texts in samples] == [
        ("1.jpg", ["first"]), ("2.jpg", ["from the json"]), ("8.jpg", ["in a tar that is cut off next"]),
    ]  # fmt: skip
    assert left_out == {
        "no text": 2, "no picture": 1, "a picture that cannot be decoded": 2,
        "a member that is too large or no plain file": 1, "the rest of a tar that is cut off or damaged": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("data", "texts"), [
    (b"  a\n red  fox ", ["a red fox"]),
    (b"17", ["17"]),
    (b"\xff\xfe", ["\ufffd\ufffd"]),
    (b"", []),
    (b'{"texts": ["a", "", 3, null, ["b"], "c"], "key": "1"}', ["a", "c"]),
    (b'{"caption": "", "text": "second"}', ["second"]),
    (b'{"width": 3}', []),
    (b"[" * 100_000, ["[" * MAX_CHARACTERS]),
    (json.dumps({"captions": ["x"] * 5000}).encode(), ["x"] * 1000),
])  # fmt: skip
def test_texts_of_a_member(data, texts):
    assert texts_in(data) == texts


def test_what_is_no_tar(tmp_path):
    for content in (b"", b"<html>moved</html>" * 100):
        left_out = Counter[str]()
        assert not list(given_samples(io.BytesIO(content), bool, left_out)) and left_out.total() == 1


def test_a_picture_that_is_held_out_decodes(tmp_path):
    png = given_tars.picture(1, "PNG")
    path = tar(tmp_path / "a.tar", {"1.png": png[:60] + bytes(len(png) - 60), "1.txt": b"its header is whole"})
    assert len(read(path)[0]) == 1
    assert read(path, held_out=True) == ([], {"a picture that cannot be decoded": 1})
