"""Files on web servers (https://, http://), read by range requests through libcurl.

They are archives that a person named, or that a list of archives names, as curl and wget would fetch them: robots.txt,
which is about what crawlers find by themselves, does not apply. A list may come from the web, so the rest of the rules
for pictures does: a socket is opened to public addresses and those in `download.allow_networks` only, at every hop of
redirects, and https:// does not lead to http://. A file has one size and one ETag (or date) for as long as it is read.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import time
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urljoin

import pycurl

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig
from align.errors import DataError, ServiceError
from align.services.s3.locations import Stat
from align.web.addresses import MAX_REDIRECTS, address_policy, target_of
from align.web.failure import Failure, of_curl, of_status

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: A slower answer counts as no answer: at this speed an archive of one gigabyte takes more than a day.
_LEAST_BYTES_PER_S = 10 << 10
#: Shorter bodies of redirects and errors are read and ignored, so that the connection can be used again.
_DRAINED_BYTES = 16 << 10
#: Seconds before the second attempt, doubled each time; a server's Retry-After counts if longer; and the longest wait.
_BACKOFF_S, _LONGEST_WAIT_S = 0.5, 60.0
#: Characters of a server's or a library's words in our messages.
_SHOWN = 100
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? ([1-9]\d\d)\s")
_NO_RANGE = re.compile(r"bytes \*/(\d{1,18})")


@dataclass(frozen=True)
class WebFiles:
    """Web servers. Can be pickled; threads may share it.

    Attributes:
        store: the number of retries, and the time without an answer after which an attempt has failed.
        download: the user agent, the number of redirects, and the private networks that are allowed.
    """

    store: StoreConfig
    download: DownloadConfig

    def stat(self, url: str) -> Stat:
        """Size and ETag (else the time of the last change) of a file. Asks for its first byte: some refuse HEAD.

        Raises:
            DataError: there is no such file, the server refuses access or reads no ranges, or the address is private.
            ServiceError: the server does not answer, or fails.
        """
        return self._range(url, 0, 1)[0]

    def read_range(self, url: str, offset: int, size: int, known: Stat | None = None) -> bytes:
        """Bytes of a file; fewer at its end.

        Args:
            url: of the file.
            offset, size: in bytes; size > 0.
            known: what `stat` said.

        Raises:
            As `stat`; also DataError if the file has been replaced.
        """
        status, data = self._range(url, offset, size)
        if known is not None and status != known:
            raise DataError(f"{url}: it was replaced while it was read; run again")
        return data

    def _range(self, url: str, offset: int, size: int) -> tuple[Stat, bytes]:
        failure = Failure("not asked")
        for number in range(self.store.num_retries + 1):
            answer = self._follow(url, offset, size)
            outcome = answer if isinstance(answer, Failure) else _judged(url, answer, offset, size)
            if not isinstance(outcome, Failure):
                return outcome
            failure = outcome
            if not failure.retryable:
                raise DataError(f"{url}: cannot be read ({failure.error}); check the address")
            if number < self.store.num_retries:
                time.sleep(min(max(_BACKOFF_S * 2**number, failure.retry_after_s or 0.0), _LONGEST_WAIT_S))
        times = f"{self.store.num_retries + 1} times"
        raise ServiceError(f"{url}: failed {times} ({failure.error}); nothing is lost: run again later")

    def _follow(self, url: str, offset: int, size: int) -> _Answer | Failure:
        """The answer at the end of the redirects."""
        at, location = "", url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                to = target_of(urljoin(at, location)).url
            except ValueError as error:
                return Failure(f"{'broken redirect' if at else 'broken address'}: {str(error)[:_SHOWN]}")
            if at.startswith("https:") and not to.startswith("https:"):
                return Failure("a redirect from https:// to http://")
            answer = self._request(to, offset, size)
            if isinstance(answer, Failure) or answer.status not in _REDIRECTS:
                return answer
            at, location = to, answer.headers.get("location", "")
        return Failure(f"more than {MAX_REDIRECTS} redirects")

    def _request(self, url: str, offset: int, size: int) -> _Answer | Failure:
        idle = _idle_connections(self, os.getpid())
        try:
            connection = idle.pop()
        except IndexError:
            connection = _Connection(self)
        outcome = connection.request(url, offset, size)
        idle.append(connection)
        return outcome


@functools.lru_cache(maxsize=8)
def _idle_connections(_files: WebFiles, _process: int) -> list[_Connection]:
    """Connections that no thread uses, with equal settings: one that was opened under other rules is never used."""
    return []


@dataclass(frozen=True)
class _Answer:
    """Of a server.

    Attributes:
        status: of HTTP.
        headers: by name in lower case.
        body: of status 206; else empty.
    """

    status: int
    headers: dict[str, str]
    body: bytes


def _judged(url: str, answer: _Answer, offset: int, size: int) -> tuple[Stat, bytes] | Failure:
    """What an answer says about the file, with the bytes of the range; or a failure that a retry may cure.

    Raises DataError for failures with advice of their own.
    """
    status, headers = answer.status, answer.headers
    version = headers.get("etag") or headers.get("last-modified") or ""
    if status == 206 and (found := _RANGE.fullmatch(headers.get("content-range", ""))):
        first, last, num_bytes = map(int, found.groups())
        coding = headers.get("content-encoding", "identity").lower()
        if coding != "identity" and not url.lower().endswith((".gz", ".zst")):  # with these it may name the file's own
            return Failure(f"sent with Content-Encoding {coding[:_SHOWN]}, which was not asked for")
        if (first, last) != (offset, min(offset + size, num_bytes) - 1):
            return Failure(f"bytes {first:,} to {last:,} were sent, others were asked for")
        if len(answer.body) != last + 1 - first:
            return Failure(f"truncated: {len(answer.body):,} of {last + 1 - first:,} bytes", retryable=True)
        return Stat(num_bytes, version), answer.body
    if status == 416 and (found := _NO_RANGE.fullmatch(headers.get("content-range", ""))) and int(found[1]) <= offset:
        return Stat(int(found[1]), version), b""
    if status == 200 and headers.get("content-length") == "0":  # an empty file has no range
        return Stat(0, version), b""
    if status in (200, 206):
        raise DataError(f"{url}: the server sends no single range of bytes; copy the file to a folder or s3://")
    if status in (404, 410):
        raise DataError(f"{url}: the server has no such file")
    if status in (401, 403):
        raise DataError(f"{url}: the server refuses access ({status}; some answer this for files that do not exist)")
    return of_status(status, headers.get("retry-after"), time.time())


class _Connection:
    """A libcurl handle, with the connections that it keeps. One thread uses it at a time."""

    def __init__(self, files: WebFiles) -> None:
        self._may_connect = address_policy(files.download.allow_networks)
        self._timeout_s = files.store.timeout_s
        self._refused: str | None = None
        self._socket: socket.socket | None = None
        self._status, self._max_bytes, self._num_bytes = 0, 0, 0
        self._headers: dict[str, str] = {}
        self._next: Literal["status", "header", "body"] = "status"
        self._parts: list[bytes] = []
        self._curl: Any = pycurl.Curl()
        for option, value in {
            pycurl.USERAGENT: files.download.user_agent,
            pycurl.NOSIGNAL: 1,
            pycurl.CONNECTTIMEOUT_MS: max(1, int(self._timeout_s * 1000)),
            pycurl.LOW_SPEED_LIMIT: _LEAST_BYTES_PER_S,
            pycurl.LOW_SPEED_TIME: max(1, round(self._timeout_s)),
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_2TLS,
            pycurl.HTTP_CONTENT_DECODING: 0,  # no coding is asked for
            pycurl.PROXY: "",  # nor a proxy from the environment: it would connect to addresses that we refuse
            pycurl.NOPROXY: "*",
            pycurl.OPENSOCKETFUNCTION: self._open_socket,
            pycurl.HEADERFUNCTION: self._header,  # libcurl bounds them
            pycurl.WRITEFUNCTION: self._body,
        }.items():
            self._curl.setopt(option, value)

    def request(self, url: str, offset: int, size: int) -> _Answer | Failure:
        """The answer to one request for a range; a redirect is not followed. `url` is in normal form."""
        self._status, self._max_bytes, self._num_bytes, self._refused = 0, size, 0, None
        self._headers, self._parts, self._next = {}, [], "status"
        self._curl.setopt(pycurl.URL, url)
        self._curl.setopt(pycurl.RANGE, f"{offset}-{offset + size - 1}")
        try:
            self._curl.perform()
        except pycurl.error as error:
            code, message = error.args
            if code != pycurl.E_WRITE_ERROR:  # a body that is not wanted is ended in `_body`
                return self._failure(code, message)
        finally:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        if self._num_bytes > size:
            return Failure(f"more than the {size:,} bytes that were asked for")
        if not self._status:
            return Failure("not an answer of HTTP: its first line has no status")
        return _Answer(self._status, self._headers, b"".join(self._parts))

    def _failure(self, code: int, message: str) -> Failure:
        if self._refused is not None and not self._status:
            return Failure(f"{self._refused} is a private address; if it is meant, add it to download.allow_networks")
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return Failure(f"no answer, or less than {_LEAST_BYTES_PER_S >> 10} KiB/s, for {self._timeout_s:g} s", True)
        os_errno = self._curl.getinfo(pycurl.OS_ERRNO)
        return of_curl(code, message, os_errno, num_bytes=self._num_bytes, answered=self._status > 0)

    # libcurl's callbacks

    def _open_socket(self, purpose: int, address: Any) -> Any:
        del purpose
        host, port = address.addr[:2]
        host = host.decode() if isinstance(host, bytes) else host
        if not self._may_connect(host, port):
            self._refused = host
            return pycurl.SOCKET_BAD
        if self._socket is not None:
            self._socket.close()
        try:
            self._socket = socket.socket(address.family, address.socktype, address.protocol)
        except OSError:  # too many open files, or the address family is not supported
            self._socket = None
            return pycurl.SOCKET_BAD
        return self._socket  # pycurl takes a duplicate after this call

    def _header(self, line: bytes) -> None:
        if self._next == "status":
            found = _STATUS.match(line)
            self._headers, self._status, self._next = {}, int(found[1]) if found else 0, "header"
        elif self._next == "header" and line.strip():
            name, _, value = line.decode("utf-8", "replace").partition(":")
            self._headers[name.strip().lower()] = value.strip()
        elif self._next == "header":  # after 1xx comes another answer; else what follows the body says nothing about it
            self._next = "status" if 100 <= self._status < 200 else "body"

    def _body(self, chunk: bytes) -> int | None:
        if self._status != 206:
            length = self._headers.get("content-length", "")
            return None if length.isdecimal() and int(length[:18]) <= _DRAINED_BYTES else 0
        self._num_bytes += len(chunk)
        if self._num_bytes > self._max_bytes:
            return 0
        self._parts.append(chunk)
        return None
