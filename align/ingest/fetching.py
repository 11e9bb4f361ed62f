"""A shard of the plan -> a shard of data/raw. Each picture is fetched, examined and stored once.

The bytes come from the source's own files, from the page itself (a data: URI), or from the web. Bytes from the web are
spooled to disk in the order of their arrival and then written in the order of the plan, so equal responses give equal
shards. Memory holds one picture, and the outcome of each address of the shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from align.config.ingest import DownloadConfig
from align.formats.policy import REFUSED, OptedOut
from align.formats.raw import HOPELESS, RESERVED, SCHEMA, WITHOUT_RIGHTS
from align.formats.statuses import FAILED_TO_DOWNLOAD, NOT_FETCHED, SUCCESS
from align.ingest.examination import PictureOutcome, examine
from align.ingest.limits import TooLarge
from align.ingest.partition import PlannedRow, PlannedShard
from align.ingest.spool import Spool
from align.ingest.writer import RawShardWriter
from align.pairs.text_cuts import TextCuts


@dataclass(frozen=True)
class Pictures:
    """How pictures are obtained and processed.

    Attributes:
        images_from: `archive`, `web` or `archive_then_web`, for pictures that pages name.
        max_pixels: larger pictures are refused; their header is enough to tell.
        download: whether larger pictures are shrunk, and whether reservations of pages are obeyed.
        opted_out: what must no longer be fetched or kept.
        text_cuts: a picture is fetched from the web only if one of its texts can pass these; None: always.
    """

    images_from: str
    max_pixels: int
    download: DownloadConfig
    opted_out: OptedOut
    text_cuts: TextCuts | None = None

    def refusal(self, row: PlannedRow) -> PictureOutcome | None:
        """What a pair gets whose picture must be neither fetched nor kept; None if it may be."""
        if self.opted_out.matches(row["url"], row["page_url"], row["stated_sha256"]):
            return _OPTED_OUT
        if self.download.obey_robots and row["reservation"] is not None:
            return PictureOutcome(FAILED_TO_DOWNLOAD, f"{RESERVED}: {row['reservation']}")
        return None

    @property
    def bounds(self) -> tuple[int, int | None, int]:
        """By which pictures are examined."""
        return self.max_pixels, self.download.resize_px, self.download.jpeg_quality


class Answer(NamedTuple):
    """What is known of an address.

    Attributes:
        url: as it was requested.
        data: the body, or with `outcome` the picture as it was stored; None after a failure.
        error: why the request failed: a short code, and details after a colon.
        retryable: whether the failure may be temporary.
        outcome: what an earlier ingest found, which nobody has to find again; None: the web has answered.
    """

    url: str
    data: bytes | None
    error: str | None = None
    retryable: bool = False
    outcome: PictureOutcome | None = None


#: Addresses -> answers, in the order of their arrival.
FetchUrls = Callable[[Iterable[str]], Iterator[Answer]]


class ShardCounts(NamedTuple):
    """Of a shard.

    Attributes:
        num_pairs: all.
        num_with_picture: for which a picture was stored.
        num_not_fetched: for which none was asked for.
    """

    num_pairs: int
    num_with_picture: int
    num_not_fetched: int


_OPTED_OUT = PictureOutcome(FAILED_TO_DOWNLOAD, REFUSED)
_HOPELESS = PictureOutcome(NOT_FETCHED, HOPELESS)


def write_shard(
    directory: Path,
    shard: PlannedShard,
    pictures: Pictures,
    *,
    fetch: FetchUrls,
    keep_tar: Callable[[Path, str], None],
) -> ShardCounts:
    """Writes one shard, or nothing.

    Args:
        directory: the work folder.
        shard: its pairs, and access to the bytes that the source has.
        pictures: how pictures are processed.
        fetch: gets bytes from the web, and pictures that an earlier ingest got, of any address.
        keep_tar: takes the finished tar, see `RawShardWriter`.
    """
    failures: dict[str, PictureOutcome] = {}
    known: dict[str, PictureOutcome] = {}
    outcomes: dict[tuple[str, str | None, int | None], PictureOutcome] = {}
    keys: dict[str, str] = {}
    asked: set[bytes] = set()
    with ExitStack() as stack:
        spool, bodies = stack.enter_context(Spool(directory)), dict[str, int]()

        def body(url: str) -> bytes | None:
            return next(spool.read([bodies[url]])) or None if url in bodies else None

        for answer in fetch(addresses(shard.rows(), pictures, asked)):
            if answer.outcome is not None:
                known[answer.url] = answer.outcome
            elif answer.data is None:
                failures[answer.url] = PictureOutcome(FAILED_TO_DOWNLOAD, answer.error, answer.retryable)
            if answer.data is not None:
                bodies[answer.url] = spool.add(answer.data)
        schema = SCHEMA if shard.has_rights else WITHOUT_RIGHTS
        writer = stack.enter_context(RawShardWriter(directory, shard.name, shard.position_digits, keep_tar, schema))
        for row in shard.rows():
            key, url, data = writer.next_key, row["url"], None
            picture = url, row["file"], row["offset"]  # an archive may have two pictures of one address
            if (refusal := pictures.refusal(row)) is not None:
                outcome = refusal
            elif row["problem"] is not None:
                outcome = PictureOutcome(row["status"] or FAILED_TO_DOWNLOAD, row["problem"])
            elif url in failures:
                outcome = failures[url]
            elif picture in outcomes:
                outcome = outcomes[picture]
            elif _is_for_the_web(row, pictures) and _digest(url) not in asked and url not in known:
                outcome = outcomes[picture] = _HOPELESS
            else:
                if url in known and _is_for_the_web(row, pictures):
                    outcome, data = known[url], body(url)
                else:
                    outcome, data = examine(_bytes(row, body, shard, pictures), *pictures.bounds)
                if pictures.opted_out.matches(None, None, outcome.sha256):
                    outcome, data = replace(_OPTED_OUT, sha256=outcome.sha256), None
                elif outcome.sha256 is not None:
                    first = keys.setdefault(outcome.sha256, key)
                    outcome, data = replace(outcome, image_key=first), data if first == key else None
                outcomes[picture] = outcome
            if row["original_width"] is not None and outcome.error_message != REFUSED:
                outcome = replace(outcome, original_width=row["original_width"], original_height=row["original_height"])
            writer.add(_raw_row(schema.names, writer.next_key, row, outcome), data)
        return ShardCounts(writer.num_rows, writer.statuses[SUCCESS], writer.statuses[NOT_FETCHED])


def _is_for_the_web(row: PlannedRow, pictures: Pictures) -> bool:
    """Whether the bytes must be fetched from the web."""
    if row["problem"] is not None or row["inline"] is not None or pictures.refusal(row) is not None:
        return False
    if row["http_status"] is None and row["file"] is not None:
        return False  # one of the source's own pictures
    return pictures.images_from == "web" or (pictures.images_from == "archive_then_web" and row["file"] is None)


def addresses(rows: Iterable[PlannedRow], pictures: Pictures, asked: set[bytes]) -> Iterator[str]:
    """The addresses to fetch, each once, at its first pair whose text can pass. Adds their digests to `asked`."""
    cuts = pictures.text_cuts
    for row in rows:
        if _is_for_the_web(row, pictures):
            digest = _digest(row["url"])
            if digest not in asked and (cuts is None or cuts.can_pass(row["text"])):
                asked.add(digest)
                yield row["url"]


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _bytes(
    row: PlannedRow, body: Callable[[str], bytes | None], shard: PlannedShard, pictures: Pictures
) -> bytes | str:
    """The picture's bytes, or why there are none; `body` has those of the web by their address."""
    if row["inline"] is not None:
        return bytes(row["inline"])
    if _is_for_the_web(row, pictures):
        return body(row["url"]) or "empty body"
    if row["file"] is not None:
        try:
            return shard.read(row["file"], row["offset"]) or "bytes cannot be read"
        except TooLarge as error:
            return str(error)
    status = row["http_status"]
    return "not in archive" if status is None else f"HTTP {status}"


def _raw_row(columns: Iterable[str], key: str, row: PlannedRow, outcome: PictureOutcome) -> dict[str, Any]:
    """A row of data/raw, in the order of its columns. There the text is called `caption`, as img2dataset has it.

    An opted-out or reserved pair has none, as after `align opt_out --purge`.
    """
    is_refused = (outcome.error_message or "").partition(":")[0] in (REFUSED, RESERVED)
    values = row | vars(outcome) | {"key": key, "caption": "" if is_refused else row["text"]}
    return {name: values[name] for name in columns}
