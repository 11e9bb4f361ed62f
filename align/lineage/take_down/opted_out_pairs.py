"""The opted-out pairs of a folder like data/raw: how many, whose pictures, which texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from align.formats.policy import OptedOut
from align.formats.raw import STATED_SHA256
from align.lineage.versions.raw_pairs import is_opted_out, iter_tables
from align.pairs.text import normalise


@dataclass(frozen=True)
class OptedOutPairs:
    """The opted-out pairs of a folder.

    Attributes:
        num_pairs: number of these pairs.
        num_held: number of those whose picture is in the folder.
        image_ids: sha256s of their pictures, as far as known.
        shown: those of `image_ids` that another pair shows too, which nobody opted out.
        gone: keys of the tar samples that no other pair shows: a purge removes them.
        shared: keys of the tar samples that another pair shows too: they stay.
        shards: names of the shards with such a pair.
        texts: (sha256 of the picture or None, normalised text) of the pairs that still have a text.
    """

    num_pairs: int
    num_held: int
    image_ids: frozenset[str]
    shown: frozenset[str]
    gone: frozenset[str]
    shared: frozenset[str]
    shards: frozenset[str]
    texts: frozenset[tuple[str | None, str]]

    @property
    def to_purge(self) -> bool:
        """Whether the folder has a picture or a text that a purge removes."""
        return bool(self.gone or self.texts)


def opted_out_pairs(raw: Path, opted_out: OptedOut) -> OptedOutPairs:
    """Reads the tables of a folder in img2dataset's layout, and also the tars if img2dataset made it.

    Raises:
        DataError: a table is unreadable.
    """
    num_pairs = 0
    held: Counter[str] = Counter()
    image_ids, shards, texts = set(), set(), set()
    for name, rows in iter_tables(raw):
        for row in rows:
            if is_opted_out(opted_out, row):
                num_pairs += 1
                shards.add(name)
                image_ids |= {row["sha256"], row[STATED_SHA256]} - {None}
                if text := normalise(row["caption"] or ""):
                    texts.add((row["sha256"], text))
                if row["image_key"] is not None:
                    held[row["image_key"]] += 1
    shared, shown = _shown_by_others(raw, opted_out, held.keys()) if held else (set(), set())
    return OptedOutPairs(
        num_pairs=num_pairs,
        num_held=held.total(),
        image_ids=frozenset(image_ids),
        shown=frozenset(image_ids & shown),
        gone=frozenset(held.keys() - shared),
        shared=frozenset(shared),
        shards=frozenset(shards),
        texts=frozenset(texts),
    )


def _shown_by_others(raw: Path, opted_out: OptedOut, image_keys: Set[str]) -> tuple[set[str], set[str]]:
    """Keys of tar samples, and sha256s of their pictures."""
    others = [
        (row["image_key"], row["sha256"])
        for _, rows in iter_tables(raw)
        for row in rows
        if row["image_key"] in image_keys and not is_opted_out(opted_out, row)
    ]
    return {key for key, _ in others}, {sha256 for _, sha256 in others}
