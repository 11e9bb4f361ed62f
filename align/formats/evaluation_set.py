"""What an evaluation set is, in any format: items in memory, and their pictures as a stream.

Items are what a set says about its pictures: keys, concepts, texts, classes. They are small. Pictures are read in the
order of the items, as often as needed and from any position on. Few of them are in memory at a time. The readers and
the writer are in `align.formats.evaluation_sets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self

from align.config.suite import SuiteSet
from align.errors import DataError

Kind = Literal["retrieval", "classification"]
Split = Literal["query", "reference"]


@dataclass(frozen=True, slots=True)
class EvaluationImage:
    """What a set says about one of its pictures.

    Attributes:
        key: unique within its set.
        concept: images and texts of one concept are relevant to each other; also the cluster of the bootstrap.
        texts: texts that describe this image.
        label: its class in a classification set, else None.
        split: `query`, or `reference` for images whose labels classifiers learn from.
        number: that the set's publisher gave it, which other files name it by; None: none.
        text_numbers: the same for each of its texts; empty: none.
    """

    key: str
    concept: str
    texts: tuple[str, ...]
    label: str | None
    split: Split
    number: int | None = None
    text_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a picture whose bytes cannot be read, and says why."""

    why: str


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """A text of a retrieval set, an item of its own.

    Attributes:
        text: as the set spells it.
        owner: the concept that it was written for: the images of this concept are right for it.
    """

    text: str
    owner: str


#: Positions of items, ascending -> their pictures, in that order.
Pictures = Callable[[Sequence[int]], Iterator[bytes | Unreadable]]


@dataclass(frozen=True)
class EvaluationSet:
    """A named set.

    Attributes:
        name: of the set, and of its metrics.
        kind: what can be measured with it.
        description: for people.
        images: the items.
        classes: names of the classes; empty in a retrieval set.
        templates: texts with `{}` for the name of a class; empty in a retrieval set.
        pictures: the pictures of items.
        repeats: equal texts of one concept are several items, as published captions are; else one item.
        unusable: name -> why, for things in the set's files that are not items.
        asked: its entry in the suite, which says what to measure; None: all that needs no setting.
        sha256: of the tar of an `align` set; empty for others, see `identity`.
    """

    name: str
    kind: Kind
    description: str
    images: list[EvaluationImage]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    pictures: Pictures = field(compare=False, repr=False)
    sha256: str = ""
    repeats: bool = False
    unusable: Mapping[str, str] = field(default_factory=dict)
    asked: SuiteSet | None = None

    @cached_property
    def texts(self) -> list[EvaluationText]:
        """The texts, image after image, those that are only white space left out."""
        found: list[EvaluationText] = []
        seen: set[tuple[str, str]] = set()
        for image in self.images:
            for text in image.texts:
                identity = image.concept, folded(text)
                if identity[1] and (self.repeats or identity not in seen):
                    seen.add(identity)
                    found.append(EvaluationText(text, image.concept))
        return found

    def read(
        self, positions: Sequence[int] | None = None, fault: Callable[[int, str], None] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Position and picture of items, in order.

        Args:
            positions: ascending; None: all.
            fault: told position and reason of a picture that cannot be read, which is then left out.

        Raises:
            DataError: a picture cannot be read, and there is no `fault`.
        """
        wanted: Sequence[int] = range(len(self.images)) if positions is None else positions
        for position, picture in zip(wanted, self.pictures(wanted), strict=True):
            if isinstance(picture, bytes):
                yield position, picture
            elif fault is None:
                raise DataError(f"evaluation set {self.name}: {self.images[position].key}: {picture.why}")
            else:
                fault(position, picture.why)

    def name_of(self, position: int) -> str:
        """SET/KEY of an item."""
        return f"{self.name}/{self.images[position].key}"

    @cached_property
    def digests(self) -> list[bytes]:
        """sha256 of each picture, 32 bytes; of one that cannot be read, none. The first call reads all of them."""
        found = [b""] * len(self.images)
        for position, picture in self.read(fault=lambda position, why: None):
            found[position] = hashlib.sha256(picture).digest()
        return found

    @cached_property
    def identity(self) -> str:
        """Names what is in the set: its `sha256`, or that of its items and pictures, which are read for it."""
        if self.sha256:
            return self.sha256
        total = hashlib.sha256(repr((self.kind, self.classes, self.templates)).encode())
        for image, picture in zip(self.images, self.digests, strict=True):
            total.update(repr((image.key, image.concept, image.texts, image.label, image.split)).encode() + picture)
        return total.hexdigest()

    def select(self, positions: Sequence[int]) -> Self:
        """The set of some of the items, by ascending positions."""
        if len(positions) == len(self.images):
            return self
        chosen, pictures = list(positions), self.pictures
        return replace(
            self,
            images=[self.images[position] for position in chosen],
            pictures=lambda wanted: pictures([chosen[position] for position in wanted]),
        )


def folded(text: str) -> str:
    """A text without differences that do not matter: case, and the amount of white space."""
    return " ".join(text.split()).casefold()


def held(pictures: Sequence[bytes | Unreadable]) -> Pictures:
    """Pictures that are in memory; any order of positions."""
    return lambda positions: (pictures[position] for position in positions)


@dataclass(frozen=True)
class DistinctPictures:
    """The distinct pictures of some sets: sets share images, and work per image is expensive.

    Attributes:
        names: for each picture, in order of its first item, the names SET/KEY of its items.
        sets: the sets.
        firsts: for each set, the positions of items that are the first of their picture.
        faults: SET/KEY -> why, of pictures that cannot be read.
    """

    names: list[list[str]]
    sets: list[EvaluationSet]
    firsts: list[list[int]]
    faults: dict[str, str]

    def read(self) -> Iterator[tuple[str, bytes]]:
        """First name and bytes of each picture."""
        for one, positions in zip(self.sets, self.firsts, strict=True):
            for position, picture in one.read(positions):
                yield one.name_of(position), picture


def distinct_pictures(sets: Iterable[EvaluationSet]) -> DistinctPictures:
    """Finds equal pictures by their sha256; reads all of them if their digests are not known yet."""
    every = list(sets)
    by_digest: dict[bytes, list[str]] = {}
    firsts: list[list[int]] = []
    faults: dict[str, str] = {}
    for one in every:
        mine = []
        for position, digest in enumerate(one.digests):
            if not digest:
                faults[one.name_of(position)] = "cannot be read"
                continue
            names = by_digest.setdefault(digest, [])
            if not names:
                mine.append(position)
            names.append(one.name_of(position))
        firsts.append(mine)
    return DistinctPictures(list(by_digest.values()), every, firsts, faults)
