"""Lists of files with the state of each file: a small file that stands for files on servers.

`align pin` makes them and `paths.archive` takes them. DVC's run cache keeps no stage that reads an address itself; it
keeps one that reads such a list. So every read of the list checks that all files are still what it says.

    # align pin 1 s3://bucket/crawl
    s3://bucket/crawl/a.warc.gz<TAB>1048576 "9b2cf535f27731c974343645a3985328"
    s3://bucket/crawl/README<TAB>120 "d41d8cd98f00b204e9800998ecf8427e"<TAB>beside

A stamp is `Files.stamp`. `beside` marks what a source finds by itself, such as the pictures of saved pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from align.display.visible import visible
from align.durable.files import write_text
from align.errors import DataError
from align.services.files.file_lists import MAX_LINES, named, shown

_HEADER = "# align pin 1 "
_MAX_HEADER_BYTES = 1 << 14
_BESIDE = "beside"
#: Characters that a line cannot hold: it would end there, or name another location.
_IMPOSSIBLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^[\s#]|\s$")


class Pin(NamedTuple):
    """One file of a list.

    Attributes:
        line: its location, as the list has it.
        stamp: what it was.
        is_beside: whether the source finds it by itself.
    """

    line: str
    stamp: str
    is_beside: bool


def source_of(stream: BinaryIO) -> str | None:
    """What was pinned, by the first line of a list; None if it is another kind of list.

    Leaves the stream at its start.
    """
    stream.seek(0)
    first = stream.readline(_MAX_HEADER_BYTES).decode("utf-8", "replace")
    stream.seek(0)
    return first.removeprefix(_HEADER).strip() if first.startswith(_HEADER) else None


def pins_of(lines: Sequence[str], location: str) -> list[Pin]:
    """The files of a list, by its lines without comments. Raises DataError if one is not as `write` writes it."""
    pins = []
    for line in lines:
        name, *values = line.split("\t")
        if not 1 <= len(values) <= 2 or values[1:] not in ([], [_BESIDE]):
            raise DataError(f"{location}: not as `align pin` wrote it: {shown(line)[:200]!r}; pin the source again")
        pins.append(Pin(name, values[0], len(values) > 1))
    return pins


def write(out: Path, source: str, read: dict[str, str], beside: dict[str, str]) -> None:
    """Writes a list, whole or not at all.

    Args:
        out: the file.
        source: what is pinned, for readers of the list.
        read: file -> stamp, of those that the source reads as its files.
        beside: the same, for files that it finds by itself.

    Raises:
        DataError: too many files, or one whose name no line can hold.
    """
    stamps = {**read, **beside}
    if len(stamps) >= MAX_LINES:
        raise DataError(f"{source}: {len(stamps):,} files, and a list has at most {MAX_LINES:,}; pin its parts")
    lines_of = {file: _line(file, out) for file in stamps}
    bad = [name for name, line in ((source, source), *lines_of.items()) if _IMPOSSIBLE.search(line)]
    if bad:
        raise DataError(f"{visible(bad[0])}: no line of a list can hold this name; rename it")
    lines = [f"{_HEADER}{source}\n"]
    for file in sorted(stamps):
        mark = f"\t{_BESIDE}" if file in beside else ""
        lines.append(f"{lines_of[file]}\t{plain(stamps[file])}{mark}\n")
    write_text(out, "".join(lines))


def plain(stamp: str) -> str:
    """A stamp as a list holds it: a server chooses its ETags."""
    return visible(stamp).strip()


def changed(location: str, source: str, files: Sequence[str], num_files: int) -> DataError:
    """The error for files that are no longer what a list says."""
    return DataError(
        f"{location}: {len(files):,} of its {num_files:,} files changed or disappeared since they were pinned: "
        f"{named(files)}. To take what is there now: align pin {source} --out {location}"
    )


def _line(file: str, out: Path) -> str:
    """The location of a file from the folder of the list, as `file_lists.absolute` reads it."""
    if "://" in file:
        return file
    path, folder = Path(os.path.normpath(Path(file).absolute())), Path(os.path.normpath(out.parent.absolute()))
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
