"""How `align ingest` ends: what it says, whether it failed, and what keeps the result under DVC.

It names the commonest reasons why pairs have no picture, and what the person can do. The values with which data/raw was
made are in its manifest: the next ingest asks for nothing again whose outcome depends on values that are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from align.config.ingest import DownloadConfig, IngestConfig
from align.display.console import say
from align.errors import DataError
from align.formats.policy import REFUSED
from align.formats.raw import HOPELESS, RESERVED, MadeWith
from align.formats.statuses import SUCCESS
from align.ingest.report import IngestReport, not_read, read_as_stored
from align.ingest.robots import TRAINING_ROBOTS, USAGE_FIELDS
from align.pairs.text import MAX_CHARACTERS
from align.project import provenance
from align.services.dvc.commands import write_code
from align.services.dvc.outs import is_run_by_dvc, is_tracked, stage_of
from align.web.failure import ADDRESS_REFUSED

#: The sections, and one parameter, that decide what is in data/raw.
DECIDING_VALUES = ("ingest", "download", "paths.archive")
#: Values that say how patiently to ask. A failure that depends on them may pass, so each such picture is asked for
#: again: afterwards no pair of data/raw has an outcome that depends on the old value.
PATIENCE = frozenset(
    f"download.{key}"
    for key in (
        "max_connections", "max_connections_per_host", "max_requests_per_host_per_s", "connect_timeout_s", "timeout_s",
        "deadline_s", "num_retries", "max_failures_per_host", "backoff_s",
    )
)  # fmt: skip
#: Values that decide no row: a run with others resumes the work of one that was killed or failed.
DECIDING_NOTHING = PATIENCE | {"ingest.max_damaged_share", "ingest.reuse"}


def made_with(config: IngestConfig, download: DownloadConfig, archive: str) -> MadeWith:
    """The values of an ingest, for the manifest."""
    values = {"ingest": config.model_dump(mode="json"), "download": download.model_dump(mode="json")}
    return MadeWith(archive=archive, code=provenance.digest("align.ingest.examination"), **values)


#: Reasons, and damaged files, that the last lines name.
_MOST = 3
_RETRY = "may pass: `align ingest` asks again"
_MORE_TIME = f"{_RETRY}, with a larger download.timeout_s if the servers are slow"
_BROKEN = "the file at that address is broken, or no picture"
#: Code of an error_message -> what to set or do.
_REMEDIES = {
    ADDRESS_REFUSED: "of a private network: name it in download.allow_networks if it is yours, then `align ingest`",
    "robots.txt": "the host forbids it; download.obey_robots and download.user_agent say how we ask",
    "X-Robots-Tag": "the host forbids it; download.obey_robots and download.user_agent say how we ask",
    RESERVED: "its page forbids it; download.obey_robots",
    **dict.fromkeys(USAGE_FIELDS, "the host keeps it from training; download.obey_robots"),
    TRAINING_ROBOTS: "the host forbids it to robots that train; download.training_robots",
    "robots.txt unreachable": _RETRY,
    "timed out": _MORE_TIME,
    "DNS failure": f"{_RETRY}; all of them: is this machine online?",
    "connection refused": _RETRY,
    "connection lost": _RETRY,
    "cannot connect": f"{_RETRY}; all of them: is this machine online?",
    "truncated": _RETRY,
    "too large": "download.max_image_bytes",
    "too many pixels": "ingest.max_image_pixels",
    "not in archive": "the archive has no such picture; ingest.images_from: archive_then_web asks the web for it",
    "invalid URL": "is ingest.columns.url the column of the addresses?",
    "not a picture that we decode": _BROKEN,
    "empty body": _BROKEN,
    REFUSED: "taken down: data/policy/opted_out.csv",
}
_MAY_PASS = re.compile(r"HTTP (408|425|429|5(?!01|05)\d\d)")


def remedy(reason: str) -> str | None:
    """What to set or do about a reason; None if nothing helps, as for a 404."""
    if _MAY_PASS.fullmatch(reason):
        return _RETRY
    return _REMEDIES.get(reason)


def commonest(errors: Mapping[str, int], where: str) -> list[str]:
    """The commonest reasons, each with its number and what to do, and how many others there are.

    Pairs that were left out on purpose are not among them.

    Args:
        errors: pairs per reason.
        where: names the page that lists them all.
    """
    failed = [(num, reason) for reason, num in errors.items() if reason != HOPELESS]
    failed.sort(key=lambda one: (-one[0], one[1]))
    lines = []
    for num, reason in failed[:_MOST]:
        todo = remedy(reason)
        lines.append(f"without a picture: {reason}: {num:,}" + (f" ({todo})" if todo else ""))
    if rest := failed[_MOST:]:
        lines.append(f"without a picture: {len(rest)} other reason(s): {sum(num for num, _ in rest):,}; all in {where}")
    return lines


def say_result(report: IngestReport, folder: Path) -> None:
    """The last lines; `folder` has the report."""
    num_failed = report.num_to_fetch - report.statuses.get(SUCCESS, 0)
    say(
        f"ingest: {report.num_pairs:,} pairs of {report.num_images:,} images from {report.num_pages:,} pages; "
        f"{num_failed:,} without a picture, {report.num_retryable:,} of these can be retried"
    )
    if report.num_not_fetched:
        say(
            f"ingest: {report.num_not_fetched:,} not fetched: no text of their picture can pass the filter "
            "(ingest.skip_hopeless)"
        )
    for what, number in not_read(report):
        say(f"ingest: warning: {what}: {number:,}")
    for damaged in report.files_damaged[:_MOST]:
        say(f"ingest: warning: {damaged}")
    for what, number in read_as_stored(report):
        say(f"ingest: {what}, read as they are stored: {number:,}")
    if texts_cut := report.counts.get("texts_cut"):
        say(f"ingest: {texts_cut:,} texts cut at {MAX_CHARACTERS:,} characters; `align filter` drops them")
    if report.files_quarantined:
        files = ", ".join(report.files_quarantined)
        say(f"ingest: warning: {len(report.files_quarantined)} file(s) left out, as reading killed a worker: {files}")
    for line in commonest(report.errors, str(folder / "report.html")):
        say(f"ingest: {line}")


def require_a_picture(report: IngestReport, raw: Path) -> None:
    """Fails if no pair has a picture, after everything is written, so that the next ingest asks for what may pass.

    DVC then does not keep this data/raw, and no later stage runs.

    Raises:
        DataError: no pair has a picture.
    """
    if report.statuses.get(SUCCESS, 0):
        return
    todo = "`align ingest` asks again" if report.num_retryable else "see above for the reasons"
    raise DataError(f"{raw}: none of its {report.num_pairs:,} pairs has a picture; {todo}")


def say_how_to_keep(outs: Mapping[str, Path], changed: list[str]) -> None:
    """Says how DVC is told of a data/raw that was made outside of it, or why it must not be.

    Args:
        outs: what the command wrote: `raw` and `reports`.
        changed: what of the source changed while the command ran.

    Raises:
        DataError: the code is not what Python reads, so DVC cannot be told of it.
    """
    raw = outs["raw"]
    stage = None if is_run_by_dvc() or not is_tracked() else stage_of(raw)
    if stage is None:
        return
    if stage_of(outs["reports"]) != stage:
        say(f"ingest: DVC cannot keep this {raw}: its report is elsewhere ({outs['reports']})")
    elif changed:
        say(
            f"ingest: DVC must not keep this {raw}: {', '.join(changed)} changed while it was made; run `align ingest` "
            "again for what is there now"
        )
    else:
        write_code(Path())  # which DVC records, too
        say(
            f"ingest: `dvc commit --force {stage}` keeps this {raw}; without that, `dvc repro` removes it and fetches "
            "everything again"
        )
