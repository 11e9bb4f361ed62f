"""Pictures that a table names by their files: found in the folder of the table, and nowhere else.

A table may come from strangers, so a name that leads out of the folder (`..`, an absolute path, a symbolic link) is no
picture: its row says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from align.formats.table import PICTURE_SUFFIXES
from align.ingest.limits import read_at_most
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Within, is_file, is_local, is_within, joined, parent
from align.ingest.sources.tables import WrittenPairs
from align.interfaces.store import Files

#: Why a row has no picture.
MISSING = "no such file"
OUTSIDE = "outside the folder"
IMPOSSIBLE = "no name that a file can have"
_AMBIGUOUS = "ambiguous"
_FILE = "file:"
#: Folders in the folder of all in which pictures may be; and those beside a table.
_USUAL = ("images", "Images", "image", "img", "imgs", "pictures", "photos")
NEAR_TABLES = (*_USUAL, "train", "val", "test")
#: `Screenshot:1.jpg` is a file.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", re.IGNORECASE)
#: Characters of a file's name; nobody looks for a longer one.
_MAX_CHARACTERS = 4_096


class Found(NamedTuple):
    """A picture of a table."""

    path: str | None  # the file, as `Files` opens it; None: there is none
    problem: str | None = None  # why there is none


def is_file_name(written: str) -> bool:
    """Whether a value of a table names a file: a path or a file:// address, not an address of another kind."""
    return written[:5].lower() == _FILE or not (written.startswith("//") or _SCHEME.match(written))


def read_picture(files: Files, file: str, max_bytes: int, folder: str | None) -> bytes | None:
    """A whole file; None if it is missing, or outside the folder, symbolic links resolved.

    Raises TooLarge if it has more bytes, and what `Files` raises.
    """
    if (folder is not None and not is_within(folder, file)) or not is_file(files, file):
        return None
    with files.open(file) as stream:
        return read_at_most(stream, max_bytes)


class PictureFiles:
    """The pictures of one folder, by the names that tables give them."""

    def __init__(
        self,
        files: Files,
        folder: str,
        listed: Set[str] | None = None,
        list_pictures: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """No picture outside of `folder` counts.

        `listed` are those in it; None: `list_pictures` says which are looked for, at the first miss.
        """
        self._files, self._folder, self._list_pictures = files, folder, list_pictures
        self._listed = listed
        self._within = Within(folder)

    def picture_of(self, table: str, pairs: WrittenPairs, problem: str | None = None) -> Candidate:
        """The picture of a row of a table, without its texts; `problem` says why none is looked for."""
        found = Found(None, problem) if problem else self.find(table, pairs.picture)
        path, problem = found.path, pairs.problem or found.problem
        url = pairs.picture if path is None else below(self._folder, path)
        return Candidate(url, "", None, pairs.page_url, problem, None if problem else path)

    def find(self, table: str, written: str) -> Found:
        """The file that a row of a table names, or else with an extension of pictures.

        A name is relative to the table's folder, or absolute inside of the folder. If there is no such file, it is
        relative to the folder; and else to folders of usual names beside the table or in the folder.
        `written` may also be a file:// address.
        """
        if len(written) > _MAX_CHARACTERS:
            return Found(None, IMPOSSIBLE)
        own = parent(table)
        found = self._inside(own, written)
        if found.path is None:
            return found
        if found.path in (self._listed or ()) or is_file(self._files, found.path):
            return self._held([found.path])
        if self._listed is None:
            self._listed = frozenset(self._list_pictures())
        places = [[found.path]]
        if own == "." or found.path.startswith(f"{own.rstrip('/')}/"):
            name = below(own, found.path)
            usual = [*((own, each) for each in NEAR_TABLES), *((self._folder, each) for each in _USUAL)]
            places += _paths(name, [(self._folder, "")]), _paths(name, usual)
        for paths in places:
            if there := [path for path in paths if path in self._listed]:
                return self._held(there)
            if there := [each for path in paths for each in self._with_extension(path)]:
                return self._held(there)
        return Found(None, MISSING)

    def _with_extension(self, path: str) -> list[str]:
        return [each for suffix in PICTURE_SUFFIXES if (each := f"{path}{suffix}") in (self._listed or ())]

    def _held(self, paths: Sequence[str]) -> Found:
        if len(paths) > 1:
            return Found(None, f"{_AMBIGUOUS}: {len(paths):,} files of this name")
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


def _paths(name: str, folders: Sequence[tuple[str, str]]) -> list[str]:
    """Where a name may be, in folders within others."""
    paths = (joined(folder, within, name) for folder, within in folders)
    return list(dict.fromkeys(path.removeprefix("./") for path in paths if path))


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
