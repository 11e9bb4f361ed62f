"""What the quality gate measures: statistics of whole tables, as SQL queries that return one number each.

Views: `raw` (data/raw), `decisions` and `images` (data/filtered), `evaluation_ids` (image_id of every evaluation image)
and `evaluation_hashes` (phash of every one that decodes). DuckDB and Spark both run the SQL: lists are compared as
text, since indices count from 1 in DuckDB and from 0 in Spark.

`suggested_bands` are those of section `validate` that would let a dataset pass: what was measured, with room on both
sides. The bands in params.yaml fit the demo. With other data, look at the figures first, and then set bands that the
next dataset of this kind has to meet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from align.config.validate import ValidateConfig
from align.formats.statuses import NOT_FETCHED
from align.interfaces.sql import Engine, Rows

#: With the source of a text: the statistic of its keep rate.
KEPT_FROM = "kept_from_"
#: Room on each side of a measured share: ten points.
_ROOM = 0.1
#: Allows for rounding: 0.3 + 0.1 is a little more than 0.4.
_EPSILON = 1e-9


def suggested_bands(config: ValidateConfig, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The values to set where a band failed. Bands that hold are left out; an existing side is only ever widened.

    Bounds on leakage, faults and drift are not bands: there the data has to change, or a person accepts it.

    Args:
        config: the bands as they are.
        measured: as `align.validate.statistics.measure` returns it; a statistic may be None.

    Returns:
        Key of section `validate` -> value; empty if no band failed.
    """
    bands: dict[str, Any] = {"keep_rate": _widened(config.keep_rate, measured.get("keep_rate"))}
    num_pairs, success = measured.get("raw_pairs"), measured.get("raw_success_share")
    if num_pairs and num_pairs < config.min_pairs:
        bands["min_pairs"] = int(num_pairs)
    if success is not None and success < config.min_success_share:
        bands["min_success_share"] = _low(success)
    for key, prefix, of_names in (
        ("keep_rate_by_source", KEPT_FROM, config.keep_rate_by_source),
        ("dropped_share", "dropped_", config.dropped_share),
    ):
        found = {name: _widened(band, measured.get(f"{prefix}{name}")) for name, band in of_names.items()}
        bands[key] = {name: band for name, band in found.items() if band}
    return {key: band for key, band in bands.items() if band not in (None, {})}


def _widened(band: tuple[float, float], value: float | None) -> list[float] | None:
    """The band, widened to the value; None if the value is already in it, or unknown."""
    if value is None or band[0] <= value <= band[1]:
        return None
    return [min(band[0], _low(value)), max(band[1], _high(value))]


def _low(share: float) -> float:
    return max(0.0, math.floor((share - _ROOM) * 100 + _EPSILON) / 100)


def _high(share: float) -> float:
    return min(1.0, math.ceil((share + _ROOM) * 100 - _EPSILON) / 100)


def _share(condition: str, table: str) -> str:
    return f"SELECT count(*) FILTER (WHERE {condition}) / nullif(count(*), 0) FROM {table}"


def _repeated(column: str, table: str) -> str:
    return f"SELECT count(*) FROM (SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) > 1) AS repeated"


def _without(table: str, other: str, column: str, where: str = "") -> str:
    """Counts rows of `table` without a partner in `other`; `where` is a further condition on them."""
    more = f" AND {table}.{where}" if where else ""
    return (
        f"SELECT count(*) FROM {table} LEFT JOIN {other} ON {table}.{column} = {other}.{column} "
        f"WHERE {other}.{column} IS NULL{more}"
    )


#: What must be 0: name -> (what it counts, SQL), in the order of the gate. Leakage comes first, since it would
#: spoil every later figure.
ZERO: dict[str, tuple[str, str]] = {
    "kept_evaluation_images": (
        "kept pairs that show an evaluation image, according to the filter",
        "SELECT count(*) FROM decisions JOIN images ON decisions.image_id = images.image_id "
        "WHERE keep AND CAST(evaluation_sets AS STRING) <> '[]'",
    ),
    "kept_evaluation_bytes": (
        "kept pairs whose image has the same bytes as an evaluation image",
        "SELECT count(*) FROM decisions JOIN evaluation_ids ON decisions.image_id = evaluation_ids.image_id WHERE keep",
    ),
    "raw_duplicate_keys": ("keys that occur more than once", _repeated("key", "raw")),
    "raw_null_keys": ("rows without a key", "SELECT count(*) FROM raw WHERE key IS NULL"),
    "raw_null_urls": ("rows without an image URL", "SELECT count(*) FROM raw WHERE url IS NULL"),
    "raw_null_statuses": ("rows without a status", "SELECT count(*) FROM raw WHERE status IS NULL"),
    "raw_success_without_size": (
        "images without a width and height",
        "SELECT count(*) FROM raw WHERE status = 'success' AND (coalesce(width, 0) < 1 OR coalesce(height, 0) < 1)",
    ),
    "decisions_duplicate_keys": ("pairs with more than one decision", _repeated("key", "decisions")),
    "rows_without_decision": ("pairs without a decision", _without("raw", "decisions", "key")),
    "decisions_without_row": ("decisions without a pair", _without("decisions", "raw", "key")),
    "decisions_null_keep": (
        "decisions that say neither keep nor drop",
        "SELECT count(*) FROM decisions WHERE keep IS NULL",
    ),
    "decisions_against_reason": (
        "pairs kept with a reason, or dropped without one",
        "SELECT count(*) FROM decisions WHERE keep <> (reason IS NULL)",
    ),
    "decisions_reason_not_first": (
        "decisions whose reason is not the first of their reasons",
        "SELECT count(*) FROM (SELECT reason, coalesce(CAST(reasons AS STRING), '') AS list FROM decisions) AS listed "
        "WHERE (reason IS NULL AND list <> '[]') OR "
        "substring(list, 1, length(reason) + 2) NOT IN ('[' || reason || ']', '[' || reason || ',')",
    ),
    "kept_without_image_or_text": (
        "kept pairs without an image or a text",
        "SELECT count(*) FROM decisions "
        "WHERE keep AND (image_id IS NULL OR image_key IS NULL OR coalesce(text, '') = '')",
    ),
    "kept_unknown_images": (
        "kept pairs whose image is not in images.parquet",
        _without("decisions", "images", "image_id", "keep"),
    ),
    "kept_unmeasured_images": (
        "kept pairs whose image was not hashed or not scored",
        "SELECT count(*) FROM decisions JOIN images ON decisions.image_id = images.image_id "
        "WHERE keep AND (phash IS NULL OR nsfw_score IS NULL)",
    ),
    "images_duplicate_ids": ("images listed more than once", _repeated("image_id", "images")),
}

_TO_FETCH = f"coalesce(status, '') <> '{NOT_FETCHED}'"

#: What has a threshold in params.yaml: name -> SQL.
MEASURED = {
    "raw_pairs": "SELECT count(*) FROM raw",
    # of the pairs that were to be fetched
    "raw_success_share": _share("status = 'success'", f"(SELECT status FROM raw WHERE {_TO_FETCH}) AS wanted"),
    "keep_rate": _share("keep", "decisions"),
    "kept_evaluation_hashes": (
        "SELECT count(evaluation_hashes.phash) / nullif(count(*), 0) FROM decisions "
        "JOIN images ON decisions.image_id = images.image_id "
        "LEFT JOIN evaluation_hashes ON images.phash = evaluation_hashes.phash WHERE keep"
    ),
}


#: Where a picture is from: the host of its address; of a file, the first folder of its path. An address of a stranger
#: may have megabytes. A source counts from a hundredth of the pairs on: in a crawl, many small hosts lose all.
_BY_SOURCE = """SELECT source, text_source, reason, count(*) AS number FROM (
    SELECT CASE WHEN address LIKE '%://%' THEN split_part(address, '/', 3)
        WHEN address LIKE '%/%' THEN split_part(address, '/', 1) ELSE '.' END AS source, text_source, reason
    FROM (SELECT key, substring(url, 1, 300) AS address, {text_source} AS text_source FROM raw) AS named
    JOIN decisions ON named.key = decisions.key
) AS decided GROUP BY source, text_source, reason"""
_LOST = """SELECT {column}, reason, sum(number) AS dropped FROM by_source WHERE {column} IN (
    SELECT {column} FROM by_source GROUP BY {column}
    HAVING count(*) = count(reason) AND 100 * sum(number) >= (SELECT sum(number) FROM by_source)
) GROUP BY {column}, reason ORDER BY {column}, dropped DESC, reason"""
#: Column of `by_source` -> what its pairs are.
_SOURCES = {"source": "pairs of {}", "text_source": "pairs with a text from {}"}
_KEPT = """SELECT text_source, sum(CASE WHEN reason IS NULL THEN number ELSE 0 END) / sum(number) FROM by_source
    WHERE text_source IS NOT NULL GROUP BY text_source"""


def by_source(engine: Engine, *, has_text_sources: bool) -> tuple[dict[str, float], list[str]]:
    """The keep rate by source of the text, as a statistic; and a sentence for each source of pictures or of texts of
    which the filter kept nothing, at most two hundred. Needs complete views.
    """
    text_source = "substring(text_source, 1, 300)" if has_text_sources else "CAST(NULL AS STRING)"
    engine.table("by_source", _BY_SOURCE.format(text_source=text_source))
    kept = {f"{KEPT_FROM}{source}": float(share) for source, share in engine.rows(_KEPT)}
    sentences = []
    for column, pairs in _SOURCES.items():
        found: dict[str, list[tuple[str, int]]] = {}
        for source, reason, number in engine.rows(_LOST.format(column=column)):
            found.setdefault(source, []).append((reason, int(number)))
        sentences += [
            f"the filter kept none of the {sum(number for _, number in reasons):,} {pairs.format(source)}: "
            f"{reasons[0][1]:,} were dropped as {reasons[0][0]}"
            for source, reasons in found.items()
            if column == "source" or len(kept) > 1
        ]
    return kept, sentences


def measure(rows: Rows, reasons: Iterable[str], incomplete: Iterable[str]) -> dict[str, float | int | None]:
    """Every statistic.

    Args:
        rows: runs SQL over the views.
        reasons: codes whose share of the pairs is measured, as `dropped_<reason>`.
        incomplete: views that lack a column. Statistics that need them are None, and their expectations fail together
            with the one on the columns.

    Returns:
        Name -> number; every name of ZERO and MEASURED, and those of the reasons.
    """
    queries = MEASURED | {name: query for name, (_, query) in ZERO.items()}
    queries |= {f"dropped_{reason}": _share(f"reason = '{reason}'", "decisions") for reason in reasons}
    lacking = set(incomplete)
    return {
        name: None if lacking & set(re.findall(r"\w+", query)) else rows(query)[0][0] for name, query in queries.items()
    }
