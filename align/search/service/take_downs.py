"""The take-downs that a running service obeys: the policy's list, read regularly, as a mask over an index."""

from __future__ import annotations

import hashlib
from pathlib import Path

from align.display.console import say
from align.errors import AlignError, DataError
from align.formats.image_index import ImageIndex
from align.formats.policy import OPTED_OUT, OptedOut, parse_opted_out


class TakeDowns:
    """`opted_out.csv` of a policy folder. A list that cannot be read leaves the one before it in force.

    Attributes:
        obeyed: the list in force.
        digest: sha256 of its file; None before there was one.
        problem: why the file's list is not in force; None if it is.
    """

    def __init__(self, policy: Path) -> None:
        """Reads the list. Raises FormatError, DataError: it is there and cannot be read."""
        self._file = policy / OPTED_OUT
        self._data: bytes | None = None
        self.obeyed, self.digest = OptedOut(), None  # type: OptedOut, str | None
        self.problem: str | None = None
        self._read()

    def look(self) -> bool:
        """Reads the file again. Never raises. Returns whether another list is in force than before."""
        before, problem = self._data, self.problem
        try:
            self._read()
        except AlignError as error:
            self.problem = f"{error}; until then take-downs hold as they were before"
        if self.problem and self.problem != problem:
            say(f"serve: {self.problem}")
        return self._data != before

    def _read(self) -> None:
        try:
            data = self._file.read_bytes()
        except OSError as error:
            if self._data is None and not isinstance(error, FileNotFoundError):
                raise DataError(f"{self._file}: cannot be read: {error.strerror}") from None
            still = "no take-down is obeyed" if self._data is None else "take-downs hold as they were before"
            self.problem = (
                f"{self._file}: {error.strerror}, so {still}; `--set paths.policy=FOLDER` names another folder"
            )
            return
        if data != self._data:
            self.obeyed = parse_opted_out(data, self._file)
            self._data, self.digest = data, hashlib.sha256(data).hexdigest()
        self.problem = None

    def masked(self, index: ImageIndex) -> ImageIndex:
        """The index without what is taken down. Raises CorruptError if the index is damaged."""
        listed = self.obeyed
        covers = (lambda url, page: listed.matches(url, page, None)) if listed.has_addresses else None
        return index.without(listed.image_ids, covers)
