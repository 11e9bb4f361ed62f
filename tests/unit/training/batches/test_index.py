"""The manifest has no row for an image: a split's index reads that of a tar when it is needed."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from align.errors import CorruptError, DataError, FormatError
from align.formats.shards import MANIFEST, Sample, read_manifest
from align.training.batches import samples as samples_module
from align.training.batches.index import SplitIndex
from align.training.batches.samples import SplitSamples, first_pairs
from tests.support import training_data
from tests.support.shard_folder import write_shards
from tests.support.small_data import jpeg


@pytest.fixture
def shards(tmp_path):
    return training_data.write(tmp_path)[0]


def train(shards):
    return SplitIndex.of(shards, read_manifest(shards), "train")


def test_the_index_of_a_split_says_where_each_sample_is(shards):
    manifest = read_manifest(shards)
    for name, split in manifest.splits.items():
        index = pickle.loads(pickle.dumps(SplitIndex.of(shards, manifest, name)))
        assert index.shards == tuple(str((shards / row.path).resolve()) for row in split.shards)
        assert index.num_images == split.num_images
        for number, row in enumerate(split.shards):
            offsets = index.read_offsets(number)
            assert offsets.tolist() == np.load(shards / row.path.replace(".tar", ".npy")).tolist()
            data = (shards / row.path).read_bytes()
            for jpg, jpg_size, json, json_size in offsets.tolist():
                assert data[jpg : jpg + 2] == b"\xff\xd8" and data[jpg + jpg_size - 2 : jpg + jpg_size] == b"\xff\xd9"
                assert data[json : json + 1] == b"{" and data[json + json_size - 1 : json + json_size] == b"}"


def test_neither_the_manifest_nor_an_index_holds_anything_for_each_sample(tmp_path):
    sizes = []
    for count in (10, 99):
        shards, image = tmp_path / str(count), b"\xff\xd8\xff\xd9"
        samples = [Sample(f"{number}", "i", image, (f"{number}",), ("t",)) for number in range(count)]
        write_shards(shards, {"train": [samples]}, image_px=8)
        sizes.append((len(pickle.dumps(train(shards))), (shards / MANIFEST).stat().st_size))
    assert sizes[1][0] - sizes[0][0] < 16 and sizes[1][1] - sizes[0][1] < 16


def test_offsets_of_two_blocks_shards_are_kept(shards, monkeypatch):
    monkeypatch.setattr(samples_module, "SHUFFLE_BLOCK", 0)
    index, read = train(shards), []
    monkeypatch.setattr(SplitIndex, "read_offsets", lambda self, shard: read.append(shard) or np.zeros((12, 4), int))
    many = replace(index, shards=index.shards * 2, counts=np.tile(index.counts, 2))
    samples = SplitSamples(many, 36)
    for sample in (0, 12, 0, 13, 24, 0):  # of shards 0, 1, 0, 1, 2, 0: two are kept
        samples.read(sample)
    assert read == [0, 1, 2, 0]


def test_other_manifests_and_indexes_are_refused(shards):
    path, text = shards / MANIFEST, (shards / MANIFEST).read_bytes()
    index = train(shards)
    path.write_bytes(text[: len(text) // 3])
    with pytest.raises(FormatError, match=r"not valid JSON.*run `align shard` again"):
        read_manifest(shards)
    path.write_bytes(text.replace(b'"schema_version":2', b'"schema_version":1'))
    with pytest.raises(FormatError, match="schema_version 1, but this code reads 2; run `align shard` again"):
        read_manifest(shards)
    path.unlink()
    with pytest.raises(DataError, match="run `align shard` first"):
        read_manifest(shards)
    of_second = Path(index.indexes[1][0])
    of_second.write_bytes(Path(index.indexes[0][0]).read_bytes())
    with pytest.raises(CorruptError, match=r"train/00001\.npy: damaged; run `dvc checkout`"):
        index.read_offsets(1)
    of_second.unlink()
    with pytest.raises(CorruptError, match=r"train/00001\.npy: missing; run `dvc checkout`"):
        index.read_offsets(1)


def test_the_first_pairs_are_exactly_so_many_and_a_part_of_more(tmp_path):
    texts = [tuple(f"text {number} of {image}" for number in range(image % 3 + 1)) for image in range(7)]
    samples = [Sample(f"{one:09d}", f"{one:064x}", jpeg(one, 8, 8), texts[one], texts[one]) for one in range(7)]
    write_shards(tmp_path, {"train": [samples[:3], samples[3:5], samples[5:]]}, image_px=8)
    manifest = read_manifest(tmp_path)
    shards, every = manifest.splits["train"].shards, [text for some in texts for text in some]

    def read(most):
        index = first_pairs(train(tmp_path), [shard.num_pairs for shard in shards], most, None)
        found = SplitSamples(pickle.loads(pickle.dumps(index)), 8)
        return [text for number in range(found.num_images) for text in found.texts(number)]

    assert [read(most) for most in range(1, len(every) + 3)] == [every[:most] for most in range(1, len(every) + 3)]
    lying = [shard.num_pairs + 5 for shard in shards]
    with pytest.raises(CorruptError, match="fewer pairs than"):
        first_pairs(train(tmp_path), lying, 10, None)
