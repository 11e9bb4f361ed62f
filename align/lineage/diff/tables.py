"""Compares data/raw and data/filtered of two versions in SQL: which pairs changed their state, and what moved.

Pairs are matched by address and original text, since every ingest numbers keys again; among equal pairs the first is
matched with the first, and so on. No picture is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.filtered import DECISIONS, FACTS, IMAGES
from align.interfaces.sql import Engine
from align.lineage.diff.report import ABSENT, KEPT, ChangedPair, DiffReport, StateChange, VersionSummary
from align.validate.drift import distance, distributions

#: Example pairs for each change of state.
_EXAMPLES = 3
#: Hosts listed: those with the largest change.
_HOSTS = 12


@dataclass(frozen=True)
class VersionTables:
    """One version: a name for people, and the folders with its tables."""

    name: str
    raw: Path
    filtered: Path


def compare(sql: Engine, before: VersionTables, after: VersionTables) -> DiffReport:
    """Compares two versions.

    Raises:
        DataError: a table is missing.
    """
    one, other = (_summary(sql, tables, which) for tables, which in ((before, "before"), (after, "after")))
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
    return DiffReport(
        before=one,
        after=other,
        moves=_state_changes(sql),
        hosts=_hosts(sql),
        distances={name: distance(one.distributions[name], other.distributions[name]) for name in sorted(names)},
    )


def _summary(sql: Engine, tables: VersionTables, which: str) -> VersionSummary:
    """Makes the table `pairs_before` or `pairs_after`, and sums it up."""
    for path in (tables.filtered / DECISIONS, tables.filtered / IMAGES):
        if not path.is_file():
            raise DataError(f"{tables.name}: no {path.name}; run `align filter` there first")
    if not any(tables.raw.glob("*.parquet")):
        raise DataError(f"{tables.name}: no tables of data/raw")
    sql.view(f"raw_{which}", tables.raw / "*.parquet")
    sql.view(f"decisions_{which}", tables.filtered / DECISIONS)
    sql.view("images", tables.filtered / IMAGES)
    facts = tables.filtered / FACTS
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
    return VersionSummary(
        name=tables.name,
        num_pairs=sum(states.values()),
        num_kept=states.get(KEPT, 0),
        states=dict(sorted(states.items())),
        distributions=distributions(sql.rows, languages=languages),
    )


def _state_changes(sql: Engine) -> list[StateChange]:
    sql.table("moved", "SELECT * FROM matched WHERE state_before <> state_after")
    counts = sql.rows("SELECT state_before, state_after, count(*) FROM moved GROUP BY state_before, state_after")
    examples: dict[tuple[str, str], list[ChangedPair]] = {}
    for before, after, *pair in sql.rows(
        f"""
        SELECT state_before, state_after, url, text, key_before, key_after FROM (
            SELECT *, row_number() OVER (
                PARTITION BY state_before, state_after ORDER BY md5(concat(url, ' ', text)), url, text
            ) AS row_number FROM moved
        ) AS drawn WHERE row_number <= {_EXAMPLES} ORDER BY state_before, state_after, row_number
        """
    ):
        example = dict(zip(ChangedPair.model_fields, pair, strict=True))
        examples.setdefault((before, after), []).append(ChangedPair.model_validate(example))
    counts.sort(key=lambda row: (-row[2], row[0], row[1]))
    return [
        StateChange(before=before, after=after, num_pairs=num, examples=examples[before, after])
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
