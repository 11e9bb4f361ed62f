"""The loop of the downloader: starts requests and handles their outcomes.

Redirects are followed here, not by libcurl, so that each hop obeys the limits and the robots.txt of its host. The clock
stops while the caller handles a result, so that a slow caller makes no picture time out.

libcurl's sockets and timers wait on epoll, so idle connections cost nothing.
"""

from __future__ import annotations

import select
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self
from urllib.parse import urljoin

import pycurl

from align.config.ingest import DownloadConfig
from align.ingest import robots
from align.ingest.download.exchange import MAX_HEADER_BYTES, Budget, judge, location_of
from align.ingest.download.hosts import Ask, Host, Job, Schedule
from align.ingest.download.slow_hosts import SlowHosts
from align.web.addresses import MAX_REDIRECTS, Target, address_policy, target_of
from align.web.connection import Connection
from align.web.failure import Failure


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome of a URL."""

    url: str  # as given
    data: bytes | None  # the picture, content encoding undone
    error: str | None  # a short, stable code, and details after a colon; None: a picture, or `moved`
    retryable: bool  # the failure may be temporary
    num_attempts: int  # requests, redirects not counted; 0: the URL was refused before the first one
    wall_s: float  # since the start of the first attempt, waits included
    moved: Ask | None = None  # it was redirected to a host that somebody else asks


_EVENTS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}
#: Transfers for each multi handle of libcurl, on average. It resolves ten names at a time: it has twenty threads for
#: that (CURLMOPT_RESOLVE_THREADS_MAX, which pycurl cannot set), and a name takes two.
_TRANSFERS_PER_MULTI: Final = 10


class Transfers:
    """The transfers under way, each an easy handle of libcurl.

    There are as many multi handles as it takes to resolve the names of all transfers at the same time, and a host
    always has the same one. With only one, ten names whose servers do not answer make all other hosts time out.
    With the idle connections that are kept, there are about twice `max_connections`.
    """

    def __init__(self, max_connections: int, max_per_host: int) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}  # socket -> which multi handle
        num_multis = -(-max_connections // _TRANSFERS_PER_MULTI)
        self._timers: list[float | None] = [None] * num_multis
        self._multis: list[Any] = []
        for number in range(num_multis):
            multi = pycurl.CurlMulti()
            multi.setopt(pycurl.M_SOCKETFUNCTION, partial(self._watch, number))
            multi.setopt(pycurl.M_TIMERFUNCTION, partial(self._set_timer, number))
            multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
            multi.setopt(pycurl.M_MAXCONNECTS, min(max_connections, max(max_per_host, 2 * _TRANSFERS_PER_MULTI)))
            self._multis.append(multi)

    def add(self, easy: Any, origin: str) -> None:
        """Starts a transfer from that host; `wait` continues it."""
        self._multis[zlib.crc32(origin.encode()) % len(self._multis)].add_handle(easy)

    def wait(self, timeout_s: float) -> Iterator[tuple[Any, int, str]]:
        """Continues the transfers, and waits at most `timeout_s` seconds for something to happen.

        Yields each finished transfer: its easy handle, libcurl's code (0: no error) and libcurl's message.
        """
        if due := [timer for timer in self._timers if timer is not None]:
            timeout_s = min(timeout_s, min(due) - time.monotonic())
        continued = set()
        for fd, _ in self._epoll.poll(max(0.0, timeout_s)):
            number = self._watched.get(fd)
            if number is not None:  # an earlier event may have ended it
                continued.add(number)
                self._multis[number].socket_action(fd, 0)  # libcurl finds out what is possible
        now = time.monotonic()
        for number, timer in enumerate(self._timers):
            if timer is not None and timer <= now:
                self._timers[number] = None
                continued.add(number)
                self._multis[number].socket_action(pycurl.SOCKET_TIMEOUT, 0)
        for number in sorted(continued):
            left = 1
            while left:
                left, good, bad = self._multis[number].info_read()
                yield from ((easy, 0, "") for easy in good)
                yield from bad

    def close(self) -> None:
        """Closes all connections."""
        for multi in self._multis:
            multi.close()
        self._epoll.close()

    def _watch(self, number: int, what: int, fd: int, multi: Any, data: Any) -> None:
        del multi, data
        if what == pycurl.POLL_REMOVE:
            self._watched.pop(fd, None)
            with suppress(OSError, ValueError):  # already closed
                self._epoll.unregister(fd)
        elif fd in self._watched:
            self._epoll.modify(fd, _EVENTS[what])
        else:
            self._watched[fd] = number
            self._epoll.register(fd, _EVENTS[what])

    def _set_timer(self, number: int, timeout_ms: int) -> None:
        self._timers[number] = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000


#: Bytes of all bodies in flight, for any number of connections; one picture may exceed it, so that there is progress.
_MAX_BYTES_IN_FLIGHT: Final = 128 << 20
#: URLs that are read ahead, so that a slow host does not delay the others: more than a shard of the default size has.
_LOOK_AHEAD: Final = 16_384
_TAKEN_AT_ONCE: Final = 1024
#: Seconds between two checks of time-outs: a time-out can be noticed this late.
_SWEEP_S: Final = 0.05


class Downloader:
    """Fetches pictures. A context manager: it keeps connections and the state of hosts between calls.

    Args:
        config: the limits.
        refuse: called before each request, redirects included. It returns why a URL must not be requested, or None.
        address_allowed: whether a socket may be opened to an address and port; replaces `allow_networks`.
        curl_options: more options of every libcurl handle, such as another list of certificate authorities.
        is_ours: whether redirects to a target are followed here; None: all are. Those of robots.txt always are.
    """

    def __init__(
        self,
        config: DownloadConfig,
        *,
        refuse: Callable[[str], str | None] | None = None,
        address_allowed: Callable[[str, int], bool] | None = None,
        curl_options: Mapping[int, Any] | None = None,
        is_ours: Callable[[Target], bool] | None = None,
    ) -> None:
        self._config = config
        self._is_ours = is_ours or (lambda _: True)
        self._slow = SlowHosts()
        self._refuse = refuse or (lambda _: None)
        self._token = robots.token_of(config.user_agent)
        self._training_robots = tuple(map(str.lower, config.training_robots))
        self._judge_rules = partial(judge, token=None)
        self._judge_picture = partial(judge, token=self._token if config.obey_robots else None)
        self._may_connect = address_allowed or address_policy(config.allow_networks)
        self._curl_options = curl_options or {}
        self._transfers = Transfers(config.max_connections, config.max_connections_per_host)
        self._budget = Budget(_MAX_BYTES_IN_FLIGHT)
        self._schedule = Schedule(
            config.max_connections_per_host, config.max_requests_per_host_per_s, obey_robots=config.obey_robots
        )
        self._idle: list[Connection] = []
        self._active: dict[Connection, tuple[Job, Host]] = {}
        self._results: deque[Fetched] = deque()
        self._num_open = 0
        self._held_s = 0.0
        self._swept_s = 0.0
        self._is_fetching = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._abandon()
        self._transfers.close()
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def fetch(self, urls: Iterable[str | Ask]) -> Generator[Fetched]:
        """Fetches pictures, many at the same time.

        Args:
            urls: each only once; at most `_LOOK_AHEAD` of them are read ahead. An `Ask` continues after a redirect.

        Yields:
            One result per URL, in the order in which they finish. A failure is a result, too.

        Raises:
            RuntimeError: an earlier call has not finished.
        """
        if self._is_fetching:
            raise RuntimeError("Downloader.fetch: an earlier call has not finished")
        self._is_fetching = True
        source = iter(urls)
        is_exhausted = False
        try:
            while True:
                if not is_exhausted:
                    is_exhausted = self._take(source)
                self._start_ready()
                while self._results:
                    start = time.monotonic()
                    fetched = self._results.popleft()
                    self._budget.used -= len(fetched.data or b"")
                    yield fetched
                    del fetched
                    self._held_s += time.monotonic() - start
                if is_exhausted and not self._num_open:
                    return
                self._advance(wait=is_exhausted or self._num_open >= _LOOK_AHEAD)
        finally:
            self._abandon()
            self._is_fetching = False

    def _now(self) -> float:
        return time.monotonic() - self._held_s

    # Starting requests.

    def _take(self, source: Iterator[str | Ask]) -> bool:
        """Queues more URLs. Returns True when there are no more."""
        for _ in range(min(_TAKEN_AT_ONCE, _LOOK_AHEAD - self._num_open)):
            given = next(source, None)
            if given is None:
                return True
            ask = Ask(given, given) if isinstance(given, str) else given
            self._num_open += 1
            try:
                target = target_of(ask.target)
            except ValueError as error:
                self._settle(ask.url, None, Failure(f"invalid URL: {error}"))
                continue
            if refusal := self._refuse(target.url):
                self._settle(ask.url, None, Failure(refusal))
            else:
                self._schedule.add(Job(ask, target, target, num_redirects=ask.num_redirects))
        return False

    def _start_ready(self) -> None:
        """Starts all requests that may start now."""
        now = self._now()
        while len(self._active) < self._config.max_connections and not self._budget.is_full:
            following = self._schedule.next(now)
            if following is None:
                return
            self._start(*following, now)

    def _start(self, job: Job, host: Host, now: float) -> None:
        config = self._config
        if host.is_closed(now):
            self._finish(job, host.closed or Failure("host closed"))
            return
        is_robots = job.robots_of is not None
        if not is_robots and host.rules is not None and (refusal := host.rules.refusal(job.target.url)):
            self._finish(job, Failure(refusal))
            return
        if job.started_s is None:
            job.started_s, job.deadline_s = now, now + config.deadline_s
        if now >= job.deadline_s:
            self._finish(job, job.failure or Failure(f"timed out: {config.deadline_s:g} s are over", retryable=True))
            return
        if not job.left_s:
            job.num_attempts += 1
            job.attempt_s, job.left_s = now, config.timeout_s
        job.expires_s = min(now + job.left_s, job.deadline_s)
        connection = self._idle.pop() if self._idle else self._new_connection()
        if is_robots:
            connection.prepare(job.target.url, robots.MAX_BYTES, judge=self._judge_rules, cuts=True)
        else:
            connection.prepare(job.target.url, config.max_image_bytes, judge=self._judge_picture)
        self._active[connection] = job, host
        self._schedule.started(host, now)
        self._transfers.add(connection.easy, host.target.origin)

    def _new_connection(self) -> Connection:
        return Connection(
            self._config.user_agent,
            self._config.connect_timeout_s,
            self._may_connect,
            self._curl_options,
            max_header_bytes=MAX_HEADER_BYTES,
            admit=self._budget.admit,
        )

    # Handling outcomes.

    def _advance(self, *, wait: bool) -> None:
        """Advances the requests under way and ends those that take too long."""
        now = self._now()
        timeout_s = _SWEEP_S if wait and not self._results else 0.0
        for easy, code, message in self._transfers.wait(self._schedule.wait_s(now, timeout_s)):
            connection: Connection = easy.connection
            if connection in self._active:
                self._end(connection, connection.result(code, message))
        now = self._now()
        if now - self._swept_s >= _SWEEP_S:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        late = []
        for connection, (job, _) in self._active.items():
            if connection.is_paused:  # we paused it, not the host
                job.expires_s = min(job.deadline_s, job.expires_s + now - self._swept_s)
            if now >= job.expires_s or connection.is_broken:
                late.append(connection)
        for connection in late:
            words = f"after {connection.num_bytes:,} bytes" if connection.status else "no answer"
            failure = Failure(f"timed out: {words}", retryable=True, status=connection.status or None)
            self._end(connection, connection.failure or failure)
        self._swept_s = now

    def _end(self, connection: Connection, outcome: bytes | Failure) -> None:
        """Handles the end of a request."""
        job, host = self._active.pop(connection)
        location, job.status = location_of(connection), connection.status or None
        self._put_back(connection)
        host.num_active -= 1
        now = self._now()
        if outcome == b"" and location is None and job.robots_of is None:
            outcome = Failure("empty body")
        if isinstance(outcome, Failure):
            self._failed(job, host, outcome, now)
        else:
            host.succeeded()
            if location is None:
                self._finish(job, outcome)
            else:
                self._redirect(job, location, now)
        self._schedule.offer(host)

    def _put_back(self, connection: Connection) -> None:
        connection.easy.multi().remove_handle(connection.easy)
        self._budget.release(connection)
        connection.release()
        self._idle.append(connection)

    def _redirect(self, job: Job, location: str, now: float) -> None:
        job.num_redirects += 1
        job.left_s = max(1e-3, job.expires_s - now)
        if job.num_redirects > MAX_REDIRECTS:
            self._finish(job, Failure("too many redirects", status=job.status))
            return
        try:
            job.target = target_of(urljoin(job.target.url, location))
        except ValueError as error:
            self._finish(job, Failure(f"broken redirect: {error}", status=job.status))
            return
        if refusal := self._refuse(job.target.url):
            self._finish(job, Failure(refusal, status=job.status))
        elif job.robots_of is None and not self._is_ours(job.target):
            self._settle(job.ask.url, job, Ask(job.ask.url, job.target.url, job.num_redirects))
        else:
            self._schedule.add(job, first=True)

    def _failed(self, job: Job, host: Host, failure: Failure, now: float) -> None:
        config = self._config
        if not failure.retryable:
            if failure.status:
                host.succeeded()
            self._finish(job, failure)
            return
        # Counted from the attempt's start: a time-out has waited already, a refused connection has not.
        backoff_s = config.backoff_s * 2 ** (job.num_attempts - 1) - (now - job.attempt_s)
        wait_s = max(backoff_s, failure.retry_after_s or 0.0, 0.0)
        host.failed(
            failure, now, wait_s=wait_s, longest_wait_s=config.deadline_s, max_failures=config.max_failures_per_host
        )
        if failure.busy:
            self._slow.say_of(host.target.host, failure, host.closed if host.is_closed(now) else None)
        if job.num_attempts > config.num_retries or now + wait_s >= job.deadline_s or host.is_closed(now):
            self._finish(job, failure)
            return
        job.target, job.num_redirects, job.left_s = job.first, job.ask.num_redirects, 0.0
        job.failure = failure
        self._schedule.later(now + wait_s, job)

    def _finish(self, job: Job, outcome: bytes | Failure) -> None:
        """Handles the last outcome of a job."""
        if job.robots_of is None:
            self._settle(job.ask.url, job, outcome)
            return
        host, now = job.robots_of, self._now()
        host.asks_robots = False
        if isinstance(outcome, Failure):
            # RFC 9309, 2.3.1: a client error or too many redirects mean that there are no rules. After any other
            # failure nothing may be fetched until the rules are known.
            status = outcome.status or 0
            if (400 <= status < 500 and not outcome.retryable) or outcome.code == "too many redirects":
                outcome = b""
            elif not host.is_closed(now):
                error = f"robots.txt unreachable: {outcome.error}" if status else outcome.error
                host.close(Failure(error, outcome.retryable, status=outcome.status), now + self._config.deadline_s)
        if isinstance(outcome, bytes):
            rules = robots.rules_for(self._token, outcome, self._training_robots)
            if not self._schedule.hosts.keep_rules(host, rules, now + robots.LIFETIME_S):
                host.close(Failure("robots.txt: too large to keep now", retryable=True), now + self._config.deadline_s)
        self._schedule.offer(host)

    def _settle(self, url: str, job: Job | None, outcome: bytes | Failure | Ask) -> None:
        failure = outcome if isinstance(outcome, Failure) else None
        data = outcome if isinstance(outcome, bytes) else None
        wall_s = self._now() - job.started_s if job and job.started_s is not None else 0.0
        self._budget.used += len(data or b"")
        self._num_open -= 1
        self._results.append(
            Fetched(
                url,
                data,
                failure.error if failure else None,
                failure is not None and failure.retryable,
                job.num_attempts if job else 0,
                wall_s,
                outcome if isinstance(outcome, Ask) else None,
            )
        )

    def _abandon(self) -> None:
        """Ends the requests under way and forgets all URLs."""
        self._budget.paused.clear()
        for connection in self._active:
            self._put_back(connection)
        self._schedule.clear()
        self._budget.used = 0
        self._active.clear()
        self._results.clear()
        self._num_open = 0
