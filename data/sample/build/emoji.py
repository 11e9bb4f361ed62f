"""Reads the pictures of four emoji vendors, with the texts of Unicode's CLDR and of OpenMoji's authors.

There is one item per vendor and code point; skin-tone variants are left out (they are one picture six times).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from items import FLUENT, NOTO, OPENMOJI, TWEMOJI, Item, rank

RENDERED_PX = 256
"""Emoji are vectors; they are first rendered at this size."""
LOCALES = ("de", "es", "fr", "it", "ja")
_ICONIFY = {NOTO: "noto", FLUENT: "fluent-emoji", TWEMOJI: "twemoji"}
_TONES = re.compile(r"-1f3f[b-f]")
_SIGNS = re.compile(r"-200d-(?:2640|2642|27a1)")
_PEOPLE = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3", "1f475": "1f9d3",
           "1f934": "1fac5", "1f478": "1fac5"}  # fmt: skip
_BRANDS = "brand"
"""OpenMoji's drawings of company logos: their licence is free, the trademarks are not."""


def normal_hex(hexcode: str) -> str:
    """Lower-case code points joined by dashes, without the presentation selector, which only some vendors write."""
    return "-".join(point for point in hexcode.lower().split("-") if point != "fe0f")


def base_concept(hexcode: str) -> str:
    """Code point without skin tone, gender and direction: the unit in which concepts are held out."""
    plain = _SIGNS.sub("", _TONES.sub("", normal_hex(hexcode)))
    return "-".join(_PEOPLE.get(point, point) for point in plain.split("-"))


def read(npm: Path) -> list[Item]:
    """Items of all four vendors."""
    authored = {normal_hex(row["hexcode"]): row for row in _json(npm / "openmoji/data/openmoji.json")}
    cldr = {normal_hex(row["hexcode"]): row for row in _json(npm / "emojibase-data/en/data.json")}
    items = []
    hex_of_icon: dict[str, str] = {}
    for vendor in (NOTO, TWEMOJI, FLUENT):
        folder = npm / _ICONIFY[vendor]
        hex_of_icon |= {icon: normal_hex(code) for code, icon in _json(folder / "chars.json").items()}
        icons = _json(folder / "icons.json")
        for icon, code in _icon_codes(icons["icons"], cldr, hex_of_icon).items():
            items.append(_item(vendor, code, cldr[code], authored.get(code, {}), _svg(icons, icon)))
    drawings = npm / "openmoji/color/svg"
    for code, row in authored.items():
        path = drawings / f"{row['hexcode']}.svg"
        if row["skintone"] or row["subgroups"] == _BRANDS or not path.exists():
            continue
        words = cldr.get(code) or {"label": row["annotation"], "tags": []}
        items.append(_item(OPENMOJI, code, words, row, path.read_text()))
    return sorted(items, key=lambda item: item.key)


def locale_texts(npm: Path, locale: str) -> dict[str, str]:
    """Label and tags of every code point in one of ``LOCALES``, as a page in that language shows them."""
    rows = _json(npm / f"emojibase-data/{locale}/data.json")
    return {normal_hex(row["hexcode"]): _joined(row["label"], row.get("tags", [])) for row in rows}


def _icon_codes(icons: Mapping[str, Any], cldr: Mapping[str, Any], hex_of_icon: Mapping[str, str]) -> dict[str, str]:
    """Icon name -> code point. Fluent has no table: its icons have the other vendors' names, or the label's."""
    by_label = {re.sub(r"[^a-z0-9]+", "-", row["label"].lower()).strip("-"): code for code, row in cldr.items()}
    codes: dict[str, str] = {}
    taken: set[str] = set()
    for icon in sorted(icons):
        code = hex_of_icon.get(icon) or by_label.get(icon, "")
        if code in cldr and code not in taken and not icons[icon].get("hidden"):
            codes[icon] = code
            taken.add(code)
    return codes


def _svg(icons: Mapping[str, Any], icon: str) -> str:
    entry = icons["icons"][icon]
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
    )


def _item(vendor: str, code: str, words: Mapping[str, Any], authored: Mapping[str, Any], svg: str) -> Item:
    label, tags = str(words["label"]), tuple(words.get("tags", []))
    own = tuple(tag.strip() for tag in authored.get("openmoji_tags", "").split(",") if tag.strip())
    # Each site writes captions in its own way. Sites that use the same tags repeat each other's words, as on the web:
    # the rare-token rule drops a word that only one page uses.
    if vendor == NOTO:
        alt = _joined(label, tags[:8])
    elif vendor == FLUENT:
        alt = ", ".join((label[:1].upper() + label[1:], *tags[:8]))
    elif vendor == OPENMOJI:
        authors = len(own) > 1 and rank("openmoji", code) % 10 < 3
        shown = own if authors or not tags else tags[:8]
        alt = f"{label} ({', '.join(shown)})" if shown else label
    else:
        alt = label
    others = tuple(dict.fromkeys(t for t in (label, ", ".join(tags), ", ".join(own)) if t and t != alt))
    return Item(
        source=vendor,
        name=code,
        group=str(authored.get("group", "other")),
        subgroup=str(authored.get("subgroups", "other")),
        label=label,
        tags=tags,
        alt=alt,
        others=others,
        concept=base_concept(code),
        size_px=(RENDERED_PX, RENDERED_PX),
        svg=svg,
    )


def _joined(label: str, tags: Sequence[str]) -> str:
    return f"{label}: {', '.join(tags)}" if tags else label


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
