"""The report of `align ingest`: numbers over all of data/raw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.display.report import Report
from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.ingest.sources.outcomes import HTTP_HEAD_TOO_LARGE, NO_ADDRESS, NO_HTTP_HEAD, OTHER_RECORDS, outcomes_in
from align.interfaces.sql import Engine

#: The report names this many hosts, those with most pairs.
NUM_HOSTS = 50
_HOST = r"coalesce(nullif(lower(regexp_extract(url, '^[a-z]+://([^/?#:]+)', 1)), ''), '(no host)')"


class IngestReport(Report):
    """What the source contained, and what became of it.

    Attributes:
        num_files: of the source; 0 after `--retry-failed`, which does not read the source.
        num_pages: pages with pairs.
        num_pages_in_archive: all pages.
        num_pages_unreadable: pages that cannot be decoded; they have no pairs.
        num_pages_too_large: pages beyond a bound (`align.ingest.limits`); they have no pairs.
        num_pages_coding_absent: pages that are stored plain although their HTTP headers state a coding; they were read.
        num_pages_coding_unknown: pages whose HTTP headers state an unknown coding; they were read as they are.
        num_records_unreadable: members of a tar that were skipped.
        num_pictures_without_text: of a folder; they have no pairs.
        num_files_left_out: of a folder: neither pictures nor their texts.
        num_pairs: rows written.
        num_images: distinct images stored.
        num_retryable: pairs whose failure may be temporary.
        num_damaged_files: files that are cut off or damaged, of which only the readable parts were taken.
        num_bytes_lost: bytes between the readable records of damaged web archives, as stored.
        num_reading_bounds_reached: damaged web archives with so much damage that the search for records was given up.
        num_rows_unreadable: lines or rows of a table that could not be read.
        num_rows_of_other_splits: captions that `ingest.splits` leaves out.
        num_texts_cut: texts as long as data/raw stores (`align.pairs.text.MAX_CHARACTERS`); nearly all were longer.
        num_page_urls_cut: page URLs as long as that.
        files_quarantined: files of the source that were left out, since reading them killed a worker process.
        outcomes: number per outcome of the records of web archives that hold a response, see
            `align.ingest.sources.outcomes`.
        num_other_records: of web archives, such as requests.
        statuses: pairs per status.
        errors: pairs per error message, without the details after a colon.
        text_sources: pairs per source of the text, such as `alt`.
        hosts: for the hosts with most pairs, pairs per error (or `success`).
    """

    num_files: int
    num_pages: int
    num_pages_in_archive: int
    num_pages_unreadable: int
    num_pages_too_large: int
    num_pages_coding_absent: int
    num_pages_coding_unknown: int
    num_records_unreadable: int
    num_pictures_without_text: int
    num_files_left_out: int
    num_pairs: int
    num_images: int
    num_retryable: int
    num_damaged_files: int
    num_bytes_lost: int
    num_reading_bounds_reached: int
    num_rows_unreadable: int
    num_rows_of_other_splits: int
    num_texts_cut: int
    num_page_urls_cut: int
    files_quarantined: list[str]
    outcomes: dict[str, int]
    num_other_records: int
    statuses: dict[str, int]
    errors: dict[str, int]
    text_sources: dict[str, int]
    hosts: dict[str, dict[str, int]]

    @property
    def num_not_fetched(self) -> int:
        """Pairs whose picture was not asked for, since no text of it can pass the filter."""
        return self.statuses.get(NOT_FETCHED, 0)

    @property
    def num_to_fetch(self) -> int:
        """All other pairs: shares of success are shares of these."""
        return self.num_pairs - self.num_not_fetched


def not_read(report: IngestReport) -> list[tuple[str, int]]:
    """What of the source gave no pairs, each with its number; empty where everything was read."""
    numbers = [
        ("pages that cannot be decoded", report.num_pages_unreadable),
        ("pages that are too large", report.num_pages_too_large),
        ("records without an HTTP status", report.outcomes.get(NO_HTTP_HEAD, 0)),
        ("records with HTTP headers that are too large", report.outcomes.get(HTTP_HEAD_TOO_LARGE, 0)),
        ("records without an address", report.outcomes.get(NO_ADDRESS, 0)),
        ("members of a tar that cannot be read", report.num_records_unreadable),
        ("rows that cannot be read", report.num_rows_unreadable),
        ("captions of other splits (ingest.splits)", report.num_rows_of_other_splits),
        ("pictures without a text", report.num_pictures_without_text),
        ("files cut off or damaged: only the readable parts were taken", report.num_damaged_files),
        ("bytes of web archives in their damaged parts", report.num_bytes_lost),
        ("files too damaged to search to their end for records", report.num_reading_bounds_reached),
    ]
    return [(what, number) for what, number in numbers if number]


def read_as_stored(report: IngestReport) -> list[tuple[str, int]]:
    """Pages whose HTTP headers state a coding that was not undone, by the reason; empty where there are none."""
    numbers = [
        ("pages stored plain although their HTTP headers state a coding", report.num_pages_coding_absent),
        ("pages whose HTTP headers state an unknown coding", report.num_pages_coding_unknown),
    ]
    return [(what, number) for what, number in numbers if number]


def summarise(
    sql: Engine, raw: Path, counts: dict[str, int], num_files: int, quarantined: Sequence[str] = ()
) -> IngestReport:
    """Counts over all rows of a folder of shards.

    Args:
        sql: an engine.
        raw: the folder.
        counts: from scanning the source, see `IngestPlan.counts`.
        num_files: of the source.
        quarantined: those of them that were left out.
    """
    sql.view("raw", raw / "*.parquet")
    sql.table("tally", f"""
        SELECT status, coalesce(split_part(error_message, ':', 1), '{SUCCESS}') AS error, text_source, {_HOST} AS host,
               count(*) AS num, count(*) FILTER (retryable) AS num_retryable
        FROM raw GROUP BY ALL
    """)  # fmt: skip
    num_pairs, num_retryable = sql.rows("SELECT sum(num), sum(num_retryable) FROM tally")[0]
    num_images, num_pages = sql.rows("SELECT count(DISTINCT sha256), count(DISTINCT page_url) FROM raw")[0]
    statuses = dict(sql.rows("SELECT status, sum(num) FROM tally GROUP BY status ORDER BY status"))
    errors = sql.rows(f"SELECT error, sum(num) FROM tally WHERE error <> '{SUCCESS}' GROUP BY error ORDER BY error")
    sources = sql.rows("SELECT coalesce(text_source, 'none'), sum(num) FROM tally GROUP BY 1 ORDER BY 1")
    hosts: dict[str, dict[str, int]] = {}
    for host, error, num in sql.rows(f"""
        SELECT host, error, sum(num) AS num FROM tally WHERE host IN (
            SELECT host FROM tally GROUP BY host ORDER BY sum(num) DESC, host LIMIT {NUM_HOSTS}
        ) GROUP BY host, error ORDER BY sum(sum(num)) OVER (PARTITION BY host) DESC, host, num DESC, error
    """):  # fmt: skip
        hosts.setdefault(host, {})[error] = int(num)
    num_to_fetch = int(num_pairs) - int(statuses.get(NOT_FETCHED, 0))
    metrics: dict[str, float | int] = {
        "ingest/num_pages": num_pages,
        "ingest/num_pairs": int(num_pairs),
        "ingest/num_images": num_images,
        "ingest/num_retryable": int(num_retryable),
        "ingest/success_rate": round(int(statuses.get(SUCCESS, 0)) / max(1, num_to_fetch), 6),
        **{
            f"ingest/status/{name}": int(statuses.get(name, 0))
            for name in (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED)
        },
    }
    return IngestReport(
        metrics=metrics,
        num_files=num_files,
        num_pages=num_pages,
        num_pages_in_archive=counts.get("pages", num_pages),
        num_pages_unreadable=counts.get("pages_unreadable", 0),
        num_pages_too_large=counts.get("pages_too_large", 0),
        num_pages_coding_absent=counts.get("pages_coding_absent", 0),
        num_pages_coding_unknown=counts.get("pages_coding_unknown", 0),
        num_records_unreadable=counts.get("records_unreadable", 0),
        num_pictures_without_text=counts.get("pictures_without_text", 0),
        num_files_left_out=counts.get("files_left_out", 0),
        num_pairs=int(num_pairs),
        num_images=num_images,
        num_retryable=int(num_retryable),
        num_damaged_files=counts.get("damaged_files", 0),
        num_bytes_lost=counts.get("bytes_lost", 0),
        num_reading_bounds_reached=counts.get("reading_bounds_reached", 0),
        num_rows_unreadable=counts.get("rows_unreadable", 0),
        num_rows_of_other_splits=counts.get("rows_of_other_splits", 0),
        num_texts_cut=counts.get("texts_cut", 0),
        num_page_urls_cut=counts.get("page_urls_cut", 0),
        files_quarantined=list(quarantined),
        outcomes=outcomes_in(counts),
        num_other_records=counts.get(OTHER_RECORDS, 0),
        hosts=hosts,
        statuses={key: int(num) for key, num in statuses.items()},
        errors={key: int(num) for key, num in errors},
        text_sources={key: int(num) for key, num in sources},
    )
