"""The pieces of a work folder: files that one task makes together, on this machine or on another.

A piece is complete when its last file is there, so a task that is done twice changes nothing. Tasks of one machine, and
of machines that share a disk, work in one folder; a lock of the system lets one at a time make a piece. Machines that
share no disk each have a folder of their own, and give finished pieces to a store (`store.work`): there the first one
that is whole counts, and nobody waits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from align.display.console import say, track
from align.durable.files import link, temporary_name
from align.durable.locks import take
from align.durable.processes import in_threads
from align.durable.work import CLAIMS, NEW
from align.errors import CorruptError, DataError
from align.interfaces.executor import Executor, In, Task
from align.interfaces.store import SharedResults

T = TypeVar("T")

#: Pieces that are brought at the same time.
_NUM_THREADS = 8


@dataclass(frozen=True)
class Piece:
    """Files of a work folder that are made together.

    Attributes:
        name: such as `plan`, `00000`.
        last: the file that gets its name last: the piece is complete if it exists.
        others: returns the other files of a complete piece, by their path in the folder.
    """

    name: str
    last: str
    others: Callable[[], Sequence[str]] = tuple


@dataclass(frozen=True)
class Pieces:
    """The pieces of a stage. Can be pickled if `shared` can.

    Attributes:
        folder: the work folder.
        shared: where machines without a common disk share finished pieces; None: all see the folder.
        is_lent: whether the folder is that of a cluster's machine, which keeps only what its tasks read.
    """

    folder: Path
    shared: SharedResults | None = None
    is_lent: bool = False

    def here(self, scratch: Path | None) -> Pieces:
        """The same pieces in the folder of this machine. A task of a cluster begins with this.

        Args:
            scratch: what a `Task` gets from `nullcontext`: the folder of a cluster's machine, or None.
        """
        if self.shared is None or scratch is None:
            return self
        folder = scratch / hashlib.sha256(self.shared.location.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return replace(self, folder=folder, is_lent=True)

    def make(self, piece: Piece, make: Callable[[], T]) -> T | None:
        """Makes a piece, unless it is complete; then the result is None.

        Raises:
            DataError, CorruptError, ServiceError: as `SharedResults`.
        """
        (self.folder / CLAIMS).mkdir(exist_ok=True)
        with (self.folder / CLAIMS / f"{piece.name}.lock").open("a+") as lock:  # the system ends it with its process
            if not take(lock):
                say(f"waiting for {piece.name}, which another process makes")
                take(lock, patience_s=None)
            made = None
            if not (self.folder / piece.last).exists():
                if self.shared is not None and self.shared.has(piece.name):
                    return None
                made = make()
            self.give(piece)
        return made

    def give(self, piece: Piece) -> None:
        """`share`, by a task: a cluster's machine keeps only what its tasks read."""
        self.share(piece)
        if self.is_lent:
            for file in (piece.last, *piece.others()):
                (self.folder / file).unlink(missing_ok=True)

    def share(self, piece: Piece) -> None:
        """Gives a complete piece of this folder to the other machines."""
        if self.shared is None:
            return
        with self._beside(piece) as new:
            for file in (*piece.others(), piece.last):
                (new / file).parent.mkdir(parents=True, exist_ok=True)
                link(self.folder / file, new / file)
            if self.shared.publish(piece.name, new):
                return
        for file in (piece.last, *piece.others()):  # another machine's counts
            (self.folder / file).unlink(missing_ok=True)
        self._bring(piece)

    def bring(self, pieces: Iterable[Piece]) -> None:
        """Brings complete pieces here, unless they are here.

        Raises:
            DataError: a piece is not complete anywhere, or as `SharedResults.fetch`.
            CorruptError, ServiceError: as `SharedResults.fetch`.
        """
        for _ in in_threads(
            self._bring, [one for one in pieces if not (self.folder / one.last).exists()], _NUM_THREADS
        ):
            pass

    def _bring(self, piece: Piece) -> None:
        with self._beside(piece) as new:
            if self.shared is None or not self.shared.fetch(piece.name, new):
                raise DataError(f"{self.folder / piece.last}: missing; run the stage again")
            files = sorted(path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file())
            hidden = [file for file in files if file.startswith(".") and "/" not in file]  # the folder's own
            if hidden or piece.last not in files:
                raise CorruptError(f"{self.shared.location}: {piece.name} has other files: {', '.join(files)}")
            (self.folder / piece.last).unlink(missing_ok=True)
            for file in (*(each for each in files if each != piece.last), piece.last):
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                (new / file).replace(self.folder / file)

    @contextmanager
    def _beside(self, piece: Piece) -> Iterator[Path]:
        new = temporary_name(self.folder / NEW)
        new.mkdir(parents=True)
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def fill(
        self,
        executor: Executor,
        make: Callable[[Any, In], None],
        items: Mapping[Piece, In],
        what: str,
        resource: Callable[[Path | None], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Makes the pieces that are complete nowhere, each from its item, and brings all of them here.

        Args:
            executor: does it.
            make: of one item: makes its piece.
            items: of each piece.
            what: words for the progress, such as "shard: shards".
            resource: what each process opens first, see `Task`.
        """
        lacking = [items[piece] for piece in self.missing(list(items))]
        done = executor.map(Task(resource, make, f"{what}: {{}}".format), lacking)
        for _ in track(done, what=what, total=len(lacking)):
            pass
        self.bring(items)

    def read(self, piece: str, file: str, offset: int, size: int) -> bytes:
        """A range of a file of a complete piece, from this folder or from the store; fewer bytes at its end.

        Raises:
            DataError: the piece is not complete anywhere.
            ServiceError: the server is unavailable.
        """
        try:
            with (self.folder / file).open("rb") as opened:
                return os.pread(opened.fileno(), size, offset)
        except FileNotFoundError:
            if self.shared is None:
                raise DataError(f"{self.folder / file}: missing; run the stage again") from None
            return self.shared.read(piece, file, offset, size)

    def missing(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Those that are complete nowhere, with one question to the store."""
        finished = self.shared.finished() if self.shared else frozenset()
        return [one for one in pieces if one.name not in finished and not (self.folder / one.last).exists()]
