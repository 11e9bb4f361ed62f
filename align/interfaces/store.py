"""What the parts need from storage. `align.services.s3.store*` implement it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

#: The sha256 of a tar and its number of bytes in, the path of a checked copy on this machine out. Raises DataError
#: where there is no such object, CorruptError if its bytes do not match, ServiceError if the server fails.
FetchTar = Callable[[str, int], Path]


class Files(Protocol):
    """Reads local paths, s3:// and https://. Can be pickled: worker processes open files of their own."""

    def list(self, location: str, suffixes: Sequence[str], root: str | None = None) -> list[str]:
        """All files of a location, in order of their names.

        Args:
            location: a file, a folder (searched recursively), a pattern with `*`, or a list file (`.txt`, `.paths`,
                also `.gz`) with one location per line.
            suffixes: of the files that count in a folder or bucket, such as `.warc.gz`; lower case.
            root: what the relative lines of a list begin with; None: the folder of the list.

        Raises:
            DataError: no such file exists, or lines of a list cannot be used.
            ServiceError: the server is unavailable or refuses.
        """
        ...

    def open(self, uri: str) -> BinaryIO:
        """A seekable stream; from a server by range requests, with read-ahead. Raises as `list`."""
        ...

    def stamp(self, uri: str) -> str:
        """A text that changes when the file does: size and time, or ETag; of a folder (ends in `/`, local or s3://)
        when any file in it does. Raises as `list`.
        """
        ...

    def stamps(self, uris: Sequence[str]) -> Sequence[str]:
        """`stamp` of each; servers are asked for many at a time. Raises as `list`, and names the first ten missing."""
        ...


class Tars(Protocol):
    """The object store, for tars that are not in the folder. Can be pickled; threads share it."""

    def uri(self, sha256: str, num_bytes: int) -> str:
        """Where a tar is stored: s3://..., or the path of a copy on this machine."""
        ...

    def read(self, uri: str, offset: int, size: int) -> bytes:
        """Exactly these bytes of an s3:// URI, fewer at its end.

        Raises:
            DataError: there is no such object, or the credentials are refused.
            ServiceError: the server is unavailable or refuses; the caller may retry.
        """
        ...

    @property
    def num_connections(self) -> int:
        """How many threads may read at the same time."""
        ...


class Mirror(Protocol):
    """A second copy of checkpoints, in an object store. Names are `run/file`."""

    def put(self, path: Path, name: str) -> None:
        """Stores a file. Raises ServiceError if the server is unavailable."""

    def names(self, run: str) -> list[str]:
        """Files of a run, in order."""

    def get(self, name: str, path: Path) -> None:
        """Copies a file here, whole or not at all."""

    def delete(self, name: str) -> None:
        """Removes a file."""


class SharedPieces(Protocol):
    """Finished pieces of a stage's work, for machines that share no disk. Can be pickled.

    All raise ServiceError if the server is unavailable, and DataError if there is no such bucket, the credentials
    are refused, or the list of a piece's files cannot be read.
    """

    @property
    def location(self) -> str:
        """Where they are."""

    def finished(self) -> frozenset[str]:
        """The names of all complete pieces."""

    def has(self, piece: str) -> bool:
        """Whether a piece is complete."""

    def publish(self, piece: str, folder: Path, files: Sequence[str]) -> None:
        """Stores a piece, unless it is complete; where another machine made it with other bytes, those come here.

        Args:
            piece: its name.
            folder: the work folder.
            files: by their path in the folder, in the order in which they get their names.

        Raises:
            CorruptError: what another machine stored is damaged.
            DataError: an object that another machine stored is missing.
        """

    def fetch(self, piece: str, folder: Path, last: str) -> bool:
        """Brings a complete piece to the work folder; False if it is not complete.

        The piece counts as complete here, by its last file, once all its files are here: a failure or a kill before
        that leaves none of that name.

        Args:
            piece: its name.
            folder: the work folder.
            last: the file that gets its name last.

        Raises:
            CorruptError: what is stored is damaged, or has other files than a piece may have.
            DataError: an object of the piece is missing.
        """

    def read(self, piece: str, file: str, offset: int, size: int) -> bytes:
        """A range of a file of a complete piece; fewer bytes at its end. Raises DataError if there is no such file."""

    def remove(self, piece: str) -> None:
        """Removes a piece that nobody needs any more, if it is there."""
