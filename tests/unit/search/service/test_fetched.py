"""The champion's model and index come from the registry whole and unchanged, or not at all."""

import io
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from align.config.paths import PathsConfig
from align.durable.files import sha256_folder
from align.errors import CorruptError, DataError
from align.model.preprocess import centre_crop, decode
from align.pairs import picture_process
from align.pairs.picture_process import end_idle
from align.release.aliases.champion import make_champion, take_back
from align.release.aliases.moves import settle
from align.search.service.decode import Decoders
from align.search.service.fetched import RegisteredChampion
from align.services.signing import SIGN_WITH, SIGNATURE_DIGEST, TRUST, sign
from align.services.tracking.registry import CHAMPION, INDEX_DIGEST, MODEL_DIGEST
from tests.support import hostile_pictures
from tests.support.colours import square
from tests.support.memory_mlflow import MemoryTracker
from tests.support.params import load_params
from tests.support.signing_keys import write_keys


class World:
    """A registry in memory, and what fetches its champion. Models and indexes are files with a word in them."""

    def __init__(self, root):
        self.tracker, self.served = MemoryTracker(root / "mlflow"), root / "served"
        values = load_params().values["paths"] | {"index": str(root / "own")}
        self.source = RegisteredChampion("align", self.tracker, PathsConfig.model_validate(values), self.served)

    def registered(self, word, *, with_index=True, by_hand=False):
        """Another version, which is promoted, or made the champion by hand."""
        run = self.tracker.start_run("align", word)
        files = {"model": self.tracker.root / run / "model/artifacts/finetuned/weights"}
        tags = {}
        if with_index:
            files["index"] = self.tracker.root / run / "new/items"
        for file in files.values():
            file.parent.mkdir(parents=True)
            file.write_text(word)
        tags[MODEL_DIGEST] = sha256_folder(self.tracker.root / run / "model")
        if with_index:
            tags[INDEX_DIGEST] = digest = sha256_folder(files["index"].parent)
            (self.tracker.root / run / "index").mkdir()
            files["index"].parent.rename(self.tracker.root / run / "index" / digest[:16])
        version = self.tracker.registry.create_version("align", run, "model", tags)
        if by_hand:
            self.tracker.registry.set_alias(version, CHAMPION)
        else:
            before = self.tracker.registry.aliases("align").get(CHAMPION)
            make_champion(self.tracker, version, replaces=before, why="better", figures={})
        return version

    def fetched(self):
        """The words in the model and in the index, and whether they belong together for sure."""
        release = self.source.wanted()
        folders = self.source.folders(release)
        return (folders.model / "weights").read_text(), (folders.index / "items").read_text(), folders.vouched

    def copies(self):
        return {path.name for path in self.served.iterdir() if path.is_dir()}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_both_are_fetched_once(world, monkeypatch):
    with pytest.raises(DataError, match="no version of model 'align' is the champion: run `align promote`"):
        world.source.wanted()
    world.registered("fox")
    assert world.fetched() == ("fox", "fox", True)
    monkeypatch.setattr(world.tracker.registry, "download", None)
    assert world.fetched() == ("fox", "fox", True)


@pytest.mark.parametrize("what", ["model", "index"])
def test_what_the_version_does_not_name_is_not_served(world, what):
    version = world.registered("fox")
    (file,) = (path for path in (world.tracker.root / version.run_id / what).rglob("*") if path.is_file())
    file.write_text("owl")
    with pytest.raises(CorruptError, match=rf"the {what} in MLflow .* is not the one that was registered"):
        world.fetched()
    assert world.copies() == set()


def test_with_a_trusted_key_only_a_signed_champion_is_served(world, tmp_path, monkeypatch):
    version = world.registered("fox")
    assert world.fetched() == ("fox", "fox", True)  # kept since then
    private, public = write_keys(tmp_path)
    monkeypatch.setenv(TRUST, str(public))
    with pytest.raises(CorruptError, match=r"^align version 1: there is no signature"):
        world.fetched()
    run = world.tracker.root / version.run_id
    for key, fits in ((write_keys(tmp_path, "foreign")[0], False), (private, True)):
        monkeypatch.setenv(SIGN_WITH, str(key))
        sign(world.tracker, version, run / "model")
        if fits:
            assert world.fetched() == ("fox", "fox", True)
        else:
            with pytest.raises(CorruptError, match=r"^align version 1: its signature does not hold"):
                world.fetched()
    other = world.registered("owl")  # with the tag and the signature of the first
    shutil.copytree(run / "signature", world.tracker.root / other.run_id / "signature")
    world.tracker.registry.set_version_tags(other, {SIGNATURE_DIGEST: "any"})
    with pytest.raises(CorruptError, match=r"^align version 2: its signature does not hold"):
        world.fetched()


@pytest.mark.parametrize("what", ["model/artifacts/finetuned/weights", "index/items"])
def test_a_damaged_copy_is_fetched_again(world, what):
    world.registered("fox")
    world.fetched()
    (copy,) = world.copies()
    (world.served / copy / what).write_text("owl")
    assert world.fetched() == ("fox", "fox", True)


def test_two_copies_are_kept(world):
    copies = []
    for word in ("fox", "owl", "cat"):
        world.registered(word)
        assert world.fetched()[0] == word
        copies += sorted(world.copies() - set(copies))
        time.sleep(0.01)  # the time of a folder tells which one is older
    assert world.copies() == set(copies[1:])


def test_a_version_without_an_index_is_served_with_the_checkouts_which_nobody_has_compared(world):
    world.registered("fox", with_index=False)
    with pytest.raises(DataError, match=r"it has no index, and .*own has none: run `align index`"):
        world.fetched()
    own = world.served.parent / "own"
    own.mkdir()
    for name in ("index.json", "items"):
        (own / name).write_text("mine")
    first = world.source.wanted()
    assert world.fetched() == ("fox", "mine", False)
    assert "has no index of its own" in first.warnings[0]
    (own / "index.json").write_text("another")
    second = world.source.wanted()
    assert second.digest != first.digest  # so that it is loaded again


def test_what_did_not_pass_the_gates_is_said_as_long_as_it_is_the_champion(world):
    def said():
        return any("by hand, without passing the gates" in note for note in world.source.wanted().warnings)

    world.registered("fox")
    assert not said()
    world.registered("owl", by_hand=True)
    assert said()
    settle(world.tracker.registry, "align")
    world.registered("cat")
    assert not said()
    assert take_back(world.tracker, "align", "slow").to == 1
    assert not said()
    world.tracker.registry.set_alias(world.tracker.registry.versions("align")[1], CHAMPION)
    assert said()


def test_what_has_other_tags_than_ours_is_refused(world):
    version = world.registered("fox")
    world.tracker._client.delete_model_version_tag(version.name, str(version.number), MODEL_DIGEST)
    with pytest.raises(DataError, match=r"has no tag align\.model_digest: it is not of `align register`"):
        world.source.wanted()


@pytest.fixture
def decoders():
    return Decoders(max_pixels=1_000_000, timeout_s=200.0)


def photograph(format, size=(300, 200)):
    drawn = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_the_pixels_are_those_that_training_and_the_index_see(decoders, format):
    data = photograph(format)
    expected = centre_crop(decode(data, 72), 64)
    found = decoders.crop(data, 72, 64)
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).mean() < (3 if format == "JPEG" else 0.01)  # another JPEG decoder


def test_a_picture_that_takes_too_long_is_killed_and_the_next_one_decodes():
    made = Decoders(max_pixels=100_000_000, timeout_s=200.0)
    end_idle()
    made.crop(square("red"), 48, 48)  # the process has started
    (helper,) = picture_process._idle
    made._timeout_s = 0.05
    with pytest.raises(DataError, match=r"did not decode within 0\.05 s"):
        made.crop(hostile_pictures.png(9000), 72, 64)
    assert helper._process.wait(60) == -signal.SIGKILL and helper not in picture_process._idle
    made._timeout_s = 200.0
    assert made.crop(square("red"), 48, 48).shape == (48, 48, 3)
    end_idle()
    assert not picture_process._idle
