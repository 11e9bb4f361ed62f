"""Puts the chosen pictures on gallery pages, with the noise of real pages.

Owns URLs, page templates and character sets. Every alt-text is one that a package gives the picture; only the pages are
invented.
"""

from __future__ import annotations

import html
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from emoji import RENDERED_PX
from items import FLUENT, NOTO, OPENCLIPART, OPENMOJI, TWEMOJI, Item, rank, shuffled
from render import MASTER_SHORT_PX, Encoding

_A_PAGE = 28
_HOSTS = {
    OPENCLIPART: "openclipart.example",
    NOTO: "emoji-gallery.example",
    FLUENT: "fluent-icons.example",
    OPENMOJI: "openmoji.example",
}
_MIRROR = "clipart-mirror.example"
"""The host of the planted copies of evaluation images."""
_LOCALE_PAGES = {  # locale: (host, charset, how the page declares it)
    "de": ("emojis-de.example", "windows-1252", "header"),
    "es": ("emojis-es.example", "windows-1252", "meta"),
    "fr": ("emojis-fr.example", "windows-1252", "meta"),
    "it": ("emojis-it.example", "utf-8", "header"),
    "ja": ("emojis-ja.example", "shift_jis", "header"),
}
_LOCALE_ENTRIES = {"de": 56, "es": 56, "fr": 56, "it": 56, "ja": 40}
_KEYWORD_ENTRIES = 260
_DESCRIPTION_ENTRIES = 110
_COPIED_ENTRIES = 110
_COPIED_FLAGS = 70
_EMPTY_ALTS = 45


@dataclass(frozen=True)
class Entry:
    """One ``<img>``: a picture, its encoding, its URL and its text."""

    item: Item
    encoding: Encoding
    url: str
    alt: str


@dataclass(frozen=True)
class Page:
    """One HTML page. ``declared`` says where its character set is declared: in the HTTP header or in a meta tag."""

    url: str
    title: str
    entries: Sequence[Entry] = field(repr=False)
    lang: str = "en"
    charset: str = "utf-8"
    declared: str = "header"

    def body(self) -> bytes:
        """The page's bytes; characters that its character set lacks become references, as browsers write them."""
        return _html(self).encode(self.charset, "xmlcharrefreplace")


def entry_of(item: Item) -> Entry:
    """The main entry of a picture: on its source's host, with its main text."""
    encoding = _encoding(item)
    folder = "img" if item.source == OPENCLIPART else "assets"
    return Entry(item, encoding, f"https://{_HOSTS[item.source]}/{folder}/{item.name}.{encoding.suffix}", item.alt)


def extra_pairs(planted: int) -> int:
    """Number of pairs in addition to the main one of each picture."""
    return sum(_LOCALE_ENTRIES.values()) + _KEYWORD_ENTRIES + _DESCRIPTION_ENTRIES + _COPIED_ENTRIES + planted


def pages(
    items: Sequence[Item], locales: Mapping[str, Mapping[str, str]], planted: Sequence[Item]
) -> tuple[list[Page], list[Entry]]:
    """Every page of the archive, sorted by URL, and the planted entries.

    Args:
        items: pictures of the main galleries.
        locales: locale -> code point -> text.
        planted: evaluation pictures to leak into the archive, re-encoded.
    """
    entries = {item.key: entry_of(item) for item in items}
    empty = {item.key for item in shuffled(items, "empty")[:_EMPTY_ALTS]}
    main = [replace(e, alt="") if key in empty else e for key, e in entries.items()]
    leaked = [_leaked(item) for item in planted]
    made = [
        *_galleries(main),
        *_locale_pages(entries, items, locales),
        *_second_texts(entries, items),
        *_paged(_MIRROR, "popular", "Popular downloads", _by_url(leaked + _copies(main))),
    ]
    return sorted(made, key=lambda page: page.url), leaked


def _encoding(item: Item) -> Encoding:
    """The encoding of a picture, by source and by hash, so that formats, sizes and qualities mix."""
    roll = rank("encoding", item.picture)
    if item.source == NOTO:
        return Encoding("webp", (216, 224, 240)[roll % 3], 82)
    if item.source == FLUENT:
        return Encoding("jpeg", (212, 224, 232)[roll % 3], 74)
    if item.source == OPENMOJI:
        return Encoding("png", (224, 240)[roll % 2], 16) if roll % 5 else Encoding("webp", RENDERED_PX, 75)
    short_px = min(*item.size_px, (224, 224, 256, 256, 280, MASTER_SHORT_PX)[roll % 6])
    kind = roll // 6 % 20
    if kind < 9:
        return Encoding("jpeg", short_px, 75)
    if kind < 14:
        return Encoding("webp", short_px, 76)
    return Encoding("png", short_px, 32)


def _leaked(item: Item) -> Entry:
    """An evaluation picture as another site would show it: smaller, and compressed again."""
    encoding = Encoding("jpeg", (208, 216, 220)[rank("leak", item.key) % 3], 62)
    alt = f"{item.label}: {', '.join(item.tags)}" if item.tags else item.label
    return Entry(item, encoding, f"https://{_MIRROR}/files/{item.source}/{item.name}.{encoding.suffix}", alt)


def _galleries(main: Sequence[Entry]) -> list[Page]:
    by_folder: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in main:
        item = entry.item
        folder = f"{item.group}/{item.subgroup}" if item.subgroup else item.group
        if item.source in (NOTO, FLUENT):
            folder = item.group  # these two sites have one long gallery per group
        by_folder[_HOSTS[item.source], folder].append(entry)
    made = []
    for (host, folder), entries in sorted(by_folder.items()):
        title = folder.replace("/", " / ").replace("_", " ").replace("-", " ").title()
        made += _paged(host, folder, title, _by_url(entries))
    return made


def _locale_pages(
    entries: Mapping[str, Entry], items: Sequence[Item], locales: Mapping[str, Mapping[str, str]]
) -> list[Page]:
    """The same pictures with texts in other languages: several texts for one image."""
    drawn: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.source in (NOTO, FLUENT):
            drawn[item.name].append(item)
    made = []
    for locale, (host, charset, declared) in sorted(_LOCALE_PAGES.items()):
        # Two vendors' pictures per text: the rare-token rule would drop a language with each word on one picture only.
        known = [code for code, group in drawn.items() if len(group) == 2 and code in locales[locale]]
        codes = sorted(known, key=lambda code: rank(locale, code))[: _LOCALE_ENTRIES[locale] // 2]
        chosen = [replace(entries[i.key], alt=locales[locale][i.name]) for code in codes for i in drawn[code]]
        for page in _paged(host, "emoji", f"Emoji ({locale})", _by_url(chosen)):
            made.append(replace(page, lang=locale, charset=charset, declared=declared))
    return made


def _second_texts(entries: Mapping[str, Entry], items: Sequence[Item]) -> list[Page]:
    """Pages that show keywords instead of labels, and openclipart's descriptions instead of titles."""
    keywords = [
        replace(entries[item.key], alt=text)
        for item in shuffled([i for i in items if i.source in (NOTO, FLUENT)], "keywords")
        if 3 <= len((text := ", ".join(item.tags)).split()) <= 20
    ][:_KEYWORD_ENTRIES]
    described = [
        replace(entries[item.key], alt=item.others[-1])
        for item in shuffled([i for i in items if i.source == OPENCLIPART and not i.small], "described")
        if item.others and len(item.others[-1].split()) >= 3
    ][:_DESCRIPTION_ENTRIES]
    return [
        *_paged("icon-search.example", "keywords", "Icons by keyword", _by_url(keywords)),
        *_paged("freeclips.example", "clips", "Free clips, described", _by_url(described)),
    ]


def _copies(main: Sequence[Entry]) -> list[Entry]:
    """Pairs that are repeated, word for word, on another page: flags, which everybody copies, and others."""
    order = sorted(main, key=lambda e: (rank("copy", e.url), e.url))
    flags = [e for e in order if e.item.subgroup == "country-flag"][:_COPIED_FLAGS]
    return [*flags, *[e for e in order if e.item.subgroup != "country-flag"][: _COPIED_ENTRIES - _COPIED_FLAGS]]


def _by_url(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.url)


def _paged(host: str, folder: str, title: str, entries: Sequence[Entry]) -> list[Page]:
    made = []
    for number, start in enumerate(range(0, len(entries), _A_PAGE), 1):
        url = f"https://{host}/{folder}/page-{number}.html"
        part = entries[start : start + _A_PAGE]
        # A few pages of the old site are in an old character set.
        old = host == _HOSTS[OPENCLIPART] and rank("charset", url) % 12 == 0
        charset, declared = ("windows-1252", "meta") if old else ("utf-8", "header")
        made.append(Page(url, f"{title}, page {number}", part, charset=charset, declared=declared))
    return made


def _html(page: Page) -> str:
    way = rank("template", page.url)
    base = f'<base href="{_origin(page.url)}/">' if way % 11 == 0 else ""
    meta = f'<meta charset="{page.charset}">' if page.declared == "meta" else ""
    images = [_img(page, entry, based=bool(base)) for entry in page.entries]
    if way % 3 == 0:
        shown = "<ul>\n" + "\n".join(f"<li>{image}</li>" for image in images) + "\n</ul>"
    elif way % 3 == 1:
        rows = ["".join(f"<td>{image}</td>" for image in images[i : i + 4]) for i in range(0, len(images), 4)]
        shown = "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>"
    else:
        shown = "\n".join(f"<figure><a href='#'>{image}</a></figure>" for image in images)
    title = html.escape(page.title)
    return (
        f'<!DOCTYPE html>\n<html lang="{page.lang}"><head>{meta}{base}<title>{title}</title></head>\n'
        f"<body><h1>{title}</h1>\n{shown}\n</body></html>\n"
    )


def _img(page: Page, entry: Entry, based: bool) -> str:
    way = rank("img", page.url + entry.url)
    source = html.escape(_reference(page.url, entry.url, rank("reference", page.url) % 4, based))
    alt = html.escape(entry.alt)
    if way % 9 == 0:
        return f"<IMG ALT='{alt}' SRC='{source}'>"
    if way % 9 == 1:
        return f'<img alt="{alt}" loading="lazy" src="{source}" width="{entry.encoding.short_px}"/>'
    return f'<img src="{source}" alt="{alt}">'


def _reference(page_url: str, url: str, way: int, based: bool) -> str:
    """The URL as the page writes it: absolute, without scheme, or relative if both are on one host."""
    if _origin(page_url) != _origin(url):
        return url if way else url.removeprefix("https:")
    path = url.removeprefix(_origin(url))
    if based:
        return path.lstrip("/")
    if way == 0:
        return url
    if way == 1:
        return path
    return posixpath.relpath(path, posixpath.dirname(page_url.removeprefix(_origin(page_url))))


def _origin(url: str) -> str:
    return "/".join(url.split("/")[:3])


assert TWEMOJI not in _HOSTS, "Twemoji is held out of the archive"
