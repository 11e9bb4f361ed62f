"""The pieces of a work folder: one process at a time makes each, on this machine or on any that shares the work.

Locks of the system keep processes apart that share the folder. Leases on a server (`store.work`) keep machines apart
that share no disk; they also store finished pieces there. Both end by themselves when their process is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from align.display.console import say
from align.durable.work import CLAIMS, one_at_a_time
from align.errors import DataError
from align.interfaces.store import SharedPieces

T = TypeVar("T")
In = TypeVar("In")

#: Seconds between two looks at a piece that another machine makes.
_PAUSE_S = 2.0


@dataclass(frozen=True)
class Piece:
    """Files of a work folder that are made together.

    Attributes:
        name: such as `plan`, `00000`.
        last: the file that gets its name last: the piece is complete if it exists.
        others: returns the other files of a complete piece, by their path in the folder.
        what: its name in messages.
    """

    name: str
    last: str
    others: Callable[[], Sequence[str]]
    what: str


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a piece.

    Attributes:
        complete: False: another process is making it.
        made: the result of the function that makes it, if this process did.
    """

    complete: bool
    made: T | None = None


@dataclass(frozen=True)
class Pieces:
    """How the processes of a stage make pieces. Can be pickled if `shared` can.

    Attributes:
        folder: the work folder.
        shared: where machines share finished pieces; None: they share only the folder.
    """

    folder: Path
    shared: SharedPieces | None = None

    def make(
        self, piece: Piece, make: Callable[[], T], *, wait: bool = True, bring: bool = True, may_make: bool = True
    ) -> Outcome[T]:
        """Makes a piece, unless it is complete.

        Args:
            piece: what to make.
            make: makes its files in the folder, the last one last, each whole.
            wait: for another process that is making it; if that is lost, this one makes it.
            bring: a piece that another machine completed is brought here.
            may_make: otherwise a piece that is missing is an error.

        Raises:
            DataError: the piece is missing and may not be made, what another machine stored is incomplete, or the
                credentials are refused.
            CorruptError: what another machine stored is damaged.
            ServiceError: the server is unavailable.
        """
        with self._claimed_here(piece, wait=wait) as mine:
            if not mine:
                return Outcome(False)
            if (self.folder / piece.last).exists():
                self._publish(piece)
                return Outcome(True)
            if self.shared is None:
                return Outcome(True, make())
            said = False
            while True:
                if self.shared.fetch(piece.name, self.folder, piece.last) if bring else self.shared.has(piece.name):
                    return Outcome(True)
                if not may_make:
                    raise DataError(
                        f"{self.shared.location}: no {piece.what} under these parameters, data and code; run the "
                        "ranges first"
                    )
                with self.shared.claim(piece.name) as mine:
                    if mine and not self.shared.has(piece.name):
                        made = make()
                        self._publish(piece)
                        return Outcome(True, made)
                if not mine:
                    if not wait:
                        return Outcome(False)
                    if not said:
                        say(f"waiting for {piece.what}: another run makes it, or is lost and will be replaced soon")
                    said = True
                    time.sleep(_PAUSE_S)

    def _publish(self, piece: Piece) -> None:
        if self.shared is not None:
            self.shared.publish(piece.name, self.folder, [*piece.others(), piece.last])

    @contextmanager
    def _claimed_here(self, piece: Piece, *, wait: bool) -> Iterator[bool]:
        (self.folder / CLAIMS).mkdir(exist_ok=True)
        what = f"{piece.what}, which another process makes"
        with one_at_a_time(self.folder / CLAIMS / f"{piece.name}.lock", what, wait=wait) as mine:
            yield mine


def last_those_of_others(items: Sequence[In], do: Callable[[list[In], bool], Iterable[Outcome[T]]]) -> Iterator[T]:
    """Does all items; those that another process is making come last: by then they are complete, or it is lost.

    Args:
        items: of one piece each.
        do: makes the pieces of some items, in their order; it gets whether to wait for other processes.

    Yields:
        The results of the pieces that this process made.
    """
    left = list(items)
    for wait in (False, True):
        busy = []
        for item, outcome in zip(left, do(left, wait), strict=True):
            if not outcome.complete:
                busy.append(item)
            elif outcome.made is not None:
                yield outcome.made
        left = busy
        if not left:
            return
