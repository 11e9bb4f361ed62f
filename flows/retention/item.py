"""What a removal consists of, as it is listed and as it is done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from align.files import clear_leftovers, temporary_name, without_temporary_names


@dataclass(frozen=True)
class Item:
    """Something to remove.

    Attributes:
        kind: a group in the list.
        names: of what is removed, for people.
        num_bytes: what the disk or the server has more of afterwards.
        remove: does it; doing it twice is no error.
    """

    kind: str
    names: tuple[str, ...]
    num_bytes: int
    remove: Callable[[], None] = field(compare=False)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links count nothing."""
    if path.is_symlink() or not path.exists():
        return 0
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file() and not each.is_symlink()]
    return sum(each.stat().st_size for each in files)


def newest(path: Path) -> float:
    """When anything in a folder was last written: seconds since 1970."""
    return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))


def dispose(path: Path) -> None:
    """Removes a folder: gone under its name at once, so that nobody finds half of it after a kill."""
    if path.exists():
        aside = temporary_name(path)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def clear(folder: Path) -> None:
    """Removes what a killed removal has left in a folder of folders."""
    for entry in list(folder.iterdir()) if folder.is_dir() else ():
        if (path := without_temporary_names(entry)) != entry:
            clear_leftovers(path)
