"""Makes a plan of data/raw: outcomes stay, except temporary failures and pictures that were not fetched so far."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from align.formats.raw import MANIFEST, RawShard, image_spans, read_table
from align.formats.statuses import NOT_FETCHED
from align.ingest.fetching import PictureOutcome
from align.ingest.plan import PlannedRow, PlannedShard
from align.pairs.text_cuts import TextCuts


def num_to_fetch(shard: RawShard, text_cuts: TextCuts | None) -> int:
    """Pairs of a shard whose pictures `--retry-failed` fetches. Raises DataError where the table cannot be read."""
    states = read_table(shard, ["retryable", "status"])
    num_retryable = int(pc.sum(states["retryable"]).as_py() or 0)
    if not pc.any(pc.equal(states["status"], NOT_FETCHED)).as_py():
        return num_retryable
    rows = read_table(shard, ["url", "caption", "status"]).filter(pc.field("status") == NOT_FETCHED)
    urls, texts = rows["url"].to_pylist(), rows["caption"].to_pylist()
    wanted = {url for url, text in zip(urls, texts, strict=True) if text_cuts is None or text_cuts.can_pass(text)}
    return num_retryable + sum(url in wanted for url in urls)


def link_all(raw: Path, work: Path, except_shards: Sequence[RawShard]) -> None:
    """Puts hard links (or copies) of all files of `raw` into `work`, except these shards and the manifest."""
    names = {shard.name for shard in except_shards}
    for path in raw.iterdir():
        target, shard = work / path.name, path.name.partition(".")[0].removesuffix("_stats")
        if shard in names or path.name == MANIFEST or target.exists():
            continue
        if path.is_dir():  # a file that somebody put there stays
            shutil.copytree(path, target, copy_function=_link)
        else:
            _link(path, target)


def _link(path: str | Path, target: str | Path) -> None:
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


@contextmanager
def shard_to_retry(shard: RawShard) -> Iterator[PlannedShard]:
    """An existing shard as a planned one, in which all pairs but the retryable and not fetched ones have their outcome.

    Its `read` takes the key of a stored picture. Raises DataError where the shard cannot be read.
    """
    table = read_table(shard)
    with shard.local_tar().open("rb") as tar:
        spans = {key: (offset, size) for key, offset, size in image_spans(tar, str(shard.tar))}
        position_digits = len(table["key"][0].as_py()) - len(shard.name)
        yield PlannedShard(shard.name, position_digits, partial(_rows, table), partial(_read, tar, spans))


def _rows(table: pa.Table) -> Iterator[PlannedRow]:
    shared = [field.name for field in fields(PictureOutcome)]
    for row in table.to_pylist():
        is_open = row["retryable"] or row["status"] == NOT_FETCHED
        outcome = PictureOutcome(**{name: row[name] for name in shared})
        yield {
            **{name: row[name] for name in ("url", "text_source", "page_url")},
            **dict.fromkeys(("problem", "file", "offset", "inline", "http_status")),
            **dict.fromkeys(("status", "original_width", "original_height", "stated_sha256")),
            "text": row["caption"],
            "outcome": None if is_open else outcome,
            "failure": outcome if row["retryable"] else None,
        }


def _read(tar: BinaryIO, spans: dict[str, tuple[int, int]], key: str, offset: int | None) -> bytes | None:
    del offset
    if key not in spans:
        return None
    start, size = spans[key]
    tar.seek(start)
    return tar.read(size)
