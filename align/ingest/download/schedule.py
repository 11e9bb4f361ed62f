"""Which request comes next: hosts take turns, each within its limits."""

from __future__ import annotations

import heapq
from collections import deque

from align.ingest.download.hosts import Ask, Host, Hosts, Job
from align.web.addresses import Target


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
