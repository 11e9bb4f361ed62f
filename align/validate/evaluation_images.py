"""The gate's own search for evaluation images among the training images, independent of the filter's.

Evaluation images are known by their bytes and by their perceptual hashes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.durable.processes import in_threads
from align.errors import DataError
from align.formats.evaluation_set import EvaluationSet
from align.interfaces.sql import Engine
from align.pairs.perceptual_hash import image_signals


def make_views(engine: Engine, sets: Sequence[EvaluationSet]) -> None:
    """Makes the views `evaluation_ids` (column image_id) and `evaluation_hashes` (phash), without duplicates."""
    pictures = (picture for one in sets for _, picture in one.read(fault=lambda position, why: None))
    ids: set[str] = set()
    hashes: set[int] = set()
    for image_id, phash in in_threads(_identity, pictures, engine.num_threads):
        ids.add(image_id)
        hashes |= set() if phash is None else {phash}
    view_values(engine, "evaluation_ids", "image_id", pa.array(sorted(ids), pa.string()))
    view_values(engine, "evaluation_hashes", "phash", pa.array(sorted(hashes), pa.uint64()))


def view_values(engine: Engine, name: str, column: str, values: pa.Array) -> None:
    """Makes a view with one column."""
    path = engine.scratch / f"{name}.parquet"
    pq.write_table(pa.table({column: values}), path)
    engine.view(name, path)


def _identity(image: bytes) -> tuple[str, int | None]:
    """sha256, and the perceptual hash of 64 bits; None if the image does not decode."""
    phash = image_signals(image, sys.maxsize).phash  # our own sets need no limit of pixels
    return hashlib.sha256(image).hexdigest(), phash


def checked_counts(sets: Iterable[EvaluationSet], checked: Mapping[str, str]) -> dict[str, int]:
    """How many sets the filter searched for, and how many sets on disk are not among them.

    Args:
        sets: those on disk.
        checked: those that the filter searched for, name -> its identity (`EvaluationSet.identity`).
    """
    return {
        "checked_sets": len(checked),
        "unchecked_sets": sum(checked.get(one.name) != one.identity for one in sets),
    }


def read_checked_sets(filter_report: Path) -> dict[str, str]:
    """The evaluation sets that `align filter` searched for, name -> its identity, from its report.

    Raises:
        DataError: there is no such report, or an older version wrote it.
    """
    path = filter_report / "report.json"
    try:
        sets: dict[str, str] = json.loads(path.read_bytes())["evaluation_sets"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align filter` first") from None
    except KeyError:
        raise DataError(f"{path}: it has no evaluation_sets; run `align filter` again") from None
    return sets
