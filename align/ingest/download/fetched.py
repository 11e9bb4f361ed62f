"""What the downloader gives back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome of a URL.

    Attributes:
        url: as given.
        data: the picture's bytes, content encoding undone; None where there is an error.
        error: a short, stable code, and details after a colon; None where there is a picture.
        retryable: the failure may be temporary.
        num_attempts: requests, redirects not counted; 0 where the URL was refused before the first one.
        http_status: of the last answer, if there was one.
        host: with the port, unless it is the default of the scheme; empty if the URL has no host.
        wall_s: since the start of the first attempt, waits included.
    """

    url: str
    data: bytes | None
    error: str | None
    retryable: bool
    num_attempts: int
    http_status: int | None
    host: str
    wall_s: float
