"""Says that a host slows us while it does: once when it first does, once when it is given up, and of few hosts.

The worker processes of a run share what was said, so a line does not appear once per process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from align.display.console import say
from align.web.failure import Failure

#: Lines of one run. A crawl meets thousands of such hosts; the report counts them all.
_MAX_LINES: Final = 20


@dataclass
class SlowHosts:
    """What a run has said of its hosts. Can be pickled.

    Attributes:
        folder: of the run's work, where its processes leave an empty file for each line.
        run: names the run: after a kill the next one says it again.
    """

    folder: Path
    run: str
    _seen: set[tuple[str, bool]] = field(default_factory=set)
    _is_silent: bool = False

    def __call__(self, host: str, failure: Failure, closed: Failure | None) -> None:
        """To be called at each answer of a host that gets too many requests.

        Args:
            host: its name.
            failure: what it answered.
            closed: why its other pictures fail at once for a while; None: it is asked again.
        """
        one = host, closed is not None
        if self._is_silent or one in self._seen:
            return
        self._seen.add(one)
        if not self._is_first(f"{host} {closed is not None}"):
            return
        if sum(1 for _ in self.folder.glob(f"slow-{self.run}-*")) > _MAX_LINES:
            self._is_silent = True
            if self._is_first("more"):
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

    def _is_first(self, what: str) -> bool:
        """Whether no other process of the run has said this."""
        self.folder.mkdir(exist_ok=True)
        name = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        try:
            (self.folder / f"slow-{self.run}-{name}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True
