"""Decides which pictures go into an evaluation set, and which into the archive.

Evaluation comes first and takes whole clusters. The archive takes the rest, thinned so that its shares of small, wide
and shared-text pictures are those of the whole population.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from classes import CLASSES, class_of
from clusters import clusters, near_any
from items import FLUENT, NOTO, OPENCLIPART, OPENMOJI, SHARED_IMAGES, TWEMOJI, VENDORS, Item, rank, shuffled, spread
from render import EVALUATION_ENCODING, Look

Cell = tuple[bool, bool, bool]
"""Small, wide, text shared by many images: the shares that the archive keeps."""

CONCEPTS = 300
_CONCEPTS_A_CLASS = (6, 13)
_DRAWINGS = 160
_FLAGS = 12
_VENDOR_IMAGES = 860
_REFERENCES_A_CLASS = 26


@dataclass(frozen=True)
class Choice:
    """The split of the pictures.

    Attributes:
        concepts: base code point -> its pictures by all four vendors (evaluation).
        drawings: held-out openclipart clusters (evaluation).
        flags: further held-out pictures, of country flags: few of them are drawn by all four vendors.
        vendor: Twemoji pictures of concepts that the archive holds by other vendors (evaluation).
        references: labelled Twemoji pictures for nearest-neighbour classification.
        archive: pictures of the archive's main galleries.
        population: number of pictures in each cell, over the whole population.
    """

    concepts: Mapping[str, Sequence[Item]]
    drawings: Sequence[Sequence[Item]]
    flags: Sequence[Item]
    vendor: Sequence[Item]
    references: Sequence[Item]
    archive: Sequence[Item]
    population: Mapping[Cell, int]


def choose(items: Sequence[Item], looks: Mapping[str, Look], pairs: int, extra_pairs: int) -> Choice:
    """Splits the population.

    Args:
        items: the population.
        looks: ``Item.picture`` -> its look.
        pairs: number of raw pairs in the whole archive.
        extra_pairs: how many of these pairs are second texts, copies and planted leaks, not pictures chosen here.
    """
    groups = clusters(items, looks)
    concepts = _concepts([g for g in groups if _is_concept(g) and not any(looks[i.picture].blank for i in g)])
    drawings = _drawings(groups, looks)
    flags = _flags(groups)
    kept_back = [item for group in [*concepts, *drawings, *flags] for item in group]
    gone = {item.key for item in kept_back} | near_any(items, kept_back, looks)
    free = [i for i in items if i.key not in gone and not looks[i.picture].blank]
    cells, population = _cells(items)
    emoji = [i for i in free if i.source in (NOTO, FLUENT, OPENMOJI)]
    drawn = [i for i in free if i.source == OPENCLIPART]
    archive = [*emoji, *_thinned(drawn, cells, population, pairs, len(emoji) + extra_pairs)]

    known = {i.concept for i in archive}
    twemoji = [i for i in free if i.source == TWEMOJI and i.concept in known]
    near = near_any(twemoji, archive, looks)  # this sample's leaks are planted, never accidental
    twemoji = [i for i in twemoji if i.key not in near]
    return Choice(
        concepts={_concept_of(g): [i for i in g if i.source in VENDORS] for g in concepts},
        drawings=drawings,
        flags=[i for g in flags for i in g],
        vendor=sorted(shuffled(twemoji, "vendor")[:_VENDOR_IMAGES], key=lambda i: i.key),
        references=_references(twemoji),
        archive=archive,
        population=population,
    )


def cell_of(item: Item, text_counts: Mapping[str, int]) -> Cell:
    """Cell of a picture; ``text_counts`` has the number of distinct pictures per text."""
    return item.small, item.wide, text_counts[item.alt] > SHARED_IMAGES


def text_counts(items: Iterable[Item]) -> Counter[str]:
    """Text -> number of distinct pictures with it."""
    return Counter(alt for alt, _ in {(item.alt, item.picture) for item in items})


def _is_concept(group: Sequence[Item]) -> bool:
    """Whether a cluster is one base code point, drawn by all vendors, with few openclipart pictures."""
    sources = Counter(item.source for item in group)
    return (
        len({item.concept for item in group if item.concept}) == 1
        and all(sources[vendor] for vendor in VENDORS)
        and sources[OPENCLIPART] <= 3
    )


def _concept_of(group: Sequence[Item]) -> str:
    return next(item.concept for item in group if item.concept)


def _concepts(eligible: Sequence[list[Item]]) -> list[list[Item]]:
    """About 300 concepts: some of every class, the rest from pictures without a class."""
    by_class: dict[str, list[list[Item]]] = defaultdict(list)
    for group in sorted(eligible, key=lambda g: rank("concept", _concept_of(g))):
        by_class[next(class_of(item) for item in group if item.concept)].append(group)
    least, most = _CONCEPTS_A_CLASS
    chosen = []
    for name in CLASSES:
        groups = by_class[name]
        # At most half of a class is held out: the rest must teach its name.
        chosen += groups[: min(most, max(least, len(groups) * 3 // 10), len(groups) // 2)]
    return chosen + by_class[""][: max(0, CONCEPTS - len(chosen))]


def _drawings(groups: Sequence[list[Item]], looks: Mapping[str, Look]) -> list[list[Item]]:
    """openclipart clusters fit for queries: large enough, in a class, and with enough words."""
    fit = [
        group
        for group in groups
        if len(group) <= 4
        and all(i.source == OPENCLIPART and not (i.wide or looks[i.picture].blank) for i in group)
        and all(min(i.size_px) >= EVALUATION_ENCODING.short_px for i in group)
        and any(class_of(i) for i in group)
        and len((group[0].label + " " + " ".join(group[0].tags)).split()) >= 3
    ]
    chosen: list[list[Item]] = []
    a_class: Counter[str] = Counter()
    for group in sorted(fit, key=lambda g: rank("drawing", g[0].key)):
        name = next(class_of(i) for i in group if class_of(i))
        if a_class[name] < (24 if name == "flag" else 9) and sum(map(len, chosen)) < _DRAWINGS:
            a_class[name] += len(group)
            chosen.append(group)
    return chosen


def _flags(groups: Sequence[list[Item]]) -> list[list[Item]]:
    fit = [
        group
        for group in groups
        if all(i.subgroup == "country-flag" for i in group) and {i.source for i in group} == {OPENMOJI, TWEMOJI}
        and len({i.concept for i in group}) == 1
    ]  # fmt: skip
    return sorted(fit, key=lambda g: rank("flag", _concept_of(g)))[:_FLAGS]


def _references(twemoji: Sequence[Item]) -> list[Item]:
    by_class: dict[str, list[Item]] = defaultdict(list)
    for item in shuffled(twemoji, "reference"):
        by_class[class_of(item)].append(item)
    return sorted((i for name in CLASSES for i in by_class[name][:_REFERENCES_A_CLASS]), key=lambda i: i.key)


def _cells(items: Sequence[Item]) -> tuple[dict[str, Cell], Counter[Cell]]:
    counts = text_counts(items)
    cells = {item.key: cell_of(item, counts) for item in items}
    return cells, Counter(cells.values())


def _thinned(
    drawn: Sequence[Item], cells: Mapping[str, Cell], population: Mapping[Cell, int], pairs: int, others: int
) -> list[Item]:
    """openclipart pictures: every cell at its share of the population; the plain cell fills the remaining room.

    Within a cell, folders keep their proportions. Shared texts are thinned one by one; a text that would be left on ten
    images or fewer keeps twelve or goes, or the archive would have fewer shared texts than the population.
    """
    by_cell: dict[Cell, list[Item]] = defaultdict(list)
    for item in drawn:
        by_cell[cells[item.key]].append(item)
    total = sum(population.values())
    quota = {cell: min(len(by_cell[cell]), round(pairs * n / total)) for cell, n in population.items()}
    plain = (False, False, False)
    quota[plain] = max(0, pairs - others - sum(n for cell, n in quota.items() if cell != plain))
    chosen: list[Item] = []
    for cell in sorted(by_cell):
        members = sorted(by_cell[cell], key=lambda i: (i.group, rank("thin", i.key)))
        chosen += _by_text(members, quota[cell]) if cell[2] else spread(members, quota[cell])
    return sorted(chosen, key=lambda i: i.key)


def _by_text(members: Sequence[Item], count: int) -> list[Item]:
    by_text: dict[str, list[Item]] = defaultdict(list)
    for item in members:
        by_text[item.alt].append(item)
    ratio = count / max(1, len(members))
    chosen: list[Item] = []
    for text in sorted(by_text, key=lambda t: (-len(by_text[t]), t)):
        wanted = max(SHARED_IMAGES + 2, round(ratio * len(by_text[text])))
        chosen += by_text[text][: min(wanted, count - len(chosen))]
    return chosen
