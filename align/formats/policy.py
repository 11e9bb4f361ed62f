"""data/policy/opted_out.csv: pictures that people asked to remove; a small committed file that stages obey.

    kind,value,reason,added     sorted by kind and value, no (kind, value) twice; added is a date (UTC)

A take-down removes a picture with all pairs that show it. An entry names what is the same in every ingest. Keys are
not, because each ingest numbers pairs again; `align opt_out --keys` first resolves them.

    url        of the picture, or of the page that shows it, in any spelling (`align.pairs.urls.identity`):
               covering too much does less harm than covering too little
    host       of either, subdomains included: example.org covers img.example.org; so does www.example.org example.org
    image_id   sha256 of the picture's bytes, from any source

An address that redirects to one of these is covered, too: `align ingest` asks at each hop. Later stages cannot, since
data/raw holds the first address only.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from align.durable.files import write_text
from align.errors import FormatError
from align.pairs.urls import host_name, identity

OPTED_OUT = "opted_out.csv"
#: The error message of a pair whose picture was not taken because of an entry.
REFUSED = "opted out"
KINDS = ("host", "image_id", "url")
#: The most labels of a host name: one of 253 characters cannot have more.
_MAX_LABELS = 127
_HEADER = ["kind", "value", "reason", "added"]


@dataclass(frozen=True, order=True)
class Entry:
    """One line of the file. `reason` is free text and may be empty; `added` is YYYY-MM-DD."""

    kind: str
    value: str
    reason: str = field(compare=False)
    added: str = field(compare=False)


class OptedOut:
    """All entries. Can be pickled; empty (and false) where nobody has opted out.

    Attributes:
        entries: in the file's order.
        image_ids: of the entries of that kind.
        has_addresses: whether there are entries of the other kinds.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Args: entries: in any order; of equal (kind, value) the first is kept, so recording twice changes nothing."""
        known: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            known.setdefault((entry.kind, entry.value), entry)
        self.entries = tuple(sorted(known.values()))
        self._urls = {identity(entry.value): entry.value for entry in self.entries if entry.kind == "url"}
        self._hosts = {host_name(entry.value): entry.value for entry in self.entries if entry.kind == "host"}
        self.image_ids = frozenset(entry.value for entry in self.entries if entry.kind == "image_id")
        self.has_addresses = bool(self._urls or self._hosts)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def entry(self, url: str | None, page_url: str | None, image_id: str | None) -> tuple[str, str] | None:
        """The (kind, value) of the entry that covers a pair, or None. Arguments as in the columns of data/raw."""
        if image_id in self.image_ids:
            return "image_id", str(image_id)
        addresses = [address for address in (url, page_url) if address]
        if self._urls:
            for address in addresses:
                if value := self._urls.get(identity(address)):
                    return "url", value
        if self._hosts:
            for address in addresses:
                for host in host_and_above(address):
                    if value := self._hosts.get(host):
                        return "host", value
        return None

    def matches(self, url: str | None, page_url: str | None, image_id: str | None) -> bool:
        """Whether a pair is opted out. Before its picture is fetched, image_id is None."""
        return bool(self.entries) and self.entry(url, page_url, image_id) is not None

    def refusal(self, url: str) -> str | None:
        """Why an address must not be requested, or None. Callers also ask for the targets of redirects."""
        return REFUSED if self.matches(url, None, None) else None


def host_of(url: str) -> str:
    """The host as `host_name` spells it; empty if the URL has none or is malformed."""
    try:
        return host_name(urlsplit(url).hostname or "")
    except ValueError:
        return ""


def host_and_above(url: str) -> Iterator[str]:
    """Hosts whose entry covers an address: its own, also with `www.`, and those above it."""
    labels = f"www.{host_of(url)}".split(".")[-_MAX_LABELS:]
    return (".".join(labels[start:]) for start in range(len(labels)))


def problem_with(kind: str, value: str) -> str | None:
    """Why a value cannot match any pair, or None."""
    if kind not in KINDS:
        return f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}"
    if kind == "image_id" and not re.fullmatch("[0-9a-f]{64}", value):
        return "not a sha256 (64 digits 0-9a-f)"
    if kind == "host" and (
        value != value.lower() or not re.fullmatch(r"[\w-]+(\.[\w-]+)*|[0-9a-f:]*:[0-9a-f:.]*", value)
    ):
        return "not a host name (such as example.org: lower case, no scheme, no port, no path)"
    if kind == "url" and not value:
        return "empty"
    return None


def read_opted_out(policy: Path) -> OptedOut:
    """Reads `policy/opted_out.csv`; a missing file counts as an empty one.

    Raises:
        FormatError: a line is malformed; the message names it.
    """
    path = policy / OPTED_OUT
    return parse_opted_out(path.read_bytes(), path) if path.exists() else OptedOut()


def parse_opted_out(data: bytes, path: Path) -> OptedOut:
    """What the bytes of the file say, as `read_opted_out`; `path` is for messages."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 ({error.reason}); restore it from git") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise FormatError(f"{path}, line {rows.line_num}: {error}; correct the line") from None
    if not lines or lines[0][1] != _HEADER:
        raise FormatError(f"{path}: the first line must be {','.join(_HEADER)}")
    entries = []
    for line, row in lines[1:]:
        problem = f"{len(row)} columns" if len(row) != len(_HEADER) else problem_with(row[0], row[1])
        if problem:
            raise FormatError(
                f"{path}, line {line}: {problem}; correct the line, or write entries with `align opt_out`"
            )
        entries.append(Entry(*row))
    return OptedOut(entries)


def write_opted_out(policy: Path, opted_out: OptedOut) -> None:
    """Writes the file atomically; equal entries give equal bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows([one.kind, one.value, one.reason, one.added] for one in opted_out.entries)
    write_text(policy / OPTED_OUT, text.getvalue())
