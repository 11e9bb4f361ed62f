"""The data/raw before, read like an archive: what it has of an address, nobody is asked for again.

It counts if it was made by the same code with the same values, and if the web has no other answer: a picture, or a
failure that stays. So a second ingest asks for what is new, and for failures that may pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.infrastructure import StoreConfig
from align.display.console import say
from align.durable.steps import Step, Work
from align.durable.work import key_of
from align.errors import DataError
from align.formats.policy import REFUSED
from align.formats.raw import MadeWith, RawShard, image_spans, raw_shards, read_raw_manifest, read_table
from align.formats.statuses import NOT_FETCHED, SUCCESS
from align.interfaces.executor import Executor
from align.services.executors.executors import LocalExecutor
from align.services.s3.store import Objects, fetcher

#: Of an address: columns of data/raw, and where a picture's bytes are.
_OUTCOME = {
    "status": pa.string(), "error_message": pa.string(), "width": pa.int32(), "height": pa.int32(),
    "original_width": pa.int32(), "original_height": pa.int32(), "sha256": pa.string(),
}  # fmt: skip
_PLACE = {"file": pa.string(), "offset": pa.int64(), "num_bytes": pa.int64()}
_KNOWN = pa.schema({"url": pa.string(), **_OUTCOME, **_PLACE})
_FILE = "known.parquet"


@dataclass(frozen=True)
class Before:
    """What a data/raw has of the web.

    Attributes:
        work: the results.
        store: where tars may be.
        shards: of the folder; empty: nothing of it counts.
    """

    work: Work
    store: StoreConfig
    shards: Sequence[RawShard] = field(default=())

    @property
    def result(self) -> str:
        """The name of the step that reads it."""
        return f"before-{key_of([shard.table_sha256 for shard in self.shards])[:12]}"

    def read(self, executor: Executor) -> None:
        """Reads all shards. Of machines that share no disk, this one alone sees them."""
        numbers = [0, 0]

        def tell(found: tuple[int, int]) -> None:
            numbers[:] = [sum(both) for both in zip(numbers, found, strict=True)]

        step = Step(self.result, self._list, "ingest: shards before")
        near = executor if self.work.shared is None else LocalExecutor()
        self.work.run(step, {shard.name: shard for shard in self.shards}, near, tell)
        if any(numbers):  # not where a killed run has read them
            num_known, num_retryable = numbers
            say(f"ingest: {num_known:,} addresses are known from the data/raw before, and not asked for (ingest.reuse)")
            say(
                f"ingest: {num_retryable:,} pairs of the data/raw before failed in a way that may pass, and are asked "
                "for again"
            )

    def tables(self, scratch: Path) -> Path:
        """The tables of what is known; an engine reads at least one file."""
        if self.shards:
            return self.work.folder / self.result / "*" / _FILE
        pq.write_table(_KNOWN.empty_table(), scratch / _FILE)
        return scratch / _FILE

    def _list(self, kept: Work, out: Path, shard: RawShard) -> tuple[int, int]:
        """Writes what a shard has, each address once; returns their number, and that of failures that may pass."""
        del kept
        rows: list[dict[str, Any]] = []
        num_retryable = 0
        try:
            table = read_table(shard, ["url", "retryable", "image_key", *_OUTCOME])
            seen = set[str]()
            file = self._location(shard)
            with shard.local_tar().open("rb") as tar:
                spans = {key: (offset, size) for key, offset, size in image_spans(tar, str(shard.tar))}
                for row in table.to_pylist():
                    url, span = row["url"], spans.get(row.pop("image_key"))
                    num_retryable += bool(row["retryable"])
                    stays = (
                        not row.pop("retryable") and row["status"] != NOT_FETCHED and row["error_message"] != REFUSED
                    )
                    if url in seen or not stays or (span is not None) != (row["status"] == SUCCESS):
                        continue
                    if span is not None:
                        tar.seek(span[0])
                        if hashlib.sha256(tar.read(span[1])).hexdigest() != row["sha256"]:
                            continue  # damaged: the web is asked
                        row |= {"file": file, "offset": span[0], "num_bytes": span[1]}
                    seen.add(url)
                    rows.append(row)
        except DataError as error:
            say(f"ingest: warning: a shard before is not reused: {error}")
            rows = []
        pq.write_table(pa.Table.from_pylist(rows, _KNOWN), out / _FILE)
        return len(rows), num_retryable

    def _location(self, shard: RawShard) -> str:
        """Where tasks read its tar."""
        if self.store.objects is None or shard.sha256 is None:
            return str(shard.tar)
        if self.work.shared is not None and shard.tar.is_file():
            Objects(self.store).put(shard.tar, shard.sha256)
        elif shard.tar.is_file():
            return str(shard.tar)
        return Objects(self.store).uri(shard.sha256)


def shards_before(raw: Path, made: MadeWith, store: StoreConfig, patience: frozenset[str]) -> Sequence[RawShard]:
    """The shards of a folder, if an ingest with these values would get the same from the web; else none.

    Args:
        raw: a data/raw; it need not exist.
        made: the values of today.
        store: where its tars may be.
        patience: names of values on which no answer depends.
    """
    try:
        manifest = read_raw_manifest(raw)
        if manifest is None or manifest.made_with is None:
            return ()
        before, now = _deciding(manifest.made_with, patience), _deciding(made, patience)
        if before == now:
            return raw_shards(raw, fetcher(store))
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key, ...) != now.get(key, ...))
        say(f"ingest: nothing is reused of {raw}, which was made with another {', '.join(differing)}")
    except DataError as error:  # a folder that is incomplete is made again
        say(f"ingest: nothing is reused of {raw}: {error}")
    return ()


def _deciding(made: MadeWith, patience: frozenset[str]) -> dict[str, Any]:
    """The values on which it depends what an address gives."""
    download = {f"download.{name}": value for name, value in made.download.items()}
    images_from = "web" if made.ingest.get("source") == "url_table" else made.ingest.get("images_from")
    return {
        **{name: value for name, value in download.items() if name not in patience},
        "code": made.code,
        "ingest.images_from": images_from,
        "ingest.max_image_pixels": made.ingest.get("max_image_pixels"),
    }
