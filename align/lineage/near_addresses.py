"""How entries of the policy meet the addresses of data/raw: other spellings that they cover, and near misses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.formats.policy import OptedOut, host_and_above, host_of
from align.lineage.versions.raw_pairs import iter_tables
from align.pairs.urls import canonical_or_as_is, host_name, identity

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
    """Each address once, as the nearest that it is."""
    levels: dict[str, int] = {}
    for level, address in near:
        levels.setdefault(address, level)
    return list(levels.items())[:_NAMED]


def _addresses(raw: Path) -> Iterator[str]:
    """Every address of a picture and of a page; one that follows itself once."""
    last: set[str] = set()
    for _, rows in iter_tables(raw, ("url", "page_url")):
        for row in rows:
            found = {row["url"], row["page_url"]} - {None}
            yield from sorted(found - last)
            last = found


def _parts(same: str) -> Iterator[tuple[int, str]]:
    """What of an identity is compared: (place in `_NEAR`, part)."""
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
