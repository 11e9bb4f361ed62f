"""Format `parquet`: as Hugging Face's hub stores images: a column `image` of {bytes, path}, and a label or captions.

PATH is a file, or a folder whose files of a split begin with SPLIT, as in `data/test-00000-of-00002.parquet`. The names
of classes are in the files' own metadata (ClassLabel), or in a file. Pictures are read a few rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Split, Unreadable
from align.formats.evaluation_sets.files import MAX_PICTURE_BYTES, class_names, made
from align.formats.parquet import ForeignTable, holds_pictures, picture_in, readable
from align.formats.table import LABEL_COLUMNS, TEXT_COLUMNS, find_column
from align.interfaces.store import Files

_readable = partial(readable, problem="unreadable as parquet", remedy="fetch it again")


@dataclass(frozen=True)
class _Columns:
    """The columns of a file that are read; `classes`: the names that its metadata has."""

    image: str
    label: str | None
    texts: str | None
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class RowPictures:
    """`Pictures` of rows, by ascending positions; `places`: for each item its file, image column and row.

    The rows of one file and column lie together, in ascending order.
    """

    files: Files
    places: Sequence[tuple[str, str, int]]

    def __call__(self, positions: Sequence[int]) -> Iterator[bytes | Unreadable]:
        """See `Pictures`."""
        wanted = (self.places[position] for position in positions)
        for (uri, column), places in groupby(wanted, key=itemgetter(0, 1)):
            yield from self._of_file(uri, column, [row for _, _, row in places])

    def _of_file(self, uri: str, column: str, rows: Sequence[int]) -> Iterator[bytes | Unreadable]:
        with _readable(uri), self.files.open(uri) as stream:
            table, first = ForeignTable(stream, uri), 0
            for group, num_rows in enumerate(table.group_rows):
                end = first + num_rows
                if mine := [row for row in rows if first <= row < end]:
                    for batch in table.batches([column], [group], pictures=True):
                        here = [row - first for row in mine if first <= row < first + len(batch)]
                        yield from (_picture(batch.column(0)[row].as_py()) for row in here)
                        first += len(batch)
                        if first > mine[-1]:
                            break
                first = end


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError if a file has no pictures, labels or captions; see `files.made`."""
    parts: list[tuple[str, Split]] = [(wanted.split, "query")]
    parts += [(wanted.reference, "reference")] if wanted.learns else []
    rows: list[tuple[str, int | None, tuple[str, ...], Split]] = []
    places: list[tuple[str, str, int]] = []
    classes: tuple[str, ...] | None = None
    unusable: dict[str, str] = {}
    captions = "retrieval" in wanted.tasks
    for name, split in parts:
        for uri in files_of(wanted, name, files):
            columns = _columns(wanted, uri, files)
            classes = classes or columns.classes
            for row, (label, texts) in enumerate(_items(uri, columns, files)):
                key = f"{name}/{uri.rpartition('/')[2].removesuffix('.parquet')}/{row:06}"
                if texts if captions else label is not None:
                    rows.append((key, label, texts, split))
                    places.append((uri, columns.image, row))
                else:
                    unusable[key] = "without a caption" if captions else "without a label"
    if captions:
        images = [EvaluationImage(key, key, texts, None, split) for key, _, texts, split in rows]
        return made(wanted, images, RowPictures(files, places), unusable=unusable)
    highest = max((label or 0 for _, label, _, _ in rows), default=0)
    numbers = [str(number) for number in range(highest + 1)]
    if wanted.classnames is None and classes is None:
        raise DataError(
            f"evaluation set {wanted.name}: {wanted.path}: its metadata name no classes; give a file: `classnames`"
        )
    if wanted.classnames is not None:
        classes = tuple(class_names(files, wanted.classnames, numbers).values())
    assert classes is not None
    if highest >= len(classes):
        raise DataError(f"evaluation set {wanted.name}: a row has class {highest}, but there are {len(classes)} names")
    images = [
        EvaluationImage(key, key, (classes[label or 0],), classes[label or 0], split) for key, label, _, split in rows
    ]
    return made(wanted, images, RowPictures(files, places), classes=classes, unusable=unusable)


def files_of(wanted: SuiteSet, split: str, files: Files) -> list[str]:
    """The parquet files of a split. Raises DataError if there is none."""
    found = files.list(wanted.path, (".parquet",))
    if found == [wanted.path]:
        if wanted.learns:
            raise DataError(
                f"evaluation set {wanted.name}: {wanted.path}: one file has no second split; give the folder"
            )
        return found
    chosen = [uri for uri in found if uri.rpartition("/")[2].startswith((f"{split}-", f"{split}."))]
    chosen = chosen or [uri for uri in found if uri.rpartition("/")[0].rpartition("/")[2] == split]
    if not chosen:
        raise DataError(
            f"evaluation set {wanted.name}: {wanted.path}: no parquet file of split {split} ({split}-*.parquet); it "
            f"has {', '.join(uri.rpartition('/')[2] for uri in found[:5])}"
        )
    return chosen


def _columns(wanted: SuiteSet, uri: str, files: Files) -> _Columns:
    with _readable(uri), files.open(uri) as stream:
        schema = ForeignTable(stream, uri).schema
    images = [field.name for field in schema if pa.types.is_struct(field.type) and holds_pictures(field.type)]
    if not images:
        raise DataError(f"{uri}: no column of pictures ({{bytes, path}}); it has {', '.join(schema.names[:10])}")
    features = _features(schema)
    names = [field.name for field in schema if field.name not in images]
    stated = [
        name for name in names if isinstance(features.get(name), dict) and features[name].get("_type") == "ClassLabel"
    ]
    label = next(iter(stated), None) or find_column(LABEL_COLUMNS, names)
    texts = find_column(TEXT_COLUMNS, names)
    if (texts if "retrieval" in wanted.tasks else label) is None:
        what = "captions" if "retrieval" in wanted.tasks else "labels"
        raise DataError(f"{uri}: no column of {what} for {wanted.name}; it has {', '.join(names[:10]) or 'none'}")
    listed = features[label].get("names") if label in stated and label is not None else None
    classes = tuple(map(str, listed)) if isinstance(listed, list) and listed else None
    return _Columns(images[0], label, texts if "retrieval" in wanted.tasks else None, classes)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What the hub's library writes about the columns; empty if it wrote nothing readable."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _items(uri: str, columns: _Columns, files: Files) -> Iterator[tuple[int | None, tuple[str, ...]]]:
    """Label and texts of each row; pictures are not read."""
    with _readable(uri), files.open(uri) as stream:
        for batch in ForeignTable(stream, uri).batches([str(columns.texts or columns.label)]):
            for value in batch.column(0).to_pylist():
                if columns.texts is None:
                    yield value if isinstance(value, int) and value >= 0 else None, ()
                    continue
                some = value if isinstance(value, list) else [value]
                yield None, tuple(text for text in some if isinstance(text, str) and text.strip())


def _picture(value: Any) -> bytes | Unreadable:
    data = picture_in(value)
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        return Unreadable(f"no bytes in the file, only the path {path!r}" if path else "no picture in this row")
    return Unreadable("more than 64 MiB") if len(data) > MAX_PICTURE_BYTES else data
