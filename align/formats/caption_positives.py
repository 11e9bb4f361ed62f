"""Right items of COCO's captions and images as eccv_caption publishes them: a JSON object, id -> list of ids.

    {"373119": [560256, 646721, ...], ...}    eccv_image_to_caption.json: image -> captions; the others are alike

Its folder `data` has six such files: `original_`, `cxc_` and `eccv_`, each `image_to_caption` and `caption_to_image`.
Ids are COCO's. An id that is not a key is not a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from align.errors import DataError, FormatError
from align.formats.evaluation_sets.files import bytes_of
from align.interfaces.store import Files

_LAYOUT = TypeAdapter(dict[int, list[int]])
#: Share of right items that a set may lack.
_MOST_UNKNOWN = 0.001
_MOST_BYTES = 256 << 20  # Plausible Match, the largest that is published, has 140 MB


def read_positives(uri: str, files: Files) -> dict[int, list[int]]:
    """Reads a file here or in S3: the ids of the right items of each query.

    Raises:
        DataError: there is no such file, or it is too large.
        FormatError: it has another layout.
    """
    try:
        return _LAYOUT.validate_json(bytes_of(files, uri, "the right items", _MOST_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise FormatError(f'{uri}: {where}: {first["msg"]}; expected {{"id": [id, ...], ...}}') from None


def placed_positives(
    positives: Mapping[int, Sequence[int]], query_ids: Sequence[int], item_ids: Sequence[int]
) -> list[NDArray[np.int64]]:
    """For each query of a set the positions of its right items in the set's order; empty for what is not a query.

    Args:
        positives: as `read_positives` gives them.
        query_ids, item_ids: the ids of the set, in its order.

    Raises:
        DataError: the set lacks a query, or more than a thousandth of the right items, or has an id twice. ECCV Caption
            itself names two captions that are not in the test split: those are left out.
    """
    asked = positions(np.array(list(positives), dtype=np.int64), query_ids, "queries")
    known, total = set(item_ids), sum(len(items) for items in positives.values())
    kept = [[item for item in items if item in known] for items in positives.values()]
    if total - sum(map(len, kept)) <= _MOST_UNKNOWN * total:
        positives = dict(zip(positives, kept, strict=True))
    lengths = [len(items) for items in positives.values()]
    flat = np.array([item for items in positives.values() for item in items], dtype=np.int64)
    found = np.split(positions(flat, item_ids, "right items"), np.cumsum(lengths)[:-1])
    placed = [np.empty(0, dtype=np.int64)] * len(query_ids)
    for query, items in zip(asked.tolist(), found, strict=True):
        placed[query] = items
    return placed


def positions(wanted: NDArray[np.int64], ids: Sequence[int], what: str) -> NDArray[np.int64]:
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
