"""Says that a host slows us while it does: once when it first does, once when it is given up, and of few hosts."""

from __future__ import annotations

from typing import Final

from align.display.console import say
from align.web.failure import Failure

#: Lines of one task. A crawl meets thousands of such hosts; the report counts them all.
_MAX_LINES: Final = 3


class SlowHosts:
    """What one downloader has said of its hosts. Other tasks have other hosts, or a part of a very large one."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, bool]] = set()

    def say_of(self, host: str, failure: Failure, closed: Failure | None) -> None:
        """To be called at each answer of a host that gets too many requests.

        Args:
            host: its name.
            failure: what it answered.
            closed: why its other pictures fail at once for a while; None: it is asked again.
        """
        one = host, closed is not None
        if one in self._seen or len(self._seen) > _MAX_LINES:
            return
        self._seen.add(one)
        if len(self._seen) > _MAX_LINES:
            say("ingest: more hosts slow us, and are not named; the report shows what failed at which hosts")
        elif closed is not None:
            say(
                f"ingest: {host} is given up for now ({closed.error}): its other pictures fail at once, and "
                "`align ingest` asks again later"
            )
        else:
            wait = "" if failure.retry_after_s is None else f" and wants a pause of {failure.retry_after_s:,.0f} s"
            say(
                f"ingest: {host} slows us: it answers {failure.code}{wait}; it gets fewer requests from now on "
                "(download.max_connections_per_host, download.max_requests_per_host_per_s)"
            )
