"""One request and its answer. The handle, and libcurl's connections with it, is used for many requests in turn."""

from __future__ import annotations

import re
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import pycurl

from align.formats.raw import ADDRESS_REFUSED
from align.ingest import robots
from align.web import failure
from align.web.failure import Failure

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Shorter bodies of errors and redirects are read and ignored, so that the connection can be used again; longer ones
#: end it.
_DRAINED_BYTES: Final = 16 << 10
#: Bytes of headers of one answer, interim answers (103) included.
_MAX_HEADER_BYTES: Final = 64 << 10
#: The most bytes that `_body` gets in one call; libcurl has one such buffer.
_BUFFER_BYTES: Final = 256 << 10
_INTERESTING: Final = re.compile(
    rb"^(content-length|content-encoding|location|retry-after|x-robots-tag|tdm-reservation):([^\r\n]*+)",
    re.IGNORECASE | re.MULTILINE,
)
#: zlib's window bits for gzip and zlib; data called deflate may lack zlib's header.
_GZIP_OR_ZLIB: Final = 47
_BARE_DEFLATE: Final = -15


class Budget:
    """Bytes of bodies in memory. Beyond the limit one transfer continues, and the others pause until it ends.

    So memory is bounded by `limit` plus one picture, and there is no deadlock.

    Attributes:
        used: bytes of bodies under way and of results that the caller does not have yet.
        leader: the transfer that continues beyond the limit.
        paused: the transfers that wait for it; none without a leader.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.leader: Exchange | None = None
        self.paused: list[Exchange] = []

    @property
    def is_full(self) -> bool:
        """Whether no new request should start."""
        return self.used >= self.limit or self.leader is not None

    def admit(self, exchange: Exchange, num_bytes: int) -> bool:
        """Counts the bytes and returns True, or returns False: the exchange must pause."""
        if self.used + num_bytes > self.limit and self.leader is not exchange:
            if self.leader is not None:
                self.paused.append(exchange)
                return False
            self.leader = exchange
        self.used += num_bytes
        return True

    def release(self, exchange: Exchange) -> None:
        """Records the end of an exchange; paused ones may continue."""
        self.used -= exchange.num_bytes
        if exchange in self.paused:
            self.paused.remove(exchange)
        if exchange is self.leader:
            self.leader = None
        if self.leader is None:
            paused, self.paused = self.paused, []
            for waiting in paused:
                waiting.resume()


class Exchange:
    """A libcurl handle with its callbacks.

    Attributes:
        easy: the handle; its attribute `exchange` is this object.
        status: of HTTP; 0 before the answer.
        location: of a redirect, as sent; else None.
        num_bytes: of the body so far, as sent.
        is_paused: it waits for the budget.
        is_broken: it must be ended here, since libcurl does not end it.
        failure: why the exchange was, or will be, given up.
    """

    def __init__(
        self,
        user_agent: str,
        connect_timeout_s: float,
        may_connect: Callable[[str, int], bool],
        budget: Budget,
        curl_options: Mapping[int, Any],
        *,
        obey_robots: bool,
    ) -> None:
        self._may_connect = may_connect
        self._budget = budget
        self._obeyed_token = robots.token_of(user_agent) if obey_robots else None
        self._socket: socket.socket | None = None
        self.easy: Any = pycurl.Curl()
        self.easy.exchange = self
        options: dict[int, Any] = {
            pycurl.USERAGENT: user_agent,
            pycurl.NOSIGNAL: 1,
            pycurl.CONNECTTIMEOUT_MS: max(1, int(connect_timeout_s * 1000)),
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_2TLS,
            pycurl.BUFFERSIZE: _BUFFER_BYTES,
            # No encoding is requested; if one is used anyway, it is undone below, within bounds.
            pycurl.HTTP_CONTENT_DECODING: 0,
            pycurl.PROXY: "",  # nor a proxy from the environment: it would connect to addresses that we refuse
            pycurl.NOPROXY: "*",
            # libcurl walks through all remembered names at every look-up, so it must remember only a few: those of the
            # last second, in which a host's first connections are opened. With its default of 60 s, 16,000 dead hosts
            # cost 0.5 ms a request, and more of them more.
            pycurl.DNS_CACHE_TIMEOUT: 1,
            pycurl.OPENSOCKETFUNCTION: self._open_socket,
            pycurl.HEADERFUNCTION: self._header,
            pycurl.WRITEFUNCTION: self._body,
        }
        for option, value in (options | dict(curl_options)).items():
            self.easy.setopt(option, value)
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.location: str | None = None
        self.num_bytes = 0
        self.is_paused = False
        self.is_broken = False
        self.failure: Failure | None = None
        self._lines: list[bytes] = []
        self._num_header_bytes = 0
        self._headers_end = False
        self._encoding = ""
        self._parts: list[bytes] = []
        self._drains = False
        self._is_cut = False
        self._refused: str | None = None

    def prepare(self, url: str, max_bytes: int, *, is_robots: bool) -> None:
        """Makes the handle ready for a request.

        Args:
            url: in normal form.
            max_bytes: of the body, as sent and as decoded.
            is_robots: the body is a robots.txt: a longer one is cut off, not refused, and X-Robots-Tag does not apply.
        """
        self._reset()
        self._max_bytes = max_bytes
        self._is_robots = is_robots
        self.easy.setopt(pycurl.URL, url)
        # With HTTP/2 a new host's other requests wait for the first connection and share it.
        self.easy.setopt(pycurl.PIPEWAIT, url.startswith("https:"))

    def resume(self) -> None:
        """Continues after a pause."""
        self.is_paused = False
        try:
            self.easy.pause(pycurl.PAUSE_CONT)  # calls `_body` at once
        except pycurl.error as error:
            self.failure = self.failure or Failure(f"connection lost: {error.args[1]}", retryable=True)
            self.is_broken = True

    def result(self, code: int, message: str) -> bytes | Failure:
        """The body or the failure, after libcurl ended the exchange with this code."""
        if self.failure is not None:
            return self.failure
        if code and not self._is_cut:
            if self._refused is not None and not self.status:
                return Failure(f"{ADDRESS_REFUSED}: {self._refused}")
            os_errno = self.easy.getinfo(pycurl.OS_ERRNO)
            return failure.of_curl(code, message, os_errno, num_bytes=self.num_bytes, answered=self._headers_end)
        if self.location is not None:
            return b""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if not data and not self._is_robots:
            return Failure("empty body")
        return self._decoded(data) if self._encoding else data

    def release(self) -> None:
        """Frees the body."""
        self._close_socket()
        self._budget.release(self)
        self._reset()

    def close(self) -> None:
        """Frees the handle."""
        self.easy.close()

    # libcurl's callbacks: any result but None ends the exchange.

    def _open_socket(self, purpose: int, address: Any) -> Any:
        del purpose
        host, port = address.addr[:2]
        if isinstance(host, bytes):
            host = host.decode()
        if not self._may_connect(host, port):
            self._refused = host
            return pycurl.SOCKET_BAD
        try:
            opened = socket.socket(address.family, address.socktype, address.protocol)
        except OSError:  # too many open files, or the address family is not supported
            return pycurl.SOCKET_BAD
        self._close_socket()
        self._socket = opened  # pycurl takes a duplicate after this call, so only the last one is kept
        return opened

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _header(self, line: bytes) -> int | None:
        self._num_header_bytes += len(line)
        if self._num_header_bytes > _MAX_HEADER_BYTES:
            self.failure = Failure(f"too large: more than {_MAX_HEADER_BYTES >> 10} KiB of headers")
            return 0
        if self._headers_end:  # trailers
            return None
        if line not in (b"\r\n", b"\n"):
            self._lines.append(line)
            return None
        status = int(self._lines[0].split(None, 2)[1])
        if status < 200:  # an interim answer, such as 103
            self._lines.clear()
            return None
        self.status = status
        self._headers_end = True
        return self._judge_headers()

    def _judge_headers(self) -> int | None:
        headers: dict[str, list[str]] = {}
        for name, value in _INTERESTING.findall(b"".join(self._lines)):
            headers.setdefault(name.decode().lower(), []).append(value.strip(b" \t").decode("utf-8", "replace"))
        length = headers.get("content-length", [""])[-1]
        size = int(length[:18]) if length.isascii() and length.isdigit() else None
        if self.status != 200:
            self._drains = size is not None and size <= _DRAINED_BYTES
            if self.status in REDIRECTS and "location" in headers:
                self.location = headers["location"][0]
                self._is_cut = not self._drains
            else:
                retry_after = headers.get("retry-after", [None])[-1]
                self.failure = failure.of_status(self.status, retry_after, time.time())
            return None if self._drains else 0
        self._encoding = headers.get("content-encoding", [""])[-1].lower()
        if self._encoding == "identity":
            self._encoding = ""
        if self._is_robots:
            return None
        tags = headers.get("x-robots-tag")
        directive = robots.opt_out(tags, self._obeyed_token) if tags and self._obeyed_token else None
        if directive:
            self.failure = Failure(f"X-Robots-Tag: {directive}", status=200)
        elif self._obeyed_token and "1" in headers.get("tdm-reservation", ()):
            self.failure = Failure("reserved: tdm-reservation", status=200)
        elif size is not None and size > self._max_bytes:
            self.failure = Failure(f"too large: {size:,} bytes by the header", status=200)
        elif self._encoding not in ("", "gzip", "x-gzip", "deflate"):
            self.failure = Failure(f"broken encoding: {self._encoding[:20]} was not asked for", status=200)
        return 0 if self.failure else None

    def _body(self, chunk: bytes) -> int | None:
        if self._drains:
            return None
        if self.num_bytes + len(chunk) > self._max_bytes:
            if not self._is_robots:
                self.failure = Failure(f"too large: more than {self._max_bytes:,} bytes", status=self.status)
                return 0
            chunk, self._is_cut = chunk[: self._max_bytes - self.num_bytes], True
        count = len(chunk)
        if not self._budget.admit(self, count):
            self.is_paused = True
            return pycurl.WRITEFUNC_PAUSE  # type: ignore[no-any-return] # pycurl has no types
        self.num_bytes += count
        self._parts.append(chunk)
        return 0 if self._is_cut else None

    def _decoded(self, data: bytes) -> bytes | Failure:
        windows = (_GZIP_OR_ZLIB, _BARE_DEFLATE) if self._encoding == "deflate" else (_GZIP_OR_ZLIB,)
        for window in windows:
            undo = zlib.decompressobj(window)
            try:
                decoded = undo.decompress(data, self._max_bytes + 1)
            except zlib.error:
                continue
            if len(decoded) > self._max_bytes and self._is_robots:
                return decoded[: self._max_bytes]
            if len(decoded) > self._max_bytes:
                return Failure(f"too large: more than {self._max_bytes:,} bytes decoded", status=self.status)
            if undo.eof:
                return decoded
            return Failure(f"truncated: {self._encoding} data end early", retryable=True, status=self.status)
        return Failure(f"broken encoding: no {self._encoding} data", status=self.status)
