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
import time
from dataclasses import dataclass
from urllib.parse import urljoin

import pycurl

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig
from align.errors import DataError, ServiceError
from align.services.s3.locations import Stat
from align.web.addresses import MAX_REDIRECTS, address_policy, target_of
from align.web.connection import REDIRECTS, Connection
from align.web.failure import ADDRESS_REFUSED, Failure, of_status

#: A slower answer counts as no answer: at this speed an archive of one gigabyte takes more than a day.
_LEAST_BYTES_PER_S = 10 << 10
#: More than libcurl takes, which then ends the connection.
_MAX_HEADER_BYTES = 1 << 20
#: Seconds before the second attempt, doubled each time; a server's Retry-After counts if longer; and the longest wait.
_BACKOFF_S, _LONGEST_WAIT_S = 0.5, 60.0
#: Characters of a server's or a library's words in our messages.
_SHOWN = 100
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
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
        """Size and ETag (else the time of the last change) of a file. Asks for its first byte: some refuse HEAD. Raises
        DataError if there is no such file, the server refuses access or reads no ranges, or the address is private;
        ServiceError if the server does not answer, or fails.
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
            outcome = self._follow(url, offset, size)
            if not isinstance(outcome, Failure):
                return outcome
            failure = outcome
            if not failure.retryable:
                raise DataError(f"{url}: cannot be read ({failure.error}); check the address")
            if number < self.store.num_retries:
                time.sleep(min(max(_BACKOFF_S * 2**number, failure.retry_after_s or 0.0), _LONGEST_WAIT_S))
        times = f"{self.store.num_retries + 1} times"
        raise ServiceError(f"{url}: failed {times} ({failure.error}); nothing is lost: run again later")

    def _follow(self, url: str, offset: int, size: int) -> tuple[Stat, bytes] | Failure:
        """What the answer at the end of the redirects says. Raises DataError for failures with advice of their own."""
        at, location = "", url
        for _ in range(MAX_REDIRECTS + 1):
            try:
                to = target_of(urljoin(at, location)).url
            except ValueError as error:
                return Failure(f"{'broken redirect' if at else 'broken address'}: {str(error)[:_SHOWN]}")
            if at.startswith("https:") and not to.startswith("https:"):
                return Failure("a redirect from https:// to http://")
            idle = _idle_connections(self, os.getpid())
            try:
                connection = idle.pop()
            except IndexError:  # other threads have them
                connection = self._connection()
            try:
                connection.prepare(to, size, offset=offset)
                data = connection.perform()
                if isinstance(data, Failure):
                    return self._in_words(data, size)
                if connection.status not in REDIRECTS:
                    return _judged(url, connection, offset, data)
                at, location = to, connection.header("location")
            finally:
                idle.append(connection)
        return Failure(f"more than {MAX_REDIRECTS} redirects")

    def _connection(self) -> Connection:
        slow = {
            pycurl.LOW_SPEED_LIMIT: _LEAST_BYTES_PER_S,
            pycurl.LOW_SPEED_TIME: max(1, round(self.store.timeout_s)),
        }
        return Connection(
            self.download.user_agent,
            self.store.timeout_s,
            address_policy(self.download.allow_networks),
            slow,
            max_header_bytes=_MAX_HEADER_BYTES,
        )

    def _in_words(self, failure: Failure, size: int) -> Failure:
        """A failure of a request for so many bytes, with what a person can do who named the file."""
        if failure.code == ADDRESS_REFUSED:
            address = failure.error.partition(": ")[2]
            return Failure(f"{address} is a private address; if it is meant, add it to download.allow_networks")
        if failure.code == "timed out":
            speed = f"less than {_LEAST_BYTES_PER_S >> 10} KiB/s, for {self.store.timeout_s:g} s"
            return Failure(f"no answer, or {speed}", retryable=True)
        if failure.code == "too large":
            return Failure(f"more than the {size:,} bytes that were asked for")
        return failure


@functools.lru_cache(maxsize=8)
def _idle_connections(_files: WebFiles, _process: int) -> list[Connection]:
    """Connections that no thread uses, with equal settings: one that was opened under other rules is never used."""
    return []


def _judged(url: str, answer: Connection, offset: int, data: bytes) -> tuple[Stat, bytes] | Failure:
    """What an answer says about the file, with the bytes of the range; or a failure that a retry may cure.

    Raises DataError for failures with advice of their own.
    """
    status, size = answer.status, answer.max_bytes
    version, span = answer.header("etag") or answer.header("last-modified"), answer.header("content-range")
    if status == 206 and (found := _RANGE.fullmatch(span)):
        first, last, num_bytes = map(int, found.groups())
        coding = answer.header("content-encoding").lower() or "identity"
        if coding != "identity" and not url.lower().endswith((".gz", ".zst")):  # with these it may name the file's own
            return Failure(f"sent with Content-Encoding {coding[:_SHOWN]}, which was not asked for")
        if (first, last) != (offset, min(offset + size, num_bytes) - 1):
            return Failure(f"bytes {first:,} to {last:,} were sent, others were asked for")
        if len(data) != last + 1 - first:
            return Failure(f"truncated: {len(data):,} of {last + 1 - first:,} bytes", retryable=True)
        return Stat(num_bytes, version), data
    if status == 416 and (found := _NO_RANGE.fullmatch(span)) and int(found[1]) <= offset:
        return Stat(int(found[1]), version), b""
    if status == 200 and answer.header("content-length") == "0":  # an empty file has no range
        return Stat(0, version), b""
    if status in (200, 206):
        raise DataError(f"{url}: the server sends no single range of bytes; copy the file to a folder or s3://")
    if status in (404, 410):
        raise DataError(f"{url}: the server has no such file")
    if status in (401, 403):
        raise DataError(f"{url}: the server refuses access ({status}; some answer this for files that do not exist)")
    return of_status(status, answer.header("retry-after"), time.time())
