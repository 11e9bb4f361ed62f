"""What people opt out: files of keys, addresses or hosts, as entries of the policy.

And how these entries meet the addresses of data/raw: other spellings that they cover, and near misses.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from align.errors import DataError
from align.formats.policy import Entry, OptedOut, host_and_above, host_of, problem_with
from align.lineage.versions.raw_pairs import RawRow, find_pairs, iter_tables
from align.pairs.urls import canonical_or_as_is, host_name, identity

#: At most this many bad lines are listed in an error.
_SHOWN = 10
_URL = re.compile(r"[a-z][a-z0-9+.-]*:\S+", re.IGNORECASE)
#: Value of a line -> the pairs that it names.
_PairsByValue = dict[str, list[RawRow]]


def read_requests(files: dict[str, Path], raw: Path, reason: str) -> list[Entry]:
    """Reads the files of `--keys`, `--urls` and `--hosts`.

    Args:
        files: kind (keys, urls, hosts) -> file with one value per line; empty lines and lines that start with # are
            skipped.
        raw: data/raw, where keys and addresses are looked up.
        reason: recorded in every entry.

    Raises:
        DataError: a file is missing, or some lines are bad; the message names them. Nothing must be recorded then.
    """
    entries, bad = [], []
    lines = {kind: list(_lines(kind, path)) for kind, path in files.items()}
    pairs = {
        column: _pairs_by(raw, column, {value for _, value in lines.get(kind, ())})
        for kind, column in (("keys", "key"), ("urls", "url"))
    }
    for kind, path in files.items():
        for number, value in lines[kind]:
            named, problem = _entries(kind, value, pairs)
            entries += named
            if problem:
                bad.append(f"{path}, line {number}: {value!r}: {problem}")
    if bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(f"nothing is recorded: {'; '.join(bad[:_SHOWN])}{more}")
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return [Entry(kind, value, reason, today) for kind, value in entries]


def _lines(kind: str, path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = f"cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
        raise DataError(f"--{kind} {path}: {why}; it is a file of one value a line: echo VALUE > {kind}.txt") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _pairs_by(raw: Path, column: str, values: set[str]) -> _PairsByValue:
    """The pairs by the value of `column`; addresses in any spelling count by their identity."""
    pairs: _PairsByValue = {}
    if column == "url" and values:
        wanted = set(map(identity, values))
        urls = {row["url"] for _, rows in iter_tables(raw, ["url"]) for row in rows if row["url"]}
        values = {url for url in urls if identity(url) in wanted}
    for row in find_pairs(raw, column, values) if values else ():
        pairs.setdefault(identity(row[column]) if column == "url" else row[column], []).append(row)
    return pairs


def _entries(kind: str, value: str, pairs: dict[str, _PairsByValue]) -> tuple[list[tuple[str, str]], str | None]:
    """(kind, value) of each entry that a line becomes, and what is wrong with the line, if anything."""
    if kind == "hosts":
        host = value.lower().rstrip(".")
        try:
            spellings = {host, host.encode("idna").decode("ascii")}
        except UnicodeError:
            spellings = {host}
        return [("host", one) for one in sorted(spellings)], problem_with("host", host)
    if kind == "keys":
        rows = pairs["key"].get(value, [])
        entries = [("url", row["url"]) for row in rows if _is_web_address(row["url"])]
        problem = None if rows else "no pair in data/raw has this key"
        if rows and not entries and not any(row["sha256"] for row in rows):
            problem = (
                "this pair has neither a web address nor a picture, by which later ingests would know it; to refuse "
                "every picture of its name, give the name with --urls"
            )
    else:
        rows = pairs["url"].get(identity(value), [])
        entries = [("url", one) for one in sorted({value, canonical_or_as_is(value)})]
        problem = None if rows or _URL.fullmatch(value) else "not a URL, and not in data/raw"
    entries += [("image_id", row["sha256"]) for row in rows if row["sha256"]]
    return sorted({(one, text) for one, text in entries if text}), problem


def _is_web_address(url: str | None) -> bool:
    """Whether it has a scheme and a host.

    The name of a file is not an address: other folders have files of that name.
    """
    return bool(url and host_of(url) and urlsplit(url).scheme)


#: Addresses that a line names, and characters of each.
_NAMED, _WIDTH = 3, 200
#: How near an address is that an entry does not cover, the nearest first.
_NEAR = ("same path, other query", "same host", "same file name")


def near_addresses(raw: Path, requested: OptedOut) -> Iterator[str]:
    """Lines for people: addresses that an entry covers though they are spelt otherwise; entries that cover nothing.

    Raises:
        DataError: a table is unreadable.
    """
    values = {entry.value for entry in requested.entries if entry.kind == "url"}
    wanted = {identity(value): value for value in sorted(values, reverse=True)}
    hosts = {host_name(entry.value): entry.value for entry in requested.entries if entry.kind == "host"}
    if not wanted and not hosts:
        return
    if not any(raw.glob("*.parquet")):
        yield f"{raw} has no tables, so which pairs these entries cover is not known here"
        return
    covered: dict[str, set[str]] = {one: set() for one in wanted}
    by_part: dict[tuple[int, str], list[str]] = {part: [] for one in wanted for part in _parts(one)}
    for address in _addresses(raw):
        same = identity(address)
        if same in wanted:
            covered[same].add(address)
        for one in host_and_above(address) if hosts else ():
            hosts.pop(one, None)
        for part in _parts(same) if by_part else ():
            if (near := by_part.get(part)) is not None and len(near) < _NAMED and same not in wanted:
                near.append(address)
    for same, value in sorted(wanted.items(), key=lambda item: item[1]):
        if other := sorted(one for one in covered[same] if canonical_or_as_is(one) not in values):
            yield f"{_cut(value)} covers, too: {', '.join(map(_cut, other[:_NAMED]))}{_more(len(other))}"
        if not covered[same]:
            nearest = _nearest((level, one) for level, part in _parts(same) for one in by_part[level, part])
            named = [f"{_cut(one)} ({_NEAR[level]})" for one, level in nearest]
            yield "; near: ".join(
                [f"{_cut(value)} is no address of a pair or page here", *filter(None, [", ".join(named)])]
            )
    yield from (f"{host} is the host of no pair or page here" for host in sorted(hosts.values()))


def _nearest(near: Iterator[tuple[int, str]]) -> list[tuple[str, int]]:
    """Each address once, with its nearest kind."""
    levels: dict[str, int] = {}
    for level, address in near:
        levels.setdefault(address, level)
    return list(levels.items())[:_NAMED]


def _addresses(raw: Path) -> Iterator[str]:
    """Every address of a picture and of a page; repeats in a row count once."""
    last: set[str] = set()
    for _, rows in iter_tables(raw, ("url", "page_url")):
        for row in rows:
            found = {row["url"], row["page_url"]} - {None}
            yield from sorted(found - last)
            last = found


def _parts(same: str) -> Iterator[tuple[int, str]]:
    """The parts of an identity that are compared: (place in `_NEAR`, part)."""
    path = same.partition("?")[0]
    yield 0, path
    if host := host_of(same):
        yield 1, host
    name = path.rpartition("/")[2]
    if "." in name and path.count("/") > 2:  # not the host, and not a folder
        yield 2, name


def _cut(address: str) -> str:
    return address if len(address) <= _WIDTH else f"{address[:_WIDTH]}..."


def _more(number: int) -> str:
    return f", and {number - _NAMED:,} more" if number > _NAMED else ""
