"""What is served follows the source; whatever goes wrong, the old pair stays."""

from dataclasses import replace

import pytest

from align.errors import DataError, ServiceError
from align.search.service import champion as module
from align.search.service import queries
from align.search.service.champion import Champion
from align.search.service.served import Release
from tests.support.served import Releases, served, take_downs


class Loader:
    """Loads pairs, or raises what a test says."""

    def __init__(self, world):
        self.world, self.error, self.asked = world, None, 0

    def __call__(self, release, folders):
        self.asked += 1
        if self.error:
            raise self.error
        return served(self.world, release.digest, release.version, **release.tags)


@pytest.fixture
def releases():
    return Releases(Release("1" * 64, "align", 1))


@pytest.fixture
def loader(world):
    return Loader(world)


def version(followed):
    return followed.served.release.version if followed.served else None


def test_it_swaps_when_the_release_changes_and_only_then(releases, loader):
    followed = Champion(releases, 3600, take_downs(), loader)
    assert "being loaded" in (followed.problem or "")
    for _ in range(3):
        followed.look()
    assert (version(followed), loader.asked, followed.num_swaps, followed.problem) == (1, 1, 0, None)
    before = followed.served
    releases.now = Release("2" * 64, "align", 2)
    followed.look()
    assert (version(followed), followed.num_swaps) == (2, 1)
    assert before is not None and before.release.version == 1  # whoever began with it ends with it
    releases.now = Release("1" * 64, "align", 1)  # a rollback
    followed.look()
    assert (version(followed), followed.num_swaps) == (1, 2)


@pytest.mark.parametrize("error", [DataError("made with another model"), RuntimeError("a shape\nis wrong")])
def test_a_broken_pair_leaves_the_old_one_in_place(releases, loader, error):
    followed = Champion(releases, 3600, take_downs(), loader)
    followed.look()
    releases.now, loader.error = Release("2" * 64, "align", 2), error
    followed.look()
    assert version(followed) == 1 and str(error).split("\n")[0] in (followed.problem or "")
    assert "\n" not in (followed.problem or "")
    followed.look()
    assert loader.asked == 2  # not again and again
    releases.now = Release("1" * 64, "align", 1)
    followed.look()
    assert followed.problem is None and followed.num_swaps == 0


def test_a_failed_release_is_tried_again_later(releases, loader, monkeypatch):
    followed = Champion(releases, 3600, take_downs(), loader)
    loader.error = ServiceError("the download was cut off")
    followed.look()
    assert version(followed) is None and "cut off" in (followed.problem or "")
    loader.error = None
    followed.look()
    assert version(followed) is None
    monkeypatch.setattr(module.time, "monotonic", lambda: 1e12)
    followed.look()
    assert version(followed) == 1 and followed.problem is None


def test_a_source_that_fails_and_what_it_says_of_a_release_are_warnings(releases, loader):
    followed = Champion(releases, 3600, take_downs(), loader)
    followed.look()
    sound, releases.now = releases.now, ServiceError("MLflow is not there")
    followed.look()
    said = ["MLflow is not there; align version 1 is still served"]
    assert (version(followed), followed.warnings()) == (1, said)
    releases.now = replace(sound, warnings=["moved by hand"])
    followed.look()
    assert followed.warnings() == ["moved by hand"]


def test_other_tags_of_the_same_bytes_load_nothing(releases, loader):
    followed = Champion(releases, 3600, take_downs(), loader)
    followed.look()
    releases.now = Release("1" * 64, "align", 1, tags={"align.promoted_at": "today"})
    followed.look()
    assert loader.asked == 1 and followed.served is not None
    assert followed.served.release.tags == {"align.promoted_at": "today"}


def test_what_to_do_is_said_once_where_nothing_is_served(releases, loader, capsys):
    releases.now = DataError("promote something")
    followed = Champion(releases, 3600, take_downs(), loader)
    for _ in range(2):
        followed.look()
    assert capsys.readouterr().err == "serve: promote something\n" and followed.problem == "promote something"


def test_what_trained_the_model_and_what_its_index_warns_of_is_said(releases, loader, world, capsys):
    made = served(world)
    header = made.index.header.model_copy(update={"warning": "the model may know other pictures"})
    made = replace(made, index=replace(made.index, header=header), origin="trained elsewhere")
    followed = Champion(releases, 3600, take_downs(), lambda release, folders: made)
    followed.look()
    said = "serve: align version 1, 12 images, trained elsewhere, the model may know other pictures\n"
    assert capsys.readouterr().err == said and followed.warnings() == ["the model may know other pictures"]
    assert queries.version(followed.served).origin == "trained elsewhere"
