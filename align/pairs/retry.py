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

from align.pairs.fetching import Known
from align.pairs.layout import RawShard, iter_images, read_table


def num_retryable(shard: RawShard) -> int:
    """Pairs of a shard that `--retry-failed` would ask for."""
    if "retryable" not in pq.read_schema(shard.table).names:
        return 0
    return int(pc.sum(pq.read_table(shard.table, columns=["retryable"])["retryable"]).as_py() or 0)


class RawFolder:
    """A folder of shards whose bytes move into another one unchanged."""

    def __init__(self, raw: Path) -> None:
        self._raw = raw

    def link_all_into(self, work: Path, except_shards: Sequence[RawShard]) -> None:
        """Hard links (or copies) of everything but these shards and the manifest."""
        names = {shard.name for shard in except_shards}
        for path in self._raw.iterdir():
            target = work / path.name
            if (
                path.name.split(".")[0].removesuffix("_stats") in names
                or path.name == "manifest.json"
                or target.exists()
            ):
                continue
            try:
                os.link(path, target)
            except OSError:
                shutil.copy2(path, target)

    def reader(self, shard: RawShard) -> OldShard:
        """The shard as rows of a plan."""
        return OldShard(shard)


class OldShard:
    """One shard as `align.pairs.fetching.write_shard` wants it.

    Attributes:
        place_digits: of its keys.
    """

    def __init__(self, shard: RawShard) -> None:
        self._table = read_table(shard)
        self._images: Iterator[tuple[str, bytes]] = iter_images(shard)
        self.place_digits = len(self._table["key"][0].as_py()) - len(shard.name)

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
        """The picture stored under a key; keys must be asked for in the order of the tar, as `rows` has them."""
        del offset
        return next((data for found, data in self._images if found == key), None)
