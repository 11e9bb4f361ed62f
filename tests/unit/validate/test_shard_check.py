"""What the gate over shards counts: nothing in a good folder, and each fault by its name in a bad one."""

import hashlib
import io
import json
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.durable.steps import Work
from align.errors import CorruptError, DataError, ServiceError
from align.formats.shards import Sample, digest_of, read_manifest
from align.services.executors.executors import LocalExecutor
from align.validate import shard_check
from align.validate.shard_check import Faults, ShardsWork, check_shards, kept_pairs, pair_number
from tests.support.shard_folder import write_shards
from tests.support.small_data import jpeg

PX = 32


def sample(index):
    """An image with two texts."""
    key = f"{index:09d}"
    texts = (f"picture number {index}", f"another text {index}")
    return Sample(key, f"image {index}", jpeg(index, PX, PX), (key, f"9{key[1:]}"), texts)


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write(root, num_images=3):
    """A folder with one shard of some images in each of two splits."""
    train, val = map(sample, range(num_images)), map(sample, range(num_images, 2 * num_images))
    write_shards(root, {"train": [train], "val": [val]}, image_px=PX)
    return root


def work_on(root, scratch, fetch=None):
    scratch.mkdir(exist_ok=True)
    return ShardsWork(Work(scratch), root, PX, fetch)


def check(root, scratch, fetch=None):
    shutil.rmtree(scratch, ignore_errors=True)
    return check_shards(work_on(root, scratch, fetch), LocalExecutor(1), read_manifest(root))


def pairs_of(one):
    return [(key, one.image_id, text) for key, text in zip(one.keys, one.texts, strict=True)]


def counted(faults):
    return {kind: num for kind, num in faults.counts.items() if num}


def test_good_shards_have_no_fault_and_every_picture_is_checked(tmp_path):
    faults = check(write(tmp_path / "shards"), tmp_path / "scratch")
    assert counted(faults) == {}
    assert faults.num_images == 6 and faults.num_leaked == 0
    numbers = [pair_number(*pair) for index in range(6) for pair in pairs_of(sample(index))]
    assert len(set(numbers)) == 12 and faults.pairs == sum(numbers) % 2**256


def rewrite(change):
    """Changes the members of the first shard and describes it as it is then, so that only its samples can be faulty."""

    def spoil(root):
        manifest = read_manifest(root)
        path = root / "train/00000.tar"
        with tarfile.open(path) as archive:
            files = {member.name: archive.extractfile(member).read() for member in archive}
        data = tar(change(files))
        path.write_bytes(data)
        old = manifest.splits["train"].shards[0]
        shard = old.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)})
        splits = manifest.splits | {"train": manifest.splits["train"].model_copy(update={"shards": (shard,)})}
        digest = digest_of(one for split in splits.values() for one in split.shards)
        changed = manifest.model_copy(update={"splits": splits, "digest": digest})
        (root / "manifest.json").write_text(changed.model_dump_json())

    return spoil


def edit_manifest(**changes):
    def spoil(root):
        values = json.loads((root / "manifest.json").read_text())
        values["splits"]["train"]["shards"][0] |= changes
        (root / "manifest.json").write_text(json.dumps(values))

    return spoil


def flip(position):
    def spoil(root):
        data = bytearray((root / "train/00000.tar").read_bytes())
        data[position] ^= 1
        (root / "train/00000.tar").write_bytes(data)

    return spoil


def no_texts(key):
    """The first sample's json names a pair by this JSON, which is no text that can be written."""
    info = f'{{"image_id": "i", "key": "000000000", "keys": [{key}], "texts": ["picture number 0"]}}'
    return lambda files: files | {"000000000.json": info.encode()}


def stated_sources(sources):
    """The first sample's json has these sources of its texts."""
    return lambda files: (
        files | {"000000000.json": files["000000000.json"].replace(b'"texts"', b'"sources": %s, "texts"' % sources)}
    )


def index_of_another_shard(root):
    other = (root / "val/00000.npy").read_bytes()
    (root / "train/00000.npy").write_bytes(other)
    edit_manifest(offsets_sha256=hashlib.sha256(other).hexdigest())(root)


FIRST = "000000000"
#: What is counted of a sample that cannot be used.
BROKEN = {"samples_incomplete": 1, "shards_of_another_count": 1, "shards_of_another_index": 1}


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
        (edit_manifest(offsets_sha256="0" * 64), {"shards_of_another_index": 1}),
        (lambda root: (root / "train/00000.npy").unlink(), {"shards_of_another_index": 1}),
        (index_of_another_shard, {"shards_of_another_index": 1}),
        (edit_manifest(sha256="0" * 64), {"shards_changed": 1, "manifest_of_another_digest": 1}),
        (
            rewrite(lambda files: files | {f"{FIRST}.jpg": files[f"{FIRST}.jpg"][:400]}),
            {"samples_undecodable": 1, "shards_of_another_index": 1},
        ),
        (
            rewrite(lambda files: files | {f"{FIRST}.jpg": jpeg(0, PX + 1, PX)}),
            {"samples_of_another_size": 1, "shards_of_another_index": 1},
        ),
        (rewrite(lambda files: {name: data for name, data in files.items() if name != f"{FIRST}.txt"}), BROKEN),
        (
            rewrite(lambda files: {name: data for name, data in files.items() if not name.startswith(FIRST)}),
            {"shards_of_another_count": 1, "shards_of_another_index": 1},
        ),
        *((rewrite(no_texts(key)), BROKEN) for key in ("7", '"\\ud800"', "null")),
        *((rewrite(stated_sources(of_two)), BROKEN) for of_two in (b'["alt"]', b"7", b"null")),
        (rewrite(stated_sources(b'["alt", null]')), {"shards_of_another_index": 1}),
        (rewrite(lambda files: files | {f"{FIRST}.txt": b"picture numbel 0"}), BROKEN),  # as long as the right one
    ],
)
def test_each_fault_is_named(tmp_path, spoil, expected):
    root = write(tmp_path / "shards")
    spoil(root)
    faults = check(root, tmp_path / "scratch")
    assert counted(faults) == expected
    assert set(faults.examples) == set(expected)


def test_a_tar_that_is_cut_off_does_not_end_the_run(tmp_path):
    root = write(tmp_path / "shards")
    path = root / "train/00000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    faults = check(root, tmp_path / "scratch")
    assert {"shards_changed", "shards_of_another_count"} <= counted(faults).keys()
    assert faults.num_images >= 3  # the other shard was checked


@pytest.mark.parametrize(
    ("error", "expected"),
    [(CorruptError("damaged"), {"shards_changed": 1}), (DataError("no such object"), {"shards_missing": 1})],
)
def test_a_shard_in_an_object_store_is_fetched(tmp_path, error, expected):
    root = write(tmp_path / "shards")
    stored = (root / "train/00000.tar").rename(tmp_path / "stored.tar")
    assert counted(check(root, tmp_path / "scratch", lambda sha256, num_bytes: stored)) == {}

    def broken(sha256, num_bytes):
        raise error

    assert counted(check(root, tmp_path / "scratch", broken)) == expected


def test_an_unavailable_store_is_no_fault_of_the_data(tmp_path):
    root = write(tmp_path / "shards")
    (root / "train/00000.tar").unlink()

    def unavailable(sha256, num_bytes):
        raise ServiceError("no answer")

    with pytest.raises(ServiceError):
        check(root, tmp_path / "scratch", unavailable)


def test_only_the_first_few_faults_are_named():
    faults, others = Faults(), Faults()
    for index in range(4):
        faults.add("shards_missing", f"a{index}")
        others.add("shards_missing", f"b{index}")
    faults.merge(others)
    assert faults.counts["shards_missing"] == 8
    assert faults.examples["shards_missing"] == ["a0", "a1", "a2", "a3", "b0"]


def test_an_image_that_is_in_two_splits_is_noticed(tmp_path):
    one, other, third = map(sample, range(3))
    again = Sample("7", one.image_id, one.image, ("7",), ("a text",))
    for name, tars in {
        "train and val": {"train": [[one, other]], "val": [[third, again]]},
        "val and test": {"train": [[other]], "val": [[third, one]], "test": [[again]]},
    }.items():
        write_shards(tmp_path / name, tars, image_px=PX)
        assert check(tmp_path / name, tmp_path / "scratch").num_leaked == 1, name
    write_shards(tmp_path / "same", {"train": [[one], [again]], "val": [[other]]}, image_px=PX)
    assert check(tmp_path / "same", tmp_path / "scratch").num_leaked == 0


def test_a_killed_run_checks_no_tar_twice(tmp_path, monkeypatch):
    root = write(tmp_path / "shards")
    expected = check(root, tmp_path / "whole")
    work, checked = work_on(root, tmp_path / "scratch"), []
    check_one = shard_check.check_shard

    def killed(work, out, task):
        if len(checked) == 1:
            raise KeyboardInterrupt
        checked.append(task.name)
        check_one(work, out, task)

    monkeypatch.setattr(shard_check, "check_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        check_shards(work, LocalExecutor(1), read_manifest(root))
    assert checked == ["val-00000"]
    monkeypatch.setattr(shard_check, "check_shard", lambda *one: (checked.append(one[2].name), check_one(*one)))
    assert check_shards(work, LocalExecutor(1), read_manifest(root)) == expected
    assert checked == ["val-00000", "train-00000"]


def test_the_sum_of_the_kept_pairs_is_that_of_the_shards(tmp_path):
    kept = [pair for index in range(6) for pair in pairs_of(sample(index))]
    rows = [{"key": key, "image_id": image, "text": text, "keep": True} for key, image, text in kept]
    table = pa.Table.from_pylist([*rows[::-1], {"key": "9", "image_id": None, "text": None, "keep": False}])
    for name in ("whole", "parts"):
        (tmp_path / name / "decisions").mkdir(parents=True)
    pq.write_table(table, tmp_path / "whole/decisions/0.parquet", row_group_size=5)
    for number in range(3):
        pq.write_table(table.slice(5 * number, 5), tmp_path / f"parts/decisions/{number}.parquet")
    expected = check(write(tmp_path / "shards"), tmp_path / "scratch").pairs
    assert (
        kept_pairs(tmp_path / "whole", LocalExecutor(1)) == kept_pairs(tmp_path / "parts", LocalExecutor(2)) == expected
    )
    rows[3]["text"] = "another one"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "whole/decisions/0.parquet")
    assert kept_pairs(tmp_path / "whole", LocalExecutor(1)) != expected
