"""What becomes of each record of a web archive. A record has exactly one outcome, so the numbers sum to the records.

Counted are the records that hold an answer of a server (`response`, `resource`, `revisit`), and those of a WAT that
describe one. All others, such as `request` and `warcinfo`, are one number. What lies in a damaged part of a file is
counted in bytes: nobody can tell how many records it held.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PAGE = "page"
PAGE_WITHOUT_IMAGES = "page_without_images"
IMAGE = "image"
OTHER_TYPE = "other_type"
REDIRECT = "redirect"
ERROR_STATUS = "error_status"
REVISIT = "revisit"
PAGE_TOO_LARGE = "page_too_large"
PAGE_UNREADABLE = "page_unreadable"
NO_HTTP_HEAD = "no_http_head"
HTTP_HEAD_TOO_LARGE = "http_head_too_large"
NO_ADDRESS = "no_address"

#: In the order of the report, each in words.
OUTCOMES = {
    PAGE: "page with images",
    PAGE_WITHOUT_IMAGES: "page without images",
    IMAGE: "image, by its content type",
    OTHER_TYPE: "of another type",
    REDIRECT: "redirect",
    ERROR_STATUS: "HTTP status other than 200, no redirect",
    REVISIT: "revisit: another record has the bytes",
    PAGE_TOO_LARGE: "not read: page that is too large",
    PAGE_UNREADABLE: "not read: page whose content coding is damaged, or record of a WAT that is",
    NO_HTTP_HEAD: "not read: no HTTP status, and no type",
    HTTP_HEAD_TOO_LARGE: "not read: HTTP headers that are too large",
    NO_ADDRESS: "not read: no address",
}
#: A count of a scan: records of other kinds.
OTHER_RECORDS = "other_records"
_PREFIX = "outcome/"


def count_of(outcome: str) -> str:
    """The name of an outcome's count in a scan."""
    return _PREFIX + outcome


def in_words(counts: Mapping[str, int]) -> list[str]:
    """The counts of a scan that say why there are few pairs: outcomes first, each in words."""
    of_records = [f"{OUTCOMES[name]}: {number:,}" for name, number in outcomes_in(counts).items()]
    others = {name: number for name, number in counts.items() if number and not re.search("/|: |^pages$", name)}
    return [*of_records, *(f"{name.replace('_', ' ')}: {number:,}" for name, number in others.items())]


def outcomes_in(counts: Mapping[str, int]) -> dict[str, int]:
    """Outcome -> number, in the order of OUTCOMES; those that occur."""
    return {name: counts[count_of(name)] for name in OUTCOMES if counts.get(count_of(name))}
