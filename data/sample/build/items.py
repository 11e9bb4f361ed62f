"""Defines a picture of the population, and the order in which this build makes every choice.

Owns ``Item``, and the hash order that is used instead of a random generator: a choice depends on names only, so that
one more or one fewer picture in a package changes few other choices.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

OPENCLIPART = "openclipart"
NOTO = "noto"
FLUENT = "fluent"
OPENMOJI = "openmoji"
TWEMOJI = "twemoji"
VENDORS = (NOTO, FLUENT, OPENMOJI, TWEMOJI)
"""The four emoji vendors; Twemoji is held out of the archive as a whole."""

SMALL_PX = 200
"""ALIGN's rule I2 drops a short side up to this."""
WIDE_ASPECT = 3.0
"""ALIGN's rule I3 drops an aspect ratio from this on."""
SHARED_IMAGES = 10
"""ALIGN's rule T1 drops a text on more images than this."""


@dataclass(frozen=True)
class Item:
    """One picture as a package ships it, with every text that the package gives it.

    Attributes:
        source: one of the five sources above.
        name: unique within the source: a path without suffix (openclipart) or lower-case code points (emoji).
        group: first folder, or emoji group.
        subgroup: remaining folders, or emoji subgroup.
        label: title, or CLDR label; may be empty (openclipart).
        tags: keywords.
        alt: the text that the picture's main gallery page gives it.
        others: further real texts of the same picture (description, tags, author's tags).
        concept: base code point, without skin tone and gender; empty for openclipart.
        size_px: native width and height; emoji are vectors and count as their rendered size.
        svg: the vector's text (emoji).
        png: the picture's file (openclipart), links resolved, so that linked pictures share their bytes.
    """

    source: str
    name: str
    group: str
    subgroup: str
    label: str
    tags: tuple[str, ...]
    alt: str
    others: tuple[str, ...]
    concept: str
    size_px: tuple[int, int]
    svg: str = ""
    png: Path | None = None

    @property
    def key(self) -> str:
        """Unique over all sources."""
        return f"{self.source}/{self.name}"

    @property
    def picture(self) -> str:
        """The name of the picture itself: equal for links to one file."""
        if self.png is None:
            return self.key
        parts = self.png.with_suffix("").parts
        return "/".join((self.source, *parts[len(parts) - parts[::-1].index("png") :]))

    @property
    def small(self) -> bool:
        """True if rule I2 drops the native picture."""
        return min(self.size_px) <= SMALL_PX

    @property
    def wide(self) -> bool:
        """True if rule I3 drops the picture."""
        return max(self.size_px) / min(self.size_px) >= WIDE_ASPECT


def rank(salt: str, name: str) -> int:
    """Pseudo-random 64-bit number that depends on both names and on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{salt}\0{name}".encode()).digest()[:8], "big")


def shuffled(items: Iterable[Item], salt: str) -> list[Item]:
    """Items in the hash order of ``salt``."""
    return sorted(items, key=lambda item: (rank(salt, item.key), item.key))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` evenly spaced items, so that a sorted input is thinned in proportion everywhere."""
    if count >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def normalised(text: str) -> str:
    """Text reduced to its words: what counts as *equal* when clusters are formed."""
    return " ".join(re.findall(r"\w+", text.casefold()))
