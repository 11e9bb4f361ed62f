"""The report of `align ingest`: numbers over the whole of data/raw, and a page with what failed where."""

from __future__ import annotations

from pathlib import Path

from align import html
from align.files import write_text
from align.formats.raw import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS
from align.protocols.sql import Engine
from align.report import Report

#: Hosts that the report names; the others are summed.
_NUM_HOSTS = 50
_HOST = r"coalesce(nullif(lower(regexp_extract(url, '^[a-z]+://([^/?#:]+)', 1)), ''), '(no host)')"


class IngestReport(Report):
    """What came out of the source.

    Attributes:
        num_files: of the source; 0 after `--retry-failed`, which reads none.
        num_pages: pages that gave pairs.
        num_pages_in_archive: pages there are.
        num_pages_unreadable: pages whose content encoding could not be undone; they give no pairs.
        num_pairs: rows written.
        num_images: distinct images stored.
        num_retryable: pairs that failed for a reason that may pass.
        num_truncated_files: archive files of which only the readable part was taken.
        num_rows_unreadable: lines or rows of a table that say nothing that can be read.
        statuses: pairs per status.
        errors: pairs per error message, what follows a colon left out.
        text_sources: pairs per place where the text was found.
        hosts: for the hosts with most pairs, pairs per error (or `success`).
    """

    num_files: int
    num_pages: int
    num_pages_in_archive: int
    num_pages_unreadable: int
    num_pairs: int
    num_images: int
    num_retryable: int
    num_truncated_files: int
    num_rows_unreadable: int
    statuses: dict[str, int]
    errors: dict[str, int]
    text_sources: dict[str, int]
    hosts: dict[str, dict[str, int]]


def summarise(sql: Engine, raw: Path, counts: dict[str, int], num_files: int) -> IngestReport:
    """Counts over all rows of a folder of shards.

    Args:
        sql: an engine.
        raw: the folder.
        counts: what scanning the source met, see `Plan.counts`.
        num_files: of the source.
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
            SELECT host FROM tally GROUP BY host ORDER BY sum(num) DESC, host LIMIT {_NUM_HOSTS}
        ) GROUP BY host, error ORDER BY sum(sum(num)) OVER (PARTITION BY host) DESC, host, num DESC, error
    """):  # fmt: skip
        hosts.setdefault(host, {})[error] = int(num)
    metrics: dict[str, float | int] = {
        "ingest/num_pages": num_pages,
        "ingest/num_pairs": int(num_pairs),
        "ingest/num_images": num_images,
        "ingest/num_retryable": int(num_retryable),
        "ingest/success_rate": round(int(statuses.get(SUCCESS, 0)) / int(num_pairs), 6),
        **{
            f"ingest/status/{name}": int(statuses.get(name, 0))
            for name in (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE)
        },
    }
    return IngestReport(
        metrics=metrics, num_files=num_files, num_pages=num_pages, num_pages_in_archive=counts.get("pages", num_pages),
        num_pages_unreadable=counts.get("pages_unreadable", 0), num_pairs=int(num_pairs), num_images=num_images,
        num_retryable=int(num_retryable), num_truncated_files=counts.get("truncated_files", 0),
        num_rows_unreadable=counts.get("rows_unreadable", 0), hosts=hosts,
        statuses={key: int(num) for key, num in statuses.items()},
        errors={key: int(num) for key, num in errors}, text_sources={key: int(num) for key, num in sources},
    )  # fmt: skip


def write_pages(report: IngestReport, directory: Path) -> None:
    """Writes report.html."""
    share = report.statuses.get(SUCCESS, 0) / report.num_pairs
    lead = (
        f"{report.num_pairs:,} pairs, {share:.1%} with a picture; {report.num_images:,} distinct "
        f"pictures; {report.num_retryable:,} pairs failed for a reason that may pass."
    )
    figures = [
        ("pairs", f"{report.num_pairs:,}", ""),
        ("with a picture", f"{share:.1%}", "good" if share > 0.5 else "bad"),
        ("distinct pictures", f"{report.num_images:,}", ""),
        ("may pass: --retry-failed", f"{report.num_retryable:,}", "warn" if report.num_retryable else ""),
    ]
    host_rows = []
    for host, found in report.hosts.items():
        pairs, failed = sum(found.values()), sum(found.values()) - found.get(SUCCESS, 0)
        why = ", ".join(f"{error} {num:,}" for error, num in found.items() if error != SUCCESS)
        host_rows.append((host, pairs, f"{1 - failed / pairs:.1%}", failed / pairs, why))
    largest_first = sorted(report.errors.items(), key=lambda item: (-item[1], item[0]))
    num_failed = sum(report.errors.values())
    reason_rows = [(reason, num, num / num_failed) for reason, num in largest_first]
    no_picture = html.table(("reason", "pairs", "of these"), reason_rows, bar=2)
    blocks = [
        html.cards(figures),
        html.heading("Why there is no picture"),
        no_picture if reason_rows else html.paragraph("Every pair has one."),
        html.heading(f"Hosts with most pairs (at most {_NUM_HOSTS})"),
        html.table(("host", "pairs", "with a picture", "failed", "failures"), host_rows, bar=3),
        html.heading("Pairs by status"),
        html.table(("status", "pairs"), sorted(report.statuses.items())),
        html.heading("Where texts were found"),
        html.table(("place", "pairs"), sorted(report.text_sources.items())),
    ]
    write_text(directory / "report.html", html.page("What ingest found", lead, blocks))
