"""`align.open_dataset` over data/raw, data/filtered and data/shards, and what `import align` offers."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import align
from align.errors import DataError
from tests.support import small_data
from tests.support.small_data import Pair


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two raw shards; the first and the third pair have one picture, which is in the tar of each shard."""
    root = tmp_path_factory.mktemp("data")
    pairs = [
        Pair("a red fox", 1), Pair("click here", 2, reason="too_short"), Pair("the same fox", 1),
        Pair("gone", None, reason="no_image"),
    ]  # fmt: skip
    small_data.write(root, pairs, pairs_per_shard=2)
    small_data.write_shards(root)
    return root


def test_raw_pairs_have_their_rows_and_pictures(root):
    dataset = align.open_dataset(root / "raw")
    assert (dataset.kind, len(dataset)) == ("raw", 4)
    for _ in range(2):  # from the start each time
        found = list(dataset)
        assert [pair.text for pair in found] == ["a red fox", "click here", "the same fox", "gone"]
    assert [dataset[position].text for position in (0, 2, -1)] == ["a red fox", "the same fox", "gone"]
    with pytest.raises(TypeError, match=r"itertools\.islice"):
        _ = dataset[:2]  # type: ignore[index]  # wrong on purpose
    with pytest.raises(IndexError):
        _ = dataset[4]
    first, _, third, last = found
    assert first.file == third.file == small_data.jpeg(1) and third.row["url"] == "https://example.org/1.jpg"
    assert np.array_equal(first.image, Image.open(io.BytesIO(small_data.jpeg(1))))
    assert (first.keep, first.reasons, first.split, last.file) == (None, (), None, None)
    with pytest.raises(DataError, match="pair 000010001: it has no picture here; its status is failed_to_download"):
        _ = last.image


def test_decisions_have_reasons_and_the_pictures_of_raw(root, tmp_path):
    dataset = align.open_dataset(root / "filtered")
    assert [(pair.keep, pair.reasons) for pair in dataset][:2] == [(True, ()), (False, ("too_short",))]
    assert dataset.reasons() == {"kept": 2, "too_short": 1, "no_image": 1}
    assert [pair.file for pair in dataset][:3] == [small_data.jpeg(number) for number in (1, 2, 1)]
    shutil.copytree(root / "filtered", tmp_path / "filtered")
    assert {pair.file for pair in align.open_dataset(tmp_path / "filtered")} == {None}  # no data/raw beside it
    elsewhere = align.open_dataset(tmp_path / "filtered", raw=root / "raw")
    assert next(iter(elsewhere)).file == small_data.jpeg(1)


def test_pairs_of_shards_share_the_pictures_of_training(root):
    dataset = align.open_dataset(root / "shards")
    found = list(dataset)
    assert len(dataset) == len(found) and "shards" in repr(dataset)
    texts = {pair.text: pair for pair in found}
    assert texts["a red fox"].split == "train" and texts["a red fox"].keep is True
    assert texts["a red fox"].file == texts["the same fox"].file == small_data.jpeg(1)


def test_what_is_no_dataset_is_one_line(root, tmp_path):
    with pytest.raises(DataError, match="gone: no such folder; give data/raw"):
        align.open_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match=r"no NNNNN.tar \+ NNNNN.parquet here"):
        align.open_dataset(tmp_path)
    cut = tmp_path / "raw"
    shutil.copytree(root / "raw", cut)
    (cut / "00000.tar").write_bytes(b"cut off")
    pair = next(iter(align.open_dataset(cut)))
    with pytest.raises(DataError, match="not a readable tar"):
        _ = pair.file


def test_importing_align_costs_nothing_and_names_are_listed():
    assert vars(align)["__all__"] == ["Dataset", "Model", "Pair", "load", "open_dataset"]
    assert all(callable(getattr(align, name)) for name in vars(align)["__all__"])
    with pytest.raises(AttributeError, match="module 'align' has no attribute 'lod'"):
        _ = align.lod  # type: ignore[attr-defined]  # misspelt
    code = "import sys, align; assert not {'numpy', 'torch', 'pyarrow'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
