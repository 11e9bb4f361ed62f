"""Images of an output shard, from tars here and elsewhere."""

import hashlib
import io
import time

import pyarrow as pa
import pytest
from PIL import Image

from align.errors import CorruptError
from align.shard.gather import gather
from tests.support.small_data import jpeg

NUM_IMAGES = 150  # more than are read ahead
PICTURES = [jpeg(index, 24, 24) for index in range(NUM_IMAGES)]


def tars(folder, num_tars):
    """Tars with the pictures, distributed in turn, and the rows of a plan that needs all of them, two pairs each."""
    rows = []
    for index, data in enumerate(PICTURES):
        path = folder / f"{index % num_tars}.tar"
        start = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(data)
        span = {"tar": str(index % num_tars), "start": start, "num_bytes": len(data)}
        for pair in range(2):
            row = {"key": f"{index}{pair}", "image_id": hashlib.sha256(data).hexdigest(), "text": f"text {pair}"}
            rows.append(row | {"image_key": f"{index}{pair}", "position": 40 + index} | span)
    return pa.Table.from_pylist(rows)


def reading(folder):
    def read(tar, start, num_bytes):
        return (folder / f"{tar}.tar").read_bytes()[start : start + num_bytes]

    return read


def test_a_shard_holds_pictures_upright_and_without_a_tag_that_turns_them(tmp_path):
    image, exif = Image.new("RGB", (24, 24), "red"), Image.Exif()
    image.paste("blue", (0, 0, 24, 12))
    exif[0x0112] = 6  # to be seen, it is turned to the right: the blue half is then on the right
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    data = buffer.getvalue()
    (tmp_path / "0.tar").write_bytes(data)
    image_id = hashlib.sha256(data).hexdigest()
    row = {"key": "0", "image_id": image_id, "text": "a", "image_key": "0", "position": 0, "tar": "0", "start": 0}
    (sample,) = gather(pa.Table.from_pylist([row | {"num_bytes": len(data)}]), reading(tmp_path), 1, 24, 95)
    with Image.open(io.BytesIO(sample.image)) as stored:
        assert stored.size == (24, 24) and not stored.getexif()
        red, _, blue = stored.getpixel((20, 3))
        assert blue > 200 and red < 60
        red, _, blue = stored.getpixel((3, 20))
        assert blue < 60 and red > 200


def test_images_come_in_order_wherever_they_lie(tmp_path):
    rows, read = tars(tmp_path, 7), reading(tmp_path)

    def slow_for_some(tar, start, num_bytes):
        time.sleep(0.01 * (tar == "3"))
        return read(tar, start, num_bytes)

    samples = list(gather(rows, slow_for_some, 4, 24, 90))
    assert [sample.image for sample in samples] == PICTURES
    assert samples[3].key == "30"
    assert (samples[3].keys, samples[3].texts) == (("30", "31"), ("text 0", "text 1"))


def test_bytes_that_changed_are_found(tmp_path):
    rows = tars(tmp_path, 1)
    data = bytearray((tmp_path / "0.tar").read_bytes())
    data[rows["start"][100].as_py() + 9] ^= 1
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(CorruptError, match=r"0\.tar: the image 500 is damaged: its sha256"):
        list(gather(rows, reading(tmp_path), 2, 24, 90))


def test_a_tar_that_became_shorter_is_named(tmp_path):
    rows = tars(tmp_path, 2)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:-1])
    with pytest.raises(CorruptError, match=r"1\.tar: the image 1490 is damaged"):
        list(gather(rows, reading(tmp_path), 1, 24, 90))
