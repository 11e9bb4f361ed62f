"""Archives with the oddities of real ones: headers that lie, other line ends, a flipped byte, lazy pages."""

import gzip
import re
from itertools import count, cycle
from pathlib import Path
from typing import NamedTuple

from fastwarc.warc import ArchiveIterator, WarcRecordType

from tests.support.warc_records import record, response

_LAZY = (b"data-lsrc", b"data-img-url", b"data-cfsrc", b"data-gt-lazy-src")
_SRC = re.compile(rb"(<img\b[^>]*?\s)src=", re.IGNORECASE)


class Stored(NamedTuple):
    """A response as a server sent it, without any content coding."""

    url: str
    content_type: str
    body: bytes
    status: str = "200 OK"
    headers: str = ""

    @property
    def is_page(self):
        return self.content_type.startswith("text/html")

    @property
    def is_read(self):
        return self.is_page and self.status == "200 OK"


class Archive(NamedTuple):
    """An archive, and what was written into it.

    Attributes:
        num_records: those that can be read.
        num_bytes_lost: of the others, as stored.
        num_absent, num_unknown: pages whose headers state a coding that they do not have, or one that does not exist.
    """

    folder: Path
    num_records: int
    num_bytes_lost: int = 0
    num_absent: int = 0
    num_unknown: int = 0


def stored_responses(archive):
    """The good responses of an archive, by address."""
    with archive.open("rb") as stream:
        return {
            url: Stored(url, one.http_headers["Content-Type"], one.reader.read())
            for one in ArchiveIterator(stream, record_types=WarcRecordType.response)
            if one.http_headers.status_code == 200 and (url := one.headers["WARC-Target-URI"])
        }


#: Beside the pages and pictures of each archive: responses, and records of other kinds.
_OTHERS = (
    Stored("http://others.example/a.css", "text/css", b"p {}"),
    Stored("http://others.example/old.html", "text/html", b"", "301 Moved Permanently", "Location: /new.html\r\n"),
    Stored("http://others.example/gone.html", "text/html", b"<img src=a.png alt='of a page of errors'>", "404 Gone"),
)
_REQUEST = record("request", "http://others.example/", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request")


def _plain(one):
    return response(one.url, one.body, one.content_type, one.status, one.headers)


def _states(header):
    return lambda one: _plain(one._replace(headers=f"{one.headers}{header}\r\n"))


def _lf_in_http(one):
    """As ClueWeb 2012 has it: the HTTP headers end in LF."""
    head = f"HTTP/1.1 {one.status}\nContent-Type: {one.content_type}\n{one.headers}\n".replace("\r\n", "\n").encode()
    return record("response", one.url, head + one.body, "application/http; msgtype=response")


def _lf_everywhere(one):
    """As ClueWeb 2009 has it: the WARC headers, too."""
    head, separator, rest = _lf_in_http(one).partition(b"\r\n\r\n")
    return (head + separator).replace(b"\r\n", b"\n") + rest.removesuffix(b"\r\n\r\n") + b"\n\n"


def _lazy(one):
    """Each <img> has a placeholder, and its address in one of the attributes for lazy loading."""
    names = cycle(_LAZY)
    body = _SRC.sub(lambda tag: tag[1] + b"src=/blank.gif " + next(names) + b"=", one.body) if one.is_page else one.body
    return _plain(one._replace(body=body))


_ABSENT = tuple(map(_states, ("Transfer-Encoding: chunked", "Content-Encoding: gzip", "Content-Encoding: deflate")))
_UNKNOWN = tuple(map(_states, ("Content-Encoding: none", "Content-Encoding: UTF-8")))
#: By the file that has them.
_FILES = {
    "odd.warc.gz": (_plain, *_ABSENT, *_UNKNOWN, _lf_in_http, _lazy),
    "lf.warc.gz": (_lf_everywhere,),
}
ODDITIES = [oddity for oddities in _FILES.values() for oddity in oddities]


def clean_archive(folder, responses):
    """One WARC file without any oddity."""
    records = [*map(_plain, [*responses, *_OTHERS]), _REQUEST]
    _write(folder / "clean.warc.gz", map(_packed, records))
    return Archive(folder, len(records))


def odd_archive(folder, responses):
    """The same responses in two files: each oddity in turn, and a flipped byte in the last record of each."""
    members = {"odd.warc.gz": [_packed(_REQUEST)], "lf.warc.gz": []}
    file_of = {oddity: file for file, oddities in _FILES.items() for oddity in oddities}
    numbers = {True: count(), False: count()}  # of pages and of others, so that both have each oddity
    num_absent = num_unknown = 0
    for one in (*responses, *_OTHERS):
        oddity = ODDITIES[next(numbers[one.is_page]) % len(ODDITIES)]
        members[file_of[oddity]].append(_packed(oddity(one)))
        num_absent += oddity in _ABSENT and one.is_read
        num_unknown += oddity in _UNKNOWN and one.is_read
    num_records = sum(map(len, members.values()))
    lost = _flipped(_packed(_plain(Stored("http://others.example/lost.css", "text/css", b"p {} " * 99))))
    for packed in members.values():
        packed.append(lost)
    for file, packed in members.items():
        _write(folder / file, packed)
    return Archive(folder, num_records, len(members) * len(lost), num_absent, num_unknown)


def _packed(one):
    return gzip.compress(one, mtime=0)


def _flipped(member):
    """With one bit changed in its middle."""
    middle = len(member) // 2
    return member[:middle] + bytes([member[middle] ^ 4]) + member[middle + 1 :]


def _write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(members))
