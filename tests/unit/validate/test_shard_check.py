"""What the gate over shards finds in a folder: nothing in a good one, and each fault by its name in a bad one."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import CorruptError, DataError, ServiceError
from align.formats.shards import Manifest, Shard, Split, digest_of, read_manifest, write_manifest
from align.validate.shard_check import JOINS, PAIRS, Faults, check_folder, check_shard, tasks
from tests.support.small_data import jpeg

PX = 32


def members(index: int, *, key: str | None = None) -> dict[str, bytes]:
    """One sample, with two texts."""
    key = key or f"{index:09d}"
    texts = [f"picture number {index}", f"another text {index}"]
    row = {"key": key, "image_id": f"image {index}", "keys": [key, f"9{key[1:]}"], "texts": texts}
    return {
        f"{key}.jpg": jpeg(index, PX, PX), f"{key}.txt": texts[0].encode(), f"{key}.json": json.dumps(row).encode(),
    }  # fmt: skip


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def described(path: str, data: bytes, num_images: int) -> Shard:
    offsets: list[Any] = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        places = {member.name: (member.offset_data, member.size) for member in archive}
    for name in places:
        if name.endswith(".jpg"):
            offsets.append((*places[name], *places[name.replace(".jpg", ".json")]))
    return Shard(
        path=path, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data), num_images=num_images,
        num_pairs=2 * num_images, offsets=tuple(offsets),
    )  # fmt: skip


def write(root: Path, num_images: int = 3) -> Path:
    """A folder with one shard of some images in each of two splits."""
    splits = {}
    for place, name in enumerate(("train", "val")):
        files: dict[str, bytes] = {}
        for index in range(place * num_images, (place + 1) * num_images):
            files |= members(index)
        path = f"{name}/00000.tar"
        (root / name).mkdir(parents=True)
        (root / path).write_bytes(tar(files))
        shard = described(path, (root / path).read_bytes(), num_images)
        splits[name] = Split(num_images=num_images, num_pairs=2 * num_images, shards=(shard,))
    splits["test"] = Split(num_images=0, num_pairs=0, shards=())
    digest = digest_of(shard for split in splits.values() for shard in split.shards)
    write_manifest(Manifest(image_px=PX, digest=digest, splits=splits), root)  # type: ignore[arg-type]
    return root


def check(root: Path, scratch: Path, fetch: Any = None) -> Faults:
    manifest = read_manifest(root)
    scratch.mkdir(exist_ok=True)
    faults = check_folder(root, manifest)
    for task in tasks(root, manifest, scratch, fetch):
        faults.merge(check_shard(task))
    return faults


def found(faults: Faults) -> dict[str, int]:
    return {kind: num for kind, num in faults.counts.items() if num}


def test_good_shards_have_no_fault_and_every_picture_was_looked_at(tmp_path: Path) -> None:
    faults = check(write(tmp_path / "shards"), tmp_path / "scratch")
    assert found(faults) == {}
    assert faults.num_images == 6
    assert pq.read_table(tmp_path / "scratch").num_rows == 12


def rewrite(change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Callable[[Path], None]:
    """Changes the members of the first shard and describes it as it is then: only its samples can be at fault."""

    def spoil(root: Path) -> None:
        manifest = read_manifest(root)
        path = root / "train/00000.tar"
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        data = tar(change(files))
        path.write_bytes(data)
        old = manifest.splits["train"].shards[0]
        shard = old.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)})
        splits = manifest.splits | {"train": manifest.splits["train"].model_copy(update={"shards": (shard,)})}
        digest = digest_of(one for split in splits.values() for one in split.shards)
        write_manifest(manifest.model_copy(update={"splits": splits, "digest": digest}), root)

    return spoil


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        values = json.loads((root / "manifest.json").read_text())
        values["splits"]["train"]["shards"][0] |= changes
        (root / "manifest.json").write_text(json.dumps(values))

    return spoil


def flip(place: int) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        data = bytearray((root / "train/00000.tar").read_bytes())
        data[place] ^= 1
        (root / "train/00000.tar").write_bytes(data)

    return spoil


FIRST = "000000000"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (flip(512 + 200), {"shards_changed": 1}),  # within a picture that still decodes
        (flip(-1), {"shards_changed": 1}),  # in the padding at the end
        (lambda root: (root / "train/00000.tar").unlink(), {"shards_missing": 1}),
        (lambda root: (root / "val/00001.tar").write_bytes(b""), {"shards_unlisted": 1}),
        (edit_manifest(num_images=4), {"shards_of_another_count": 2}),  # of the shard, and of the split's sum
        (edit_manifest(num_pairs=5), {"shards_of_another_count": 2}),
        (edit_manifest(num_bytes=1), {"shards_changed": 1}),
        (edit_manifest(offsets=[]), {"shards_of_another_index": 1}),
        (edit_manifest(sha256="0" * 64), {"shards_changed": 1, "manifest_of_another_digest": 1}),
        (
            rewrite(lambda files: files | {f"{FIRST}.jpg": files[f"{FIRST}.jpg"][:400]}),
            {"samples_undecodable": 1, "shards_of_another_index": 1},
        ),
        (
            rewrite(lambda files: files | {f"{FIRST}.jpg": jpeg(0, PX + 1, PX)}),
            {"samples_of_another_size": 1, "shards_of_another_index": 1},
        ),
        (
            rewrite(lambda files: {name: data for name, data in files.items() if name != f"{FIRST}.txt"}),
            {"samples_incomplete": 1, "shards_of_another_count": 1, "shards_of_another_index": 1},
        ),
        (
            rewrite(lambda files: {name: data for name, data in files.items() if not name.startswith(FIRST)}),
            {"shards_of_another_count": 1, "shards_of_another_index": 1},
        ),
        (
            rewrite(lambda files: files | {f"{FIRST}.txt": b"picture numbel 0"}),  # as long as the right one
            {"samples_incomplete": 1, "shards_of_another_count": 1, "shards_of_another_index": 1},
        ),
    ],
)  # fmt: skip
def test_each_fault_is_named(tmp_path: Path, spoil: Callable[[Path], None], expected: dict[str, int]) -> None:
    root = write(tmp_path / "shards")
    spoil(root)
    faults = check(root, tmp_path / "scratch")
    assert found(faults) == expected
    assert set(faults.examples) == set(expected)


def test_a_tar_that_is_cut_off_does_not_end_the_run(tmp_path: Path) -> None:
    root = write(tmp_path / "shards")
    path = root / "train/00000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    faults = check(root, tmp_path / "scratch")
    assert {"shards_changed", "shards_of_another_count"} <= found(faults).keys()
    assert faults.num_images >= 3  # the other shard was looked at


@pytest.mark.parametrize(
    ("error", "expected"),
    [(CorruptError("damaged"), {"shards_changed": 1}), (DataError("not there"), {"shards_missing": 1})],
)
def test_a_shard_in_an_object_store_is_fetched(tmp_path: Path, error: Exception, expected: dict[str, int]) -> None:
    root = write(tmp_path / "shards")
    away = (root / "train/00000.tar").rename(tmp_path / "away.tar")
    assert found(check(root, tmp_path / "scratch", lambda sha256, num_bytes: away)) == {}

    def broken(sha256: str, num_bytes: int) -> Path:
        raise error

    assert found(check(root, tmp_path / "scratch", broken)) == expected


def test_a_store_that_is_away_says_nothing_about_the_data(tmp_path: Path) -> None:
    root = write(tmp_path / "shards")
    (root / "train/00000.tar").unlink()

    def away(sha256: str, num_bytes: int) -> Path:
        raise ServiceError("no answer")

    with pytest.raises(ServiceError):
        check(root, tmp_path / "scratch", away)


def test_only_a_few_places_are_named() -> None:
    faults, others = Faults(), Faults()
    for index in range(4):
        faults.add("shards_missing", f"a{index}")
        others.add("shards_missing", f"b{index}")
    faults.merge(others)
    assert faults.counts["shards_missing"] == 8
    assert faults.examples["shards_missing"] == ["a0", "a1", "a2", "a3", "b0"]


def joined(pairs: list[tuple[str, str, str, str]], decisions: list[tuple[str, bool, str, str]]) -> dict[str, int]:
    connection = duckdb.connect()
    connection.register(
        "pairs", pa.Table.from_pylist([dict(zip(PAIRS.names, row, strict=True)) for row in pairs], PAIRS)
    )
    rows = [dict(zip(("key", "keep", "image_id", "text"), row, strict=True)) for row in decisions]
    connection.register("decisions", pa.Table.from_pylist(rows))
    counts = {name: connection.execute(query).fetchall()[0][0] for name, (_, query) in JOINS.items()}
    return {name: num for name, num in counts.items() if num}


def test_shards_hold_the_kept_pairs_and_no_other() -> None:
    kept, dropped = ("1", True, "i1", "one"), ("2", False, "i2", "two")
    pair = ("1", "i1", "train", "one")
    assert joined([pair], [kept, dropped]) == {}
    assert joined([pair], [kept, ("3", True, "i3", "three")]) == {"kept_pairs_not_in_shards": 1}
    assert joined([pair, ("2", "i2", "train", "two")], [kept, dropped]) == {"shard_pairs_not_kept": 1}
    assert joined([("1", "i1", "train", "other")], [kept]) == {"shard_pairs_not_kept": 1}
    assert joined([("1", "i9", "train", "one")], [kept]) == {"shard_pairs_not_kept": 1}
    assert joined([pair, pair], [kept]) == {"shard_pairs_twice": 1}
    both = [pair, ("3", "i1", "val", "three")]
    assert joined(both, [kept, ("3", True, "i1", "three")]) == {"images_in_two_splits": 1}
