"""Reads openclipart: texts from the SVG's RDF metadata, pictures from the PNG package.

An SVG renderer fails on about a third of the drawings, so only the metadata of the vectors is used. It is cut out with
regular expressions, not parsed: many files are not well-formed XML.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from items import OPENCLIPART, Item, rank
from PIL import Image

_METADATA = re.compile(rb"<metadata.*?</metadata>", re.S)
_AGENT = re.compile(r"<(?:\w+:)?Agent.*?</(?:\w+:)?Agent>", re.S)
_LICENCE = re.compile(r'<cc:license[^>]*resource="([^"]*)"')
_TITLED_FOLDERS = {"buttons", "computer", "shapes", "signs_and_symbols", "special", "logos"}
"""Folders whose gallery pages show the title alone. They hold the large themed collections; one title for hundreds of
pictures is the noise that rule T1 removes."""


def read(folder: Path) -> list[Item]:
    """Every drawing with a licence that allows redistribution; the few tagged GPL are left out."""
    # Some drawings have more than 200 megapixels. The package is trusted, so PIL's size guard is off.
    Image.MAX_IMAGE_PIXELS = None
    png_root = folder / "usr/share/openclipart/png"
    svg_root = folder / "usr/share/openclipart/svg"
    items = []
    for path in sorted(png_root.rglob("*.png")):
        name = path.relative_to(png_root).with_suffix("").as_posix()
        metadata = _METADATA.search((svg_root / f"{name}.svg").read_bytes())
        rdf = metadata.group(0).decode("utf-8", "replace") if metadata else ""
        if any("GPL" in licence for licence in _LICENCE.findall(rdf)):
            continue
        rdf = _AGENT.sub("", rdf)  # author, publisher and rights carry titles of their own
        title, description = _element(rdf, "title"), _element(rdf, "description")
        keywords = tuple(
            word for word in (_clean(li) for li in re.findall(r"<rdf:li>(.*?)</rdf:li>", rdf, re.S)) if word
        )
        with Image.open(path) as image:
            size_px = image.size
        items.append(_item(name, title, description, keywords, size_px, path))
    return items


def _item(
    name: str, title: str, description: str, keywords: tuple[str, ...], size_px: tuple[int, int], path: Path
) -> Item:
    group, _, rest = name.partition("/")
    captioned = f"{title}: {', '.join(keywords)}" if title and keywords else title
    # Galleries write captions in three ways; which one is fixed per picture.
    way = rank("caption", name) % 100
    titled = group in _TITLED_FOLDERS and (way < 70 or "collection" in title.casefold())
    if titled or way % 10 == 0:
        alt = title
    elif way % 10 <= 2 and description:
        alt = description
    else:
        alt = captioned
    if not title or (group != "shapes" and way in (3, 47)):
        alt = path.name  # as a page shows that a script wrote
    others = tuple(dict.fromkeys(t for t in (title, description, ", ".join(keywords)) if t and t != alt))
    return Item(
        source=OPENCLIPART,
        name=name,
        group=group,
        subgroup=rest.rpartition("/")[0],
        label=title,
        tags=keywords,
        alt=alt,
        others=others,
        concept="",
        size_px=size_px,
        png=path.resolve(),
    )


def _element(rdf: str, name: str) -> str:
    element = re.search(rf"<(?:dc:)?{name}(?:\s[^>]*)?>(.*?)</(?:dc:)?{name}>", rdf, re.S)
    return _clean(element.group(1)) if element else ""


def _clean(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
