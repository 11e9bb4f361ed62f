"""What `align champion` prints, and which times it takes."""

from datetime import UTC, datetime

import pytest

from align.errors import ConfigError
from align.formats.champion_moves import Move
from align.release.aliases.champion import moment, table

NOW = datetime(2026, 11, 27, 14, 30, tzinfo=UTC)


@pytest.mark.parametrize(("text", "when"), [
    ("2026-11-01", datetime(2026, 11, 1, 23, 59, 59, 999999, tzinfo=UTC)),
    ("2026-11-27", NOW),
    ("2026-11-01T14:30", datetime(2026, 11, 1, 14, 30, tzinfo=UTC)),
    ("2026-11-01T14:30:00Z", datetime(2026, 11, 1, 14, 30, tzinfo=UTC)),
    ("2026-11-01T14:30+02:00", datetime(2026, 11, 1, 12, 30, tzinfo=UTC)),
])  # fmt: skip
def test_a_date_is_its_end_and_a_time_is_utc(text, when):
    assert moment(text, NOW) == when


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-11-31", "01.11.2026", "0001-01-01T00:00+14:00"])
def test_another_text_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--at .*: expected a date such as 2026-11-01, or a time such as"):
        moment(text, NOW)


@pytest.mark.parametrize("text", ["2026-11-28", "2026-11-27T14:31"])
def test_nobody_knows_what_is_to_come(text):
    with pytest.raises(ConfigError, match=f"^--at {text}: that is in the future; it is 2026-11-27T14:30:00Z"):
        moment(text, NOW)


def test_the_table_has_the_newest_first_and_says_what_was_deleted():
    first = Move(
        number=1, kind="promoted", at="2026-11-01T12:00:00Z", who="ann", before=None, to=1, why="the first", figures={}
    )
    second = first.model_copy(
        update={"number": 2, "before": 1, "to": 12, "who": "bob", "why": "better", "figures": {"recall": 0.51234}}
    )
    assert table([first, second], {12}) == [
        "when (UTC)            what      from         to           who  why",
        "2026-11-01T12:00:00Z  promoted  1 (deleted)  12           bob  better; recall 51.2%",
        "2026-11-01T12:00:00Z  promoted  none         1 (deleted)  ann  the first",
    ]
