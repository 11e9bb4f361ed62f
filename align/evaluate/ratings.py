"""Crisscrossed Captions (CxC) as published: `sts_test.csv`, `sis_test.csv`, `sits_test.csv`, and those of `val`.

A row rates two captions (STS), two images (SIS), or a caption and an image (SITS):

    caption1,caption2,agg_score,sampling_method     COCO_val2014:sentid:411553,COCO_val2014:sentid:5142,1.56,c2c_isim
    image1,image2,agg_score,sampling_method         COCO_val2014_000000205866.jpg,COCO_val2014_000000039081.jpg,3.6,...
    caption,image,agg_score,sampling_method         COCO_val2014:sentid:732091,COCO_val2014_000000365325.jpg,2.2,...

Ids become those of COCO: the number after `sentid` for a caption, the number in its file's name for an image. The
header says which of the three a file is. Ratings are means, from 0 to 5. The files `*_raw.csv` have one row per rater.
They are refused, since no two rows may rate the same.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError, FormatError
from align.formats.evaluation_sets.files import bytes_of
from align.interfaces.store import Files

_CAPTION, _IMAGE = re.compile(r"[^:]*:sentid:(\d{1,18})"), re.compile(r".*_(\d{1,18})\.jpg")
STS, SIS, SITS = "sts", "sis", "sits"
#: Header -> the kind of file, and the patterns of its two columns.
_KINDS = {
    "caption1,caption2": (STS, _CAPTION, _CAPTION),
    "image1,image2": (SIS, _IMAGE, _IMAGE),
    "caption,image": (SITS, _CAPTION, _IMAGE),
}
_MOST_BYTES = 64 << 20  # twenty times the largest published file


@dataclass(frozen=True)
class RatedPairs:
    """A file.

    Attributes:
        kind: STS, SIS or SITS.
        first, second: (num_pairs,) int64, COCO's ids; of SITS the caption is first.
        ratings: (num_pairs,) in [0, 5].
    """

    kind: str
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    ratings: NDArray[np.float64]

    def placed(self, first_ids: Sequence[int], second_ids: Sequence[int]) -> RatedPairs:
        """The same with the positions of the ids in a set's order.

        Raises:
            DataError: the set lacks some of the ids, or has one twice.
        """
        what = {STS: ("caption", "caption"), SIS: ("image", "image"), SITS: ("caption", "image")}[self.kind]
        first = _positions(self.first, first_ids, f"{self.kind}: {what[0]}")
        return RatedPairs(
            self.kind, first, _positions(self.second, second_ids, f"{self.kind}: {what[1]}"), self.ratings
        )


def _positions(wanted: NDArray[np.int64], ids: Sequence[int], what: str) -> NDArray[np.int64]:
    """Where each wanted id stands among the ids of a set.

    Raises:
        DataError: the set lacks some of them, or has an id twice.
    """
    known = np.asarray(ids, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    if len(repeated := known[order][1:][np.diff(known[order]) == 0]):
        raise DataError(f"{what}: the set has id {repeated[0]} twice")
    place = np.searchsorted(known, wanted, sorter=order)
    found = order[np.minimum(place, len(known) - 1)] if len(known) else np.zeros(len(wanted), dtype=np.int64)
    if len(known) == 0 or len(missing := np.unique(wanted[known[found] != wanted])):
        names = "all" if len(known) == 0 else f"{len(missing):,}, the first is id {missing[0]}"
        raise DataError(f"{what}: the set lacks {names}; is it the split that was labelled (Karpathy's test of COCO)?")
    return np.asarray(found, dtype=np.int64)


def read_rated_pairs(path: str, files: Files) -> RatedPairs:
    """Reads a file here or in S3.

    Raises:
        DataError: there is no such file, or it is too large.
        FormatError: it has another layout, or a row that cannot be read; its line.
    """
    try:
        text = bytes_of(files, path, "the ratings", _MOST_BYTES).decode("utf-8")
        rows = csv.reader(text.splitlines(), strict=True)
        header = next(rows, [])
        kind, *patterns = _KINDS.get(",".join(header[:2]), ("", _CAPTION, _CAPTION))
        if not kind or len(header) < 3 or header[2] != "agg_score":
            raise FormatError(
                f"{path}: its first line is {','.join(header)[:80]!r}; expected caption1,caption2,agg_score or "
                "image1,image2,agg_score or caption,image,agg_score, as in sts_test.csv"
            )
        found = [_row(path, rows.line_num, row, patterns) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path}: not a CSV in UTF-8: {error}") from None
    if not found:
        raise FormatError(f"{path}: no rows below its header")
    first, second, ratings = (np.array(column) for column in zip(*found, strict=True))
    distinct, counts = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    if len(repeated := distinct[counts > 1]):
        one, other = repeated[0]
        raise FormatError(f"{path}: {one} and {other} have two rows; is it a file of raw ratings?")
    return RatedPairs(kind, first.astype(np.int64), second.astype(np.int64), ratings.astype(np.float64))


def _row(path: str, line: int, row: list[str], patterns: Sequence[re.Pattern[str]]) -> tuple[int, int, float]:
    matches = [pattern.fullmatch(value) for pattern, value in zip(patterns, row, strict=False)]
    try:
        rating = float(row[2])
        first, second = (int(match[1]) for match in matches if match)
    except (ValueError, IndexError):
        rating = math.nan
    if not 0 <= rating <= 5:
        raise FormatError(f"{path}: line {line}: {','.join(row)[:120]!r} is not a rating (from 0 to 5)")
    return first, second, rating
