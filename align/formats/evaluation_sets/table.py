"""Format `table`: a CSV, TSV, JSON or parquet file that names pictures, with captions or with a class.

Columns have usual names, or those of the key `columns`. Rows of one picture are joined: each adds its captions. If
there is a column `split`, a row belongs to the split that it says; else all rows are to be measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Split
from align.formats.evaluation_sets.files import FilePictures, class_names, joined, leads_out, made
from align.formats.table import LABEL_COLUMNS, PICTURE_COLUMNS, TEXT_COLUMNS, Row, Table, find_column
from align.interfaces.store import Files
from align.pairs.text import normalise

#: Of a table, and of one picture: far beyond any evaluation set.
_MAX_ROWS, _MAX_TEXTS = 1_000_000, 1_000
#: What no file's name can have: a zero byte, half a surrogate pair.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError if the file is no such table or has no picture of the split; see `files.made`."""
    captions = "retrieval" in wanted.tasks
    splits: dict[str, Split] = {wanted.split: "query"}
    if wanted.learns:
        splits[wanted.reference] = "reference"
    unusable: dict[str, str] = {}
    found: dict[str, tuple[Split, str | None, str]] = {}  # name -> split, class, concept
    texts: dict[str, dict[str, None]] = {}  # the same, each text once
    for number, row in enumerate(_rows(wanted, files), 1):
        if number > _MAX_ROWS:
            raise DataError(f"{wanted.path}: more than {_MAX_ROWS:,} rows; an evaluation set has fewer")
        if row is None or not (written := _plain(row[0])) or _IMPOSSIBLE.search(str(row[0])):
            unusable[f"row {number}"] = "cannot be read" if row is None else "without a name that a file can have"
            continue
        name = os.path.normpath(str(row[0]).strip())
        if (split := splits.get(_plain(row[3]))) is None:
            continue
        of = _texts(row[1])
        about = split, None if captions else next(iter(of), None), _plain(row[2]) or name
        if leads_out(name):
            unusable[written] = "its name leads out of the folder of pictures"
        elif not of:
            unusable[f"row {number}"] = "without a caption" if captions else "without a class"
        elif found.setdefault(name, about) != about:
            unusable[f"row {number}"] = f"another class, concept or split of {written} than in the first row of it"
        else:
            texts.setdefault(name, {}).update(of)
            if len(texts[name]) > _MAX_TEXTS:
                raise DataError(f"{wanted.path}: {written} has more than {_MAX_TEXTS:,} captions")
    folder = wanted.images or joined(wanted.path.rpartition("/")[0] or ".")
    pictures = FilePictures(files, [joined(folder, name) for name in found], [folder])
    if captions:
        images = [
            EvaluationImage(name, concept, tuple(texts[name]), None, split)
            for name, (split, _, concept) in found.items()
        ]
        return made(wanted, images, pictures, unusable=unusable)
    labels = sorted({str(label) for _, label, _ in found.values()})
    names = class_names(files, wanted.classnames, labels, more=wanted.among is not None)
    images = [
        EvaluationImage(name, concept, (names[str(label)],), names[str(label)], split)
        for name, (split, label, concept) in found.items()
    ]
    return made(wanted, images, pictures, classes=[names[label] for label in labels], unusable=unusable)


def _rows(wanted: SuiteSet, files: Files) -> Iterator[Row]:
    """Of each row the picture, the texts or class, the concept and the split. Raises DataError as `read`."""
    what, usual = ("text", TEXT_COLUMNS) if "retrieval" in wanted.tasks else ("label", LABEL_COLUMNS)
    with files.open(wanted.path) as stream:
        table, found = Table(stream, wanted.path, wanted.columns.values()), dict[str, str]()
        names = {"picture": PICTURE_COLUMNS, what: usual}
        chosen = {str(key): name for key, name in wanted.columns.items()}
        for key in {**names, **chosen}:
            setting, lists = f"columns.{key} of set {wanted.name}", key != "picture"
            found[key] = table.column(f"`{key}`", chosen.get(key), names.get(key, ()), setting, lists=lists)
        split = find_column(("split",), table.names)
        if wanted.learns and split is None:
            raise DataError(
                f"evaluation set {wanted.name}: {wanted.path}: no column split, which says what to learn from"
            )
        for row in table.rows([found["picture"], found[what], found.get("concept"), split]):
            yield row if row is None or split is not None else (*row[:3], wanted.split)


def _texts(value: Any) -> dict[str, None]:
    """The texts of a value, normalised, each once; empty ones and what is no text left out."""
    if isinstance(value, pa.Array):  # of parquet
        value = value[: _MAX_TEXTS + 1].to_pylist()
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    return dict.fromkeys(text for item in islice(items, _MAX_TEXTS + 1) if (text := _plain(item)))


def _plain(value: Any) -> str:
    return normalise(str(value)) if isinstance(value, (str, int, float)) else ""
