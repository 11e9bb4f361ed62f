"""report.html of `align ingest`: how many pairs have a picture, and what failed at which hosts."""

from __future__ import annotations

from pathlib import Path

from align.display import html
from align.durable.files import write_text
from align.formats.raw import HOPELESS
from align.formats.statuses import SUCCESS
from align.ingest.report import NUM_HOSTS, IngestReport, not_read, read_as_stored
from align.ingest.sources.outcomes import OUTCOMES


def write_page(report: IngestReport, directory: Path) -> None:
    """Writes report.html."""
    share = report.statuses.get(SUCCESS, 0) / max(1, report.num_to_fetch)
    lead = (
        f"{report.num_pairs:,} pairs, {share:.1%} with a picture; {report.num_images:,} distinct "
        f"pictures; {report.num_retryable:,} pairs may succeed if they are retried."
    )
    if report.num_not_fetched:
        lead += f" The share is of {report.num_to_fetch:,} pairs: no text of the other pictures can pass the filter."
    cards = [
        ("pairs", f"{report.num_pairs:,}", ""),
        ("with a picture", f"{share:.1%}", "good" if share > 0.5 else "bad"),
        ("distinct pictures", f"{report.num_images:,}", ""),
        ("retryable: --retry-failed", f"{report.num_retryable:,}", "warn" if report.num_retryable else ""),
        ("not fetched: no text can pass", f"{report.num_not_fetched:,}", ""),
    ]
    blocks = [
        html.cards(cards),
        html.heading("Why pairs have no picture"),
        _errors(report) if report.errors else html.paragraph("Every pair has a picture."),
        html.heading("What of the source was not read"),
        html.table(("what", "number"), not_read(report)) if not_read(report) else html.paragraph("All of it was read."),
        *_left_out(report),
        *_records(report),
        html.heading(f"Hosts with most pairs (at most {NUM_HOSTS})"),
        _hosts(report),
        html.heading("Pairs by status"),
        html.table(("status", "pairs"), sorted(report.statuses.items())),
        html.heading("Pairs by source of the text"),
        html.table(("source", "pairs"), sorted(report.text_sources.items())),
    ]
    write_text(directory / "report.html", html.page("Ingest report", lead, blocks))


def _errors(report: IngestReport) -> str:
    """A table of the errors, the most frequent first."""
    num_failed = sum(report.errors.values())
    largest_first = sorted(report.errors.items(), key=lambda item: (-item[1], item[0]))
    rows = [(error, num, num / num_failed) for error, num in largest_first]
    return html.table(("reason", "pairs", "share"), rows, bar=2)


def _left_out(report: IngestReport) -> list[str]:
    """The files that were left out, and how many texts and page URLs were cut; nothing where there are none."""
    blocks = []
    if report.files_quarantined:
        blocks.append(html.heading("Files that were left out: reading them killed a worker process"))
        blocks.append(html.table(("file",), [(file,) for file in report.files_quarantined]))
    if report.num_texts_cut or report.num_page_urls_cut:
        texts, pages = f"{report.num_texts_cut:,} texts", f"{report.num_page_urls_cut:,} page URLs"
        blocks.append(html.paragraph(f"{texts} and {pages} are longer than what is stored, and were cut."))
    return blocks


def _records(report: IngestReport) -> list[str]:
    """What became of the records of web archives; nothing for other sources."""
    num_records = sum(report.outcomes.values())
    if not num_records:
        return []
    rows = [(OUTCOMES[name], number, number / num_records) for name, number in report.outcomes.items()]
    lead = f"Records of responses: {num_records:,}. Other records, such as requests: {report.num_other_records:,}."
    blocks = [
        html.heading("Records of the archive"),
        html.paragraph(lead),
        html.table(("what became of it", "records", "share"), rows, bar=2),
    ]
    if taken := read_as_stored(report):
        blocks.append(html.paragraph("Read as they are stored:"))
        blocks.append(html.table(("what", "number"), taken))
    return blocks


def _hosts(report: IngestReport) -> str:
    """A table of the hosts, each with its errors."""
    rows = []
    for host, outcomes in report.hosts.items():
        num_pairs = sum(outcomes.values())
        num_to_fetch = num_pairs - outcomes.get(HOPELESS, 0)
        failed = 1 - outcomes.get(SUCCESS, 0) / num_to_fetch if num_to_fetch else 0.0
        errors = ", ".join(f"{error} {num:,}" for error, num in outcomes.items() if error != SUCCESS)
        share_of_good = f"{1 - failed:.1%}" if num_to_fetch else "none to fetch"
        rows.append((host, num_pairs, share_of_good, failed, errors))
    return html.table(("host", "pairs", "with a picture", "failed", "errors"), rows, bar=3)
