"""What the downloader makes of an answer, and how many bytes of answers are in memory."""

from __future__ import annotations

import time
from typing import Final

from align.ingest import robots
from align.web.connection import REDIRECTS, Connection
from align.web.failure import Failure, of_status

#: Bytes of headers of one answer, interim answers (103) included.
MAX_HEADER_BYTES: Final = 64 << 10


class Budget:
    """Bytes of bodies in memory. Beyond the limit one transfer continues, and the others pause until it ends.

    So memory is bounded by `limit` plus one picture, and there is no deadlock.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0  # by bodies under way, and results that the caller does not have yet
        self.leader: Connection | None = None  # continues beyond the limit
        self.paused: list[Connection] = []  # wait for the leader; none without one

    @property
    def is_full(self) -> bool:
        """Whether no new request should start."""
        return self.used >= self.limit or self.leader is not None

    def admit(self, connection: Connection, num_bytes: int) -> bool:
        """Counts the bytes and returns True, or returns False: the transfer must pause."""
        if self.used + num_bytes > self.limit and self.leader is not connection:
            if self.leader is not None:
                self.paused.append(connection)
                return False
            self.leader = connection
        self.used += num_bytes
        return True

    def release(self, connection: Connection) -> None:
        """Records the end of a transfer; paused ones may continue."""
        self.used -= connection.num_bytes
        if connection in self.paused:
            self.paused.remove(connection)
        if connection is self.leader:
            self.leader = None
        if self.leader is None:
            paused, self.paused = self.paused, []
            for waiting in paused:
                waiting.resume()


def location_of(connection: Connection) -> str | None:
    """Where a redirect leads, as sent; None if the answer is no redirect."""
    return connection.headers.get("location", [None])[0] if connection.status in REDIRECTS else None


def judge(connection: Connection, token: str | None) -> Failure | None:
    """What is wrong with an answer whose headers are there.

    `token` is that of our user agent; None: what its headers say to robots does not apply.
    """
    if connection.status != 200:
        if location_of(connection) is not None:
            return None
        return of_status(connection.status, connection.header("retry-after"), time.time())
    if token is None:
        return None
    tags = connection.headers.get("x-robots-tag")
    if tags and (directive := robots.opt_out(tags, token)):
        return Failure(f"X-Robots-Tag: {directive}", status=200)
    if "1" in connection.headers.get("tdm-reservation", ()):
        return Failure("reserved: tdm-reservation", status=200)
    if field := robots.usage_opt_out(lambda name: connection.headers.get(name.lower(), ())):
        return Failure(f"{field}: in its headers", status=200)
    return None
