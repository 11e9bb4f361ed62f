"""`python -m flows ended`: gives runs whose process was killed a true end, and removes old worktrees.

After `kill -9`, a power cut or `make down`, nobody is left to say that a run has ended: flow runs and tasks stay
Running in Prefect, and a run in MLflow. `make up` calls this, and so do other workers and each run at their start, and
`align runs --repair`. Which runs are dead is certain, see `align.durable.run_records`; a live one is never touched.
What cannot be repaired now because a server does not answer stays recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from align.display.console import say
from align.durable import run_records
from align.durable.run_records import RunRecord
from align.errors import AlignError, FormatError, ServiceError
from align.services.tracking.tracker import Tracker
from flows.checkout.worktree import prune
from flows.run.end import end_in_prefect
from flows.run.record import prefect_address


def repair(root: Path, log: Callable[[str], None]) -> tuple[int, int]:
    """Ends dead runs of a checkout. Returns how many, and how many must wait for a server that does not answer."""
    try:
        prune(root, log)
    except (AlignError, OSError) as error:
        log(f"older worktrees stay: {error}")
    ended = left = 0
    for file in run_records.files(root):
        try:
            with run_records.claimed(file) as held:
                if held is None:  # live, another machine's, or repaired by another process
                    continue
                said, is_done = _repair(held.record, root)
                if is_done:
                    held.remove()
        except (FormatError, OSError) as error:
            said, is_done = f"{error}", False
        if said:
            log(said)
        ended += bool(is_done and said)
        left += not is_done
    return ended, left


def _repair(record: RunRecord, root: Path) -> tuple[str, bool]:
    """What to say (empty if nobody needs to know), and whether nothing is left to do."""
    done, waits = [], []
    for end in (_end_prefect, _end_mlflow):
        try:
            done.append(end(record, root))
        except ServiceError as error:
            waits.append(f"{error}: left for the next time")
    what = "; ".join(filter(None, [*done, *waits]))
    return f"{record.title} was killed: {what}" if what else "", not waits


def _end_prefect(record: RunRecord, root: Path) -> str:
    if record.prefect != prefect_address(root):
        where = record.prefect or "this checkout's"
        raise ServiceError(f"it is a run of another Prefect server, {where} (PREFECT_API_URL)")
    return end_in_prefect(UUID(record.flow_run))


def _end_mlflow(record: RunRecord, root: Path) -> str:
    own = root / "mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not record.mlflow_run or not (uri or own.is_file()):
        return ""
    tracker = Tracker(uri or f"sqlite:///{own}")
    if not tracker.runs(f"attributes.run_id = '{record.mlflow_run}' and attributes.status = 'RUNNING'"):
        return ""
    tracker.end_run(record.mlflow_run, status="KILLED")
    return "in MLflow its run is KILLED"


def main(argv: Sequence[str]) -> int:
    """Says what was repaired; with --quiet, is silent if nothing was. Returns 1 if something is left."""
    ended, left = repair(Path.cwd(), say)
    if not ended and not left and "--quiet" not in argv:
        say("no killed run is left to repair")
    return 1 if left else 0
