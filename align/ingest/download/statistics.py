"""Counts over all pictures asked for, and by host; of any number of hosts only the largest are kept apart."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

#: Outcome of a picture that came.
OK = "ok"


@dataclass(slots=True)
class HostStatistics:
    """What became of the pictures of one host.

    Attributes:
        outcomes: how often each: `ok`, or the code of an error (`HTTP 404`, `timed out`).
        num_bytes: of the pictures that came.
        num_attempts: requests for them, redirects not counted.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    num_attempts: int = 0

    @property
    def num_pictures(self) -> int:
        """Asked for, whatever became of them."""
        return self.outcomes.total()

    @property
    def success_share(self) -> float:
        """Pictures that came among those asked for; 0 of none."""
        return self.outcomes[OK] / max(1, self.num_pictures)

    def add(self, other: HostStatistics) -> None:
        """Adds another's counts to these."""
        self.outcomes.update(other.outcomes)
        self.num_bytes += other.num_bytes
        self.num_attempts += other.num_attempts


class Statistics:
    """Of one downloader, since it was made.

    Attributes:
        total: over all hosts.
        others: over those that `hosts` does not name.
    """

    def __init__(self, max_hosts: int = 1000) -> None:
        self.total = HostStatistics()
        self.others = HostStatistics()
        self._max_hosts = max_hosts
        self._hosts: dict[str, HostStatistics] = {}
        self._start = time.monotonic()

    def record(self, host: str, outcome: str, num_bytes: int, num_attempts: int) -> None:
        """Counts one picture."""
        known = self._hosts.get(host)
        if known is None:
            if len(self._hosts) >= 2 * self._max_hosts:
                self._fold()
            known = self._hosts[host] = HostStatistics()
        for counts in (self.total, known):
            counts.outcomes[outcome] += 1
            counts.num_bytes += num_bytes
            counts.num_attempts += num_attempts

    def _fold(self) -> None:
        ranked = self._ranked()
        self._hosts = dict(ranked[: self._max_hosts])
        for _, counts in ranked[self._max_hosts :]:
            self.others.add(counts)

    def _ranked(self) -> list[tuple[str, HostStatistics]]:
        return sorted(self._hosts.items(), key=lambda item: (-item[1].num_pictures, item[0]))

    def hosts(self, count: int | None = None) -> dict[str, HostStatistics]:
        """The hosts with the most pictures, at most `count` of them, the largest first."""
        return dict(self._ranked()[: self._max_hosts if count is None else count])

    @property
    def rate_per_s(self) -> float:
        """Pictures per second since the downloader was made."""
        return self.total.num_pictures / max(1e-9, time.monotonic() - self._start)
