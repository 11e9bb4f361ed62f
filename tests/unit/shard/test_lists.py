"""`shard.materialise: false`: train is lists over one store of pictures, and holds what its tars would hold."""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from align.config.infrastructure import StoreConfig
from align.config.shard import ShardConfig
from align.durable.pieces import Pieces
from align.errors import CorruptError, DataError
from align.formats.shards import SPLITS, Manifest, Sample, Shard, SplitName, iter_samples, iter_texts, read_manifest
from align.formats.stored_tars import stored_tars
from align.lineage.trace.data import picture_of
from align.lineage.versions.shard_samples import iter_stored_samples, shards_show
from align.model.preprocess import decode
from align.release.registration.dataset_card import croissant
from align.release.registration.results import PipelineOutputs
from align.search.embed_shards import EmbedWork, _samples
from align.services.executors.executors import LocalExecutor
from align.services.s3.store import Objects, TarReader, fetcher
from align.shard import pictures
from align.training.batches.index import SplitIndex
from align.training.batches.samples import SplitSamples
from align.validate.shard_check import Faults, ShardsWork, check_shards, write_pairs
from tests.support import local_store, small_data
from tests.support.small_data import Pair, jpeg
from tests.support.small_shards import CONFIG, make_shards, many_pairs

LISTS = CONFIG.model_copy(update={"materialise": False})
#: Two of the three pictures of the last raw tar are of the second, and some texts share a picture.
PAIRS = [
    *many_pairs(50),
    *(Pair(f"another text {index}", index) for index in (0, 1, 49, 48)),
    Pair("dropped", 90, "rare"),
]


def image_id(number: int) -> str:
    return hashlib.sha256(jpeg(number)).hexdigest()


def make(root: Path, config: ShardConfig = LISTS, name: str = "shards", objects: str | None = None) -> Path:
    return make_shards(root, PAIRS, config, name, store_of(root, objects), pairs_per_shard=20)


def store_of(root: Path, objects: str | None = None) -> StoreConfig:
    return local_store.config(root, objects)


def by_key(shards: Path, split: SplitName, store: StoreConfig | None = None) -> dict[str, Sample]:
    return {one.key: one for one in iter_samples(shards, split, fetcher(store) if store else None)}


def stored_files(root: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file of the store of pictures."""
    files = [path for path in (root / "cache/pictures").rglob("*") if path.suffix in (".tar", ".npy", ".json")]
    return {path: ((status := path.stat()).st_ino, status.st_mtime_ns) for path in files}


@pytest.mark.parametrize("objects", [None, "objects"])
def test_lists_hold_what_tars_hold_for_every_reader(tmp_path: Path, objects: str | None) -> None:
    store = store_of(tmp_path, objects)
    tars, lists = make(tmp_path, CONFIG, "tars"), make(tmp_path, objects=objects)
    manifest = read_manifest(lists)
    train = manifest.splits["train"]
    assert [row.path for row in train.shards] == [f"train/{number:05d}.jsonl" for number in range(3)]
    for split in SPLITS:
        assert by_key(lists, split, store) == by_key(tars, split)
        assert manifest.splits[split].num_pairs == read_manifest(tars).splits[split].num_pairs
    # val and test are the same tars, and only the tars of pictures are in the object store
    assert manifest.splits["val"].shards == read_manifest(tars).splits["val"].shards
    assert sorted(path.name for path in lists.rglob("*.tar")) == (
        [] if objects else [*[f"0000{n}.tar" for n in (0, 0, 0, 1, 2)]]
    )
    fetch, expected = fetcher(store), by_key(tars, "train")
    assert sorted(iter_texts(lists, "train", fetch)) == sorted(list(one.texts) for one in expected.values())
    # training reads pictures and texts, and reads nothing twice
    reader = TarReader(store) if objects else None
    index = SplitIndex.of(lists, manifest, "train", reader)
    samples = SplitSamples(index, CONFIG.image_px, reader, cache_bytes=0)
    whole = SplitSamples(SplitIndex.of(tars, read_manifest(tars), "train"), CONFIG.image_px)
    loaded = [samples.load(samples.location(number)) for number in range(samples.num_images)]
    known = {
        str(texts): image.tobytes() for image, texts in map(whole.load, whole.locations(np.arange(whole.num_images)))
    }
    assert {str(texts): image.tobytes() for image, texts in loaded} == known
    # the index embeds each picture, from where a search shows it
    work = EmbedWork(Pieces(tmp_path), lists, fetch, 8)
    for row, image in (one for task in manifest.tasks for one in _samples(work, task.shard)):
        assert image == {**expected, **by_key(tars, "val"), **by_key(tars, "test")}[row["key"]].image
        assert row["size_bytes"] == len(image)
    # the gate reads all of them, and writes their pairs for the join
    assert counted(check(lists, tmp_path, fetch)) == {}
    # take-downs and traces
    found = {one.key: one for one in iter_stored_samples(lists, fetch)}
    assert {key: one.texts for key, one in found.items() if one.split == "train"} == {
        key: one.texts for key, one in expected.items()
    }
    if objects is None:
        for key, one in expected.items():
            assert (picture := picture_of(found[key], lists)) and picture.data == one.image


def test_lists_say_the_sources_of_texts_as_tars_do(tmp_path: Path) -> None:
    small_data.write(tmp_path, PAIRS)
    raw = pq.read_table(table := tmp_path / "raw/00000.parquet")
    pq.write_table(raw.append_column("text_source", [["alt", "title", *["alt"] * (len(raw) - 2)]]), table)
    sourced = {"text_sources": True}
    tars = make(tmp_path, CONFIG.model_copy(update=sourced), "tars")
    lists = make(tmp_path, LISTS.model_copy(update=sourced))
    assert by_key(lists, "train") == by_key(tars, "train")
    assert {len(one.sources) - len(one.texts) for one in by_key(lists, "train").values()} == {0}
    (row,) = read_manifest(lists).splits["train"].shards
    assert row.sources == {"alt": row.num_pairs - 1, "title": 1}
    assert counted(check(lists, tmp_path)) == {}


class Server:
    """A `Tars` whose tars are in a folder, and which counts the reads."""

    num_connections = 2

    def __init__(self, store: StoreConfig) -> None:
        self._objects, self.num_reads = Objects(store), 0

    def uri(self, sha256: str, num_bytes: int) -> str:
        return f"s3://bucket/{sha256}"

    def read(self, uri: str, offset: int, size: int) -> bytes:
        self.num_reads += 1
        with Path(self._objects.uri(uri.rpartition("/")[2])).open("rb") as file:
            file.seek(offset)
            return file.read(size)


def test_a_range_read_of_a_store_has_neighbours_and_lists_are_read_here(tmp_path: Path) -> None:
    lists, tars = make(tmp_path, objects="objects"), make(tmp_path, CONFIG, "tars")
    server = Server(store_of(tmp_path, "objects"))
    index = SplitIndex.of(lists, read_manifest(lists), "train", server)
    samples = SplitSamples(index, CONFIG.image_px, server, cache_bytes=0)
    expected = {one.texts: one.image for one in iter_samples(tars, "train")}
    locations = samples.locations(np.arange(samples.num_images))
    spans = samples.spans(locations)
    assert len(spans) == 3 and sorted(number for span in spans for number in span.samples) == [*range(len(expected))]
    for span in spans:
        data = samples.fetch(span)
        for number in span.samples:
            image, texts = samples.load(locations[number], data, span.begin)
            assert image.tobytes() == decode(expected[tuple(texts)], CONFIG.image_px).tobytes()
    assert server.num_reads == 3
    (lists / "train/00000.jsonl").unlink()  # such as on a machine that has the manifest alone
    elsewhere = SplitSamples(SplitIndex.of(lists, read_manifest(lists), "train", server), CONFIG.image_px, server)
    assert {tuple(elsewhere.texts(number)) for number in range(elsewhere.num_images)} == expected.keys()


def test_another_recipe_writes_lists_alone_and_the_bytes_do_not_depend_on_the_way(tmp_path: Path) -> None:
    make(tmp_path)
    stored = stored_files(tmp_path)
    half = LISTS.model_copy(update={"train_fraction": 0.5})
    again = make(tmp_path, half, "again")
    assert stored_files(tmp_path) == stored and len(stored) == 9
    new = [path for path in again.rglob("*") if path.is_file() and path.stat().st_nlink == 1]
    tars = sum(path.stat().st_size for path in make(tmp_path, CONFIG, "tars").glob("train/*.tar"))
    assert sum(path.stat().st_size for path in new if path.parent.name == "train") < tars / 10
    assert {path.parent.name for path in new} == {"again", "train", "val", "test"}
    shutil.rmtree(tmp_path / "cache")
    first = {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}
    fresh = make(tmp_path, half, "fresh")
    assert {p.relative_to(fresh): p.read_bytes() for p in fresh.rglob("*") if p.is_file()} == first


@pytest.mark.parametrize("damage", ["removed", "cut off", "killed"])
def test_a_store_that_is_not_whole_is_made_again(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if damage == "killed":
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "keep_tar", partial(_killed, []))
            with pytest.raises(KeyboardInterrupt):
                make(tmp_path)
        shards = make(tmp_path)
    else:
        shards = make(tmp_path)
        (tar,) = [
            path
            for path in (tmp_path / "cache/pictures").rglob("*.tar")
            if path.samefile(shards / "pictures/00001.tar")
        ]
        tar.unlink()
        if damage == "cut off":
            tar.write_bytes(b"half")
        shards = make(tmp_path, LISTS.model_copy(update={"train_fraction": 0.5}))
    assert counted(check(shards, tmp_path)) == {}


def _killed(calls: list[object], *args: object) -> None:
    calls.append(args)
    if len(calls) == 2:
        raise KeyboardInterrupt


def test_without_hard_links_the_tars_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refused)
    shards = make(tmp_path)
    assert counted(check(shards, tmp_path)) == {}
    assert {path.stat().st_nlink for path in (shards / "pictures").iterdir()} == {1}


def test_a_raw_tar_without_training_pictures_has_no_list(tmp_path: Path) -> None:
    nothing = [Pair(f"dropped {index}", 100 + index, "rare") for index in range(20)]
    shards = make_shards(tmp_path, [*nothing, *many_pairs(40)], LISTS, store=store_of(tmp_path), pairs_per_shard=20)
    assert [row.path for row in read_manifest(shards).splits["train"].shards] == [
        "train/00001.jsonl",
        "train/00002.jsonl",
    ]
    assert sorted(path.name for path in (shards / "train").iterdir()) == [
        "00001.jsonl",
        "00001.npy",
        "00002.jsonl",
        "00002.npy",
    ]
    assert sorted(path.name for path in (shards / "pictures").iterdir()) == ["00001.tar", "00002.tar"]


def test_a_picture_that_no_list_names_is_still_shown_to_a_take_down(tmp_path: Path) -> None:
    shards = make(tmp_path)
    assert image_id(90) not in {one.image_id for one in iter_stored_samples(shards)}
    assert shards_show(shards, frozenset([image_id(90)]))
    assert not shards_show(shards, frozenset([image_id(91)]))
    assert {path.split("/")[0] for path in stored_tars(shards)} == {"pictures", "train", "val", "test"}


def test_the_card_of_the_data_names_every_file_and_reads_tars_alone(tmp_path: Path) -> None:
    shards = make(tmp_path)
    outputs = PipelineOutputs(tmp_path / "packaged", shards, tmp_path / "reports", ())
    card = json.loads(croissant("data", read_manifest(shards), outputs))
    files = {one["@id"]: one for one in card["distribution"] if one["@type"] == "cr:FileObject"}
    stored = [path for path in shards.rglob("*") if path.suffix in (".tar", ".jsonl")]
    assert {name: one["sha256"] for name, one in files.items()} == {
        path.relative_to(shards).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in stored
    }
    (pictures_of,) = [one["containedIn"] for one in card["distribution"] if one["@id"] == "jpg"]
    assert [one["@id"] for one in pictures_of] == ["val/00000.tar", "test/00000.tar"]
    assert "Train is lists" in card["description"]


def check(root: Path, scratch: Path, fetch: Callable[[str, int], Path] | None = None) -> Faults:
    shutil.rmtree(scratch / "scratch", ignore_errors=True)
    (scratch / "scratch").mkdir()
    manifest = read_manifest(root)
    work = ShardsWork(Pieces(scratch / "scratch"), root, CONFIG.image_px, fetch)
    for task in manifest.tasks:
        write_pairs(work, task)
    return check_shards(work, LocalExecutor(1), manifest)


def counted(faults: Faults) -> dict[str, int]:
    return {kind: num for kind, num in faults.counts.items() if num}


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the first line of the first list, and the manifest with it."""

    def spoil(root: Path) -> None:
        path = root / "train/00000.jsonl"
        first, end, rest = path.read_bytes().partition(b"\n")
        path.write_bytes(data := change(first) + end + rest)
        old = (values := json.loads((root / "manifest.json").read_text()))["splits"]["train"]["shards"][0]
        old |= {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        manifest = Manifest.model_validate_json(json.dumps(values))
        splits = [one for split in manifest.splits.values() for one in split.shards]
        digest = pictures_digest(splits)
        (root / "manifest.json").write_text(manifest.model_copy(update={"digest": digest}).model_dump_json())

    return spoil


def pictures_digest(rows: list[Shard]) -> str:
    return hashlib.sha256(
        "".join(f"{row.sha256}{row.pictures.sha256 if row.pictures else ''}" for row in rows).encode()
    ).hexdigest()


def edited(**values: object) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps(json.loads(line) | values).encode()


BROKEN = {"samples_incomplete": 1, "shards_of_another_count": 1, "shards_of_another_index": 1}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda root: (root / "pictures/00001.tar").unlink(), {"shards_missing": 1}),
        (lambda root: (root / "train/00001.jsonl").unlink(), {"shards_missing": 1}),
        (lambda root: (root / "pictures/00009.tar").write_bytes(b""), {"shards_unlisted": 1}),
        (lambda root: (root / "train/00009.jsonl").write_bytes(b""), {"shards_unlisted": 1}),
        (lambda root: _flip(root / "pictures/00001.tar", -1), {"shards_changed": 1}),
        (lambda root: _flip(root / "train/00001.jsonl", 25), {"shards_changed": 1}),
        (rewritten(lambda line: line[:-1]), BROKEN),
        (rewritten(lambda line: b"[" * 100_000), BROKEN),
        (rewritten(lambda line: b"7"), BROKEN),
        (rewritten(edited(texts=[])), BROKEN),
        (rewritten(edited(texts="a text")), BROKEN),
        (rewritten(edited(offset=-1)), BROKEN),
        (rewritten(edited(offset="1", size="")), BROKEN),
        (rewritten(edited(offset=10**30)), BROKEN),
        (rewritten(edited(size=10**15)), {"shards_of_another_index": 1}),
        (rewritten(edited(size=9)), {"samples_undecodable": 1, "shards_of_another_index": 1}),
    ],
)  # fmt: skip
def test_the_gate_names_each_fault_of_a_list(
    tmp_path: Path, spoil: Callable[[Path], None], expected: dict[str, int]
) -> None:
    shards = make(tmp_path)
    for path in (shards / "pictures").iterdir():  # the store keeps its own
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    spoil(shards)
    assert counted(check(shards, tmp_path)) == expected


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_readers_refuse_damaged_lists(tmp_path: Path) -> None:
    shards = make(tmp_path)
    _flip(shards / "train/00000.jsonl", 25)
    with pytest.raises(CorruptError, match=r"train/00000\.jsonl: sha256 does not match"):
        [*iter_samples(shards, "train")]
    with pytest.raises(CorruptError, match=r"train/00000\.jsonl: sha256 does not match"):
        task = read_manifest(shards).tasks[0]
        [*_samples(EmbedWork(Pieces(tmp_path), shards, None, 8), task.shard)]
    (shards / "pictures/00001.tar").unlink()
    with pytest.raises(DataError, match=r"pictures/00001\.tar: named in manifest\.json but missing"):
        SplitIndex.of(shards, read_manifest(shards), "train")


def test_a_kept_picture_that_the_store_lacks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="50 images of kept pairs are missing"):
        make(tmp_path)
