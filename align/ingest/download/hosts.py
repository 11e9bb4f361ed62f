"""The state of a host: its queue, its limits, when it may be asked again. A host is a scheme, a name and a port."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from align.ingest.download.addresses import Target
from align.ingest.download.failure import Failure


@dataclass(slots=True, eq=False)
class Job:
    """A picture to fetch, or a robots.txt.

    Attributes:
        url: as given.
        target: the URL to request next: the first one, or the target of a redirect.
        first: the first one.
        robots_of: the host whose robots.txt this is; None for a picture.
        started_s, deadline_s: on the downloader's clock; None before the first attempt.
        attempt_s: when the current attempt started.
        expires_s: when the current request times out.
        left_s: the attempt's remaining time after redirects.
        num_attempts: so far.
        num_redirects: of the current attempt.
        status: of the last answer.
        failure: of the last attempt.
    """

    url: str
    target: Target
    first: Target
    robots_of: Host | None = None
    started_s: float | None = None
    deadline_s: float = 0.0
    attempt_s: float = 0.0
    expires_s: float = 0.0
    left_s: float = 0.0
    num_attempts: int = 0
    num_redirects: int = 0
    status: int | None = None
    failure: Failure | None = None


class Host:
    """A host's queue and limits.

    Attributes:
        queue: jobs to start.
        robots_queue: jobs for a robots.txt, of this host or of one that redirects here; they go first.
        num_active: requests under way.
        max_active: most requests under way: halved when the host says that it is busy, then slowly raised again.
        free_at_s: no request starts before this time.
        is_listed: it waits for its turn or for `free_at_s`.
        robots: the rules of its robots.txt for us; None: not known yet.
        robots_until_s: until when these hold.
        asks_robots: its robots.txt is being fetched.
        closed: it is given up until `closed_until_s`: all its jobs fail with this.
    """

    __slots__ = (
        "_limit",
        "_num_failures",
        "asks_robots",
        "closed",
        "closed_until_s",
        "free_at_s",
        "is_listed",
        "max_active",
        "num_active",
        "queue",
        "robots",
        "robots_queue",
        "robots_until_s",
        "target",
    )

    def __init__(self, target: Target, limit: int) -> None:
        self.target = target
        self.queue: deque[Job] = deque()
        self.robots_queue: deque[Job] = deque()
        self.num_active = 0
        self.max_active = self._limit = limit
        self.free_at_s = 0.0
        self.is_listed = False
        self.robots: str | None = None
        self.robots_until_s = 0.0
        self.asks_robots = False
        self.closed: Failure | None = None
        self.closed_until_s = 0.0
        self._num_failures = 0

    @property
    def is_idle(self) -> bool:
        """Whether it has no jobs, so that it can be forgotten."""
        return not (self.queue or self.robots_queue or self.num_active or self.is_listed or self.asks_robots)

    def succeeded(self) -> None:
        """Records an answer of a healthy host: a picture, a redirect, or that there is no picture."""
        self._num_failures = 0
        self.max_active = min(self._limit, self.max_active + 1)

    def failed(self, why: Failure, now: float, *, wait_s: float, longest_wait_s: float, max_failures: int) -> None:
        """Records a failure that may be temporary.

        Args:
            why: what happened.
            now: on the downloader's clock.
            wait_s: before the next request, if the host is busy.
            longest_wait_s: if the host asks for a longer wait, it is given up for that wait.
            max_failures: after this many failures in a row it is given up, too.
        """
        self._num_failures += 1
        if why.busy:
            self.max_active = max(1, self.max_active // 2)
            self.free_at_s = max(self.free_at_s, now + wait_s)
        if why.retry_after_s is not None and why.retry_after_s > longest_wait_s:
            error = f"{why.code}: to be asked again in {why.retry_after_s:,.0f} s"
            self.close(Failure(error, retryable=True, status=why.status), now + why.retry_after_s)
        elif self._num_failures >= max_failures:
            separator = ";" if ":" in why.error else ":"
            error = f"{why.error}{separator} given up after {self._num_failures} such failures in a row"
            self.close(Failure(error, why.retryable, status=why.status), now + longest_wait_s)
            self._num_failures = max_failures - 1  # afterwards one failure is enough

    def close(self, why: Failure, until_s: float) -> None:
        """Gives the host up until a time."""
        self.closed = why
        self.closed_until_s = until_s

    def is_closed(self, now: float) -> bool:
        """Whether the host is given up at this time."""
        if self.closed is not None and now >= self.closed_until_s:
            self.closed = None
        return self.closed is not None
