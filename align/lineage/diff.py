"""diff: compares two versions of the data. Which pairs entered and left, why, and how the kept pairs differ.

A version is a git revision with a dvc.lock (such as run/demo), whose tables come from DVC's cache or remotes, or a
folder that holds data/raw and data/filtered (such as data).
Both are compared in SQL; the report is text for a terminal, or JSON.

Pairs are matched by address and original text, since every ingest numbers keys again; among equal pairs the first is
matched with the first, and so on. No picture is read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.display.console import show, show_json
from align.display.shares import percent
from align.display.visible import cut
from align.durable.files import to_json
from align.errors import DataError
from align.formats.filtered import DECISIONS, IMAGES, parts_of, pattern_of
from align.interfaces.sql import Engine
from align.lineage.versions.at_revision import Revisions
from align.services.engine import open_engine
from align.validate.drift import distance, distributions
from align.validate.figures import TITLES

#: At most this many characters of a text or address, and lines of a table.
_SHOWN_CHARACTERS, _SHOWN_LINES = 70, 12


def text_lines(report: DiffReport) -> Iterator[str]:
    """The lines of the summary; what changed most comes first."""
    before, after = report.before, report.after
    width = max(len(before.name), len(after.name))
    for version in (before, after):
        rate = percent(version.keep_rate)
        yield f"{version.name:<{width}}  {version.num_pairs:>10,} pairs  {version.num_kept:>10,} kept ({rate})"
    for title, moves, other in (
        ("entered (kept now, not before)", report.entered, "before"),
        ("left (kept before, not now)", report.left, "after"),
        ("changed without being kept", report.others, "both"),
    ):
        yield ""
        yield f"{title}: {sum(move.num_pairs for move in moves):,}"
        for move in moves[:_SHOWN_LINES]:
            why = f"{move.before} -> {move.after}" if other == "both" else getattr(move, other)
            yield f"  {move.num_pairs:>10,}  {why}"
            if other != "both":
                yield f"              such as {describe(move.examples[0])}"
        if len(moves) > _SHOWN_LINES:
            yield f"  and {len(moves) - _SHOWN_LINES} more kinds, see --json"
    if report.distances:
        yield ""
        yield "kept pairs: share that moved to another bucket"
        for name, share in report.distances.items():
            yield f"  {TITLES.get(name, name):<32}  {percent(share):>7}"


def describe(pair: ChangedPair) -> str:
    """A pair in one short phrase: its text, key and address."""
    key = pair.key_after or pair.key_before
    return f"{cut(pair.text, _SHOWN_CHARACTERS)!r} ({key}, {cut(pair.url, _SHOWN_CHARACTERS)})"


#: Example pairs for each change of state.
_EXAMPLES = 3


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
        distances={name: distance(one.distributions[name], other.distributions[name]) for name in sorted(names)},
    )


def _summary(sql: Engine, tables: VersionTables, which: str) -> VersionSummary:
    """Makes the table `pairs_before` or `pairs_after`, and sums it up."""
    has = {DECISIONS: parts_of(tables.filtered, DECISIONS), IMAGES: (tables.filtered / IMAGES).is_file()}
    for name, found in has.items():
        if not found:
            raise DataError(f"{tables.name}: no {name}; run `align filter` there first")
    if not any(tables.raw.glob("*.parquet")):
        raise DataError(f"{tables.name}: no tables of data/raw")
    sql.view(f"raw_{which}", tables.raw / "*.parquet")
    sql.view("decisions", pattern_of(tables.filtered, DECISIONS))
    sql.view("images", tables.filtered / IMAGES)
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
        distributions=distributions(sql.rows),
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


#: States of a pair; the others are the reasons that it is dropped for.
KEPT, ABSENT = "kept", "absent"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChangedPair(_Frozen):
    """A pair whose state changed; a key is None if the version has no such pair."""

    url: str
    text: str
    key_before: str | None
    key_after: str | None


class StateChange(_Frozen):
    """The pairs that went from one state to another: `kept`, `absent`, or the reason that they are dropped for."""

    before: str
    after: str
    num_pairs: int
    examples: list[ChangedPair]


class VersionSummary(_Frozen):
    """One version of the data.

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
        """Share of the pairs that are kept, 0 to 1."""
        return self.num_kept / self.num_pairs if self.num_pairs else 0.0


class DiffReport(_Frozen):
    """What changed between two versions.

    Attributes:
        moves: every change of state with its number of pairs, the largest first.
        distances: name -> how far the distribution moved, 0 to 1 (total variation).
    """

    schema_version: int = 1
    before: VersionSummary
    after: VersionSummary
    moves: list[StateChange]
    distances: dict[str, float]

    @property
    def entered(self) -> list[StateChange]:
        """The changes of pairs that are kept now and were not."""
        return [move for move in self.moves if move.after == KEPT]

    @property
    def left(self) -> list[StateChange]:
        """The changes of pairs that were kept and are not."""
        return [move for move in self.moves if move.before == KEPT]

    @property
    def others(self) -> list[StateChange]:
        """The changes of pairs that are kept neither before nor after."""
        return [move for move in self.moves if KEPT not in (move.before, move.after)]


def main(params: Params, args: argparse.Namespace) -> None:
    """`align diff`: find the tables of both versions, compare them, print the report."""
    paths, config = params.section(PathsConfig), params.section(EngineConfig).for_sql(params.section(StoreConfig))
    with tempfile.TemporaryDirectory(prefix="align-", dir=config.temp_directory) as scratch:
        revisions = Revisions(Path.cwd(), Path(scratch))
        before, after = (find_tables(name, paths, revisions) for name in (args.before, args.after))
        with open_engine(config) as engine:
            report = compare(engine, before, after)
    if args.json:
        show_json(to_json(report.model_dump(mode="json")))
    else:
        show(*text_lines(report))


def find_tables(name: str, paths: PathsConfig, revisions: Revisions) -> VersionTables:
    """The tables of a folder or of a git revision.

    Raises:
        DataError: it is neither, it has no such data, or its tables are gone from DVC's cache and remotes.
    """
    if Path(name).is_dir():
        return VersionTables(name, Path(name) / paths.raw.name, Path(name) / paths.filtered.name)
    files, folders = revisions.at(name), []
    for path in (paths.raw, paths.filtered):
        folder = files.folder(path, "*.parquet", fetch=True)
        if not any(folder.rglob("*.parquet")):
            raise DataError(f"'{name}': no tables of {path}; {files.why_missing(path)}")
        folders.append(folder)
    return VersionTables(name, *folders)
