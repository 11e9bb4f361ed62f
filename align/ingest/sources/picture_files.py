"""Pictures that a table names by their files: found in the folder of the table, and nowhere else.

A table may come from strangers, so a name that leads out of the folder (`..`, an absolute path, a symbolic link) is no
picture: its row says so.
"""

from __future__ import annotations

import os
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from align.formats.img2dataset import IMAGE_EXTENSIONS
from align.ingest.limits import read_at_most
from align.ingest.sources.reading import Within, is_file, is_local, is_within, joined, parent
from align.interfaces.store import Files
from align.pairs.text import MAX_CHARACTERS

#: Why a row has no picture.
MISSING = "no such file"
OUTSIDE = "outside the folder"
IMPOSSIBLE = "no name that a file can have"
_AMBIGUOUS = "ambiguous"
_FILE = "file:"
#: `Screenshot:1.jpg` is a file.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", re.IGNORECASE)
#: The last of all characters.
_LAST = "\U0010ffff"
#: Characters of a file's name; nobody looks for a longer one.
_MAX_CHARACTERS = 4_096


class Found(NamedTuple):
    """A picture of a table.

    Attributes:
        path: the file, as `Files` opens it; None: there is none.
        problem: why; else None.
        is_elsewhere: whether it was found by the end of its path, outside of the table's folder.
    """

    path: str | None
    problem: str | None = None
    is_elsewhere: bool = False


def is_picture_name(name: str) -> bool:
    """Whether a name ends as pictures' names do."""
    stem, dot, extension = name.strip()[:MAX_CHARACTERS].rpartition(".")
    return bool(stem and dot) and extension.lower() in IMAGE_EXTENSIONS


def is_file_name(written: str) -> bool:
    """Whether a value of a table names a file: a path or a file:// address, not an address of another kind."""
    return written[:5].lower() == _FILE or not (written.startswith("//") or _SCHEME.match(written))


def read_picture(files: Files, file: str, max_bytes: int, folder: str | None) -> bytes | None:
    """A whole file; None if it is missing, or outside the folder, symbolic links resolved.

    Raises:
        TooLarge: it has more bytes.
        What `Files` raises.
    """
    if (folder is not None and not is_within(folder, file)) or not is_file(files, file):
        return None
    with files.open(file) as stream:
        return read_at_most(stream, max_bytes)


class PictureFiles:
    """The pictures of one folder, by the names that tables give them."""

    def __init__(self, files: Files, folder: str, list_pictures: Callable[[], Iterable[str]]) -> None:
        """`list_pictures`: those that are also found by the end of their path; called at the first miss."""
        self._files, self._folder, self._list_pictures = files, folder, list_pictures
        self._known: Set[str] = frozenset()
        self._within = Within(folder)
        self._are_below: dict[str, bool] = {}
        self._endings: tuple[_Endings, _Endings] | None = None

    def knows(self, paths: Set[str]) -> None:
        """Tells that these files exist, so that nobody asks for each."""
        self._known = paths

    def find(self, table: str, written: str, all_written: Callable[[], Iterable[str]]) -> Found:
        """The file that a row of a table names.

        A name is relative to the table's folder, or absolute inside of the folder. If there is no such file, it is the
        one picture whose path ends in the name: in upper or lower case, with `\\` for `/`, with or without extension.
        That picture must be below the table's folder. Only if none of the table's pictures is there, it may be
        elsewhere: a file of the same name in another part of a data set is another picture.

        Args:
            table: the file; it is in the folder.
            written: the name, or a file:// address.
            all_written: those of all rows of the table, which are read at the first name that is not found there.
        """
        own = parent(table)
        found, name = self._at(own, written)
        if name is None:
            return found
        below_own = self._one_of(self._ending_in(name, own))
        if below_own.problem != MISSING or own == self._folder:
            return below_own
        if own not in self._are_below:
            self._are_below[own] = any(self._is_below(own, each) for each in all_written())
        if self._are_below[own]:
            return below_own
        elsewhere = self._one_of(self._ending_in(name, self._folder))
        return elsewhere._replace(is_elsewhere=elsewhere.path is not None)

    def _at(self, own: str, written: str) -> tuple[Found, str | None]:
        """The file of this name; the name, relative to the table's folder, where it has to be looked for."""
        if len(written) > _MAX_CHARACTERS:
            return Found(None, IMPOSSIBLE), None
        found = self._inside(own, written)
        if found.path is None:
            return found, None
        if found.path in self._known or is_file(self._files, found.path):
            return (found if self._within.holds(found.path) else Found(None, OUTSIDE)), None
        return Found(None, MISSING), below(own, found.path)

    def _is_below(self, own: str, written: str) -> bool:
        """Whether a name is that of a picture below the table's folder."""
        found, name = self._at(own, written)
        if name is not None:
            return bool(self._ending_in(name, own))
        return found.path is not None and found.path.startswith(f"{own}/")

    def _one_of(self, paths: Sequence[str]) -> Found:
        if len(paths) > 1:
            return Found(None, f"{_AMBIGUOUS}: {len(paths):,} files of this name")
        if not paths:
            return Found(None, MISSING)
        return Found(paths[0]) if self._within.holds(paths[0]) else Found(None, OUTSIDE)

    def _inside(self, folder: str, written: str) -> Found:
        """The path that a name means. It need not exist."""
        name = written
        if name[:5].lower() == _FILE:
            try:
                parts = urlsplit(name)
            except ValueError:
                return Found(None, IMPOSSIBLE)
            name = unquote(parts.path)
            if parts.netloc not in ("", "localhost") or not name.startswith("/"):
                return Found(None, OUTSIDE)
        if name.startswith("/"):
            folder = self._folder
            begins = (Path(folder).absolute(), Path(folder).resolve()) if is_local(folder) else ()
            begin = next((begin for begin in begins if os.path.normpath(name).startswith(f"{begin}/")), None)
            if begin is None:
                return Found(None, OUTSIDE)
            name = os.path.normpath(name).removeprefix(f"{begin}/")
        path = joined(self._folder, "" if folder == self._folder else below(self._folder, folder), name)
        if path is None or path == self._folder:
            return Found(None, OUTSIDE if ".." in name else IMPOSSIBLE)
        return Found(path.removeprefix("./"))

    def _ending_in(self, name: str, folder: str) -> Sequence[str]:
        """The pictures in a folder whose path ends in this name, or else those whose path without extension does."""
        if self._endings is None:
            paths = [(_alike(below(self._folder, path)), path) for path in self._list_pictures()]
            stems = [(spelt.rpartition(".")[0], path) for spelt, path in paths]
            self._endings = (_Endings(paths), _Endings(stems))
        for endings in self._endings:
            found = endings.of(_alike(name))
            if folder != self._folder:
                found = [path for path in found if path.startswith(f"{folder}/")]
            if found:
                return found
        return []


class _Endings:
    """Paths by their ends: sorted from the last folder to the first, so that a million of them take one search."""

    def __init__(self, paths: Iterable[tuple[str, str]]) -> None:
        """`paths`: the spelling that is compared, and the path."""
        pairs = sorted((_backwards(spelt), path) for spelt, path in paths)
        self._keys = [key for key, _ in pairs]
        self._paths = [path for _, path in pairs]

    def of(self, end: str) -> Sequence[str]:
        """The paths that end in these folders and this name."""
        key = _backwards(end)
        return self._paths[bisect_left(self._keys, key) : bisect_right(self._keys, key + _LAST)]


def _backwards(path: str) -> str:
    return "/".join(reversed(path.split("/"))) + "/"


def _alike(name: str) -> str:
    """One spelling of names that people take for the same: case, `\\` for `/`, accents in one or two characters."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def below(folder: str, path: str) -> str:
    """The path of a file relative to a folder that it is in."""
    return path.removeprefix("./" if folder == "." else f"{folder.rstrip('/')}/")


def common_folder(files: Sequence[str]) -> str:
    """The deepest folder that contains all files."""
    folder = parent(files[0])
    while folder != "." and not all(file.startswith(folder.rstrip("/") + "/") for file in files):
        folder = parent(folder)
    return folder


def folder_of(location: str, files: Sequence[str]) -> str:
    """The folder that must contain the files of a location: the location itself, or where all of them are."""
    return _plain(location) if is_folder(location, files) else common_folder(files)


def is_folder(location: str, files: Sequence[str]) -> bool:
    """Whether a location is a folder, and not a file, pattern or list, as its files tell."""
    folder = _plain(location)
    return all(file.startswith(f"{folder}/") for file in files) or folder == "."


def _plain(location: str) -> str:
    return str(Path(location)) if is_local(location) else location.rstrip("/")
