"""What a page or a response says about the use of its pictures: reservations, and a licence.

A reservation is a directive `noai`, `noimageai` or `noml` for all robots (<meta name="robots">, X-Robots-Tag); one of
the TDM Reservation Protocol: a <meta> or a header `tdm-reservation: 1`; or a header Content-Usage or Content-Signal
that forbids training.
Any one of them counts, also against a permission elsewhere: covering too much costs one picture.

A licence is an address: what the page links to with rel="license", else its link to a licence of Creative Commons.
It is a claim of the page about itself, and nobody has checked it. A page that names several licences has none here,
since nobody knows which one its picture has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from align.ingest import robots
from align.pairs.urls import Resolver

#: The text by which a page that says anything here is known (in lower case).
MARKS = (
    "noai", "noimageai", "noml", "tdm-reservation", *map(str.lower, robots.USAGE_FIELDS), "license",
    "creativecommons.org",
)  # fmt: skip
_RESERVATION = "tdm-reservation"
_DIRECTIVES = frozenset({"noai", "noimageai", "noml"})
#: Characters of a licence's address: each pair of the page repeats it. Longer ones are ignored.
MAX_CHARACTERS = 256
_CREATIVE_COMMONS = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/(licenses/[a-z+-]+|publicdomain/(?:zero|mark))"
    r"(?:/(\d\.\d)(?:/([a-z]{2,3})(?=/|$))?)?(?:/.*)?",
    re.IGNORECASE,
)


class Rights(NamedTuple):
    """What is said of a page's pictures."""

    #: Its address, at most 256 characters; those of Creative Commons in one spelling, without the name of a
    #: translation. None: none, or several.
    licence: str | None = None
    reservation: str | None = None  # the first mark that was found, such as `noai`


def of_page(
    metas: Iterable[tuple[str, str]],
    links: Iterable[tuple[str, str]],
    resolver: Resolver,
    of_response: str | None = None,
) -> Rights:
    """What a page says: (name, content) of its <meta>s, (rel, href) of its links; or its response, of a reservation."""
    return Rights(_licence(links, resolver), _of_metas(metas) or of_response)


def _of_metas(metas: Iterable[tuple[str, str]]) -> str | None:
    for name, content in metas:
        name = name.strip().lower()
        if name == "robots" and (found := robots.opt_out([content], "", _DIRECTIVES)):
            return found
        if name == _RESERVATION and content.strip() == "1":
            return _RESERVATION
    return None


def of_headers(values_of: Callable[[str], list[str]], *, is_page: bool) -> str | None:
    """The reservation of a response, whose headers are given by name.

    A page's `noindex` is about search results; that of a picture counts, as where it comes from the web.
    """
    tags = values_of("X-Robots-Tag")
    tag = robots.opt_out(tags, "", _DIRECTIVES) if is_page else robots.opt_out(tags, "")
    if tag or "1" in map(str.strip, values_of(_RESERVATION)):
        return tag or _RESERVATION
    field = robots.usage_opt_out(values_of)
    return field and field.lower()


def _licence(links: Iterable[tuple[str, str]], resolver: Resolver) -> str | None:
    stated: set[str] = set()
    linked: set[str] = set()
    for rel, href in links:
        is_stated = "license" in rel.lower().split()
        if (not is_stated and "creativecommons.org" not in href.lower()) or len(href) > MAX_CHARACTERS:
            continue
        address = resolver.resolve(href.strip())
        url, commons = address.url, _CREATIVE_COMMONS.fullmatch(address.url)
        if commons:
            parts = [part.lower() for part in commons.groups() if part]
            url = "/".join(["https://creativecommons.org", *parts, ""])
        if address.problem or len(url) > MAX_CHARACTERS or not url.startswith(("https://", "http://")):
            continue
        if is_stated:
            stated.add(url)
        elif commons:
            linked.add(url)
    found = stated or linked
    return found.pop() if len(found) == 1 else None
