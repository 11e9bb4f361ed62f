"""How long a person waits for runs that have nothing to compute: `python -m benchmarks.runs [--write]`.

In a clone with a reduced pipeline that has run once, five times each, medians, by wall-clock time:

* `dvc repro`, with nothing to do;
* `align run` on the servers of `make up`, every stage from the cache: from the command until the run is Completed;
* the same by a click: from the request to Prefect's server until the run is Completed;
* of these clicks: until the run's own first line is in its log.

Every time has a bar; one that is above it ends the command with exit code 1. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from align.display.console import say
from benchmarks.page import conditions, write_section
from tests.support import small_checkout
from tests.support.local_stack import Stack

TIMES = 5
TITLE = "`make bench-runs`"
#: Name of a run's own logger in Prefect; its worker has another one.
_OWN = "prefect.flow_runs"


@dataclass(frozen=True)
class Wait:
    """What was measured.

    Attributes:
        what: in words.
        bar_s: no more is accepted, in seconds.
        times_s: of each repetition.
    """

    what: str
    bar_s: float
    times_s: Sequence[float]

    @property
    def row(self) -> str:
        """Of a table in Markdown."""
        low, high = min(self.times_s), max(self.times_s)
        return f"| {self.what} | **{median(self.times_s):.1f}** [{low:.1f}, {high:.1f}] | {self.bar_s:.0f} |"


def measure(root: Path) -> list[Wait]:
    """Measures in a new checkout at `root`."""
    small_checkout.write(root)
    stack = Stack(root)
    stack.env["PYTHONPATH"] = str(root)
    try:
        say("benchmark: the first run, which makes everything")
        _must(stack, "-m", "align.cli", "run", "--name", "first")
        repro = [_timed(lambda: _must(stack, "-m", "dvc", "repro")) for _ in range(TIMES)]
        stack.up()
        return [Wait("`dvc repro` with nothing to do", 3, repro), *through_prefect(stack)]
    finally:
        stack.down()
        stack.close()


def through_prefect(stack: Stack) -> list[Wait]:
    """Measures runs on a stack's servers, by the command and by a click."""
    _must(stack, "-m", "align.cli", "run", "--name", "first")  # the files of all programs are in memory then
    typed = [_typed(stack) for _ in range(TIMES)]
    _clicked(stack)
    clicked = [_clicked(stack) for _ in range(TIMES)]
    return [
        Wait("`align run` on running servers, all from the cache: to Completed", 20, typed),
        Wait("a click in Prefect, all from the cache: to Completed", 15, [whole for _, whole in clicked]),
        Wait("a click in Prefect: to the first line of the run's log", 12, [first for first, _ in clicked]),
    ]


def _timed(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _must(stack: Stack, *command: str) -> str:
    done: subprocess.CompletedProcess[str] = stack.run(*command)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def _typed(stack: Stack) -> float:
    """Seconds from the command to the end of its flow run in Prefect."""
    start = time.time()
    said = _must(stack, "-m", "align.cli", "run", "--name", "first")
    assert ": 0 stages ran" in said, said[-2000:]
    query = {"sort": "EXPECTED_START_TIME_DESC", "flow_runs": {"name": {"any_": ["first"]}}, "limit": 1}
    [run] = stack.ask("/flow_runs/filter", query)
    return _seconds(run["end_time"]) - start


def _clicked(stack: Stack) -> tuple[float, float]:
    """Seconds from a click to the first line of the run's own log, and to its end."""
    start = time.time()
    run = stack.start({"name": "first"})
    state = stack.wait_for(run, "COMPLETED", "FAILED", "CRASHED", timeout_s=300)
    assert state == "COMPLETED", stack.logs(run)
    found = stack.ask(f"/flow_runs/{run}")
    question = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
    deadline = time.monotonic() + 30
    # before it runs, the worker's helpers log under the same name
    while not (own := [log for log in stack.ask("/logs/filter", question) if _is_own(log, found["start_time"])]):
        assert time.monotonic() < deadline, "the run has no log"
        time.sleep(0.5)  # lines arrive in batches
    return _seconds(own[0]["timestamp"]) - start, _seconds(found["end_time"]) - start


def _is_own(log: dict[str, Any], began: str) -> bool:
    return log["name"] == _OWN and _seconds(log["timestamp"]) >= _seconds(began)


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def main() -> int:
    """Returns 1 if a median is above its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        waits = measure(Path(folder) / "clone")
    lines = [f"| what | seconds, median of {TIMES} | bar |", "|---|--:|--:|", *(wait.row for wait in waits)]
    about = conditions("wall-clock time, the reduced pipeline of the tests", ("dvc", "prefect", "mlflow"), load)
    text = "\n".join([*lines, "", about])
    print(text)
    if args.write:
        write_section(TITLE, text)
    return int(any(median(wait.times_s) > wait.bar_s for wait in waits))


if __name__ == "__main__":
    sys.exit(main())
