"""Which request comes next: hosts take turns, each within its limits. A host is a scheme, a name and a port.

A crawl names millions of hosts, most of them once, and a third of them dead. So `Hosts` looks at few of them at a time,
and remembers a limited number of those without jobs.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from align.ingest.robots import Rules
from align.web.addresses import Target
from align.web.failure import Failure

#: Hosts to remember: beyond this number, those without jobs are forgotten. There are never so many jobs at a time.
_MAX_HOSTS: Final = 20_000
#: Bytes of the rules of all hosts.
_MAX_RULES_BYTES: Final = 64 << 20
#: Rules that are kept even beyond that.
_FEW_RULES_BYTES: Final = 8 << 10
#: Forgotten hosts of which we remember that they may not be asked yet; about 40 MB.
_MAX_BARRED: Final = 100_000
#: Hosts that are looked at for each new host: more than one, so that their number falls.
_LOOKS: Final = 4


class Ask(NamedTuple):
    """What is asked for."""

    url: str  # names it
    target: str  # the address to request: `url`, or what that was redirected to
    num_redirects: int = 0  # so far


@dataclass(slots=True, eq=False)
class Job:
    """A picture to fetch, or a robots.txt. Times are on the downloader's clock."""

    ask: Ask
    target: Target  # to request next: the first one, or the target of a redirect
    first: Target
    robots_of: Host | None = None  # the host whose robots.txt this is; None for a picture
    started_s: float | None = None  # None before the first attempt
    deadline_s: float = 0.0
    attempt_s: float = 0.0  # when the current attempt started
    expires_s: float = 0.0  # when the current request times out
    left_s: float = 0.0  # the attempt's remaining time after redirects
    num_attempts: int = 0
    num_redirects: int = 0  # of the current attempt, with those before it
    status: int | None = None  # of the last answer
    failure: Failure | None = None  # of the last attempt


@dataclass(slots=True, eq=False)
class Host:
    """A host's queue and limits."""

    target: Target  # an address of it
    limit: int  # most requests under way, ever
    queue: deque[Job] = field(default_factory=deque)
    robots_queue: deque[Job] = field(default_factory=deque)  # of it or of one that redirects here; they go first
    num_active: int = 0  # requests under way
    max_active: int = field(init=False)  # halved when the host says that it is busy, then slowly raised again
    free_at_s: float = 0.0  # no request starts before this time
    is_listed: bool = False  # it waits for its turn or for `free_at_s`
    rules: Rules | None = None  # of its robots.txt for us; None: not known yet
    rules_until_s: float = 0.0
    asks_robots: bool = False  # its robots.txt is being fetched
    closed: Failure | None = None  # it is given up until `closed_until_s`: all its jobs fail with this
    closed_until_s: float = 0.0
    _num_failures: int = 0

    def __post_init__(self) -> None:
        self.max_active = self.limit

    @property
    def is_idle(self) -> bool:
        """Whether it has no jobs, so that it can be forgotten."""
        return not (self.queue or self.robots_queue or self.num_active or self.is_listed or self.asks_robots)

    def succeeded(self) -> None:
        """Records an answer of a healthy host: a picture, a redirect, or that there is no picture."""
        self._num_failures = 0
        self.max_active = min(self.limit, self.max_active + 1)

    def failed(self, why: Failure, now: float, *, wait_s: float, longest_wait_s: float, max_failures: int) -> None:
        """Records a failure that may be temporary: a busy host is not asked for `wait_s`.

        The host is given up after `max_failures` in a row; if it asks for more than `longest_wait_s`, until then.
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


class Hosts:
    """The hosts that are remembered. An operation costs the same for any number of them.

    A host without jobs may be forgotten, the longest unused first. If it may not be asked yet, that is still
    remembered. `max_per_host`: most requests under way to one host.
    """

    def __init__(self, max_per_host: int) -> None:
        self._max_per_host = max_per_host
        self._hosts: OrderedDict[str, Host] = OrderedDict()  # the longest unused first
        self._rules_bytes = 0
        self._barred: dict[str, tuple[float, Failure | None]] = {}
        self._ends: list[tuple[float, str]] = []  # barred hosts; the one that may be asked first comes first

    def __len__(self) -> int:
        return len(self._hosts) + len(self._ends)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def of(self, target: Target) -> Host:
        """The host of a target."""
        origin = target.origin
        host = self._hosts.get(origin)
        if host is not None:
            self._hosts.move_to_end(origin)
            return host
        self._forget()
        host = self._hosts[origin] = Host(target, self._max_per_host)
        until_s, closed = self._barred.pop(origin, (0.0, None))
        if closed is None:
            host.free_at_s = until_s
        else:
            host.close(closed, until_s)
        return host

    def keep_rules(self, host: Host, rules: Rules, until_s: float) -> bool:
        """Sets the host's rules. Returns False if they are too large to be kept beside those of the other hosts."""
        self._rules_bytes -= _size_of(host)
        host.rules = None
        self._forget(rules.num_bytes)
        if rules.num_bytes > _FEW_RULES_BYTES and self._rules_bytes + rules.num_bytes > _MAX_RULES_BYTES:
            return False
        self._rules_bytes += rules.num_bytes
        host.rules, host.rules_until_s = rules, until_s
        return True

    def expire(self, now: float) -> None:
        """Forgets barred hosts: those that may be asked again, and beyond `_MAX_BARRED` those whose turn is next."""
        while self._ends and (self._ends[0][0] <= now or len(self._ends) > _MAX_BARRED):
            until_s, origin = heapq.heappop(self._ends)
            if self._barred.get(origin, (None,))[0] == until_s:
                del self._barred[origin]

    def _forget(self, more_bytes: int = 0) -> None:
        for _ in range(min(_LOOKS, len(self._hosts))):
            if len(self._hosts) < _MAX_HOSTS and self._rules_bytes + more_bytes <= _MAX_RULES_BYTES:
                return
            origin, host = self._hosts.popitem(last=False)
            if not host.is_idle:
                self._hosts[origin] = host
                continue
            self._rules_bytes -= _size_of(host)
            until_s = host.free_at_s if host.closed is None else host.closed_until_s
            if until_s:
                self._barred[origin] = until_s, host.closed
                heapq.heappush(self._ends, (until_s, origin))


def _size_of(host: Host) -> int:
    return 0 if host.rules is None else host.rules.num_bytes


class Schedule:
    """The waiting jobs, by host.

    Most requests to one host: `max_per_host` under way, `rate_per_host` started per second (None: no limit).
    """

    def __init__(self, max_per_host: int, rate_per_host: float | None, *, obey_robots: bool) -> None:
        self._pause_s = 1 / rate_per_host if rate_per_host else 0.0
        self._obey_robots = obey_robots
        self.hosts = Hosts(max_per_host)
        self._ready: deque[Host] = deque()
        self._timers: list[tuple[float, int, Host | Job]] = []
        self._num_timers = 0

    def add(self, job: Job, *, first: bool = False) -> None:
        """Queues a job at the host of its target, at the end or at the front."""
        host = self.hosts.of(job.target)
        queue = host.queue if job.robots_of is None else host.robots_queue
        if first:
            queue.appendleft(job)
        else:
            queue.append(job)
        self.offer(host)

    def offer(self, host: Host) -> None:
        """Gives the host a turn; to be called when it may be able to start a job."""
        if not host.is_listed and (host.queue or host.robots_queue):
            host.is_listed = True
            self._ready.append(host)

    def next(self, now: float) -> tuple[Job, Host] | None:
        """The job to start, or to refuse if its host is closed; None if no job may start now."""
        self.hosts.expire(now)
        while self._timers and self._timers[0][0] <= now:
            _, _, what = heapq.heappop(self._timers)
            if isinstance(what, Job):
                self.add(what, first=True)
            else:
                self._ready.append(what)
        while self._ready:
            host = self._ready.popleft()
            host.is_listed = False
            is_closed = host.is_closed(now)
            if host.num_active >= host.max_active and not is_closed:
                continue  # offered again when one of its requests ends
            if host.free_at_s > now and not is_closed:
                host.is_listed = True
                self.later(host.free_at_s, host)
                continue
            job = self._job_of(host, now, is_closed=is_closed)
            if job is None:
                continue  # offered again when robots.txt has arrived
            self.offer(host)
            return job, host
        return None

    def started(self, host: Host, now: float) -> None:
        """Records that a request to the host was started."""
        host.num_active += 1
        if self._pause_s:
            host.free_at_s = max(host.free_at_s, now) + self._pause_s

    def _job_of(self, host: Host, now: float, *, is_closed: bool) -> Job | None:
        if host.robots_queue:
            return host.robots_queue.popleft()
        if not host.queue:
            return None
        if self._obey_robots and not is_closed and (host.rules is None or now >= host.rules_until_s):
            if host.asks_robots:
                return None
            host.asks_robots = True
            target = Target(f"{host.target.origin}/robots.txt", host.target.origin, host.target.host)
            return Job(Ask(target.url, target.url), target, target, robots_of=host)
        return host.queue.popleft()

    def wait_s(self, now: float, at_most: float) -> float:
        """Seconds until the next timer, at most `at_most`."""
        return min(at_most, max(0.0, self._timers[0][0] - now)) if self._timers else at_most

    def clear(self) -> None:
        """Forgets all jobs, but keeps the rules and limits of hosts."""
        for host in self.hosts:
            host.queue.clear()
            host.robots_queue.clear()
            host.num_active, host.is_listed, host.asks_robots = 0, False, False
        self._ready.clear()
        self._timers.clear()

    def later(self, when_s: float, what: Host | Job) -> None:
        """At that time gives the host a turn, or queues the job at the front."""
        self._num_timers += 1  # equal times: in order of their setting
        heapq.heappush(self._timers, (when_s, self._num_timers, what))
