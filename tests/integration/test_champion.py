"""Moves of `champion`: killed after each write, by hand, of deleted versions, two at once; in `full` with MLflow."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from align.errors import DataError, LockedError, RefusedError
from align.formats.champion_moves import ChampionState, Move
from align.release.aliases import moves
from align.release.aliases.champion import make_champion, settled, take_back
from align.services.tracking.registry import PROMOTED, ROLLED_BACK, Registry, Version
from align.services.tracking.tracker import Tracker
from tests.support.memory_mlflow import MemoryTracker

NAMES = (f"model-{number}" for number in itertools.count())


class Killed(BaseException):
    """What `kill -9` is to a process."""


def die() -> None:
    raise Killed


class Mortal:
    """MLflow's client, which dies after a number of writes, or something else happens then."""

    def __init__(self, client: Any, writes: int, then: Callable[[], None] = die) -> None:
        self._client, self.left, self._then = client, writes, then

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return self._counted(method) if name.startswith(("set_", "delete_")) else method

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def write(*values: Any) -> Any:
            answer = method(*values)
            self.left -= 1
            if self.left == 0:
                self._then()
            return answer

        return write


class Model:
    """A registered model with versions that nobody trained."""

    def __init__(self, tracker: Tracker, num_versions: int) -> None:
        self.tracker, self.name = tracker, next(NAMES)
        self.client: Any = tracker.registry._client
        self.client.create_registered_model(self.name)
        for _ in range(num_versions):
            self.client.create_model_version(self.name, "s3://nowhere/model")

    def version(self, number: int) -> Version:
        return {version.number: version for version in self.tracker.registry.versions(self.name)}[number]

    def promote(self, number: int) -> None:
        replaces = settled(self.tracker, self.name).champion
        figures = {"recall": number / 10}
        make_champion(self.tracker, self.version(number), replaces=replaces, why=f"{number} is better", figures=figures)

    def roll_back(self) -> None:
        take_back(self.tracker, self.name, "slow")

    def champions(self) -> tuple[int | None, int | None]:
        """The version with the alias, which is the only one, and the version that a rollback goes back to."""
        assert set(self.tracker.registry.aliases(self.name)) <= {"champion"}
        state = self.tracker.registry.champion_state(self.name)
        return state.champion, state.previous({version.number for version in self.tracker.registry.versions(self.name)})

    def history(self) -> list[tuple[str, int | None, int | None]]:
        return [(move.kind, move.before, move.to) for move in self.tracker.registry.champion_state(self.name).moves]

    def killed(self, writes: int, act: Callable[[], None]) -> None:
        """Acts, and is killed after so many writes."""
        whole, self.tracker = self.tracker, self.dies_after(writes)
        with pytest.raises(Killed):
            act()
        self.tracker = whole

    def meanwhile(self, writes: int, then: Callable[[], None]) -> None:
        """After so many more writes of this tracker something else happens."""
        self.tracker = self.dies_after(writes, then)

    def dies_after(self, writes: int, then: Callable[[], None] = die) -> Tracker:
        """A tracker whose process is killed after so many writes, or stopped while something else happens."""
        tracker = Tracker.__new__(Tracker)
        tracker.registry = Registry(Mortal(self.client, writes, then), self.tracker.registry._asking)
        return tracker


@pytest.fixture(scope="module", params=["memory", pytest.param("mlflow", marks=pytest.mark.full)])
def tracker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp(request.param)
    in_memory = request.param == "memory"
    return MemoryTracker(folder) if in_memory else Tracker(request.getfixturevalue("empty_mlflow")(folder))


def killed_after_each_write(model: Model, act: Callable[[Model], None]) -> int:
    """Acts, and is killed after the first write, the second, and so on; returns the number of writes.

    Each time, the aliases are then as the one who comes next finds them, whole.
    """
    whole = model.tracker
    for writes in itertools.count(1):
        champions, history = model.champions(), model.history()
        model.tracker, killed = model.dies_after(writes), False
        try:
            act(model)
        except Killed:
            killed = True
        model.tracker = whole
        state = settled(whole, model.name)
        assert state.unfinished is None
        assert len(state.moves) == len(history) + 1, (writes, state.moves)
        assert state.champion == state.moves[-1].to, writes
        assert champions != model.champions()
        if not killed:
            return writes - 1
    raise AssertionError


def test_a_promotion_that_is_killed_after_any_write_is_finished_by_the_next_call(tracker: Tracker) -> None:
    model = Model(tracker, 12)
    model.promote(1)
    numbers = itertools.count(2)
    writes = killed_after_each_write(model, lambda each: each.promote(next(numbers)))
    assert writes == 5  # entry, alias, two tags, entry
    last = 2 + writes
    assert model.history() == [("promoted", number - 1 or None, number) for number in range(1, last + 1)]
    assert model.champions() == (last, last - 1)
    assert model.version(last).tags[PROMOTED] and ROLLED_BACK not in model.version(last - 1).tags


def test_a_rollback_that_is_killed_after_any_write_is_finished_by_the_next_call(tracker: Tracker) -> None:
    model = Model(tracker, 12)
    for number in range(1, 13):
        model.promote(number)
    writes = killed_after_each_write(model, Model.roll_back)
    assert writes == 5
    assert model.history()[12:] == [("rolled back", number, number - 1) for number in range(12, 12 - writes - 1, -1)]
    left = 12 - writes - 1
    assert model.champions() == (left, left - 1)
    assert [ROLLED_BACK in model.version(number).tags for number in (left, left + 1)] == [False, True]


@pytest.mark.parametrize("writes", range(1, 5))
def test_a_killed_rollback_that_is_repeated_goes_one_champion_back(tracker: Tracker, writes: int) -> None:
    model = Model(tracker, 3)
    for number in (1, 2, 3):
        model.promote(number)
    model.killed(writes, model.roll_back)
    model.roll_back()
    assert model.history()[3:] == [("rolled back", 3, 2)] and model.champions() == (2, 1)


def test_rollbacks_end(tracker: Tracker) -> None:
    model = Model(tracker, 2)
    with pytest.raises(DataError, match="has no version with alias 'champion'; there is nothing to roll back"):
        model.roll_back()
    for number in (1, 2, 1):
        model.promote(number)
    model.roll_back()
    assert model.champions() == (2, None)
    with pytest.raises(DataError, match="no champion before 2 is left: the others were rolled back"):
        model.roll_back()


def test_a_move_whose_version_is_deleted_meanwhile_is_undone(tracker: Tracker) -> None:
    for writes in range(1, 5):
        model = Model(tracker, 3)
        for number in (1, 2):
            model.promote(number)
        model.killed(writes, partial(model.promote, 3))
        model.client.delete_model_version(model.name, "3")
        assert settled(tracker, model.name).unfinished is None
        assert model.champions() == (2, 1)
        assert len(model.history()) == 2


def test_a_version_that_is_deleted_while_it_is_promoted_moves_nothing(tracker: Tracker) -> None:
    model = Model(tracker, 2)
    model.promote(1)
    model.meanwhile(1, lambda: model.client.delete_model_version(model.name, "2"))
    with pytest.raises(DataError, match=r"version 2 of model .* was deleted meanwhile; nothing was moved"):
        model.promote(2)
    assert model.champions() == (1, None) and model.history() == [("promoted", None, 1)]


def test_a_champion_that_is_deleted_is_noticed_and_passed_over(tracker: Tracker) -> None:
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


def test_an_alias_moved_by_hand_is_recorded_once_and_rollback_goes_by_it(tracker: Tracker) -> None:
    model = Model(tracker, 3)
    for number in (1, 2):
        model.promote(number)
    model.client.set_registered_model_alias(model.name, "champion", "1")
    assert tracker.registry.champion_state(model.name).moved_by_hand
    for _ in range(2):
        state = settled(tracker, model.name)
    assert model.history()[2:] == [("by hand", 2, 1)]
    assert (state.moves[-1].who, state.moved_by_hand) == ("unknown", True)
    assert model.champions() == (1, 2)
    model.roll_back()
    assert model.champions() == (2, None) and not settled(tracker, model.name).moved_by_hand


def test_a_decision_on_another_champion_moves_nothing(tracker: Tracker) -> None:
    model = Model(tracker, 3)
    model.promote(1)
    stale = settled(tracker, model.name)
    model.promote(2)
    with pytest.raises(LockedError, match="version 3 was compared with champion 1; since then it is champion 2"):
        make_champion(tracker, model.version(3), replaces=1, why="x", figures={})
    with pytest.raises(LockedError, match="somebody else moved the champion of model"):
        moves.move(tracker.registry, stale, "promoted", 3, "x", {})
    assert model.champions() == (2, 1) and len(model.history()) == 2


def test_of_two_who_write_the_same_entry_the_last_one_counts(tracker: Tracker) -> None:
    """Both looked before either wrote. The first finds the other's entry after each of its writes but the last."""
    for writes in range(1, 5):
        model = Model(tracker, 3)
        model.promote(1)
        state = settled(tracker, model.name)

        def other(model: Model = model, state: ChampionState = state) -> None:
            theirs = Move(
                id="theirs", number=2, kind="promoted", at="2026-11-01T08:00:00Z", who="ann", before=1, to=3, why="x",
                figures={}, done=False,
            )  # fmt: skip
            tracker.registry.set_model_tag(model.name, theirs.key, theirs.text())

        if writes < 3:  # else it has looked for the last time, and both are told that they moved it
            model.meanwhile(writes, other)
            with pytest.raises(LockedError, match="nothing was moved here"):
                moves.move(model.tracker.registry, state, "promoted", 2, "x", {})
            assert PROMOTED not in model.version(2).tags
            assert tracker.registry.champion_state(model.name).champion == (1 if writes == 1 else 3)
            assert settled(tracker, model.name).champion == 3
            assert model.history() == [("promoted", None, 1), ("promoted", 1, 3)]
        else:
            model.meanwhile(writes, other)
            moves.move(model.tracker.registry, state, "promoted", 2, "x", {})
            assert settled(tracker, model.name).champion == 2
            assert model.history() == [("promoted", None, 1), ("promoted", 1, 2)]


def test_a_move_leaves_the_entry_of_another_call_alone(tracker: Tracker) -> None:
    model = Model(tracker, 3)
    model.promote(1)
    state = settled(tracker, model.name)
    model.killed(1, partial(model.promote, 2))
    with pytest.raises(LockedError, match="nothing was moved here"):
        moves.move(tracker.registry, state, "promoted", 3, "x", {})
    assert settled(tracker, model.name).champion == 2
    assert model.history() == [("promoted", None, 1), ("promoted", 1, 2)]


def test_a_process_that_was_stopped_between_any_two_writes_undoes_nothing_that_others_did(tracker: Tracker) -> None:
    for writes in range(1, 6):
        model = Model(tracker, 4)
        for number in (1, 2):
            model.promote(number)
        slow = Model.__new__(Model)
        slow.name, slow.client = model.name, model.client
        slow.tracker = model.dies_after(writes, lambda model=model: model.promote(4))  # type: ignore[misc]
        slow.promote(3)
        assert settled(tracker, model.name).unfinished is None
        assert model.history()[2:] == [("promoted", 2, 3), ("promoted", 3, 4)], writes
        assert model.champions() == (4, 3), writes


MODEL = "align"


def story(tracker: Tracker) -> list[object]:
    """What the registry says while versions come and go, aliases move, and what is gone is asked for."""
    registry, client, said = tracker.registry, tracker._client, list[object]()

    def look() -> None:
        tags = dict(client.get_registered_model(MODEL).tags)
        said.append([registry.aliases(MODEL), tags, registry.champion_state(MODEL)])
        said.append([(each.number, each.run_id == run, each.tags) for each in registry.versions(MODEL)])
        at = (registry.version_at(MODEL, alias) for alias in ("champion", "candidate", "other", "none"))
        said.append([version and version.number for version in at])

    def refused(call: Callable[..., Any], *values: object) -> None:
        with pytest.raises(RefusedError):
            call(*values)

    def create(**tags: str) -> Version:
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
    for _ in range(2):
        registry.delete_model_tag(MODEL, "key")
        registry.delete_version_tags(third, ["one", "none"])
    client.delete_model_version(MODEL, "3")
    look()
    refused(registry.set_alias, third, "champion")
    refused(registry.set_version_tags, third, {"one": "1"})
    refused(registry.delete_version_tags, third, ["two"])
    with pytest.raises(RefusedError), registry._asking():
        client.delete_model_version(MODEL, "3")
    create()
    look()
    return said


def test_it_answers_as_mlflow_does(tmp_path: Path, empty_mlflow: Callable[[Path], str]) -> None:
    memory, mlflow = MemoryTracker(tmp_path / "memory"), Tracker(empty_mlflow(tmp_path))
    assert story(memory) == story(mlflow)
