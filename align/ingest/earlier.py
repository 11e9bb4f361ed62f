"""What the data/raw before has of the addresses of an ingest: nobody is asked for these again.

It counts if it was made by the same code with the same values, and if the web has no other answer: a picture, or a
failure that stays. A shard before has addresses of many shards of today. So each is read once, and what it has is
listed by stretch; then, for a stretch, tasks write that by shard, with the pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from align.display.console import say
from align.durable.pieces import Piece, Pieces
from align.durable.sections import open_sections, write_sections
from align.errors import DataError
from align.formats.policy import REFUSED
from align.formats.raw import MadeWith, RawShard, image_spans, raw_shards, read_raw_manifest, read_table
from align.formats.statuses import NOT_FETCHED, SUCCESS
from align.ingest.answers import Stretch, answers_piece, asks_file, write_answers
from align.ingest.ending import DECIDING_NOTHING, differing
from align.ingest.examination import PictureOutcome
from align.ingest.fetching import Answer
from align.ingest.partition import FOLDER, hashes_of
from align.interfaces.executor import Executor, Task
from align.interfaces.store import FetchTar
from align.services.executors.executors import LocalExecutor


def earlier_shards(raw: Path, made: MadeWith, fetch: FetchTar | None) -> Sequence[RawShard]:
    """The shards of a folder, if an ingest with these values would get the same from the web; else none.

    Args:
        raw: a data/raw; it need not exist.
        made: the values of today.
        fetch: gets tars from the object store.
    """
    try:
        manifest = read_raw_manifest(raw)
        if manifest is None or manifest.made_with is None:
            return ()
        before, now = _deciding(manifest.made_with), _deciding(made)
        if before == now:
            shards = raw_shards(raw, fetch)
            num = sum(map(_num_retryable, shards))
            say(f"ingest: {num:,} pairs of the data/raw before failed in a way that may pass, and are asked for again")
            return shards
        say(f"ingest: nothing is reused of {raw}, which was made with another {', '.join(differing(before, now))}")
    except DataError as error:  # a folder that is incomplete is made again
        say(f"ingest: nothing is reused of {raw}: {error}")
    return ()


def _num_retryable(shard: RawShard) -> int:
    try:
        return int(pc.sum(read_table(shard, ["retryable"])["retryable"]).as_py() or 0)
    except DataError:  # whoever reads all of it says so
        return 0


def _deciding(made: MadeWith) -> dict[str, Any]:
    """The values on which it depends what an address gives."""
    download = {f"download.{name}": value for name, value in made.download.items()}
    images_from = "web" if made.ingest.get("source") == "url_table" else made.ingest.get("images_from")
    return {
        **{name: value for name, value in download.items() if name not in DECIDING_NOTHING},
        "code": made.code,
        "ingest.images_from": images_from,
        "ingest.max_image_pixels": made.ingest.get("max_image_pixels"),
    }


@dataclass(frozen=True)
class Earlier:
    """Reads shards before. Can be pickled.

    Attributes:
        pieces: the work folder, and who shares it.
        num_shards: of today.
        size: shards of a stretch.
    """

    pieces: Pieces
    num_shards: int
    size: int

    def read(self, shards: Sequence[RawShard], executor: Executor) -> None:
        """Lists what the shards have, by stretch."""
        items = {self._piece(shard): shard for shard in shards}
        self.pieces.fill(self._near(executor), self._list, items, "ingest: shards before")

    def answer(self, stretch: Stretch, shards: Sequence[RawShard], executor: Executor) -> list[str]:
        """Writes what there is for a stretch. Returns the names of the pieces with the answers."""
        count = min(self.size, len(shards))
        items = [(f"{stretch.name}-before-{part}.{count}", shards[part::count]) for part in range(count)]
        num = sum(self._near(executor).map(Task(nullcontext, partial(self._answer, stretch), _name_of), items))
        if num:
            say(f"ingest: {num:,} addresses are known from the data/raw before, and not asked for (ingest.reuse)")
        return [name for name, _ in items]

    def _near(self, executor: Executor) -> Executor:
        """Who sees the tables: of machines that share no disk, this one alone does."""
        return executor if self.pieces.shared is None else LocalExecutor()

    def _piece(self, shard: RawShard) -> Piece:
        name = f"before-{str(shard.table_sha256)[:12]}-{self.size}-{shard.name}"
        return Piece(name, f"{FOLDER}/{name}")

    def _list(self, scratch: Path | None, shard: RawShard) -> None:
        pieces, piece = self.pieces.here(scratch), self._piece(shard)
        count = -(-self.num_shards // self.size)

        def make() -> None:
            lines: list[list[bytes]] = [[] for _ in range(count)]
            try:
                for number, line in self._lines(shard):
                    lines[number // self.size].append(line)
            except DataError as error:
                say(f"ingest: warning: a shard before is not reused: {error}")
            write_sections(pieces.folder / piece.last, count, lines)

        pieces.make(piece, make)

    def _lines(self, shard: RawShard) -> Iterator[tuple[int, bytes]]:
        """What is reused: the number of the shard of today, and a line."""
        table = read_table(shard, ["url", *(field.name for field in fields(PictureOutcome))])
        with shard.local_tar().open("rb") as tar:
            spans = {key: (offset, size) for key, offset, size in image_spans(tar, str(shard.tar))}
        numbers = (hashes_of(table["url"].to_pylist()) % self.num_shards).tolist()
        seen = set[str]()
        for number, row in zip(numbers, table.to_pylist(), strict=True):
            url, span = row.pop("url"), spans.get(row.pop("image_key"))
            stays = not row["retryable"] and row["status"] != NOT_FETCHED and row["error_message"] != REFUSED
            if url not in seen and stays and (span is not None) == (row["status"] == SUCCESS):
                seen.add(url)
                yield number, json.dumps([number, url, row, span]).encode() + b"\n"

    def _answer(self, stretch: Stretch, scratch: Path | None, named: tuple[str, Sequence[RawShard]]) -> int:
        """Writes what some shards have for a stretch; returns how many answers there are."""
        pieces, (name, shards) = self.pieces.here(scratch), named
        urls: list[list[bytes]] = [[] for _ in stretch.shards]

        def found() -> Iterator[tuple[int, Answer]]:
            for shard in shards:
                for position, answer in self._of_stretch(pieces, shard, stretch):
                    urls[position].append(json.dumps(answer.url).encode() + b"\n")
                    yield position, answer

        def make() -> None:
            write_answers(pieces, name, len(urls), found())
            write_sections(pieces.folder / asks_file(name), len(urls), urls)

        pieces.make(answers_piece(name), make)
        return sum(map(len, urls))

    def _of_stretch(self, pieces: Pieces, shard: RawShard, stretch: Stretch) -> Iterator[tuple[int, Answer]]:
        positions = {int(name): position for position, name in enumerate(stretch.shards)}
        piece, count = self._piece(shard), -(-self.num_shards // self.size)
        [stream] = open_sections(pieces, [(piece.name, piece.last)], count, stretch.number, stretch.number + 1)
        lines = stream.readlines()
        if not lines:
            return
        with shard.local_tar().open("rb") as tar:
            for number, url, row, span in map(json.loads, lines):
                data = None
                if span is not None:
                    tar.seek(span[0])
                    data = tar.read(span[1])
                    if hashlib.sha256(data).hexdigest() != row["sha256"]:
                        continue  # damaged: the web is asked
                if number in positions:
                    yield positions[number], Answer(url, data, outcome=PictureOutcome(**row))


def _name_of(named: tuple[str, Sequence[RawShard]]) -> str:
    return f"shards {', '.join(shard.name for shard in named[1][:3])}, ... of the data/raw before"
