"""Files of keys, addresses or hosts that people opt out, as entries of the policy; which of these cover nothing."""

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


def without_pairs(raw: Path, requested: OptedOut) -> Iterator[str]:
    """Lines for people: entries that cover no address of data/raw, perhaps since they are misspelt.

    Raises:
        DataError: a table is unreadable.
    """
    urls = {identity(entry.value): entry.value for entry in requested.entries if entry.kind == "url"}
    hosts = {host_name(entry.value): entry.value for entry in requested.entries if entry.kind == "host"}
    if not urls and not hosts:
        return
    if not any(raw.glob("*.parquet")):
        yield f"{raw} has no tables, so which pairs these entries cover is not known here"
        return
    for _, rows in iter_tables(raw, ("url", "page_url")):
        for address in (one for row in rows for one in (row["url"], row["page_url"]) if one):
            urls.pop(identity(address), None)
            for host in host_and_above(address) if hosts else ():
                hosts.pop(host, None)
    yield from (f"{url} is no address of a pair or page here" for url in sorted(urls.values()))
    yield from (f"{host} is the host of no pair or page here" for host in sorted(hosts.values()))
