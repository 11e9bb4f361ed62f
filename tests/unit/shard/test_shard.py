import gc
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from align.durable.files import sha256_file
from align.errors import CorruptError, DataError, FormatError
from align.formats.filtered import decisions_digest
from align.formats.shards import SPLITS, Sample, digest_of, iter_samples, read_manifest
from align.shard.gather import resize
from align.shard.plan import image_hashes
from align.shard.shard import shard
from align.shard.writer import write_shard
from tests.support import small_data
from tests.support.small_data import Pair
from tests.support.small_shards import CONFIG, ENGINE, STORE, folders, make_shards, many_pairs


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kept_pair_is_in_exactly_one_split_and_no_dropped_one(tmp_path):
    pairs = [
        *many_pairs(),
        Pair("a second text", 0),
        Pair("dropped", 1, reason="text_too_short"),
        Pair("lost", None, reason="image_missing"),
    ]
    shards = make_shards(tmp_path, pairs, pairs_per_shard=25)
    samples = [sample for split in SPLITS for sample in iter_samples(shards, split)]
    got = {key: text for sample in samples for key, text in zip(sample.keys, sample.texts, strict=True)}
    assert got == {f"{n // 25:05d}{n % 25:04d}": pair.text for n, pair in enumerate(pairs) if not pair.reason}
    assert len({sample.image_id for sample in samples}) == len(samples) == 60
    of_two = next(sample for sample in samples if len(sample.keys) == 2)
    assert of_two.texts == ("picture number 0", "a second text")
    assert of_two.key == "000000000"


def test_manifest_counts_checksums_and_offsets(tmp_path):
    shards = make_shards(tmp_path, [*many_pairs(), Pair("a second text", 0)])
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
            index = shards / entry.offsets_path
            assert sha256_file(index) == entry.offsets_sha256
            for jpg_offset, jpg_size, json_offset, json_size in np.load(index):
                assert Image.open(io.BytesIO(data[jpg_offset : jpg_offset + jpg_size])).size == (24, 24)
                assert json.loads(data[json_offset : json_offset + json_size])["texts"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset does not close the tars
def test_stock_webdataset_reads_the_shards(tmp_path):
    shards = make_shards(tmp_path, many_pairs())
    urls = [str(shards / entry.path) for entry in read_manifest(shards).splits["train"].shards]
    rows = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb").to_tuple("jpg", "txt", "json"))
    ours = list(iter_samples(shards, "train"))
    assert [row[2]["key"] for row in rows] == [sample.key for sample in ours]
    assert [row[1] for row in rows] == [sample.texts[0] for sample in ours]
    assert rows[0][0].shape == (24, 24, 3)
    gc.collect()


def test_equal_input_gives_equal_bytes_and_another_seed_another_order(tmp_path):
    first, again = make_shards(tmp_path, many_pairs()), make_shards(tmp_path, many_pairs(), name="again")
    assert {p.relative_to(first): p.read_bytes() for p in first.rglob("*") if p.is_file()} == {
        p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()
    }
    other = make_shards(tmp_path, many_pairs(), CONFIG.model_copy(update={"seed": 1}), name="other")
    keys = [[sample.key for sample in iter_samples(folder, "train")] for folder in (first, other)]
    assert sorted(keys[0]) != keys[0] != keys[1]


def pairs_in_clusters():
    twins = [(100 + index, small_data.far_apart(index // 2) ^ (index % 2)) for index in range(60)]
    return [
        *(Pair(f"text of three {index // 3}", index) for index in range(60)),
        *(Pair(f"twin {index - 100}", index, phash=phash) for index, phash in twins),
    ]


def test_the_page_has_splits_clusters_and_samples_and_nobodys_address(tmp_path):
    alone = [Pair(f"picture {index} of jane.doe@example.org", index) for index in range(50)]
    twins = [Pair(f"twin {bit}", 60 + bit, phash=small_data.far_apart(60) ^ bit) for bit in (0, 1)]
    manifest = read_manifest(make_shards(tmp_path, [*alone, *(Pair("of three", n) for n in (70, 71, 72)), *twins]))
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for name, split in manifest.splits.items():
        assert f"<tr><td>{name}</td><td class=number>{split.num_images}</td>" in page
        shown = page.partition(f"<h2 id=samples-of-{name}>")[2].partition("<h2")[0]
        assert shown.count("<figure") == min(split.num_images, 16)
    assert "<td>1</td><td class=number>50</td></tr><tr><td>2 to 3</td><td class=number>2</td></tr></table>" in page
    assert "of j•" in page and "jane" not in page


def test_small_blocks_give_the_same_bytes(tmp_path, with_small_blocks):
    pairs = [*pairs_in_clusters(), *(Pair(f"text {index} of one", 0) for index in range(40))]
    usual, small = with_small_blocks(lambda name: read_manifest(make_shards(tmp_path, pairs, name=name)))
    assert small == usual


def test_no_cluster_is_in_two_splits(tmp_path):
    shards = make_shards(tmp_path, pairs_in_clusters())
    where = {text: split for split in SPLITS for sample in iter_samples(shards, split) for text in sample.texts}
    by_text = {}
    for split in SPLITS:
        for sample in iter_samples(shards, split):
            by_text.setdefault(sample.texts[0], set()).add(split)
    assert all(len(splits) == 1 for splits in by_text.values())
    assert all(where[f"twin {index}"] == where[f"twin {index + 1}"] for index in range(0, 60, 2))
    assert set(where.values()) == set(SPLITS)


def test_a_cluster_that_would_swallow_a_split_goes_to_train(tmp_path):
    pairs = [*many_pairs(), *(Pair("the same text", 100 + index) for index in range(40))]
    shards = make_shards(tmp_path, pairs, CONFIG.model_copy(update={"val_fraction": 0.45, "test_fraction": 0.45}))
    in_train = [sample for sample in iter_samples(shards, "train") if sample.texts == ("the same text",)]
    assert len(in_train) == 40
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["shard/largest_cluster_share"] == 0.4
    assert metrics["shard/num_clusters"] == 61


def test_the_split_of_an_image_survives_new_data(tmp_path):
    few = make_shards(tmp_path / "few", many_pairs(40))
    more = make_shards(tmp_path / "more", many_pairs(90))
    split_of = [{s.image_id: split for split in SPLITS for s in iter_samples(folder, split)} for folder in (few, more)]
    assert split_of[0].items() <= split_of[1].items()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([Pair("a", 0, reason="text_too_short")], "no pair is kept"),
        ([Pair("a", None, reason="image_missing")], "no pair is kept"),
        ([Pair("a b c", 0)], "split 'val' would be empty: 1 images in 1 clusters"),
    ],
)
def test_nothing_to_train_on_is_one_clear_error(tmp_path, pairs, message):
    with pytest.raises(DataError, match=message):
        make_shards(tmp_path, pairs)
    assert not (tmp_path / "shards").exists()


def test_a_file_without_row_groups_has_no_hashes(tmp_path):
    with pq.ParquetWriter(tmp_path / "images.parquet", small_data.IMAGES_SCHEMA):
        pass
    assert image_hashes(tmp_path / "images.parquet", 0).num_rows == 0


def test_a_verdict_on_other_decisions_does_not_count(tmp_path):
    """`align filter` and `align shard` on another folder do not go through on this one's verdict."""
    small_data.write(tmp_path, many_pairs())
    small_data.write(tmp_path / "other", many_pairs(61))
    judged, other = tmp_path / "filtered", tmp_path / "other"
    small_data.write_verdict(tmp_path / "quality", passed=True, data=decisions_digest(judged))
    bypass = replace(folders(tmp_path), raw=other / "raw", filtered=other / "filtered")
    with pytest.raises(DataError, match=rf"verdict\.json: .* other data than {other / 'filtered'}"):
        shard(CONFIG, STORE, bypass, ENGINE)
    assert not (tmp_path / "shards").exists()


def test_decisions_that_the_filter_replaced_after_the_gate_are_refused(tmp_path, monkeypatch):
    small_data.write(tmp_path, many_pairs())
    path = tmp_path / "filtered/decisions/00000.parquet"
    small_data.write_verdict(tmp_path / "quality", passed=True, data=decisions_digest(tmp_path / "filtered"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("align.shard.shard.finish", interrupt)  # all shards are made
        shard(CONFIG, STORE, folders(tmp_path), ENGINE)
    pq.write_table(pq.read_table(path).slice(1), path)  # as a filter with a stricter rule would
    with pytest.raises(DataError, match="about other data"):
        shard(CONFIG, STORE, folders(tmp_path), ENGINE)
    assert not (tmp_path / "shards").exists()


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("num_moved", [1, 5, 10])
def test_a_run_that_was_killed_while_it_moved_its_shards_is_finished(tmp_path, monkeypatch, num_moved):
    expected = read_manifest(make_shards(tmp_path, many_pairs(), name="whole"))
    replace_file, moved = os.replace, []

    def killed(source, target):
        replace_file(source, target)
        moved.extend([source] if "written" in Path(source).parts else [])
        if len(moved) == num_moved:
            moved.append(source)
            interrupt()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        shard(CONFIG, STORE, folders(tmp_path), ENGINE)
    with monkeypatch.context() as patch:
        patch.setattr("align.shard.work_folder.gather", None)  # no shard is made again
        patch.setattr("align.shard.shard.examples", lambda *_: {})
        shard(CONFIG, STORE, folders(tmp_path), ENGINE)
    assert read_manifest(tmp_path / "shards") == expected
    assert len(list(iter_samples(tmp_path / "shards", "train"))) == expected.splits["train"].num_images
    assert {path.name for path in (tmp_path / "shards").iterdir() if path.is_dir()} == set(SPLITS)


def test_changed_shards_are_found_out(tmp_path):
    shards = make_shards(tmp_path, many_pairs())
    path = shards / "train" / "00000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptError, match=r"train/00000\.tar: sha256 does not match"):
        list(iter_samples(shards, "train"))
    (shards / "manifest.json").write_text('{"schema_version": 1}')
    with pytest.raises(FormatError, match="schema_version 1, but this code reads 2"):
        read_manifest(shards)


def test_a_jpeg_at_size_stays_the_bytes_that_it_is(tmp_path, monkeypatch):
    at_size = CONFIG.model_copy(update={"image_px": 220})  # the pictures are 260 x 220
    square, grey = (encode(Image.new(mode, (220, 220), 60)) for mode in ("RGB", "L"))
    others = small_data.jpeg
    monkeypatch.setattr(small_data, "jpeg", lambda seed: {0: square, 1: grey}.get(seed) or others(seed))
    small_data.write(tmp_path, many_pairs())
    shards = make_shards(tmp_path, [], at_size)
    images = {sample.key: sample.image for split in SPLITS for sample in iter_samples(shards, split)}
    assert images["000000000"] == square
    assert images["000000001"] != grey  # three channels, as all others
    assert {Image.open(io.BytesIO(image)).mode for image in images.values()} == {"RGB"}


def test_the_bytes_are_those_of_the_writer_of_webdataset(tmp_path):
    """Its writer is the reference for the format; ours is several times faster."""
    samples = [
        Sample("000000000", "a" * 64, b"bytes of a picture", ("000000000",), ("text",)),
        Sample("000000001", "b" * 64, b"x" * 2048, ("000000001", "7"), ('é "a" \\ \n\t\x01 \u2028 猫', "\U0001f431")),
    ]
    written = write_shard(tmp_path, "train/00000.tar", samples)
    with (
        (tmp_path / "stock.tar").open("wb") as file,
        webdataset.TarWriter(file, mtime=0, user="", group="", encoder=False) as writer,
    ):
        for one in samples:
            row = {"key": one.key, "image_id": one.image_id, "keys": one.keys, "texts": one.texts}
            info = json.dumps(row, ensure_ascii=False, sort_keys=True).encode()
            writer.write({"__key__": one.key, "jpg": one.image, "txt": one.texts[0].encode(), "json": info})
    assert (tmp_path / "train/00000.tar").read_bytes() == (tmp_path / "stock.tar").read_bytes()
    assert written.sha256 == sha256_file(tmp_path / "stock.tar")


@pytest.mark.parametrize("num_bytes", [2**20 - 1536, 2**20, 5 * 2**20 + 3])
def test_a_tar_of_many_blocks_is_whole(tmp_path, num_bytes):
    samples = [Sample(f"{index}", "a" * 64, bytes([index]) * num_bytes, ("1",), ("t",)) for index in range(5)]
    written = write_shard(tmp_path, "train/00000.tar", samples)
    path = tmp_path / "train/00000.tar"
    assert (written.sha256, written.num_bytes) == (sha256_file(path), path.stat().st_size)
    with tarfile.open(path) as tar:
        assert [len(tar.extractfile(f"{index}.jpg").read()) for index in range(5)] == [num_bytes] * 5
    data = path.read_bytes()
    assert [data[offset] for offset in np.load(tmp_path / "train/00000.npy")[:, 0]] == [0, 1, 2, 3, 4]


def test_a_failed_shard_leaves_nothing(tmp_path):
    def broken():
        yield Sample("0", "a" * 64, b"x" * 3_000_000, ("0",), ("t",))
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        write_shard(tmp_path, "train/00000.tar", broken())
    assert list((tmp_path / "train").iterdir()) == []


def test_the_joined_manifest_is_compact_json_of_all_shards(tmp_path):
    shards = make_shards(tmp_path, many_pairs())
    whole = read_manifest(shards)
    assert whole.model_dump_json(exclude_none=True) + "\n" == (shards / "manifest.json").read_text()
    assert whole.digest == digest_of(shard for name in SPLITS for shard in whole.splits[name].shards)


def test_the_order_of_decisions_does_not_matter(tmp_path):
    pairs = [*many_pairs(), Pair("a second text", 0), Pair("a third text", 0)]
    first = make_shards(tmp_path / "a", pairs)
    small_data.write(tmp_path / "b", pairs)
    path = tmp_path / "b/filtered/decisions/00000.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.take(np.random.default_rng(0).permutation(len(rows))), path, row_group_size=7)
    second = make_shards(tmp_path / "b", [])
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def without_raw_shard(root):
    for path in (root / "raw").glob("00001*"):
        path.unlink()


def without_a_hash(root):
    path = root / "filtered/images.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def cut_off(root):
    path = root / "raw/00000.tar"
    path.write_bytes(path.read_bytes()[:30_000])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_raw_shard, "15 images of kept pairs are missing, the first is 000010000"),
        (without_a_hash, "no hash of image "),
        (cut_off, r"00000\.tar: not a readable tar"),
        (lambda root: (root / "filtered/decisions").rename(root / "gone"), "decisions: no such file"),
        (lambda root: (root / "filtered/images.parquet").rename(root / "gone"), r"images\.parquet: no such file"),
    ],
)
def test_what_is_missing_or_damaged_is_named(tmp_path, spoil, says):
    small_data.write(tmp_path, many_pairs(30), pairs_per_shard=15)
    spoil(tmp_path)
    with pytest.raises(DataError, match=says):
        make_shards(tmp_path, [])
    assert not (tmp_path / "shards").exists()


def test_a_damaged_image_is_an_error_and_the_work_is_kept(tmp_path):
    raw, _ = small_data.write(tmp_path, many_pairs())
    whole = (raw / "00000.tar").read_bytes()
    start = whole.index(b"\xff\xd8", len(whole) // 2)
    (raw / "00000.tar").write_bytes(whole[:start] + bytes(1000) + whole[start + 1000 :])
    with pytest.raises(CorruptError, match=r"00000\.tar: the image 00000\d{4} is damaged"):
        make_shards(tmp_path, [])
    assert not (tmp_path / "shards").exists()
    assert {path.name for path in (tmp_path / ".shards.part/plan").iterdir()} == {"plan.json", "rows.parquet"}
    (raw / "00000.tar").write_bytes(whole)
    assert read_manifest(make_shards(tmp_path, [])).splits["train"].num_images > 0


def test_an_image_that_does_not_decode_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(small_data, "jpeg", lambda seed: b"no picture %d" % seed)
    with pytest.raises(DataError, match=r"image 00000\d{4} of a kept pair does not decode"):
        make_shards(tmp_path, many_pairs())


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
def test_resize_reads_every_kind_of_image(data, expected):
    pixels = np.asarray(Image.open(io.BytesIO(resize(data, 24, 95)))).astype(int)
    assert pixels.shape == (24, 24, 3)
    assert np.abs(pixels - np.array(expected)).max() <= 3


def test_resize_is_antialiased_and_does_not_keep_the_aspect():
    stripes = np.zeros((200, 400, 3), np.uint8)
    stripes[:, ::2] = 255  # nearest neighbour would give black or white, an average gives grey
    stripes[:100] = 0
    pixels = np.asarray(Image.open(io.BytesIO(resize(encode(Image.fromarray(stripes), "PNG"), 20, 95)))).astype(int)
    assert pixels[:9].max() <= 10
    assert np.abs(pixels[12:] - 127).max() <= 12
