"""What went wrong with a request. An error is a short, stable code, followed by a colon and details."""

from __future__ import annotations

import os
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from errno import ECONNREFUSED
from typing import Final

import pycurl

#: Request timeout, too early, too many requests; server errors are temporary, too.
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429})
#: Server errors that are permanent: not implemented, HTTP version not supported.
_LASTING_STATUS: Final = frozenset({501, 505})
#: The code of a failure whose host has an address that the policy does not allow; the address follows.
ADDRESS_REFUSED: Final = "address refused"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no picture.

    Attributes:
        error: code, or code and details: `HTTP 404`, `timed out: no answer within 30 s`.
        retryable: the reason may be temporary.
        retry_after_s: the wait that the server asks for, if any.
        busy: the server says that it gets too many requests.
        status: of HTTP, where there was an answer.
    """

    error: str
    retryable: bool = False
    retry_after_s: float | None = None
    busy: bool = False
    status: int | None = None

    @property
    def code(self) -> str:
        """The stable part of the error: the part before the colon."""
        return self.error.partition(":")[0]


def of_status(status: int, retry_after: str | None, now: float) -> Failure:
    """The failure for an HTTP status, other than 200 and redirects.

    Args:
        status: the status code.
        retry_after: value of that header: seconds or a date (RFC 9110, 10.2.3).
        now: seconds since the epoch.
    """
    retryable = status in _TRANSIENT_STATUS or (status >= 500 and status not in _LASTING_STATUS)
    wait_s = _seconds(retry_after, now) if retry_after and retryable else None
    return Failure(f"HTTP {status}", retryable, wait_s, busy=status in (429, 503), status=status)


def _seconds(retry_after: str, now: float) -> float | None:
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def of_curl(code: int, message: str, os_errno: int, *, num_bytes: int, answered: bool) -> Failure:
    """The failure for one of libcurl's error codes.

    Args:
        code: CURLE_...
        message: of libcurl.
        os_errno: of the last system call that failed, or 0.
        num_bytes: of the body, received so far.
        answered: at least the beginning of an answer was received.
    """
    if code in (pycurl.E_URL_MALFORMAT, pycurl.E_UNSUPPORTED_PROTOCOL):
        if "HTTP/0.9" in message:
            return Failure("not HTTP")
        return Failure(f"invalid URL: {message}")
    if code == pycurl.E_COULDNT_RESOLVE_HOST:
        return Failure("DNS failure", retryable=True)
    if code == pycurl.E_COULDNT_CONNECT:
        if os_errno == ECONNREFUSED:
            return Failure("connection refused", retryable=True)
        return Failure(f"cannot connect: {os.strerror(os_errno) if os_errno else message}", retryable=True)
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return Failure("timed out: no connection", retryable=True)
    if code in (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_CIPHER):
        return Failure(f"TLS: {message}")
    if code == pycurl.E_SSL_CONNECT_ERROR:
        return Failure(f"TLS: {message}", retryable=True)
    if code == pycurl.E_FTP_WEIRD_SERVER_REPLY:
        return Failure("not HTTP")
    if answered:
        return Failure(f"truncated: connection lost after {num_bytes:,} bytes", retryable=True)
    return Failure(f"connection lost: {message}", retryable=True)
