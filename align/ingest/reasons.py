"""Why pairs have no picture, and what the person can do: the commonest reasons, and a host that asks for less."""

from __future__ import annotations

import re
from collections.abc import Mapping

from align.formats.policy import REFUSED
from align.formats.raw import ADDRESS_REFUSED, HOPELESS

#: Reasons that the last lines name.
_MOST = 3
_RETRY = "may pass: `align ingest --retry-failed`"
_MORE_TIME = f"{_RETRY}, with a larger download.timeout_s if the servers are slow"
_BROKEN = "the file at that address is broken, or no picture"
#: Code of an error_message -> what to set or do.
_REMEDIES = {
    ADDRESS_REFUSED: "of a private network: name it in download.allow_networks if it is yours, then `align ingest`",
    "robots.txt": "the host forbids it; download.obey_robots and download.user_agent say how we ask",
    "X-Robots-Tag": "the host forbids it; download.obey_robots and download.user_agent say how we ask",
    "robots.txt unreachable": _RETRY,
    "timed out": _MORE_TIME,
    "DNS failure": f"{_RETRY}; all of them: is this machine online?",
    "connection refused": _RETRY,
    "connection lost": _RETRY,
    "cannot connect": f"{_RETRY}; all of them: is this machine online?",
    "truncated": _RETRY,
    "too large": "download.max_image_bytes",
    "too many pixels": "ingest.max_image_pixels",
    "too many redirects": "download.max_redirects",
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
