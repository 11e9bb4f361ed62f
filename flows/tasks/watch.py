"""A thread that asks regularly whether the work here has to end, and ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

#: Seconds between two questions.
ASK_EVERY_S = 3.0


class Watch:
    """While this context is open, it calls `ask`; once `ask` answers, the work in `ending` is ended.

    A question may fail, or wait while its server is unavailable: then the next one counts.

    Args:
        ask: returns None, or the exception to raise once the work has ended.
        every_s: seconds between two questions.
    """

    def __init__(self, ask: Callable[[], BaseException | None], every_s: float = ASK_EVERY_S) -> None:
        self._ask, self._every_s = ask, every_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._found: BaseException | None = None
        self._end: Callable[[], object] | None = None

    def __enter__(self) -> Watch:
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()  # not joined: its question may wait for a server

    def check(self) -> None:
        """Raises what was answered, if anything was."""
        if self._found is not None:
            raise self._found

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Calls `end`, from another thread, as soon as the work in this block has to end."""
        with self._lock:
            self._end = end
            too_late = self._found is not None
        if too_late:
            end()
        try:
            yield
        finally:
            with self._lock:
                self._end = None

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                found = self._ask()
            except Exception:  # noqa: BLE001 - of any kind: nobody may ever learn that a run was to end otherwise
                found = None
            if found is not None:
                with self._lock:
                    self._found = found
                    if self._end is not None:
                        self._end()
                return
            self._closed.wait(self._every_s)
