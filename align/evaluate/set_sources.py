"""What an evaluation set is made of: pictures in folders named by their class, or in a table with their captions.

Nothing stops at the first fault. All that is missing or wrong is collected, so that a person corrects it in one go.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from align.display.console import say
from align.errors import DataError
from align.formats.picture_table import (
    PICTURE_COLUMNS,
    PICTURE_SUFFIXES,
    TABLE_SUFFIXES,
    TEXT_COLUMNS,
    PictureTable,
    usual_column,
)
from align.pairs.text import normalise

#: Of a table, and of one picture: far beyond any evaluation set.
_MAX_ROWS, _MAX_TEXTS = 1_000_000, 1_000
#: What no file's name can have: a zero byte, half a surrogate pair.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
#: Names in a message.
_NAMED = 10


@dataclass
class Listed:
    """A picture that a folder or table names.

    Attributes:
        path: of its file.
        name: the same for people, relative to the folder or table.
        texts: normalised, each once.
        concept: pictures and texts of one concept are relevant to each other.
        label: its class, or None.
    """

    path: Path
    name: str
    texts: list[str]
    concept: str
    label: str | None


@dataclass
class Faults:
    """What keeps pictures out of a set: kind -> pictures.

    No faults are those `joined` to an equal one, and `others`: files that are no pictures by their names.
    """

    found: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    joined: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str) -> None:
        """Adds a picture, or a row of a table."""
        self.found[kind].append(name)

    def __str__(self) -> str:
        return "; ".join(f"{len(names):,} {kind} ({some(names)})" for kind, names in self.found.items())


class Columns(NamedTuple):
    """Columns of a table; None: picture and caption are found by the usual names, the others are not read."""

    picture: str | None
    caption: str | None
    label: str | None
    concept: str | None


def read_folder(folder: Path, faults: Faults) -> list[Listed]:
    """The pictures of CLASS/*, also in folders below, in order of their names. The label is the folder's name.

    Raises:
        DataError: there are no class folders, or they hold folders of classes.
    """
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {one: sorted(path for path in one.rglob("*") if not path.is_dir()) for one in classes}
    pictures = {one: list(filter(_is_picture, paths)) for one, paths in files.items()}
    beside = sorted(path for path in folder.iterdir() if not path.is_dir())
    if loose := [path.name for path in beside if _is_picture(path)]:
        raise DataError(
            f"{folder}: {len(loose):,} picture(s) in no class folder ({some(loose)}); put each into FOLDER/CLASS/, or "
            "give a table of captions"
        )
    if not any(pictures.values()):
        raise DataError(f"{folder}: no pictures in class folders; expected FOLDER/CLASS/*.jpg, or give a table")
    nested = [one.name for one in classes if pictures[one] and not any(path.parent == one for path in pictures[one])]
    if len(nested) == len(classes):
        example = f"--from {folder / nested[-1]}" + (f" --reference {folder / nested[0]}" if nested[1:] else "")
        if {"train", "test"} <= set(nested):
            example = f"--from {folder / 'test'} --reference {folder / 'train'}"
        raise DataError(f"{folder}: {some(nested)} hold(s) folders, not pictures; give one of them: {example}")
    listed = []
    for path in (*beside, *(path for paths in files.values() for path in paths)):
        if not _is_picture(path):
            faults.others.append(path.relative_to(folder).as_posix())
    for one, paths in pictures.items():
        if not paths:
            faults.add("class folder(s) without a picture", one.name)
        for path in paths:
            name = path.relative_to(folder).as_posix()
            if is_utf8(name):
                listed.append(Listed(path, name, [], name, one.name))
            else:
                faults.add("with a name that is not UTF-8", name)
    return listed


def read_table(file: Path, columns: Columns, images: Path | None, faults: Faults) -> list[Listed]:
    """The pictures that a table names, in the order of their first rows; rows of one picture are joined.

    Args:
        file: the table.
        columns: which to read.
        images: the folder that file names are relative to; None: that of the table. No name may lead out of it.
        faults: what is wrong with rows is added.

    Raises:
        DataError: the table is unreadable, has no row, or lacks a column.
    """
    table = PictureTable(file)
    if table.layout:
        say(f"make_set: {file}: {table.layout}")
    wanted = _chosen(file, table.names, columns)
    folder = file.parent if images is None else images
    listed: dict[str, Listed] = {}
    for number, row in enumerate(table.rows(wanted), start=1):
        if number > _MAX_ROWS:
            raise DataError(f"{file}: more than {_MAX_ROWS:,} rows; an evaluation set has fewer: take some of them")
        if row is None or not _is_name(row[0]):
            kind = "row(s) that cannot be read" if row is None else "row(s) without a picture"
            faults.add(kind, f"row {number}")
            continue
        name = os.path.normpath(str(row[0]).strip())
        if _IMPOSSIBLE.search(name):
            faults.add("row(s) with a name that no file can have", f"row {number}")
            continue
        path = folder / name
        if Path(name).is_absolute() or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            faults.add(f"outside of {folder}", name)
            continue
        texts, label, concept = _texts(row[1]), _plain(row[2]), _plain(row[3])
        if wanted[2] is not None and label is None:
            faults.add("without a class", name)
            continue
        before = listed.setdefault(name, Listed(path, name, [], concept or name, label))
        if (before.label, before.concept) != (label, concept or name):
            faults.add("with two classes or concepts", name)
        before.texts += dict.fromkeys(text for text in texts if text not in before.texts)
        if len(before.texts) > _MAX_TEXTS:
            raise DataError(f"{file}: {name} has more than {_MAX_TEXTS:,} captions; take some of them")
    if not listed and not faults.found:
        raise DataError(f"{file}: no rows")
    if wanted[2] is None:
        for one in listed.values():
            if not one.texts:
                faults.add("without a caption", one.name)
    return list(listed.values())


def is_table(path: Path) -> bool:
    """Whether a path is a table by its name."""
    return path.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES)


def read_class_names(file: Path) -> dict[str, str]:
    """Folder (or label) -> name: the object of a .json, or the two columns of a .csv or .tsv without header.

    Raises:
        DataError: the file is missing or has another form.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            pairs = list(json.loads(text).items())
        else:
            delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
            pairs = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
        names = {str(one).strip(): normalise(str(other)) for one, other in pairs}
    except (OSError, ValueError, AttributeError, csv.Error, RecursionError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"--classes {file}: {why}; expected lines FOLDER,NAME, or a JSON object") from None
    if len(names) < len(pairs) or not all(names.values()):
        raise DataError(f"--classes {file}: a folder occurs twice, or has no name")
    return names


def name_classes(listed: Sequence[Listed], names: Mapping[str, str] | None) -> None:
    """Replaces labels by readable names: those given, or the label with spaces for underscores.

    Raises:
        DataError: a label has no name, a name has no label, or two labels without given names become one.
    """
    labels = sorted({one.label for one in listed if one.label is not None})
    if names is not None:
        without, unknown = sorted(set(labels) - names.keys()), sorted(names.keys() - set(labels))
        if without or unknown:
            parts = [f"{len(without):,} class(es) without a name ({some(without)})"] if without else []
            parts += [f"{len(unknown):,} name(s) of no class ({some(unknown)})"] if unknown else []
            raise DataError(f"--classes: {'; '.join(parts)}")
    readable = {label: normalise(label.replace("_", " ")) if names is None else names[label] for label in labels}
    if names is None and len(set(readable.values())) < len(readable):
        twice = [label for label in labels if Counter(readable.values())[readable[label]] > 1]
        raise DataError(f"classes {some(twice)} would have the same name; name them with --classes FILE")
    for one in listed:
        one.label = None if one.label is None else readable[one.label]


def _chosen(file: Path, names: Sequence[str], columns: Columns) -> tuple[str, str | None, str | None, str | None]:
    """The columns to read. Raises DataError that lists those that there are."""
    has = f"it has {', '.join(name[:100] for name in names[:20]) or 'none'}"
    for option, name in zip(("picture", "caption", "class", "concept"), columns, strict=True):
        if name is not None and name not in names:
            raise DataError(f"{file}: --{option} {name}: no such column, {has}")
    picture = columns.picture or usual_column(PICTURE_COLUMNS, names)
    caption = columns.caption or usual_column(TEXT_COLUMNS, [name for name in names if name != columns.label])
    if picture is None:
        raise DataError(f"{file}: no column with a usual name for picture files, {has}; say which: --picture COLUMN")
    if caption is None and columns.label is None:
        raise DataError(f"{file}: no column with a usual name for captions, {has}; say which: --caption or --class")
    also = "".join(
        f", {what} from '{name}'" for what, name in (("captions", caption), ("classes", columns.label)) if name
    )
    say(f"make_set: {file.name}: pictures from column '{picture}'{also}")
    return picture, caption, columns.label, columns.concept


def _is_name(value: Any) -> bool:
    return isinstance(value, (str, int)) and bool(str(value).strip())


def _texts(value: Any) -> list[str]:
    """The texts of a value, normalised; empty ones and what is no text left out."""
    items: Iterable[Any] = value if isinstance(value, (list, tuple, pa.Array)) else [value]
    return [text for text in map(_plain, _first(items)) if text is not None]


def _first(items: Iterable[Any]) -> Iterator[Any]:
    for item in islice(items, _MAX_TEXTS + 1):
        yield item.as_py() if isinstance(item, pa.Scalar) else item


def _plain(value: Any) -> str | None:
    text = normalise(str(value)) if isinstance(value, (str, int, float)) else ""
    return text or None


def _is_picture(path: Path) -> bool:
    hidden = path.name.startswith(".")  # what systems leave: .DS_Store, ._0001.jpg
    return path.suffix.lower() in PICTURE_SUFFIXES and not hidden


def is_utf8(name: str) -> bool:
    """Whether a set can store a name: those of files are bytes, and Python shows any others as half surrogates."""
    return _IMPOSSIBLE.search(name) is None


def some(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(name[:200] for name in names[:_NAMED])}{more}"
