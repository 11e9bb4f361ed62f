"""`python -m flows.reconcile`: gives runs whose process was killed a true end, and removes what they left.

After `kill -9`, a power cut or `make down`, nobody is left to say that a run has ended: flow runs and tasks stay
Running in Prefect, and a run in MLflow; a worktree stays on disk. `make up` calls this, so does each run when it
starts, and `align runs --repair`. Which runs are dead is certain, see `align.pipeline.run_records`; a live one is never
touched, nor one of another checkout or machine. What cannot be repaired now, since a server does not answer, stays
recorded. Runs that were killed before they had a record: `flows.unrecorded`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from prefect.settings import PREFECT_API_URL

from align.display.console import say
from align.errors import AlignError, FormatError, ServiceError, without_logins
from align.pipeline import run_records
from align.pipeline.run import running_services
from align.pipeline.run_records import Held, RunRecord
from align.services.tracking.tracker import ATTEMPT, Tracker
from flows.leftovers import sweep
from flows.prefect_states import end_in_prefect
from flows.unrecorded import end_unrecorded


def prefect_address(root: Path) -> str:
    """Prefect's server as a record names it: empty for the checkout's own, also the temporary one of a single run."""
    url = PREFECT_API_URL.value()
    own = running_services(root).get("prefect", {}).get("url")
    return "" if url is None or url == f"{own}/api" else without_logins(url)


def mlflow_address(root: Path) -> str:
    """MLflow's store as a record names it: empty for the checkout's own, with a server or without."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or ""
    return "" if uri == running_services(root).get("mlflow", {}).get("url") else without_logins(uri)


def reconcile(root: Path, log: Callable[[str], None], mine: RunRecord | None = None) -> tuple[int, int]:
    """Ends dead runs. Returns how many, and how many must wait for a server that does not answer.

    Args:
        root: the checkout.
        log: for a line about each.
        mine: the record of the run that this process is.
    """
    try:
        sweep(root, log)
    except (AlignError, OSError) as error:
        log(f"the worktrees of killed runs stay: {error}")
    ended = left = 0
    for lock in run_records.locks(root):
        try:
            with run_records.claimed(lock) as held:
                if held is None:  # live, or repaired by another process
                    continue
                said, is_done = _repair(held, root, lock, mine)
        except (FormatError, OSError) as error:
            said, is_done = f"{error}", False
        if said:
            log(said)
        ended += bool(is_done and said)
        left += not is_done
    try:
        ended += end_unrecorded(root, log)
    except ServiceError as error:
        log(f"{error}: runs that were killed before they began are left for the next time")
        left += 1
    return ended, left


def _repair(held: Held, root: Path, lock: Path, mine: RunRecord | None) -> tuple[str, bool]:
    """What to say (nothing, if nobody needs to know), and whether nothing is left to do."""
    record = held.record
    if record is None:  # it died before it began
        held.remove()
        return "", True
    kind = run_records.liveness(record, lock)
    if kind == "copied":
        held.remove()
        return f"{record.title}: belongs to {record.root}, of which this folder is a copy; forgotten here", True
    if kind == "elsewhere":
        return f"{record.title}: is {record.host}'s; `align runs --repair` there says whether it lives", False
    is_mine = mine is not None and record.flow_run == mine.flow_run
    done, waits = [], []
    for end in (_end_prefect, _end_mlflow):
        try:
            done.append(end(record, root, is_mine))
        except ServiceError as error:
            waits.append(f"{error}: left for the next time")
    if None in done:  # the next attempt sees to what this one left, or whoever comes after it
        return "", True
    if not waits:
        held.remove()
    what = "; ".join(filter(None, [*done, *waits]))
    return f"{record.title} was killed: {what}" if what else "", not waits


def _end_prefect(record: RunRecord, root: Path, is_mine: bool) -> str | None:
    if record.prefect != prefect_address(root):
        where = record.prefect or "this checkout's"
        raise ServiceError(f"it is a run of another Prefect server, {where} (PREFECT_API_URL)")
    return end_in_prefect(record, is_mine=is_mine)


def _end_mlflow(record: RunRecord, root: Path, _is_mine: bool) -> str:
    own = root / "mlflow.db"
    if not record.mlflow and not own.is_file():
        return ""
    configured = os.environ.get("MLFLOW_TRACKING_URI", "")
    known = configured if without_logins(configured) == record.mlflow else record.mlflow
    tracker = Tracker(known if record.mlflow else f"sqlite:///{own}")
    runs = tracker.runs(f"tags.`{ATTEMPT}` = '{record.attempt_id}' and attributes.status = 'RUNNING'")
    for run in runs:
        tracker.end_run(run.run_id, status="KILLED")
    return "in MLflow its run is KILLED" if runs else ""


def main(argv: Sequence[str]) -> int:
    """Says what was repaired; with --quiet, nothing where nothing was. Returns 1 if something is left."""
    ended, left = reconcile(Path.cwd(), say)
    if not ended and not left and "--quiet" not in argv:
        say("no killed run is left to repair")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
