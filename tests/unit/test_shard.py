import gc
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from align.config.shard import ShardConfig
from align.errors import CorruptError, DataError, FormatError, GateError
from align.pairs.picture import PictureError
from align.pairs.shards import SPLITS, iter_samples, read_manifest
from align.shard import resize, shard
from align.stage import sha256_file
from tests import small_data
from tests.small_data import Pair

CONFIG = ShardConfig(
    image_px=24, jpeg_quality=90, images_per_shard=20, seed=0, val_fraction=0.2, test_fraction=0.1,
    near_duplicate_bits=4, max_cluster_share=0.2,
)  # fmt: skip


def run(tmp_path: Path, pairs: list[Pair], config: ShardConfig = CONFIG, name: str = "shards", **layout: int) -> Path:
    if not (tmp_path / "raw").exists():
        small_data.write(tmp_path, pairs, **layout)
    small_data.write_verdict(tmp_path / "quality", passed=True)
    shard(
        config, raw=tmp_path / "raw", filtered=tmp_path / "filtered", quality=tmp_path / "quality",
        out=tmp_path / name, reports=tmp_path / "report",
    )  # fmt: skip
    return tmp_path / name


def many(count: int = 60) -> list[Pair]:
    return [Pair(f"picture number {index}", index) for index in range(count)]


def test_every_kept_pair_is_in_exactly_one_split_and_no_dropped_one(tmp_path: Path) -> None:
    pairs = [
        *many(),
        Pair("a second text", 0),
        Pair("dropped", 1, reason="text_too_short"),
        Pair("lost", None, reason="image_missing"),
    ]
    shards = run(tmp_path, pairs, pairs_per_shard=25)
    samples = [sample for split in SPLITS for sample in iter_samples(shards, split)]
    got = {key: text for sample in samples for key, text in zip(sample.keys, sample.texts, strict=True)}
    assert got == {
        f"{index // 25:05d}{index % 25:04d}": pair.text for index, pair in enumerate(pairs) if not pair.reason
    }
    assert len({sample.image_id for sample in samples}) == len(samples) == 60
    of_two = next(sample for sample in samples if len(sample.keys) == 2)
    assert of_two.texts == ("picture number 0", "a second text")
    assert of_two.key == "000000000"


def test_manifest_counts_checksums_and_offsets(tmp_path: Path) -> None:
    shards = run(tmp_path, [*many(), Pair("a second text", 0)])
    manifest = read_manifest(shards)
    assert manifest.image_px == 24
    assert sum(split.num_images for split in manifest.splits.values()) == 60
    assert sum(split.num_pairs for split in manifest.splits.values()) == 61
    assert [len(split.shards) for split in manifest.splits.values()] == [3, 1, 1]
    for split in manifest.splits.values():
        for entry in split.shards:
            path = shards / entry.path
            assert (sha256_file(path), path.stat().st_size) == (entry.sha256, entry.num_bytes)
            with tarfile.open(path) as tar:
                members = tar.getmembers()
            assert {(member.mtime, member.uname, member.gname) for member in members} == {(0, "", "")}
            data = path.read_bytes()
            for jpg_offset, jpg_size, json_offset, json_size in entry.offsets:
                assert Image.open(io.BytesIO(data[jpg_offset : jpg_offset + jpg_size])).size == (24, 24)
                assert json.loads(data[json_offset : json_offset + json_size])["texts"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the tars open
def test_stock_webdataset_reads_the_shards(tmp_path: Path) -> None:
    shards = run(tmp_path, many())
    urls = [str(shards / entry.path) for entry in read_manifest(shards).splits["train"].shards]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb").to_tuple("jpg", "txt", "json"))
    ours = list(iter_samples(shards, "train"))
    assert [row[2]["key"] for row in rows] == [sample.key for sample in ours]
    assert [row[1] for row in rows] == [sample.texts[0] for sample in ours]
    assert rows[0][0].shape == (24, 24, 3)
    gc.collect()


def test_equal_input_gives_equal_bytes_and_another_seed_another_order(tmp_path: Path) -> None:
    first, again = run(tmp_path, many()), run(tmp_path, many(), name="again")
    assert {p.relative_to(first): p.read_bytes() for p in first.rglob("*") if p.is_file()} == {
        p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()
    }
    other = run(tmp_path, many(), CONFIG.model_copy(update={"seed": 1}), name="other")
    keys = [[sample.key for sample in iter_samples(folder, "train")] for folder in (first, other)]
    assert sorted(keys[0]) != keys[0] != keys[1]


def test_no_cluster_is_in_two_splits(tmp_path: Path) -> None:
    pairs = [Pair(f"text of three {index // 3}", index) for index in range(60)]
    pairs += [
        Pair(f"twin {index}", 100 + index, phash=small_data.far_apart(index // 2) ^ (index % 2)) for index in range(60)
    ]
    shards = run(tmp_path, pairs)
    where = {text: split for split in SPLITS for sample in iter_samples(shards, split) for text in sample.texts}
    by_text: dict[str, set[str]] = {}
    for split in SPLITS:
        for sample in iter_samples(shards, split):
            by_text.setdefault(sample.texts[0], set()).add(split)
    assert all(len(splits) == 1 for splits in by_text.values())
    assert all(where[f"twin {index}"] == where[f"twin {index + 1}"] for index in range(0, 60, 2))
    assert set(where.values()) == set(SPLITS)


def test_a_cluster_that_would_swallow_a_split_goes_to_train(tmp_path: Path) -> None:
    pairs = [*many(), *(Pair("the same text", 100 + index) for index in range(40))]
    shards = run(tmp_path, pairs, CONFIG.model_copy(update={"val_fraction": 0.45, "test_fraction": 0.45}))
    in_train = [sample for sample in iter_samples(shards, "train") if sample.texts == ("the same text",)]
    assert len(in_train) == 40
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["shard/largest_cluster_share"] == 0.4
    assert metrics["shard/num_clusters"] == 61


def test_the_split_of_an_image_survives_new_data(tmp_path: Path) -> None:
    few = run(tmp_path / "few", many(40))
    more = run(tmp_path / "more", many(90))
    split_of = [{s.image_id: split for split in SPLITS for s in iter_samples(folder, split)} for folder in (few, more)]
    assert split_of[0].items() <= split_of[1].items()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([Pair("a", 0, reason="text_too_short")], "no pair is kept"),
        ([Pair("a b c", 0)], "split 'val' would be empty: 1 images in 1 clusters"),
    ],
)
def test_nothing_to_train_on_is_one_clear_error(tmp_path: Path, pairs: list[Pair], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path, pairs)
    assert not (tmp_path / "shards").exists()


def test_without_a_passed_verdict_it_refuses(tmp_path: Path) -> None:
    raw, filtered = small_data.write(tmp_path, many())
    paths = {"raw": raw, "filtered": filtered, "out": tmp_path / "shards", "reports": tmp_path / "report"}
    with pytest.raises(DataError, match="run `align validate` first"):
        shard(CONFIG, quality=tmp_path / "quality", **paths)
    with pytest.raises(GateError, match="expect_this: observed 1, expected 2"):
        shard(CONFIG, quality=small_data.write_verdict(tmp_path / "quality", passed=False), **paths)


def test_a_kept_image_without_bytes_is_an_error(tmp_path: Path) -> None:
    raw, _ = small_data.write(tmp_path, many(30), pairs_per_shard=15)
    for path in raw.glob("00001*"):
        path.unlink()
    with pytest.raises(DataError, match="15 images of kept pairs are missing, the first is 000010000"):
        run(tmp_path, [])


def test_changed_shards_are_found_out(tmp_path: Path) -> None:
    shards = run(tmp_path, many())
    path = shards / "train" / "00000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptError, match=r"train/00000\.tar: sha256 does not match"):
        list(iter_samples(shards, "train"))
    (shards / "manifest.json").write_text('{"schema_version": 2}')
    with pytest.raises(FormatError, match="schema_version 2, but this code reads 1"):
        read_manifest(shards)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("RGBA", (300, 210), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encode(Image.new("RGBA", (300, 210), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (encode(Image.new("LA", (300, 210), (0, 0)), "PNG"), (255, 255, 255)),
        (encode(Image.new("P", (300, 210), 0), "PNG", transparency=0), (255, 255, 255)),
        (encode(Image.new("CMYK", (300, 210), (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
        (encode(Image.new("L", (300, 210), 60), "JPEG"), (60, 60, 60)),
        (encode(Image.new("RGB", (300, 210), (0, 0, 255)), "GIF"), (0, 0, 255)),
    ],
)
def test_resize_reads_every_kind_of_image(data: bytes, expected: tuple[int, int, int]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(resize(data, 24, 95)))).astype(int)
    assert pixels.shape == (24, 24, 3)
    assert np.abs(pixels - np.array(expected)).max() <= 3


def test_resize_is_antialiased_and_does_not_keep_the_aspect() -> None:
    stripes = np.zeros((200, 400, 3), np.uint8)
    stripes[:, ::2] = 255  # nearest neighbour would give black or white, an average gives grey
    stripes[:100] = 0
    pixels = np.asarray(Image.open(io.BytesIO(resize(encode(Image.fromarray(stripes), "PNG"), 20, 95)))).astype(int)
    assert pixels[:9].max() <= 10
    assert np.abs(pixels[12:] - 127).max() <= 12


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8 cut off"])
def test_resize_refuses_what_is_no_image(data: bytes) -> None:
    with pytest.raises(PictureError):
        resize(data, 24, 95)
