"""Decides which model and index are served (a release), and swaps them when that changes.

One thread asks every few seconds, and another reads the take-downs, which a download must not delay. A new release is
loaded beside the old one and tried; then one assignment puts it in place. Requests that have begun end with the release
that they began with. If a release does not load, or its parts do not belong together, there is a warning and the old
one stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from align.display.console import say
from align.errors import AlignError
from align.search.service.served import Folders, Release, Served, load
from align.search.service.take_downs import TakeDowns

#: Seconds until a release that failed is tried again, then twice as long, and so on: its download may have been cut
#: off.
_RETRY_S, _MAX_RETRY_S = 10.0, 600.0


class Source(Protocol):
    """Where releases come from. Methods raise AlignError, which says what a person should do."""

    def wanted(self) -> Release:
        """The release that is to be served now."""
        ...

    def folders(self, release: Release) -> Folders:
        """Its files on this disk; fetched if they are not here."""
        ...


class Champion:
    """The release that is served, and the thread that follows the source.

    Attributes:
        num_swaps: how often a release took the place of another.
    """

    def __init__(
        self,
        source: Source,
        poll_s: float,
        take_downs: TakeDowns,
        load_release: Callable[[Release, Folders], Served] = load,
    ) -> None:
        self._source, self._poll_s, self._load = source, poll_s, load_release
        self._take_downs, self._masking = take_downs, threading.Lock()
        self._served: Served | None = None
        self._problem: str | None = None
        self._failed: tuple[str, float, float] = ("", 0.0, 0.0)  # digest, next attempt, pause
        self._end = threading.Event()
        self.num_swaps = 0

    @property
    def served(self) -> Served | None:
        """The release of this moment; None before there is one."""
        return self._served

    @property
    def problem(self) -> str | None:
        """Why what is served is not what should be, or why nothing is served; None if all is well."""
        loading = "the model is being loaded; come again in a few seconds"
        return loading if self._problem is None and self._served is None else self._problem

    def warnings(self) -> list[str]:
        """All that a person should know."""
        served = self._served
        notes = [*served.release.warnings, served.index.header.warning] if served else []
        return [*filter(None, [self.problem, self._take_downs.problem, *notes])]

    def start(self) -> None:
        """Begins to follow."""
        for do in (self.look, self.obey):
            threading.Thread(target=self._repeat, args=[do], name=f"champion {do.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Ends the threads; a load that has begun is not waited for."""
        self._end.set()

    def look(self) -> None:
        """Asks once, and swaps if there is something new. Never raises: a failure is a problem to show."""
        try:
            self._look()
        except BaseException as error:  # noqa: BLE001 - a broken model may even panic; the old one stays
            ours = isinstance(error, AlignError)
            said = str(error) if ours else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            served = self._served
            self._report(f"{said}; {served.release.describe()} is still served" if served else said)

    def obey(self) -> None:
        """Reads the take-downs once, and masks what is served if they have changed.

        Never raises: nothing is served from an index that cannot be masked, until it loads again.
        """
        with self._masking:
            try:
                if self._take_downs.look() and self._served:
                    self._served = self._masked(self._served)
            except BaseException as error:  # noqa: BLE001 - this thread must live
                self._served = None
                self._report(f"take-downs cannot be obeyed, so nothing is served: {' '.join(str(error).split())[:300]}")

    def _serve(self, new: Served) -> None:
        with self._masking:
            self._served = self._masked(new)

    def _masked(self, served: Served) -> Served:
        """The same without what is taken down at this moment."""
        down = self._take_downs
        return replace(served, index=down.masked(served.index), take_downs=down.digest)

    def _repeat(self, do: Callable[[], None]) -> None:
        do()
        while not self._end.wait(self._poll_s):
            do()

    def _look(self) -> None:
        wanted, served = self._source.wanted(), self._served
        if served and served.release.digest == wanted.digest:
            if served.release != wanted:  # another name, or other tags, of the same bytes
                self._serve(replace(served, release=wanted))
            self._problem = None
            return
        digest, next_attempt, pause_s = self._failed
        if digest == wanted.digest and time.monotonic() < next_attempt:
            return
        pause_s = min(2 * pause_s, _MAX_RETRY_S) if digest == wanted.digest else _RETRY_S
        self._failed = wanted.digest, time.monotonic() + pause_s, pause_s
        try:
            self._serve(new := self._load(wanted, self._source.folders(wanted)))
        except AlignError as error:
            raise type(error)(f"{wanted.describe()} cannot be served: {error}") from None
        self._problem, self._failed = None, ("", 0.0, 0.0)
        if served:
            self.num_swaps += 1
        said = [wanted.describe(), f"{new.index.num_images:,} images", new.origin, new.index.header.warning]
        say(f"serve: {', '.join(filter(None, said))}")

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            say(f"serve: {problem}")
        self._problem = problem
