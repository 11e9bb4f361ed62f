"""The manifest as the index: the same offsets as in the whole manifest, without reading all of them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from align.errors import CorruptError, DataError, FormatError
from align.formats.shards import MANIFEST, read_manifest
from align.training.batches.index import Offsets, read_outline
from tests.support import training_data


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return training_data.write(tmp_path)[0]


def test_an_outline_is_the_manifest_without_its_offsets(shards: Path) -> None:
    outline, whole = read_outline(shards), read_manifest(shards)
    for name, split in whole.splits.items():
        index = pickle.loads(pickle.dumps(outline.split(name)))
        assert index.shards == tuple(str((shards / row.path).resolve()) for row in split.shards)
        assert index.num_images == split.num_images
        for number, row in enumerate(split.shards):
            assert index.read_offsets(number).tolist() == [list(offsets) for offsets in row.offsets]
            bare = outline.manifest.splits[name].shards[number]
            assert bare == row.model_copy(update={"offsets": ()})
    assert outline.manifest.digest == whole.digest


def test_an_index_holds_nothing_for_each_sample(tmp_path: Path) -> None:
    sizes = []
    for number, count in enumerate((8, 80)):
        shards, _ = training_data.write(tmp_path / str(number), num_train=count)
        sizes.append(len(pickle.dumps(read_outline(shards).split("train"))))
    assert sizes[1] - sizes[0] < 16


def test_offsets_of_the_last_shards_are_kept(shards: Path) -> None:
    index = read_outline(shards).split("train")
    offsets = Offsets(index, num_kept=12)
    first = offsets.of(0)
    assert offsets.of(0) is first
    offsets.of(1)
    assert offsets.of(0) is not first and np.array_equal(offsets.of(0), first)


def test_other_manifests_are_refused(shards: Path) -> None:
    path = shards / MANIFEST
    index = read_outline(shards).split("train")
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"offsets":[[', b'"offsets": [['))
    with pytest.raises(FormatError, match="not as `align shard` writes it"):
        read_outline(shards)
    path.write_text(json.dumps(json.loads(text), indent=1))
    with pytest.raises(FormatError, match="not as `align shard` writes it"):
        read_outline(shards)
    path.write_bytes(text[: len(text) // 3])
    with pytest.raises(FormatError, match="not valid JSON"):
        read_outline(shards)
    with pytest.raises(CorruptError, match="was replaced while it was in use"):
        index.read_offsets(1)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="is empty"):
        read_outline(shards)
    path.unlink()
    with pytest.raises(DataError, match="run `align shard` first"):
        read_outline(shards)
