"""One request of ours and its answer, on libcurl. The downloader drives many at a time, a file on a web server waits.

Whoever answers may be hostile: a socket is opened only to an address that the policy allows, at every look-up of a
name; headers and body are bounded, as sent and as decoded; and a body that nobody wants is not read.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import pycurl

from align.web.failure import ADDRESS_REFUSED, Failure, of_curl

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
#: Shorter bodies of errors and redirects are read and ignored, so that the connection can be used again; longer ones
#: end it.
_DRAINED_BYTES: Final = 16 << 10
#: The most bytes that `_body` gets in one call; libcurl has one such buffer.
_BUFFER_BYTES: Final = 256 << 10
_STATUS: Final = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+([1-9]\d\d)\s")
_KEPT: Final = re.compile(
    rb"^(content-(?:length|encoding|range|usage|signal)|location|retry-after|etag|last-modified|x-robots-tag|tdm-reservation)"
    rb":([^\r\n]*+)",
    re.IGNORECASE | re.MULTILINE,
)
#: zlib's window bits for gzip and zlib; data called deflate may lack zlib's header.
_GZIP_OR_ZLIB: Final = 47
_BARE_DEFLATE: Final = -15


class Connection:
    """A libcurl handle, and the connections that it keeps. One request at a time, and one thread.

    Args:
        user_agent: the name that we send.
        connect_timeout_s: for name resolution, connection and TLS.
        may_connect: whether a socket may be opened to an address and port.
        options: more of libcurl's.
        max_header_bytes: of one answer, interim answers (103) included; libcurl takes no more than 300 KiB.
        admit: asked before bytes of a body are kept; where it says no, the transfer pauses until `resume`.

    Attributes:
        easy: the handle; its attribute `connection` is this object.
        max_bytes: of the body.
        status: of HTTP; 0 before the answer.
        headers: the values of those that matter, in order, by name in lower case.
        num_bytes: of the body so far, as sent.
        is_paused: it waits for `resume`.
        is_broken: the caller must end it, since libcurl does not.
        failure: why it was, or will be, given up.
    """

    def __init__(
        self,
        user_agent: str,
        connect_timeout_s: float,
        may_connect: Callable[[str, int], bool],
        options: Mapping[int, Any],
        *,
        max_header_bytes: int,
        admit: Callable[[Connection, int], bool] = lambda _, num_bytes: True,
    ) -> None:
        self._may_connect, self._admit = may_connect, admit
        self._max_header_bytes = max_header_bytes
        self._socket: socket.socket | None = None
        self.easy: Any = pycurl.Curl()
        self.easy.connection = self
        ours: dict[int, Any] = {
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
        for option, value in (ours | dict(options)).items():
            self.easy.setopt(option, value)
        self._reset()

    def _reset(self) -> None:
        self.status, self.num_bytes = 0, 0
        self.headers: dict[str, list[str]] = {}
        self.is_paused = self.is_broken = False
        self.failure: Failure | None = None
        self._lines: list[bytes] = []
        self._num_header_bytes = 0
        self._coding = ""
        self._parts: list[bytes] = []
        self._drains = self._is_cut = False
        self._refused: str | None = None

    def prepare(
        self,
        url: str,
        max_bytes: int,
        *,
        judge: Callable[[Connection], Failure | None] = lambda _: None,
        offset: int | None = None,
        cuts: bool = False,
    ) -> None:
        """Makes the handle ready for a request. A redirect is not followed.

        Args:
            url: in normal form.
            max_bytes: of the body, as sent and as decoded.
            judge: called when the headers are there; a failure ends the request before its body.
            offset: asks for `max_bytes` bytes from there on, as they are stored: the body of status 206 is kept, and
                no coding undone. None: for all, and the body of status 200 is kept.
            cuts: a longer body is cut off, not refused.
        """
        self._reset()
        self.max_bytes, self._judge, self._cuts = max_bytes, judge, cuts
        self._wanted = 200 if offset is None else 206
        self.easy.setopt(pycurl.URL, url)
        # With HTTP/2 a new host's other requests wait for the first connection and share it.
        self.easy.setopt(pycurl.PIPEWAIT, url.startswith("https:"))
        if offset is not None:
            self.easy.setopt(pycurl.RANGE, f"{offset}-{offset + max_bytes - 1}")

    def perform(self) -> bytes | Failure:
        """Makes the request that was prepared and waits for its end. Returns as `result`."""
        try:
            self.easy.perform()
        except pycurl.error as error:
            return self.result(*error.args)
        finally:
            self._close_socket()
        return self.result()

    def result(self, code: int = 0, message: str = "") -> bytes | Failure:
        """The body, its coding undone, or the failure, after libcurl ended with this code (0: no error).

        Without a failure and with a status whose body is not kept, it is empty.
        """
        if self.failure is not None:
            return self.failure
        if code and not self._is_cut:
            if self._refused is not None and not self.status:
                return Failure(f"{ADDRESS_REFUSED}: {self._refused}")
            os_errno = self.easy.getinfo(pycurl.OS_ERRNO)
            return of_curl(code, message, os_errno, num_bytes=self.num_bytes, answered=bool(self._lines))
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        return self._decoded(data) if self._coding else data

    def resume(self) -> None:
        """Continues after a pause."""
        self.is_paused = False
        try:
            self.easy.pause(pycurl.PAUSE_CONT)  # calls `_body` at once
        except pycurl.error as error:
            self.failure = self.failure or Failure(f"connection lost: {error.args[1]}", retryable=True)
            self.is_broken = True

    def release(self) -> None:
        """Frees the body, after a request that `perform` did not make."""
        self._close_socket()
        self._reset()

    def close(self) -> None:
        """Frees the handle."""
        self.easy.close()

    def header(self, name: str) -> str:
        """The last value of a header; empty without it."""
        return self.headers.get(name, [""])[-1]

    # libcurl's callbacks: any result but None ends the request.

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
        if self._num_header_bytes > self._max_header_bytes:
            self.failure = Failure(f"too large: more than {self._max_header_bytes >> 10} KiB of headers")
            return 0
        if self.status:  # trailers
            return None
        if line not in (b"\r\n", b"\n"):
            self._lines.append(line)
            return None
        found = _STATUS.match(self._lines[0])
        if found is None:
            self.failure = Failure("not HTTP: its first line is not an answer of HTTP")
            return 0
        if found[1].startswith(b"1"):  # an interim answer, such as 103
            self._lines.clear()
            return None
        self.status = int(found[1])
        return self._judge_headers()

    def _judge_headers(self) -> int | None:
        for name, value in _KEPT.findall(b"".join(self._lines)):
            self.headers.setdefault(name.decode().lower(), []).append(value.strip(b" \t").decode("utf-8", "replace"))
        self.failure = self._judge(self)
        length = self.header("content-length")
        size = int(length[:18]) if length.isascii() and length.isdigit() else None
        if self.status != self._wanted:
            self._drains = size is not None and size <= _DRAINED_BYTES
            self._is_cut = not self._drains
            return None if self._drains else 0
        self._coding = self.header("content-encoding").lower() if self._wanted == 200 else ""
        if self._coding == "identity":
            self._coding = ""
        if self.failure is None and not self._cuts:
            if size is not None and size > self.max_bytes:
                self.failure = Failure(f"too large: {size:,} bytes by the header", status=self.status)
            elif self._coding not in ("", "gzip", "x-gzip", "deflate"):
                self.failure = Failure(f"broken encoding: {self._coding[:20]} was not asked for", status=self.status)
        return 0 if self.failure else None

    def _body(self, chunk: bytes) -> int | None:
        if self._drains:
            return None
        if self.num_bytes + len(chunk) > self.max_bytes:
            if not self._cuts:
                self.failure = Failure(f"too large: more than {self.max_bytes:,} bytes", status=self.status)
                return 0
            chunk, self._is_cut = chunk[: self.max_bytes - self.num_bytes], True
        count = len(chunk)
        if not self._admit(self, count):
            self.is_paused = True
            return pycurl.WRITEFUNC_PAUSE  # type: ignore[no-any-return] # pycurl has no types
        self.num_bytes += count
        self._parts.append(chunk)
        return 0 if self._is_cut else None

    def _decoded(self, data: bytes) -> bytes | Failure:
        windows = (_GZIP_OR_ZLIB, _BARE_DEFLATE) if self._coding == "deflate" else (_GZIP_OR_ZLIB,)
        for window in windows:
            undo = zlib.decompressobj(window)
            try:
                decoded = undo.decompress(data, self.max_bytes + 1)
            except zlib.error:
                continue
            if len(decoded) > self.max_bytes and self._cuts:
                return decoded[: self.max_bytes]
            if len(decoded) > self.max_bytes:
                return Failure(f"too large: more than {self.max_bytes:,} bytes decoded", status=self.status)
            if undo.eof:
                return decoded
            return Failure(f"truncated: {self._coding} data end early", retryable=True, status=self.status)
        return Failure(f"broken encoding: no {self._coding} data", status=self.status)
