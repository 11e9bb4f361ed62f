"""Messages and progress for the person who watches, on stderr; stdout is kept for results.

Nothing here changes a byte of any output, so no stage depends on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two progress lines where stderr is not a terminal (a log, a flow run).
PROGRESS_INTERVAL_S = 5.0


def say(message: str) -> None:
    """Prints one line on stderr."""
    print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows progress on stderr: a bar on a terminal, one line every few seconds in a log."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, unit="", leave=False)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL_S:
            last = now
            of = f" of {total:,}" if total else ""
            say(f"{what}: {count:,}{of}, {count / (now - start):,.0f}/s")
