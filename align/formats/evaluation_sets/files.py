"""What the readers share: files here and in S3, names of classes, and the checks that every set passes."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from align.config.suite import PRESENT, TEMPLATES, SuiteSet
from align.durable.processes import in_threads
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Kind, Pictures, Unreadable
from align.interfaces.store import Files
from align.pairs.text import normalise

#: Bytes of one picture, and of a file of names.
MAX_PICTURE_BYTES, _MAX_TEXT_BYTES = 64 << 20, 16 << 20
_HALF = re.compile("[\ud800-\udfff]")
#: Pictures that are read ahead, for servers far away.
_READERS = 8


@dataclass(frozen=True)
class FilePictures:
    """`Pictures` of files, in any order of positions.

    Attributes:
        files: reads them.
        uris: one for each item.
        roots: folders; a picture of this machine lies in one of them, links resolved.
    """

    files: Files
    uris: Sequence[str]
    roots: Sequence[str]

    def __call__(self, positions: Sequence[int]) -> Iterator[bytes | Unreadable]:
        """See `Pictures`."""
        return in_threads(self._read, positions, _READERS)

    def _read(self, position: int) -> bytes | Unreadable:
        uri = self.uris[position]
        try:
            if not any(_is_below(root, uri) for root in self.roots):
                return Unreadable(f"{uri}: leads out of {', '.join(self.roots)}")
            with self.files.open(uri) as stream:
                picture = stream.read(MAX_PICTURE_BYTES + 1)
        except DataError as error:
            return Unreadable(str(error))
        except OSError as error:
            return Unreadable(f"{uri}: {error.strerror or error}")
        except ValueError:
            return Unreadable(f"{uri!r}: no name of a file")
        return Unreadable(f"{uri}: more than 64 MiB") if len(picture) > MAX_PICTURE_BYTES else picture


def _is_below(root: str, uri: str) -> bool:
    return "://" in uri or os.path.realpath(uri).startswith(f"{os.path.realpath(root).rstrip('/')}/")


def leads_out(name: str) -> bool:
    """Whether the name of a picture's file leads out of the folder of pictures."""
    return name.startswith("/") or ".." in name.split("/")


def joined(path: str, *names: str) -> str:
    """A file below a folder, here or in S3, as `Files.list` spells it."""
    below = "/".join([path.rstrip("/"), *names])
    return below if "://" in below else os.path.normpath(below)


def bytes_of(files: Files, uri: str, what: str, most_bytes: int) -> bytes:
    """A small file. Raises DataError if it is missing or too large; the message says `what` it is."""
    try:
        with files.open(uri) as stream:
            data = stream.read(most_bytes + 1)
    except (DataError, OSError) as error:
        raise DataError(f"{uri}: {what} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > most_bytes:
        raise DataError(f"{uri}: {what}: more than {most_bytes >> 20} MiB")
    return data


def exists(uri: str, files: Files) -> bool:
    """Whether there is such a file, as far as this machine may see it."""
    try:
        files.stamp(uri)
    except (DataError, OSError):
        return False
    return True


def text_of(files: Files, uri: str, what: str) -> str:
    """The text of a small file. Raises DataError as `bytes_of`, and if it is not UTF-8."""
    try:
        return bytes_of(files, uri, what, _MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{uri}: {what}: not UTF-8") from None


def lines_of(files: Files, uri: str, what: str) -> list[str]:
    """The lines of a small file that are not empty. Raises as `text_of`, and for a file without any."""
    lines = [line.strip() for line in text_of(files, uri, what).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{uri}: {what}: an empty file")
    return lines


def class_names(files: Files, uri: str | None, classes: Sequence[str], *, more: bool = False) -> dict[str, str]:
    """Class as the set has it -> readable name.

    Args:
        files: reads the file.
        uri: .json: an object, or an array in the order of the classes; .csv or .tsv: lines CLASS,NAME; others: one name
            per line, in the order of the classes. None: the classes' own names, with spaces for underscores.
        classes: of the set, in order.
        more: an object or lines CLASS,NAME may name other classes, too; these are left out.

    Raises:
        DataError: the file is unreadable, or its names are not those of the classes.
    """
    if uri is None:
        return _distinct({one: one.replace("_", " ") for one in classes}, "the folders of classes")
    suffix = uri.rpartition(".")[2].lower()
    try:
        if suffix == "json":
            names = json.loads(text_of(files, uri, "the names of classes"))
        else:
            lines = lines_of(files, uri, "the names of classes")
            rows = list(csv.reader(lines, delimiter="\t" if suffix == "tsv" else ","))
            names = {row[0]: row[1] for row in rows} if suffix in ("csv", "tsv") else lines
        if isinstance(names, list):
            if len(names) != len(classes):
                raise DataError(f"{uri}: {len(names):,} names, but the set has {len(classes):,} classes")
            names = dict(zip(classes, names, strict=True))
        named = {str(one): str(name) for one, name in names.items()}
    except (ValueError, IndexError, AttributeError, csv.Error, RecursionError) as error:
        raise DataError(f"{uri}: no names of classes: {error}") from None
    if without := [one for one in classes if not named.get(one)]:
        raise DataError(f"{uri}: no name for {len(without):,} of the classes ({', '.join(without[:5])})")
    if more:
        named = {one: named[one] for one in classes}
    if unknown := sorted(named.keys() - set(classes)):
        raise DataError(f"{uri}: {len(unknown):,} classes without images ({', '.join(unknown[:5])})")
    return _distinct(named, uri)


def _distinct(named: Mapping[str, str], where: str) -> dict[str, str]:
    twice = [name for name, number in Counter(named.values()).items() if number > 1]
    if twice:
        raise DataError(f"{where}: two classes have the name {twice[0]!r}; give them names with `classnames`")
    return dict(named)


def _unicode(text: str) -> str:
    """The text without half surrogate pairs, which JSON and the names of files may have, and no table can store."""
    return normalise(text) if _HALF.search(text) else text


def made(
    wanted: SuiteSet,
    images: list[EvaluationImage],
    pictures: Pictures,
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    unusable: Mapping[str, str] | None = None,
) -> EvaluationSet:
    """The set, checked.

    Args:
        wanted: its entry in the suite.
        images: its items.
        pictures: of the items.
        classes: of a classification set.
        templates: those of the set itself.
        unusable: name -> why, for what is not an item.

    Raises:
        DataError: there is no item, a key occurs twice, or a class has no image to classify.
    """
    where = f"evaluation set {wanted.name} ({wanted.path})"
    images = [
        replace(
            image, key=_unicode(image.key), concept=_unicode(image.concept), texts=tuple(map(_unicode, image.texts)),
            label=None if image.label is None else _unicode(image.label),
        )
        for image in images
    ]  # fmt: skip
    classes, left_out = [*map(_unicode, classes)], {_unicode(name): why for name, why in (unusable or {}).items()}
    if (most := wanted.texts_per_image) is not None:
        images = [replace(image, texts=image.texts[:most], text_numbers=image.text_numbers[:most]) for image in images]
    if not images:
        first = "".join(f"; {name}: {why}" for name, why in list(left_out.items())[:1])
        raise DataError(f"{where}: no picture that can be used{first}")
    twice = [key for key, number in Counter(image.key for image in images).items() if number > 1]
    if twice:
        raise DataError(f"{where}: {len(twice):,} ids occur more than once, the first is {twice[0]}")
    kind: Kind = "classification" if classes else "retrieval"
    if classes and wanted.among is None:
        shown = {image.label for image in images if image.split == "query"}
        if empty := [name for name in classes if name not in shown]:
            raise DataError(
                f"{where}: {len(empty):,} of {len(classes):,} classes have no image in split {wanted.split} "
                f"({', '.join(empty[:5])}); name only classes that have"
            )
    return EvaluationSet(
        name=wanted.name,
        kind=kind,
        description=wanted.description or f"{wanted.format}: {wanted.path}",
        images=images,
        classes=tuple(classes),
        templates=tuple(wanted.templates or templates or TEMPLATES) if classes else (),
        pictures=pictures,
        repeats=not classes,
        unusable=left_out,
        asked=wanted,
    )


def masked(one: EvaluationSet, files: Files) -> EvaluationSet:
    """The set with the classes that its entry chooses by `among`. Pictures to learn from of other classes are left out.

    Raises:
        DataError: the file is unreadable, names a class twice, or lacks that of a picture to classify; or it is the
            only class.
    """
    among = None if one.asked is None else one.asked.among
    if among is None:
        return one
    shown = {image.label for image in one.images if image.split == "query"}
    if among == PRESENT:
        names = [name for name in one.classes if name in shown]
    else:
        names = lines_of(files, among, "the classes to choose among")
    where = f"evaluation set {one.name}: among {among}"
    if lacking := sorted(str(label) for label in shown - set(names)):
        raise DataError(f"{where}: {len(lacking):,} classes of its pictures are not in it ({', '.join(lacking[:5])})")
    if len(set(names)) < max(len(names), 2):
        raise DataError(f"{where}: a class is named twice, or there is only one")
    chosen = set(names)
    kept = one.select([position for position, image in enumerate(one.images) if image.label in chosen])
    return replace(kept, classes=tuple(names))
