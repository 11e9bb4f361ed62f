"""The history of a champion: what the tags say, whoever wrote them."""

from datetime import UTC, datetime

import pytest

from align.errors import FormatError
from align.formats.champion_moves import MAX_CHARACTERS, ChampionState, Move, history_of, last_before, standing_of


def moves(*kinds):
    """Moves of these kinds, from, to; one a day."""
    return [
        Move(
            number=number, kind=kind, at=f"2026-11-{number:02d}T12:00:00Z", who="ann", before=before,
            to=to, why="better", figures={},
        )
        for number, (kind, before, to) in enumerate(kinds, start=1)
    ]  # fmt: skip


PROMOTED = [("promoted", None, 1), ("promoted", 1, 2), ("promoted", 2, 3)]


@pytest.mark.parametrize(("kinds", "previous", "over"), [
    ([], None, []),
    (PROMOTED, 2, []),
    ([*PROMOTED, ("rolled back", 3, 2)], 1, []),
    ([*PROMOTED, ("rolled back", 3, 2), ("promoted", 2, 3)], 2, []),
    ([*PROMOTED[:2], ("promoted", 2, 1)], 2, []),
    ([*PROMOTED[:2], ("promoted", 2, 1), ("rolled back", 1, 2)], None, []),
    ([*PROMOTED, ("by hand", 3, 5)], 3, []),
    ([*PROMOTED, ("by hand", 3, None), ("promoted", None, 5)], 3, []),
    ([*PROMOTED, ("rejected", 3, 3)], 2, []),
    ([("promoted", 9, 8)], None, []),  # the history began later
    ([PROMOTED[0], ("by hand", 1, 5), ("promoted", 5, 6)], 1, [5]),
    ([PROMOTED[0], ("by hand", 1, 5), ("by hand", 5, 1)], None, [5]),  # somebody repaired it
    ([*PROMOTED[:2], ("by hand", 2, 1), ("promoted", 1, 3)], 1, []),  # 1 had passed its gates
    ([PROMOTED[0], ("by hand", 1, 5), ("rolled back", 5, 1), ("promoted", 1, 6)], 1, []),
    ([*PROMOTED[:2], ("rolled back", 2, 1), ("by hand", 1, 2), ("promoted", 2, 3)], 1, []),  # 2 was slow
    ([PROMOTED[0], ("by hand", 1, 9), ("promoted", 9, 6)], 1, []),  # 9 was deleted
])  # fmt: skip
def test_a_rollback_goes_to_the_last_champion_that_passed_its_gates(kinds, previous, over):
    state = ChampionState("m", kinds[-1][2] if kinds else None, tuple(moves(*kinds)))
    assert (state.previous(set(range(1, 9))), state.passed_over(set(range(1, 9)))) == (previous, over)


def test_a_version_is_rolled_back_until_it_is_promoted_again():
    made = moves(*PROMOTED, ("rolled back", 3, 2), ("by hand", 2, 3), ("promoted", 3, 2), ("promoted", 2, 3))
    assert (standing_of(made[:-1])[3], standing_of(made)[3]) == ("rolled back", "promoted")


def test_a_move_is_read_as_it_was_written_and_always_fits():
    made = moves(("promoted", 1, 2))[0].model_copy(
        update={
            "why": "\x1b[2J" + '"' * 9000,
            "who": "bob\n" * 100,
            "figures": {f"set-{number}/recall@1": number / 7 for number in range(400)},
        }
    )
    assert len(made.text()) <= MAX_CHARACTERS and "\x1b" not in made.text()
    read = history_of("m", {made.key: made.text(), "align.other": "x", "align.champion.x": "y"})
    assert [(each.number, each.before, each.to) for each in read] == [(1, 1, 2)]
    assert read[0].why.startswith("\\u001b[2J") and read[0].figures["set-1/recall@1"] == 1 / 7
    assert '"from":1' in made.text()


@pytest.mark.parametrize("value", ["", "{", "[]", "\ud800", '{"schema_version": 2}', "{}", "null"])
def test_a_tag_that_somebody_changed_is_named(value):
    with pytest.raises(FormatError, match=r"^tag align\.champion\.00001 of model 'm': .*; restore the tag in MLflow"):
        history_of("m", {"align.champion.00001": value})


def test_an_entry_under_another_number_is_refused():
    with pytest.raises(FormatError, match=r"align\.champion\.00002 of model 'm' is a copy of align\.champion\.00001"):
        history_of("m", {"align.champion.00002": moves(PROMOTED[0])[0].text()})


def test_which_version_was_it_then():
    made = moves(*PROMOTED[:2], ("rejected", 2, 2))

    def at(day):
        found = last_before(made, datetime(2026, 11, day, 12, tzinfo=UTC))
        return found.number if found else None

    assert [at(1), at(2), at(3)] == [1, 2, 2]
    assert last_before(made, datetime(2026, 10, 31, tzinfo=UTC)) is None


@pytest.mark.parametrize(("champion", "kinds", "by_hand"), [
    (2, PROMOTED[:2], False),
    (1, PROMOTED[:2], False),  # a gate had judged it before
    (4, PROMOTED[:2], True),
    (None, PROMOTED[:2], False),
    (4, [], True),
    (5, [*PROMOTED, ("by hand", 3, 5)], True),
    (5, [*PROMOTED, ("by hand", 3, 5), ("rejected", 5, 5)], True),
    (5, [*PROMOTED, ("by hand", 3, 5), ("promoted", 5, 6), ("rolled back", 6, 5)], True),
    (3, [*PROMOTED, ("rolled back", 3, 2), ("by hand", 2, 3)], True),
    (6, [*PROMOTED, ("by hand", 3, 5), ("promoted", 5, 6)], False),
])  # fmt: skip
def test_a_champion_by_hand_is_one_that_has_not_passed_its_gates(champion, kinds, by_hand):
    assert ChampionState("m", champion, tuple(moves(*kinds))).made_by_hand is by_hand
