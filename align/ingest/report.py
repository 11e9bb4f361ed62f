"""The report of `align ingest`: numbers over all of data/raw; the page says what failed at which hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from align.display import html
from align.display.report import Report
from align.display.shares import percent
from align.durable.files import write_text
from align.formats.raw import HOPELESS, RIGHTS
from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.ingest.sources.outcomes import (
    HTTP_HEAD_TOO_LARGE,
    NO_ADDRESS,
    NO_HTTP_HEAD,
    OTHER_RECORDS,
    OUTCOMES,
    count_of,
    outcomes_in,
)
from align.ingest.sources.reading import damage_in
from align.interfaces.sql import Engine

#: The report names this many hosts, and licences, those with most pairs.
NUM_HOSTS = 50
_HOST = r"coalesce(nullif(lower(regexp_extract(url, '^[a-z]+://([^/?#:]+)', 1)), ''), '(no host)')"


class IngestReport(Report):
    """What the source contained, and what became of it."""

    #: Of the source.
    num_files: int
    #: Pages with pairs.
    num_pages: int
    num_pages_in_archive: int
    #: Of the scan: what was not read (`_NOT_READ`), `files_left_out` of a folder, and texts and page URLs that were cut
    #: at what data/raw stores (`align.pairs.text.MAX_CHARACTERS`).
    counts: dict[str, int]
    num_pairs: int
    #: Distinct images stored.
    num_images: int
    #: Pairs whose failure may be temporary.
    num_retryable: int
    #: Files that are cut off or damaged, each with what is wrong; only their readable parts were taken.
    files_damaged: list[str]
    #: Files that were left out, since reading them killed a worker process.
    files_quarantined: list[str]
    #: Records of web archives that hold a response, by outcome (`align.ingest.sources.outcomes`); and the others.
    outcomes: dict[str, int]
    num_other_records: int
    #: Pairs per status; per error message, without the details after a colon; and per source of the text.
    statuses: dict[str, int]
    errors: dict[str, int]
    text_sources: dict[str, int]
    #: For the hosts with most pairs, pairs per error (or `success`).
    hosts: dict[str, dict[str, int]]
    #: For those that most pages state, pairs with a picture. It is not written if there are none.
    licences: dict[str, int] = Field(default={}, exclude_if=lambda found: not found)

    @property
    def num_not_fetched(self) -> int:
        """Pairs whose picture was not asked for, since no text of it can pass the filter."""
        return self.statuses.get(NOT_FETCHED, 0)

    @property
    def num_to_fetch(self) -> int:
        """All other pairs: shares of success are shares of these."""
        return self.num_pairs - self.num_not_fetched


def write_page(report: IngestReport, directory: Path) -> None:
    """Writes report.html."""
    share = report.statuses.get(SUCCESS, 0) / max(1, report.num_to_fetch)
    lead = (
        f"{report.num_pairs:,} pairs, {percent(share)} with a picture; {report.num_images:,} distinct "
        f"pictures; {report.num_retryable:,} pairs may succeed if they are retried."
    )
    if report.num_not_fetched:
        lead += f" The share is of {report.num_to_fetch:,} pairs: no text of the other pictures can pass the filter."
    cards = [
        ("pairs", f"{report.num_pairs:,}", ""),
        ("with a picture", percent(share), "good" if share > 0.5 else "bad"),
        ("distinct pictures", f"{report.num_images:,}", ""),
        ("may pass: align ingest again", f"{report.num_retryable:,}", "warn" if report.num_retryable else ""),
        ("not fetched: no text can pass", f"{report.num_not_fetched:,}", ""),
    ]
    num_cut = [report.counts.get(name, 0) for name in ("texts_cut", "page_urls_cut")]
    cut = f"{num_cut[0]:,} texts and {num_cut[1]:,} page URLs are longer than what is stored, and were cut."
    quarantined = "Files that were left out: reading them killed a worker process"
    damaged = "Damaged files: only the readable parts were taken"
    errors = sorted(report.errors.items(), key=lambda item: (-item[1], item[0]))
    outcomes = [(OUTCOMES[name], number) for name, number in report.outcomes.items()]
    num_records = sum(report.outcomes.values())
    records = f"Records of responses: {num_records:,}. Other records, such as requests: {report.num_other_records:,}."
    blocks = [
        html.cards(cards),
        html.heading("Why pairs have no picture"),
        _with_shares(("reason", "pairs"), errors) if errors else html.paragraph("Every pair has a picture."),
        html.heading("What of the source was not read"),
        html.table(("what", "number"), not_read(report)) if not_read(report) else html.paragraph("All of it was read."),
        *_section(quarantined, ("file",), [(file,) for file in report.files_quarantined]),
        *_section(damaged, ("file",), [(file,) for file in report.files_damaged]),
        *([html.paragraph(cut)] if any(num_cut) else []),
    ]
    if num_records:
        blocks += [html.heading("Records of the archive"), html.paragraph(records)]
        blocks += [_with_shares(("what became of it", "records"), outcomes)]
        blocks += _section("Read as they are stored", ("what", "number"), read_as_stored(report))
    blocks += [html.heading(f"Hosts with most pairs (at most {NUM_HOSTS})"), _hosts(report)]
    blocks += _section("Pairs by status", ("status", "pairs"), sorted(report.statuses.items()))
    blocks += _section("Pairs by source of the text", ("source", "pairs"), sorted(report.text_sources.items()))
    licences = "Pairs with a picture by licence, as pages state it"
    blocks += _section(licences, ("licence", "pairs"), list(report.licences.items()))
    write_text(directory / "report.html", html.page("Ingest report", lead, blocks))


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table under a heading; nothing without rows."""
    return [html.heading(title), html.table(columns, rows)] if rows else []


def _with_shares(columns: Sequence[str], numbers: Sequence[tuple[str, int]]) -> str:
    """A table of numbers, each with its share of their sum."""
    total = sum(number for _, number in numbers)
    rows = [(name, number, number / total) for name, number in numbers]
    return html.table((*columns, "share"), rows, bar=2)


def _hosts(report: IngestReport) -> str:
    """A table of the hosts, each with its errors."""
    rows = []
    for host, outcomes in report.hosts.items():
        num_pairs = sum(outcomes.values())
        num_to_fetch = num_pairs - outcomes.get(HOPELESS, 0)
        failed = 1 - outcomes.get(SUCCESS, 0) / num_to_fetch if num_to_fetch else 0.0
        errors = ", ".join(f"{error} {num:,}" for error, num in outcomes.items() if error != SUCCESS)
        share_of_good = percent(1 - failed) if num_to_fetch else "none to fetch"
        rows.append((host, num_pairs, share_of_good, failed, errors))
    return html.table(("host", "pairs", "with a picture", "failed", "errors"), rows, bar=3)


#: Counts of a scan that say what of the source gave no pairs.
_NOT_READ = {
    "pages_unreadable": "pages that cannot be decoded",
    "pages_too_large": "pages that are too large",
    count_of(NO_HTTP_HEAD): "records without an HTTP status and a type",
    count_of(HTTP_HEAD_TOO_LARGE): "records with HTTP headers that are too large",
    count_of(NO_ADDRESS): "records without an address",
    "records_unreadable": "members of a tar that cannot be read",
    "rows_unreadable": "rows that cannot be read",
    "rows_of_other_splits": "captions of other splits (ingest.splits)",
    "pictures_without_text": "pictures without a text",
    "damaged_files": "files cut off or damaged: only the readable parts were taken",
    "bytes_lost": "bytes of web archives after their first damage",
}
_AS_STORED = {
    "pages_coding_absent": "pages stored plain although their HTTP headers state a coding",
    "pages_coding_unknown": "pages whose HTTP headers state an unknown coding",
}


def not_read(report: IngestReport, words: Mapping[str, str] = _NOT_READ) -> list[tuple[str, int]]:
    """What of the source gave no pairs, each with its number; empty if everything was read."""
    return [(what, report.counts[name]) for name, what in words.items() if report.counts.get(name)]


def read_as_stored(report: IngestReport) -> list[tuple[str, int]]:
    """Pages whose HTTP headers state a coding that was not undone, by the reason; empty if there are none."""
    return not_read(report, _AS_STORED)


def summarise(
    sql: Engine, raw: Path, counts: dict[str, int], num_files: int, quarantined: Sequence[str] = ()
) -> IngestReport:
    """Counts over all rows of a data/raw; `counts` are of the scan (`IngestPlan.counts`)."""
    sql.view("raw", raw / "*.parquet")
    sql.table("tally", f"""
        SELECT status, coalesce(split_part(error_message, ':', 1), '{SUCCESS}') AS error, text_source, {_HOST} AS host,
               count(*) AS num, count(*) FILTER (retryable) AS num_retryable
        FROM raw GROUP BY ALL
    """)  # fmt: skip

    def sums(what: str, where: str = "TRUE") -> dict[str, int]:
        found = sql.rows(f"SELECT {what}, sum(num) FROM tally WHERE {where} GROUP BY 1 ORDER BY 1")
        return {name: int(number) for name, number in found}

    num_pairs, num_retryable = map(int, sql.rows("SELECT sum(num), sum(num_retryable) FROM tally")[0])
    num_images, num_pages = sql.rows("SELECT count(DISTINCT sha256), count(DISTINCT page_url) FROM raw")[0]
    statuses = sums("status")
    hosts: dict[str, dict[str, int]] = {}
    for host, error, num in sql.rows(f"""
        SELECT host, error, sum(num) AS num FROM tally WHERE host IN (
            SELECT host FROM tally GROUP BY host ORDER BY sum(num) DESC, host LIMIT {NUM_HOSTS}
        ) GROUP BY host, error ORDER BY sum(sum(num)) OVER (PARTITION BY host) DESC, host, num DESC, error
    """):  # fmt: skip
        hosts.setdefault(host, {})[error] = int(num)
    licences = []
    if RIGHTS[0] in pq.read_schema(next(raw.glob("*.parquet"))).names:
        licences = sql.rows(f"""
            SELECT licence, count(*) FROM raw WHERE status = '{SUCCESS}' AND licence IS NOT NULL
            GROUP BY licence ORDER BY count(*) DESC, licence LIMIT {NUM_HOSTS}
        """)  # fmt: skip
    report = IngestReport(
        metrics={},
        num_files=num_files,
        num_pages=num_pages,
        num_pages_in_archive=counts.get("pages", num_pages),
        counts={name: number for name, number in counts.items() if number and ": " not in name},
        num_pairs=num_pairs,
        num_images=num_images,
        num_retryable=num_retryable,
        files_damaged=damage_in(counts),
        files_quarantined=list(quarantined),
        outcomes=outcomes_in(counts),
        num_other_records=counts.get(OTHER_RECORDS, 0),
        hosts=hosts,
        statuses=statuses,
        errors=sums("error", f"error <> '{SUCCESS}'"),
        text_sources=sums("coalesce(text_source, 'none')"),
        licences=dict(licences),
    )
    metrics: dict[str, float | int] = {
        "ingest/num_pages": num_pages,
        "ingest/num_pairs": num_pairs,
        "ingest/num_images": num_images,
        "ingest/num_retryable": num_retryable,
        "ingest/success_rate": round(statuses.get(SUCCESS, 0) / max(1, report.num_to_fetch), 6),
    }
    for name in (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED):
        metrics[f"ingest/status/{name}"] = statuses.get(name, 0)
    return report.model_copy(update={"metrics": metrics})
