"""Features of evaluation images are kept between runs, change no byte, and damaged files are no harm."""

import hashlib

import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.filter.filter import FilterFolders, filter_pairs
from align.filter.network import ImageNetwork
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.features import Features, files_of, folder_of
from align.pairs.perceptual_hash import from_bytes, image_signals, to_bytes
from tests.support import local_store
from tests.support.evaluation_sets import write_items
from tests.support.params import load_params
from tests.support.small_filter import noise, quicken, shards

ENGINE = load_params().section(EngineConfig).model_copy(update={"memory_limit": "200MB", "num_workers": 1})
CONFIG = load_params().section(FilterConfig)


def images(*numbers):
    return [(f"name {number}", b"image %d" % number) for number in numbers]


class Measure:
    """Doubles the number of an image; of 13 there is no value. Remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, images):
        for name, data in images:
            self.asked.append(name)
            if name != "name 13":
                yield name, 2 * int(data.split()[1])


def look(folder, *numbers):
    """The values, and the numbers of what was measured."""
    measure = Measure()
    features = Features(folder, lambda value: str(value).encode(), int)
    found = list(features.look(measure, images(*numbers)))
    assert [name for name, _ in found] == [f"name {number}" for number in numbers if number != 13]
    return [value for _, value in found], [int(name.split()[1]) for name in measure.asked]


@pytest.mark.usefixtures("any_blocks")
def test_only_what_is_not_kept_is_measured(tmp_path):
    assert look(tmp_path, 1, 2, 3, 5) == ([2, 4, 6, 10], [1, 2, 3, 5])
    assert look(tmp_path, 3, 13, 4, 1, 5) == ([6, 8, 2, 10], [13, 4])
    assert look(tmp_path, 4, 3, 2, 1) == ([8, 6, 4, 2], [])
    assert look(None, 1) == ([2], [1])


def test_the_files_of_some_images_are_found(tmp_path):
    look(tmp_path / "views-1", 0, 1, 2, 3)
    look(tmp_path / "signals-1", 3)
    digests = {hashlib.sha256(data).hexdigest() for _, data in images(3, 4)}
    found = files_of(tmp_path, digests)
    assert [path.parent.name for path in found] == ["signals-1", "views-1"]
    for path in found:
        path.unlink()
    assert look(tmp_path / "views-1", 1, 2, 3) == ([2, 4, 6], [3])
    assert files_of(tmp_path / "nowhere", digests) == files_of(None, digests) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-2], lambda data: data[:36] + b"?" + data[37:], lambda _: b""])
def test_damaged_files_are_made_again(tmp_path, damage, capsys):
    look(tmp_path, 1, 2, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = tmp_path / hashlib.sha256(b"image 2").hexdigest()
    second.write_bytes(damage(second.read_bytes()))
    assert look(tmp_path, 1, 2, 3) == ([2, 4, 6], [2])
    assert "damaged, so its image is measured again" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_runs_at_once_share_a_folder(tmp_path, small_blocks):
    slow = Features(tmp_path, lambda value: str(value).encode(), int).look(Measure(), images(1, 2, 3, 4))
    assert next(slow) == ("name 1", 2)
    assert look(tmp_path, 1, 2, 3, 4, 5) == ([2, 4, 6, 8, 10], [4, 5])
    for path in tmp_path.iterdir():
        path.unlink()  # make clean
    assert [value for _, value in slow] == [4, 6, 8]
    assert look(tmp_path, 4) == ([8], [])


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert look(tmp_path / "file", 1) == ([2], [1])
    assert "is not kept (" in capsys.readouterr().err


def test_whatever_decides_the_values_has_a_folder_of_its_own(tmp_path):
    folders = {
        folder_of(tmp_path, kind, module, decides)
        for kind, module, decides in (
            ("views", "align.filter.network", ["a", 1]),
            ("views", "align.filter.network", ["b", 1]),
            ("views", "align.filter.network", ["a", 2]),
            ("views", "align.pairs.perceptual_hash", ["a", 1]),
        )
    }
    assert len(folders) == 4
    assert folder_of(None, "views", "align.filter.network", []) is None


def test_signals_are_stored_whole():
    for data in (noise(1), b"no picture"):
        signals = image_signals(data, 10**6)
        assert from_bytes(to_bytes(signals)) == signals


def test_the_filter_writes_the_same_bytes_and_asks_no_network(tmp_path, monkeypatch):
    quicken(monkeypatch)
    raw = shards(tmp_path / "raw", 2)
    copy = noise(1, 480, 460)
    items = [EvaluationImage(key, key, (key,), None, "query") for key in ("copy", "broken", "other")]
    pictures = held([copy, b"no picture", noise(70)])
    for name in ("one", "two"):  # they share their images
        write_items(tmp_path / "sets", EvaluationSet(name, "retrieval", name, items, (), (), pictures))

    def written(out, kept, **changes):
        folders = FilterFolders(raw, tmp_path / "sets", tmp_path / "p", tmp_path / out / "f", tmp_path / out / "r")
        store = local_store.config(tmp_path, None).model_copy(update={"features": kept and tmp_path / kept})
        assert filter_pairs(CONFIG.model_copy(update=changes), ENGINE, folders, store=store) is not None
        files = [path for path in sorted((tmp_path / out).rglob("*")) if path.is_file()]
        return {str(path.relative_to(tmp_path / out)): path.read_bytes() for path in files}

    without = written("without", None)
    assert written("cold", "kept") == without
    assert len(list((tmp_path / "kept").glob("*/*"))) == 5  # signals of three, views of two

    def no_views(self, images, *, max_pixels):
        assert [name for name, _ in images] in ([], ["one/broken"])  # which has none
        return iter(())

    with monkeypatch.context() as patch:
        patch.setattr(ImageNetwork, "views", no_views)
        assert written("warm", "kept") == without
    assert "f/decisions/00000.parquet" in without
    written("other", "kept", max_image_pixels=10**6)
    assert len(list((tmp_path / "kept").iterdir())) == 4
    monkeypatch.setattr("align.filter.filter.require_device", lambda device: None)

    def on_cpu(nsfw, embedder, _, threads):  # there is no card
        return ImageNetwork(nsfw, embedder, "cpu", threads)

    monkeypatch.setattr("align.filter.compare.ImageNetwork", on_cpu)
    monkeypatch.setitem(globals(), "ENGINE", ENGINE.model_copy(update={"device": "cuda"}))
    written("card", "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 5  # views by another device are never mixed with these
