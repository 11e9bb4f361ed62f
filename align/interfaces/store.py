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


class SharedResults(Protocol):
    """Finished results of a stage's steps, for machines that share no disk. Can be pickled.

    All raise ServiceError if the server is unavailable, and DataError if there is no such bucket, the credentials
    are refused, or the list of a result's files cannot be read.
    """

    @property
    def location(self) -> str:
        """Where they are."""

    def finished(self) -> frozenset[str]:
        """The names of all complete results, such as `measured/00000`."""

    def has(self, result: str) -> bool:
        """Whether a result is complete."""

    def publish(self, result: str, folder: Path) -> bool:
        """Stores the files of a folder as a result, unless it is complete.

        Returns:
            False if another machine was first, with other bytes.

        Raises:
            CorruptError: an object of another size has the name of a file.
        """

    def fetch(self, result: str, folder: Path) -> bool:
        """Copies the files of a complete result to a new folder; False if it is not complete.

        Raises:
            CorruptError: what is stored is damaged, or has files that no folder may have.
            DataError: an object of the result is missing.
        """

    def open(self, result: str, file: str) -> BinaryIO:
        """A seekable stream of a file of a complete result, read by ranges. Raises DataError if there is none."""
