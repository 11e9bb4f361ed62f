"""The numbers of the filter's report, from its tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from align.config.filter import FilterConfig
from align.display.report import Report
from align.filter.overview import Overview, ShownPair, overview_metrics, overview_of
from align.filter.rules import codes_of, conditions
from align.filter.tables import MASKS
from align.interfaces.sql import Engine

#: In the work folder.
_TABLES = ("judged/verdicts", "decided/decided", "scored/*/scored", "written/*/decisions", "written/*/facts", "images")


class FunnelRow(BaseModel):
    """One rule.

    Attributes:
        reason: its code.
        drops_where: its condition, with the cut of this run; None: switched off.
        num_alone: pairs that it drops, counted without regard to other rules.
        num_first: pairs that no earlier rule drops.
        num_remaining: pairs left after it and all rules before.
    """

    model_config = ConfigDict(frozen=True)
    reason: str
    drops_where: str | None
    num_alone: int
    num_first: int
    num_remaining: int


class Vocabulary(BaseModel):
    """Rule T2's list.

    Attributes:
        num_ngrams: distinct unigrams and bigrams of the raw data.
        num_frequent: those on the list.
        last_count: the list holds every n-gram that occurs at least this often. 1: all n-grams.
    """

    model_config = ConfigDict(frozen=True)
    num_ngrams: int
    num_frequent: int
    last_count: int


class FilterReport(Report):
    """What was kept and dropped.

    Attributes:
        num_pairs: rows of data/raw.
        num_kept: pairs that no rule drops.
        num_images: distinct images with bytes.
        num_nsfw_scored: images that rule I1 scored: some pair would keep them under all other rules.
        num_evaluation_sets: sets that rule I5 ran against.
        evaluation_sets: their names -> sha256 of the tar; the quality gate compares them with the files on disk.
        evaluation_matches: name -> distinct images that are near-duplicates of one in the set.
        vocabulary: rule T2's list.
        funnel: every rule, in rule order.
        overview: distributions, and the texts and images that occur most.
    """

    num_pairs: int
    num_kept: int
    num_images: int
    num_nsfw_scored: int
    num_evaluation_sets: int
    evaluation_sets: dict[str, str]
    evaluation_matches: dict[str, int]
    vocabulary: Vocabulary
    funnel: list[FunnelRow]
    overview: Overview

    @property
    def num_not_fetched(self) -> int:
        """Pairs that pass every rule on texts, while ingest skipped their pictures under stricter rules."""
        return sum(row.num_first for row in self.funnel if row.reason == "image_not_fetched")


def report_on(
    engine: Engine,
    work: Path,
    config: FilterConfig,
    sets: Mapping[str, str],
    shown: Iterable[ShownPair],
) -> FilterReport:
    """Counts.

    Args:
        engine: any; its views are made here.
        work: the work folder after all decisions.
        config: the cuts.
        sets: name -> sha256 of the evaluation sets.
        shown: the pairs of a few shards.
    """
    for table in _TABLES:
        engine.view(table.rpartition("/")[2], work / f"{table}.parquet")
    alone: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for mask, num in engine.rows(MASKS):
        codes = codes_of(mask)
        alone.update(dict.fromkeys(codes, num))
        first[codes[0] if codes else ""] += num
    num_pairs = first.total()
    num_kept, remaining, funnel = first[""], num_pairs, []
    for code, drops_where in conditions(config).items():
        remaining -= first[code]
        funnel.append(
            FunnelRow(
                reason=code,
                drops_where=drops_where,
                num_alone=alone[code],
                num_first=first[code],
                num_remaining=remaining,
            )
        )
    names = f"SELECT {engine.unnest('evaluation_sets')} AS name FROM images"
    counts: dict[str, int] = dict(engine.rows(f"SELECT name, count(*) FROM ({names}) AS named GROUP BY name"))
    matches = {name: counts.get(name, 0) for name in sets}
    overview = overview_of(engine.rows, shown)
    metrics: dict[str, float | int] = {
        "filter/num_pairs": num_pairs,
        "filter/num_kept": num_kept,
        "filter/keep_rate": round(num_kept / num_pairs, 6) if num_pairs else 0.0,
        **{f"filter/dropped/{row.reason}": row.num_first for row in funnel},
        **{f"filter/dropped_alone/{row.reason}": row.num_alone for row in funnel},
        **{f"filter/evaluation_matches/{name}": num for name, num in matches.items()},
        **overview_metrics(overview),
    }
    return FilterReport(
        metrics=metrics,
        num_pairs=num_pairs,
        num_kept=num_kept,
        num_images=engine.rows("SELECT count(*) FROM images")[0][0],
        num_nsfw_scored=engine.rows("SELECT count(*) FROM scored")[0][0],
        num_evaluation_sets=len(sets),
        evaluation_sets=dict(sets),
        evaluation_matches=matches,
        vocabulary=Vocabulary.model_validate_json((work / "judged/vocabulary.json").read_bytes()),
        funnel=funnel,
        overview=overview,
    )


def read_report(folder: Path) -> FilterReport:
    """Reads what `align.display.report.write_report` wrote."""
    values = json.loads((folder / "report.json").read_bytes())
    return FilterReport.model_validate(values | {"metrics": json.loads((folder / "metrics.json").read_bytes())})


def cuts_of(folder: Path) -> dict[str, str | None] | None:
    """The condition of each rule, as the run that wrote this report used it; None if no report has them."""
    try:
        rows = json.loads((folder / "report.json").read_bytes())["funnel"]
        return {str(row["reason"]): row["drops_where"] for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return None
