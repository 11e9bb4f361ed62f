"""What people ask to forget, as files of keys, addresses or hosts -> entries of the policy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from align.errors import DataError
from align.formats.policy import Entry, problem_with
from align.lineage.take_down import find_pairs
from align.pairs.urls import canonical_or_as_is

#: Bad lines that an error spells out.
_SHOWN = 10
_URL = re.compile(r"[a-z][a-z0-9+.-]*:\S+", re.IGNORECASE)
#: Value of a line -> the pairs that it names.
Found = dict[str, list[dict[str, str | None]]]


def read_wishes(files: dict[str, Path], raw: Path, reason: str) -> list[Entry]:
    """The files of `--keys`, `--urls` and `--hosts` as entries of the policy.

    Args:
        files: kind (keys, urls, hosts) -> file, one value a line; empty lines and those with a # in front are skipped.
        raw: data/raw, where keys and addresses are looked up.
        reason: goes into every entry.

    Raises:
        DataError: a file is missing, or some lines are bad: each is named, and nothing is to be recorded.
    """
    wishes, bad = [], []
    lines = {kind: list(_lines(path)) for kind, path in files.items()}
    pairs = {
        column: _by_column(raw, column, {value for _, value in lines.get(kind, ())})
        for kind, column in (("keys", "key"), ("urls", "url"))
    }
    for kind, path in files.items():
        for number, value in lines[kind]:
            found, problem = _entries(kind, value, pairs)
            wishes += found
            if problem:
                bad.append(f"{path}, line {number}: {value!r}: {problem}")
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(f"nothing is recorded: {'; '.join(bad[:_SHOWN])}{more}")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return [Entry(kind, value, reason, today) for kind, value in wishes]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _by_column(raw: Path, column: str, values: set[str]) -> Found:
    wanted = values | set(map(canonical_or_as_is, values)) if column == "url" else values
    found: Found = {}
    for row in find_pairs(raw, column, wanted) if wanted else ():
        found.setdefault(row[column], []).append(row)
    return found


def _entries(kind: str, value: str, pairs: dict[str, Found]) -> tuple[list[tuple[str, str]], str | None]:
    """(kind, value) of each entry that a line becomes, and what is wrong with it."""
    if kind == "hosts":
        host = value.lower().rstrip(".")
        try:
            spellings = {host, host.encode("idna").decode("ascii")}
        except UnicodeError:
            spellings = {host}
        return [("host", one) for one in sorted(spellings)], problem_with("host", host)
    if kind == "keys":
        rows = pairs["key"].get(value, [])
        found = [("url", row["url"]) for row in rows if row["url"] and not row["url"].startswith("data:")]
        problem = None if rows else "no pair in data/raw has this key"
    else:
        spellings = {value, canonical_or_as_is(value)}
        rows = [row for one in spellings for row in pairs["url"].get(one, [])]
        found = [("url", one) for one in sorted(spellings)]
        problem = None if rows or _URL.fullmatch(value) else "no URL, nor in data/raw"
    found += [("image_id", row["sha256"]) for row in rows if row["sha256"]]
    return sorted({(one, text) for one, text in found if text}), problem
