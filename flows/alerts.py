"""Alerts: one line for people about a failed run, a failed gate, a health warning or an old champion, by a webhook.

Off unless ALIGN_ALERT_WEBHOOK holds an address. An alert is a POST of JSON; Slack, Mattermost and others show its
`text`:

    {"schema_version": 1, "kind": "gate_failed", "text": "...", "run": "NAME", "page": "http://...", "host": "...",
     "checkout": "...", "time": "2026-11-27T08:00:00+00:00"}

An alert never fails or delays its run: a webhook that cannot be reached is one line in the log. The address may be a
secret, so that line names only its host.

    python -m flows.alerts          sends a test, and says whether it arrived
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from prefect import runtime

from align.display.console import say
from align.display.visible import visible
from align.errors import without_logins

VARIABLE = "ALIGN_ALERT_WEBHOOK"
Kind = Literal["run_failed", "gate_failed", "health", "champion_stale", "test"]
#: The stages that judge data.
GATES = ("validate", "validate_shards")
_HEALTH = re.compile(r"(pretrain|finetune): warning: step [\d,]+: ")
#: A webhook that is down for a moment gets the alert; one that is down for long does not delay the end of a run.
ATTEMPTS, TIMEOUT_S, PAUSE_S = 3, 5.0, 1.0
MAX_CHARACTERS = 2000


def alert(
    kind: Kind, text: str, log: Callable[[str], None], *, run: str | None = None, page: str | None = None
) -> bool:
    """Sends one alert if a webhook is set.

    Args:
        kind: what happened.
        text: one line for people. Logins in addresses are left out; longer texts are cut.
        log: gets a line if the alert did not arrive.
        run: the name of the run.
        page: the address of a page with more.

    Returns:
        Whether it arrived; False if no webhook is set. Nothing is raised.
    """
    if not (address := os.environ.get(VARIABLE)):
        return False
    body = {
        "schema_version": 1,
        "kind": kind,
        "text": visible(without_logins(text))[:MAX_CHARACTERS],
        "run": run,
        "page": page,
        "host": socket.gethostname(),
        "checkout": str(Path.cwd()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    why = _send(address, body)
    if why is not None:
        log(f"alert not sent ({kind}): {VARIABLE} at {_host(address)}: {why}")
    return why is None


def alert_soon(kind: Kind, text: str, log: Callable[[str], None], *, run: str | None = None) -> None:
    """Does the same from a thread, so that the caller does not wait. The alert is lost if the process ends at once."""
    if os.environ.get(VARIABLE):
        threading.Thread(target=alert, args=(kind, text, log), kwargs={"run": run}, daemon=True).start()


def is_health_warning(line: str) -> bool:
    """Whether a line of a stage is a warning of `align.training.health`, which warns once per sign."""
    return _HEALTH.match(line) is not None


@contextmanager
def alerted(run: str, log: Callable[[str], None]) -> Iterator[None]:
    """Sends an alert if the block fails; not if a person ends it."""
    try:
        yield
    except Exception as error:
        kind: Kind = "gate_failed" if getattr(error, "stage", None) in GATES else "run_failed"
        alert(kind, f"run {run} failed: {error}", log, run=run, page=runtime.flow_run.ui_url)
        raise


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An alert goes to the address that was set, and nowhere else."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


def _send(address: str, body: dict[str, Any]) -> str | None:
    """Why the alert did not arrive; None if it did."""
    if not address.startswith(("https://", "http://")) or _host(address) == "?":
        return "expected an address that begins with https:// or http://"
    why = "not tried"
    opener = urllib.request.build_opener(_NoRedirect)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            request = urllib.request.Request(
                address, json.dumps(body).encode(), {"Content-Type": "application/json", "User-Agent": "align"}
            )
            with opener.open(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            why = f"HTTP {error.code}"
            error.close()
            if error.code < 500 and error.code != 429:  # it was understood, and refused
                break
        except (OSError, HTTPException, ValueError) as error:
            # an error's text may hold the address
            why = (
                str(getattr(error, "reason", "")) if isinstance(error, urllib.error.URLError) else type(error).__name__
            )
    return why


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or "?"
    except ValueError:
        return "?"


def main() -> int:
    """Sends a test. Returns 1 if it did not arrive."""
    if not os.environ.get(VARIABLE):
        say(f"align: error: {VARIABLE} is not set: the address of a webhook, such as https://hooks.example.com/T0/B0")
        return 1
    if not alert("test", "a test: alerts of align arrive here", say):
        return 1
    say("alert sent")
    return 0


if __name__ == "__main__":
    sys.exit(main())
