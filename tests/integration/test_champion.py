"""Moves of `champion`: by hand, of deleted versions, on an old decision; in tier `kill` with MLflow."""

import itertools

import pytest

from align.errors import ConfigError, DataError, LockedError, RefusedError
from align.release.aliases.champion import make_champion, take_back
from align.release.aliases.moves import settle
from align.services.tracking.registry import PROMOTED, PROMOTED_BECAUSE, ROLLED_BACK, ROLLED_BACK_BECAUSE
from align.services.tracking.tracker import Tracker
from tests.support.memory_mlflow import MemoryTracker

NAMES = (f"model-{number}" for number in itertools.count())


class Model:
    """A registered model with versions that nobody trained."""

    def __init__(self, tracker, num_versions):
        self.tracker, self.name = tracker, next(NAMES)
        self.client = tracker.registry._client
        self.client.create_registered_model(self.name)
        for _ in range(num_versions):
            self.client.create_model_version(self.name, "s3://nowhere/model")

    def version(self, number):
        return {version.number: version for version in self.tracker.registry.versions(self.name)}[number]

    def promote(self, number):
        replaces = settle(self.tracker.registry, self.name).champion
        figures = {"recall": number / 10}
        make_champion(self.tracker, self.version(number), replaces=replaces, why=f"{number} is better", figures=figures)

    def roll_back(self, why="slow"):
        take_back(self.tracker, self.name, why)

    def champions(self):
        """The version with the alias, which is the only one, and the version that a rollback goes back to."""
        assert set(self.tracker.registry.aliases(self.name)) <= {"champion"}
        state = self.tracker.registry.champion_state(self.name)
        return state.champion, state.previous({version.number for version in self.tracker.registry.versions(self.name)})

    def history(self):
        return [(move.kind, move.before, move.to) for move in self.tracker.registry.champion_state(self.name).moves]


@pytest.fixture(scope="module", params=["memory", pytest.param("mlflow", marks=pytest.mark.kill)])
def tracker(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    in_memory = request.param == "memory"
    return MemoryTracker(folder) if in_memory else Tracker(request.getfixturevalue("empty_mlflow")(folder))


def test_a_version_that_was_deleted_meanwhile_moves_nothing(tracker):
    model = Model(tracker, 2)
    model.promote(1)
    gone = model.version(2)
    model.client.delete_model_version(model.name, "2")
    with pytest.raises(RefusedError):
        make_champion(tracker, gone, replaces=1, why="x", figures={})
    assert model.champions() == (1, None) and model.history() == [("promoted", None, 1)]


def test_a_champion_that_is_deleted_is_noticed_and_passed_over(tracker):
    model = Model(tracker, 4)
    for number in (1, 2, 3):
        model.promote(number)
    model.client.delete_model_version(model.name, "2")
    model.roll_back()
    assert model.champions() == (1, None)
    model.client.delete_model_version(model.name, "1")
    model.promote(4)
    assert model.history()[-2:] == [("by hand", 1, None), ("promoted", None, 4)]
    assert model.champions() == (4, None)


def test_an_alias_moved_by_hand_is_recorded_once_and_no_rollback_brings_its_version_back(tracker):
    model = Model(tracker, 3)
    model.promote(1)
    model.client.set_registered_model_alias(model.name, "champion", "2")
    assert tracker.registry.champion_state(model.name).made_by_hand
    for _ in range(2):
        state = settle(tracker.registry, model.name)
    assert model.history()[1:] == [("by hand", 1, 2)]
    assert (state.moves[-1].who, state.made_by_hand) == ("unknown", True)
    model.promote(3)
    with pytest.raises(ConfigError, match=r"somebody made version 2 the champion by hand; .*--why"):
        model.roll_back(why=None)
    assert model.champions() == (3, 1)
    model.roll_back()
    assert model.champions() == (1, None) and not settle(tracker.registry, model.name).made_by_hand
    with pytest.raises(DataError, match="no champion before 1 is left"):
        model.roll_back()


def test_a_command_that_is_killed_between_alias_and_entry_looks_like_a_move_by_hand(tracker, monkeypatch):
    class Killed(BaseException):
        """What `kill -9` is to a process."""

    def die(*_):
        raise Killed

    model = Model(tracker, 2)
    model.promote(1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tracker.registry, "set_model_tag", die)
        model.promote(2)
    assert settle(tracker.registry, model.name).made_by_hand
    assert model.history() == [("promoted", None, 1), ("by hand", 1, 2)] and model.champions() == (2, 1)


def test_a_rollback_that_was_killed_before_its_entry_and_is_typed_again_does_not_go_forward(tracker):
    model = Model(tracker, 2)
    model.promote(1)
    model.promote(2)
    model.client.set_registered_model_alias(model.name, "champion", "1")  # as far as the killed one came
    with pytest.raises(DataError, match=r"version 1 had become its champion without an entry .* type it again"):
        model.roll_back()
    assert model.champions()[0] == 1 and model.history()[-1] == ("by hand", 2, 1)


def test_the_tags_of_a_version_say_why(tracker):
    model = Model(tracker, 2)
    for number in (1, 2):
        model.promote(number)
    model.roll_back()
    tags = model.version(2).tags
    assert (tags[PROMOTED_BECAUSE], tags[ROLLED_BACK_BECAUSE]) == ("2 is better", "slow")
    assert PROMOTED in tags and ROLLED_BACK in tags and ROLLED_BACK not in model.version(1).tags


def test_a_decision_on_another_champion_moves_nothing(tracker):
    model = Model(tracker, 3)
    for number in (1, 2):
        model.promote(number)
    with pytest.raises(LockedError, match="version 3 was compared with champion 1; since then it is champion 2"):
        make_champion(tracker, model.version(3), replaces=1, why="x", figures={})
    assert model.champions() == (2, 1) and len(model.history()) == 2


MODEL = "align"


def story(tracker):
    """What the registry says while versions come and go, aliases move, and what is gone is asked for."""
    registry, client, said = tracker.registry, tracker._client, list[object]()

    def look():
        tags = dict(client.get_registered_model(MODEL).tags)
        said.append([registry.aliases(MODEL), tags, registry.champion_state(MODEL)])
        said.append([(each.number, each.run_id == run, each.tags) for each in registry.versions(MODEL)])
        at = (registry.version_at(MODEL, alias) for alias in ("champion", "candidate", "other", "none"))
        said.append([version and version.number for version in at])

    def refused(call, *values):
        with pytest.raises(RefusedError):
            call(*values)

    def create(**tags):
        return registry.create_version(MODEL, run, "model", tags)

    run = tracker.start_run("align", "x")
    said.append([registry.versions(MODEL), registry.aliases(MODEL), registry.version_at(MODEL, "champion")])
    said.append(registry.champion_state(MODEL))
    first, second, third = create(), create(one="1"), create(one="1", two="2")
    for version, alias in ((first, "champion"), (second, "champion"), (third, "other"), (first, "candidate")):
        registry.set_alias(version, alias)
    for value in ("before", "after"):
        registry.set_model_tag(MODEL, "key", value)
        registry.set_version_tags(first, {"value": value})
    look()
    client.delete_model_version(MODEL, "3")
    look()
    refused(registry.set_alias, third, "champion")
    refused(registry.set_version_tags, third, {"one": "1"})
    refused(client.delete_model_version, MODEL, "3")
    create()
    look()
    return said


def test_it_answers_as_mlflow_does(tmp_path, empty_mlflow):
    memory, mlflow = MemoryTracker(tmp_path / "memory"), Tracker(empty_mlflow(tmp_path))
    assert story(memory) == story(mlflow)
