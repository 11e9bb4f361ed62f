"""The history of a champion: what the tags say, whoever wrote them."""

from datetime import UTC, datetime

import pytest

from align.errors import FormatError
from align.formats.champion_moves import (
    MAX_CHARACTERS,
    ChampionState,
    Move,
    earlier_champions,
    history_of,
    last_before,
    line_of_champions,
    taken_back,
)


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


@pytest.mark.parametrize(
    ("kinds", "line", "earlier"),
    [
        ([], [], []),
        (PROMOTED, [1, 2, 3], [2, 1]),
        ([*PROMOTED, ("rolled back", 3, 2)], [1, 2], [1]),
        ([*PROMOTED, ("rolled back", 3, 2), ("promoted", 2, 3)], [1, 2, 3], [2, 1]),
        ([*PROMOTED[:2], ("promoted", 2, 1)], [1, 2, 1], [2]),
        ([*PROMOTED[:2], ("promoted", 2, 1), ("rolled back", 1, 2)], [1, 2], []),
        ([*PROMOTED, ("by hand", 3, 5)], [1, 2, 3, 5], [3, 2, 1]),
        ([*PROMOTED, ("by hand", 3, None), ("promoted", None, 5)], [1, 2, 3, 5], [3, 2, 1]),
        ([*PROMOTED, ("rejected", 3, 3)], [1, 2, 3], [2, 1]),
        ([("promoted", 7, 8)], [7, 8], [7]),  # the history began later
        ([("promoted", 9, 8)], [9, 8], []),  # 9 was deleted
    ],
)
def test_a_rollback_goes_by_the_line_of_champions(kinds, line, earlier):
    made = moves(*kinds)
    assert line_of_champions(made) == line
    champion = made[-1].to if made else None
    assert list(earlier_champions(made, champion, set(range(1, 9)))) == earlier
    assert ChampionState("m", champion, tuple(made)).previous(set(range(1, 9))) == (earlier[0] if earlier else None)


def test_a_version_is_taken_back_until_it_is_the_champion_again():
    made = moves(*PROMOTED, ("rolled back", 3, 2), ("promoted", 2, 3))
    assert (taken_back(made[:4]), taken_back(made)) == ({3}, set())


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


@pytest.mark.parametrize(
    ("champion", "kinds", "by_hand"),
    [
        (2, PROMOTED[:2], False),
        (1, PROMOTED[:2], True),
        (None, PROMOTED[:2], True),
        (4, [], False),  # older than histories
        (5, [*PROMOTED, ("by hand", 3, 5)], True),
        (5, [*PROMOTED, ("by hand", 3, 5), ("rejected", 5, 5)], True),
        (6, [*PROMOTED, ("by hand", 3, 5), ("promoted", 5, 6)], False),
    ],
)
def test_a_champion_by_hand_is_one_that_no_gate_has_judged(champion, kinds, by_hand):
    assert ChampionState("m", champion, tuple(moves(*kinds))).moved_by_hand is by_hand
