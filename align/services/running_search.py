"""Search services that are running: which take-downs each obeys, by its `/health`.

ALIGN_SEARCH_URL names them, separated by spaces; without it, the one of this machine (ALIGN_SEARCH_PORT).
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Iterator

from align.arguments.commands import PORT
from align.errors import ConfigError

_TIMEOUT_S, _PAUSE_S = 3.0, 0.5
_MAX_BYTES = 1 << 16


def take_down_lines(digest: str, wait_s: float) -> Iterator[str]:
    """A line for each service: whether it obeys the `opted_out.csv` with this sha256, after at most `wait_s`."""
    end = time.monotonic() + wait_s
    own = f"http://127.0.0.1:{os.environ.get('ALIGN_SEARCH_PORT', PORT)}"
    for url in os.environ.get("ALIGN_SEARCH_URL", "").split() or [own]:
        while True:
            health = _health(url)
            obeys = health.get("take_downs") if health is not None else None
            if health is None or obeys == digest or time.monotonic() > end:
                break
            time.sleep(_PAUSE_S)
        if health is None:
            yield f"no search answers at {url}; ALIGN_SEARCH_URL names those elsewhere"
        elif obeys == digest:
            yield f"the search at {url} obeys this list: it masks {health.get('num_taken_down')} of its pictures"
        else:
            listed = f"another list ({str(obeys)[:12]})" if obeys else "no list"
            yield f"the search at {url} STILL SHOWS what is new here: it obeys {listed}; its /health says why"


def _health(url: str) -> dict[str, object] | None:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"ALIGN_SEARCH_URL: {url!r} is not the address of a service (http://...)")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/health", timeout=_TIMEOUT_S) as answer:
            found = json.loads(answer.read(_MAX_BYTES))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "num_images" in found else None
