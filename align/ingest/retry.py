"""data/raw as a plan again: what was found stays, what failed for a reason that may pass is asked for once more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.formats.raw import MANIFEST, RawShard, image_places, read_table
from align.ingest.fetching import Known


def num_retryable(shard: RawShard) -> int:
    """Pairs of a shard that `--retry-failed` would ask for."""
    if "retryable" not in pq.read_schema(shard.table).names:
        return 0
    return int(pc.sum(pq.read_table(shard.table, columns=["retryable"])["retryable"]).as_py() or 0)


def link_all(raw: Path, work: Path, except_shards: Sequence[RawShard]) -> None:
    """Hard links (or copies) in `work` of everything in `raw` but these shards and the manifest."""
    names = {shard.name for shard in except_shards}
    for path in raw.iterdir():
        target, shard = work / path.name, path.name.partition(".")[0].removesuffix("_stats")
        if shard in names or path.name == MANIFEST or target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


class OldShard:
    """One shard as `align.ingest.fetching.write_shard` wants it.

    Attributes:
        place_digits: of its keys.
    """

    def __init__(self, shard: RawShard) -> None:
        """Raises DataError where the shard cannot be read."""
        self._table = read_table(shard)
        self._tar = shard.local_tar().open("rb")
        self._places = {key: (offset, size) for key, offset, size in image_places(self._tar, str(shard.tar))}
        self.place_digits = len(self._table["key"][0].as_py()) - len(shard.name)

    def __enter__(self) -> OldShard:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Pairs in order; all but the retryable ones with what is known of them."""
        for row in self._table.to_pylist():
            yield {
                **{name: row[name] for name in ("url", "caption", "text_source", "page_url")},
                **dict.fromkeys(("problem", "file", "offset", "inline", "http_status")),
                "known": None
                if row["retryable"]
                else Known(**{field.name: row[field.name] for field in fields(Known)}),
            }

    def read(self, key: str, offset: int | None) -> bytes | None:
        """The picture stored under a key."""
        del offset
        if key not in self._places:
            return None
        start, size = self._places[key]
        self._tar.seek(start)
        return self._tar.read(size)
