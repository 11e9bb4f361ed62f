"""What sources need of a file system. `align.services.store` is one, for local paths and s3:// alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, Protocol


class Files(Protocol):
    """Local paths and s3:// URIs, read only. Can be pickled: worker processes open files of their own."""

    def list(self, location: str, suffixes: Sequence[str]) -> list[str]:
        """All files of a location, in order of their names.

        Args:
            location: a file, a folder (walked through), a pattern with `*`, or a list file (`.txt`, `.paths`, also
                `.gz`) with a location a line, relative to itself.
            suffixes: of the files that count in a folder or bucket, such as `.warc.gz`; lower case.

        Raises:
            DataError: nothing is there.
            ServiceError: the server is away or refuses.
        """
        ...

    def open(self, uri: str) -> BinaryIO:
        """A seekable stream; from a server by range requests, read ahead. Raises as `list`."""
        ...

    def stamp(self, uri: str) -> str:
        """What changes when the file does: size and time, or ETag. Raises as `list`."""
        ...
