"""Answers for the addresses of some shards, as files between the tasks that get them and those that write shards.

    web/STRETCH.json       the shards that are fetched together
    web/PIECE.answers      what a task got, by shard
    web/PIECE.asks         addresses: what is to be asked for

They go when these shards are complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from align.durable.pieces import Piece, Pieces
from align.durable.sections import open_sections, write_sections
from align.ingest.examination import PictureOutcome
from align.ingest.fetching import Answer
from align.ingest.spool import Spool

#: In the work folder.
FOLDER = "web"


@dataclass(frozen=True)
class Stretch:
    """Shards whose pictures are fetched together.

    Attributes:
        name: of its pieces.
        number: of the stretch.
        shards: the names of those that were not complete when it began.
    """

    name: str
    number: int
    shards: tuple[str, ...]


def asks_file(piece: str) -> str:
    """Where a piece has addresses."""
    return f"{FOLDER}/{piece}.asks"


def answers_file(piece: str) -> str:
    """Where a piece has answers."""
    return f"{FOLDER}/{piece}.answers"


def answers_piece(name: str) -> Piece:
    """A piece that has both."""
    return Piece(name, asks_file(name), partial(list, [answers_file(name)]))


def write_answers(pieces: Pieces, piece: str, num_shards: int, answers: Iterable[tuple[int, Answer]]) -> None:
    """Writes answers, each with the position of its shard. Memory holds one picture, and some bytes of each answer."""
    path = pieces.folder / answers_file(piece)
    path.parent.mkdir(exist_ok=True)
    pieces_of: list[list[int]] = [[] for _ in range(num_shards)]
    with Spool(path.parent) as spool:
        for position, answer in answers:
            size = None if answer.data is None else len(answer.data)
            outcome = answer.outcome and asdict(answer.outcome)
            head = json.dumps([answer.url, answer.error, answer.retryable, outcome, size]).encode() + b"\n"
            pieces_of[position] += spool.add(head), spool.add(answer.data or b"")
        write_sections(path, num_shards, map(spool.read, pieces_of))


def read_answers(pieces: Pieces, stretch: Stretch, shard: str, names: Sequence[str]) -> Iterator[Answer]:
    """The answers that these pieces have for a shard."""
    position = stretch.shards.index(shard)
    files = [(name, answers_file(name)) for name in names]
    for stream in open_sections(pieces, files, len(stretch.shards), position, position + 1):
        while line := stream.readline():
            url, error, retryable, outcome, size = json.loads(line)
            data = None if size is None else stream.read(size)
            yield Answer(url, data, error, retryable, outcome and PictureOutcome(**outcome))
