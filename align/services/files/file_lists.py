"""Lists of files: one location per line, as Common Crawl publishes them. Every line is used, or named in an error."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from align.errors import DataError
from align.web.addresses import target_of

_LISTS = (".txt", ".paths", ".txt.gz", ".paths.gz")
#: Bytes of a list, as stored and as unpacked. A crawl of Common Crawl has some 90,000 lines of 140 bytes.
_MAX_BYTES, _MAX_LINES = 64 << 20, 1_000_000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WEB = ("https", "http")
#: Lines that an error names, and the characters of each.
_NAMED, _SHOWN = 10, 200
MISSING = "missing"


class UnusableLocationError(Exception):
    """A location that cannot be read. Its message says why, in a few words."""


def is_list(location: str, suffixes: Sequence[str]) -> bool:
    """Whether a location is a list file; not if files with its suffix are searched for."""
    name = location.lower()
    return name.endswith(_LISTS) and not (suffixes and name.endswith(tuple(suffixes)))


def is_web(location: str) -> bool:
    """Whether a location is on a web server."""
    return location[:8].lower().startswith(("https://", "http://"))


def lines_of(stream: BinaryIO, location: str) -> list[str]:
    """The lines of a list, without those that are empty or begin with `#`. Raises DataError if it has too many bytes or
    lines, is damaged, or not UTF-8.
    """
    if stream.seek(0, io.SEEK_END) > _MAX_BYTES:
        raise _too_large(location)
    stream.seek(0)
    packed = location.lower().endswith(".gz")
    file = gzip.GzipFile(fileobj=stream) if packed else stream
    lines, num_lines, num_bytes = list[str](), 0, 0
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig") as text:  # str.splitlines knows other ends of lines, too
            while line := text.readline(_MAX_BYTES + 1):
                num_lines, num_bytes = num_lines + 1, num_bytes + len(line.encode())
                if num_bytes > _MAX_BYTES:
                    raise _too_large(location)
                if num_lines > _MAX_LINES:
                    raise DataError(f"{location}: a list of more than {_MAX_LINES:,} lines; divide it")
                if (stripped := line.strip()) and not stripped.startswith("#"):
                    lines.append(stripped)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{location}: not a list of locations, one per line ({error})") from None
    return lines


def _too_large(location: str) -> DataError:
    return DataError(f"{location}: a list of more than {_MAX_BYTES >> 20} MiB; divide it")


def absolute(line: str, location: str, root: str | None) -> str:
    """The location that a line names.

    Args:
        line: of the list.
        location: of the list.
        root: the prefix of relative lines; None: the folder of the list.

    Raises:
        UnusableLocationError: the line leads out of the root, from a server to this machine, or from the web to S3.
    """
    if _SCHEME.match(line):
        if line.startswith("s3://") and is_web(location) and not _is_below(line, root):  # read with our credentials
            raise UnusableLocationError("a list on the web names s3:// only below an ingest.paths_root on s3://")
        return line
    if line.startswith("/"):
        if _SCHEME.match(location):
            raise UnusableLocationError("a list on a server cannot name files of this machine")
        if root is not None and not _is_below(
            line, root if _SCHEME.match(root) else os.path.normpath(Path.cwd() / root)
        ):
            raise UnusableLocationError("an absolute path outside ingest.paths_root")
        return line
    if root is not None:
        if ".." in line.split("/"):
            raise UnusableLocationError("`..` leads out of ingest.paths_root")
        return f"{root.rstrip('/')}/{line}"
    head, slash, _ = location.rpartition("/")
    return f"{head or slash or '.'}/{line}"


def _is_below(line: str, root: str | None) -> bool:
    return root is not None and line.startswith(f"{root.rstrip('/')}/") and ".." not in line.split("/")


def require_usable(location: str) -> None:
    """Checks what can be checked without asking a server. Raises UnusableLocationError if the location is of a kind
    that cannot be read.
    """
    found = _SCHEME.match(location)
    if found is None or found[1] == "s3":
        return
    if found[1].lower() not in _WEB:
        raise UnusableLocationError(
            f"{found[1][:_SHOWN]}:// is not supported; s3://, https:// and folders are: copy the files to one of these"
        )
    try:
        has_login = "@" in urlsplit(location).netloc
        target_of(location)
    except ValueError as error:
        raise UnusableLocationError(f"not an address ({str(error)[:_SHOWN]})") from None
    if has_login:
        raise UnusableLocationError("logins in addresses are not supported")
    if "?" in location or "#" in location:
        raise UnusableLocationError("an address with ? or # has no file name; copy the file to a folder or s3://")
    if "*" in location or location.endswith("/"):
        raise UnusableLocationError("a web server lists no files; name each, for example in a .paths list")


def shown(location: str, base: str = "") -> str:
    """A location for a message, without what follows `?`: a signed address is a password.

    Args:
        location: a path (shown as it is) or an address.
        base: what a relative location begins with.
    """
    head, mark, _ = location.partition("?")
    return f"{head}?..." if mark and "://" in base + head else location


def require_all_usable(unusable: Mapping[str, list[str]], location: str, num_lines: int, root: str | None) -> None:
    """Raises DataError if a list has unusable lines (reason -> lines): their number, and the first of each reason."""
    count = sum(map(len, unusable.values()))
    if not count:
        return
    reasons = "; ".join(f"{reason}: {_named(lines, root or location)}" for reason, lines in unusable.items())
    text = f"{location}: {count:,} of its {num_lines:,} lines cannot be used. {reasons}"
    missing = unusable.get(MISSING, [])
    if root is None and any(not line.startswith("/") and not _SCHEME.match(line) for line in missing):
        text += " (relative lines begin at the folder of the list; for another begin set ingest.paths_root)"
    raise DataError(f"{text}. Correct or remove these lines")


def _named(lines: Sequence[str], base: str = "") -> str:
    """The first few of some locations, for a message; `base` as for `shown`."""
    more = f" and {len(lines) - _NAMED:,} more" if len(lines) > _NAMED else ""
    return ", ".join(shown(line, base)[:_SHOWN] for line in lines[:_NAMED]) + more
