"""Format `table`: a CSV, TSV or JSON file, perhaps `.gz`, that names pictures, with captions or with a class.

Columns have usual names, or those of the key `columns`. Rows of one picture are joined: each adds its captions. If
there is a column `split`, a row belongs to the split that it says; else all rows are to be measured.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

from align.config.suite import SuiteSet
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Split
from align.formats.evaluation_sets.files import FilePictures, class_names, joined, leads_out, made
from align.formats.picture_table import LABEL_COLUMNS, PICTURE_COLUMNS, TEXT_COLUMNS, PictureTable, usual_column
from align.interfaces.store import Files
from align.pairs.text import normalise

#: Of a table, and of one picture: far beyond any evaluation set.
_MAX_ROWS, _MAX_TEXTS = 1_000_000, 1_000
#: What no file's name can have: a zero byte, half a surrogate pair.
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")


def read(wanted: SuiteSet, files: Files) -> EvaluationSet:
    """The set. Raises DataError if the file is no such table or has no picture of the split; see `files.made`."""
    table, captions = PictureTable(wanted.path, files), "retrieval" in wanted.tasks
    columns = _columns(wanted, table.names, "text" if captions else "label")
    splits: dict[str, Split] = {wanted.split: "query"}
    if wanted.learns:
        splits[wanted.reference] = "reference"
    unusable: dict[str, str] = {}
    found: dict[str, tuple[Split, str | None, str]] = {}  # name -> split, class, concept
    texts: dict[str, dict[str, None]] = {}  # the same, each text once
    for number, row in enumerate(table.rows(columns), 1):
        if number > _MAX_ROWS:
            raise DataError(f"{wanted.path}: more than {_MAX_ROWS:,} rows; an evaluation set has fewer")
        if row is None or not (written := _plain(row[0])) or _IMPOSSIBLE.search(str(row[0])):
            unusable[f"row {number}"] = "cannot be read" if row is None else "without a name that a file can have"
            continue
        name = os.path.normpath(str(row[0]).strip())
        split = splits.get(_plain(row[3])) if columns[3] else "query"
        if split is None:
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


def _columns(
    wanted: SuiteSet, names: Sequence[str], what: Literal["text", "label"]
) -> tuple[str, str, str | None, str | None]:
    """The columns of pictures, of texts or classes, of concepts and of splits. Raises DataError that lists all."""
    chosen, split = wanted.columns, usual_column(("split",), names)
    usual = {"picture": PICTURE_COLUMNS, "text": TEXT_COLUMNS, "label": LABEL_COLUMNS}
    found = {key: chosen.get(key) or usual_column(usual[key], names) for key in ("picture", what)}
    if lacking := [key for key, name in (found | dict(chosen)).items() if name not in names]:
        raise DataError(
            f"evaluation set {wanted.name}: {wanted.path}: no column for `{lacking[0]}`; name it in `columns`: it has "
            f"{', '.join(name[:100] for name in names[:20]) or 'none'}"
        )
    if wanted.learns and split is None:
        raise DataError(f"evaluation set {wanted.name}: {wanted.path}: no column split, which says what to learn from")
    return str(found["picture"]), str(found[what]), chosen.get("concept"), split


def _texts(value: Any) -> dict[str, None]:
    """The texts of a value, normalised, each once; empty ones and what is no text left out."""
    items: Iterable[Any] = value if isinstance(value, list) else [value]
    return dict.fromkeys(text for item in islice(items, _MAX_TEXTS + 1) if (text := _plain(item)))


def _plain(value: Any) -> str:
    return normalise(str(value)) if isinstance(value, (str, int, float)) else ""
