"""Images of an output shard, from tars here and elsewhere."""

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from align.errors import CorruptError
from align.shard import gather as module
from align.shard.gather import RawTars, gather
from tests.support.small_data import jpeg

NUM_IMAGES = 150  # some windows of reads
PICTURES = [jpeg(index, 24, 24) for index in range(NUM_IMAGES)]


def tars(folder, num_tars):
    """Files with the pictures, distributed in turn, and the rows of a plan that needs all of them, two pairs each."""
    paths = [folder / f"{number}.tar" for number in range(num_tars)]
    rows = []
    for index, data in enumerate(PICTURES):
        path = paths[index % num_tars]
        offset = path.stat().st_size if path.exists() else 0
        with path.open("ab") as file:
            file.write(data)
        span = {"tar": index % num_tars, "offset": offset, "size": len(data)}
        for pair in range(2):
            row = {"key": f"{index}{pair}", "image_id": hashlib.sha256(data).hexdigest(), "text": f"text {pair}"}
            rows.append(row | {"image_key": f"{index}{pair}", "rank": index} | span)
    return [str(path) for path in paths], pa.Table.from_pylist(rows)


def test_a_shard_holds_pictures_upright_and_without_a_tag_that_turns_them(tmp_path):
    image, exif = Image.new("RGB", (24, 24), "red"), Image.Exif()
    image.paste("blue", (0, 0, 24, 12))
    exif[0x0112] = 6  # to be seen, it is turned to the right: the blue half is then on the right
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    data = buffer.getvalue()
    (tmp_path / "0.tar").write_bytes(data)
    image_id = hashlib.sha256(data).hexdigest()
    row = {"key": "0", "image_id": image_id, "text": "a", "image_key": "0", "rank": 0, "tar": 0, "offset": 0}
    with RawTars([str(tmp_path / "0.tar")], None, 1) as images:
        (sample,) = gather(pa.Table.from_pylist([row | {"size": len(data)}]), images, 24, 95)
    with Image.open(io.BytesIO(sample.image)) as stored:
        assert stored.size == (24, 24) and not stored.getexif()
        red, _, blue = stored.getpixel((20, 3))
        assert blue > 200 and red < 60
        red, _, blue = stored.getpixel((3, 20))
        assert blue < 60 and red > 200


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize("far", ["none", "some", "all"])
def test_images_come_in_order_wherever_they_lie(tmp_path, far, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 3)
    paths, rows = tars(tmp_path, 7)
    local = [None if far == "all" or (far == "some" and number % 2) else path for number, path in enumerate(paths)]

    def fetch(tar, offset, size):
        assert local[tar] is None
        return Path(paths[tar]).read_bytes()[offset : offset + size]

    with RawTars(local, fetch, 4) as images:
        samples = list(gather(rows, images, 24, 90))
    assert [sample.image for sample in samples] == PICTURES
    assert samples[3].key == "30"
    assert (samples[3].keys, samples[3].texts) == (("30", "31"), ("text 0", "text 1"))


def test_bytes_from_elsewhere_are_checked(tmp_path):
    paths, rows = tars(tmp_path, 1)
    data = bytearray(Path(paths[0]).read_bytes())
    data[rows["offset"][100].as_py() + 9] ^= 1
    with (
        RawTars([None], lambda tar, offset, size: bytes(data[offset : offset + size]), 2) as images,
        pytest.raises(CorruptError, match="the object store: the image 500 is damaged: its sha256"),
    ):
        list(gather(rows, images, 24, 90))


def test_a_tar_that_became_shorter_is_named(tmp_path):
    paths, rows = tars(tmp_path, 2)
    whole = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(whole[:-1])
    with RawTars(paths, None, 1) as images, pytest.raises(CorruptError, match=r"1\.tar: the image 1490 is damaged"):
        list(gather(rows, images, 24, 90))
