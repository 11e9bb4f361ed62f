"""Two versions of data/raw and data/filtered side by side: which pairs entered and left, why, and what moved.

Pairs are matched by address and text as found, since keys are numbered anew by every ingest; of equal pairs the first
is matched with the first, and so on. No picture is read. One plan in SQL, as everything over whole tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from align.errors import DataError
from align.protocols.sql import Engine
from align.validate.drift import distance, distributions

KEPT, ABSENT = "kept", "absent"
#: Of each change of state.
_EXAMPLES = 3
#: Those with the largest change.
_HOSTS = 12


@dataclass(frozen=True)
class Side:
    """One version: a name for people, and the folders with its tables."""

    name: str
    raw: Path
    filtered: Path


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Example(_Frozen):
    """A pair that moved; a key is None where the version has no such pair."""

    url: str
    text: str
    key_before: str | None
    key_after: str | None


class Move(_Frozen):
    """Pairs that went from one state to another: `kept`, `absent`, or the reason that they are dropped for."""

    before: str
    after: str
    num_pairs: int
    examples: list[Example]


class Version(_Frozen):
    """One side.

    Attributes:
        states: `kept` and each reason -> number of pairs.
        distributions: of the kept pairs, see `align.validate.drift`.
    """

    name: str
    num_pairs: int
    num_kept: int
    states: dict[str, int]
    distributions: dict[str, dict[str, float]]

    @property
    def keep_rate(self) -> float:
        """Share of the pairs that are kept."""
        return self.num_kept / self.num_pairs if self.num_pairs else 0.0


class Difference(_Frozen):
    """What changed between two versions.

    Attributes:
        moves: every change of state with its number of pairs, the largest first.
        hosts: (host of the picture, kept before, kept after) where that changed most.
        distances: by how much each distribution has moved, 0 to 1 (total variation).
    """

    schema_version: int = 1
    before: Version
    after: Version
    moves: list[Move]
    hosts: list[tuple[str, int, int]]
    distances: dict[str, float]

    @property
    def entered(self) -> list[Move]:
        """Of the pairs that are kept now and were not."""
        return [move for move in self.moves if move.after == KEPT]

    @property
    def left(self) -> list[Move]:
        """Of the pairs that were kept and are not."""
        return [move for move in self.moves if move.before == KEPT]

    @property
    def others(self) -> list[Move]:
        """Of pairs that are kept neither before nor after."""
        return [move for move in self.moves if KEPT not in (move.before, move.after)]


def compare(sql: Engine, before: Side, after: Side) -> Difference:
    """Compares two versions.

    Raises:
        DataError: a table is missing.
    """
    one, other = (_version(sql, side, which) for side, which in ((before, "before"), (after, "after")))
    sql.table(
        "matched",
        f"""
        SELECT coalesce(pairs_before.url, pairs_after.url) AS url,
               coalesce(pairs_before.text, pairs_after.text) AS text,
               pairs_before.key AS key_before, pairs_after.key AS key_after,
               coalesce(pairs_before.state, '{ABSENT}') AS state_before,
               coalesce(pairs_after.state, '{ABSENT}') AS state_after
        FROM pairs_before FULL OUTER JOIN pairs_after
        ON pairs_before.url = pairs_after.url AND pairs_before.text = pairs_after.text
           AND pairs_before.copy = pairs_after.copy
        """,
    )
    names = one.distributions.keys() & other.distributions.keys()
    return Difference(
        before=one,
        after=other,
        moves=_moves(sql),
        hosts=_hosts(sql),
        distances={name: distance(one.distributions[name], other.distributions[name]) for name in sorted(names)},
    )


def _version(sql: Engine, side: Side, which: str) -> Version:
    for path in (side.filtered / "decisions.parquet", side.filtered / "images.parquet"):
        if not path.is_file():
            raise DataError(f"{side.name}: no {path.name}; run `align filter` there first")
    if not any(side.raw.glob("*.parquet")):
        raise DataError(f"{side.name}: no tables of data/raw")
    sql.view(f"raw_{which}", side.raw / "*.parquet")
    sql.view(f"decisions_{which}", side.filtered / "decisions.parquet")
    sql.view("images", side.filtered / "images.parquet")
    facts = side.filtered / "facts.parquet"
    languages = facts.is_file() and "language" in pq.read_schema(facts).names
    if languages:
        sql.view("facts", facts)
        languages = sql.rows("SELECT count(language) FROM facts")[0][0] > 0
    joined = f"decisions_{which} LEFT JOIN facts ON facts.key = decisions_{which}.key"
    sql.table(
        "decisions",
        f"SELECT decisions_{which}.*, facts.language FROM {joined}"
        if languages
        else f"SELECT * FROM decisions_{which}",
    )
    sql.table(
        f"pairs_{which}",
        f"""
        SELECT url, text, key, state, row_number() OVER (PARTITION BY url, text ORDER BY state, key) AS copy
        FROM (
            SELECT raw_{which}.url, coalesce(raw_{which}.caption, '') AS text, raw_{which}.key,
                   CASE WHEN decisions.keep THEN '{KEPT}' ELSE coalesce(decisions.reason, 'undecided') END AS state
            FROM raw_{which} LEFT JOIN decisions ON decisions.key = raw_{which}.key
        ) AS pairs
        """,
    )
    states = dict(sql.rows(f"SELECT state, count(*) FROM pairs_{which} GROUP BY state"))
    return Version(
        name=side.name,
        num_pairs=sum(states.values()),
        num_kept=states.get(KEPT, 0),
        states=dict(sorted(states.items())),
        distributions=distributions(sql.rows, languages=languages),
    )


def _moves(sql: Engine) -> list[Move]:
    sql.table("moved", "SELECT * FROM matched WHERE state_before <> state_after")
    counts = sql.rows("SELECT state_before, state_after, count(*) FROM moved GROUP BY state_before, state_after")
    examples: dict[tuple[str, str], list[Example]] = {}
    for before, after, *pair in sql.rows(
        f"""
        SELECT state_before, state_after, url, text, key_before, key_after FROM (
            SELECT *, row_number() OVER (
                PARTITION BY state_before, state_after ORDER BY md5(concat(url, ' ', text)), url, text
            ) AS place FROM moved
        ) AS drawn WHERE place <= {_EXAMPLES} ORDER BY state_before, state_after, place
        """
    ):
        example = dict(zip(Example.model_fields, pair, strict=True))
        examples.setdefault((before, after), []).append(Example.model_validate(example))
    counts.sort(key=lambda row: (-row[2], row[0], row[1]))
    return [
        Move(before=before, after=after, num_pairs=num, examples=examples[before, after])
        for before, after, num in counts
    ]


def _hosts(sql: Engine) -> list[tuple[str, int, int]]:
    rows = sql.rows(
        f"""
        SELECT host, sum(was), sum(now) FROM (
            SELECT split_part(split_part(url, '://', 2), '/', 1) AS host,
                   CASE WHEN state_before = '{KEPT}' THEN 1 ELSE 0 END AS was,
                   CASE WHEN state_after = '{KEPT}' THEN 1 ELSE 0 END AS now
            FROM matched
        ) AS kept GROUP BY host HAVING sum(was) <> sum(now)
        ORDER BY abs(sum(was) - sum(now)) DESC, host LIMIT {_HOSTS}
        """
    )
    return [(host, int(was), int(now)) for host, was, now in rows]
