"""The flow run that this process is: its name, and its record from start to end (`align.run_records`)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from align import run_records
from align.run_records import Held, RunRecord
from flows import run_branch
from flows.reconcile import mlflow_address, prefect_address
from flows.request import Request

#: Such as mauve-cuckoo: a name that Prefect made up, since nobody gave one. Its UIs fill their forms with such names,
#: too: the older one with a letter and a star (beta2-enif), the newer one with a word of this list and an animal
#: (Gorgeous-Mudi).
_MADE_UP = re.compile(
    r"[a-z]+[0-9]*-[a-z]+|(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic"
    r"|Practical|Ergonomic|Handcrafted|Tasty|Handmade|Incredible)-[A-Z].*"
)
#: The records that are removed when their flow run has ended in Prefect, too.
_HELD: dict[UUID, Held] = {}


def name_of(root: Path, request: Request) -> str:
    """The run's name: the request's, else the one that Prefect shows, made valid for a branch.

    What a person typed as Prefect's name of a deployed run stays; only a name that Prefect made up gives way.

    Raises:
        ConfigError: no branch can have this name.
    """
    name = (request.name or "").strip() or run_branch.valid_name(str(runtime.flow_run.name or ""))
    run_branch.check_name(root, name)
    if request.name and runtime.deployment.id and _MADE_UP.fullmatch(str(runtime.flow_run.name)):
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(runtime.flow_run.id), name=name)
    return name


def begin(root: Path, name: str) -> RunRecord:
    """Records that this run is in progress. The record's lock is held until the process ends."""
    run_id = UUID(runtime.flow_run.id)
    with get_client(sync_client=True) as client:
        attempt = client.read_flow_run(run_id).run_count
    record = RunRecord(name, str(run_id), attempt, prefect_address(root), mlflow_address(root), str(root))
    _HELD[run_id] = run_records.hold(record)
    return record


def works_in(worktree: Path, kept: Path | None) -> None:
    """Adds to the record where the run works, and where its reports are kept if it fails."""
    if (held := _HELD.get(UUID(runtime.flow_run.id))) and held.record:
        held.write(replace(held.record, worktree=str(worktree), kept=str(kept or "")))


def leaves_something() -> None:
    """Keeps the record beyond the end of this run, for `flows.reconcile`: something could not be ended."""
    if held := _HELD.get(UUID(runtime.flow_run.root_flow_run_id)):
        held.is_kept = True


def end_record(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook for Prefect, which calls it when the flow run has ended there, whatever the state."""
    held = _HELD.get(flow_run.id)
    if held and not held.is_kept:
        held.remove()


def suspended_or_cancelled() -> None:
    """Removes the record of a run that was ended from Prefect's UI: its states say so already."""
    if (held := _HELD.get(UUID(runtime.flow_run.id))) and not held.is_kept:
        held.remove()


def tag(*tags: str) -> None:
    """Adds tags to the flow run that a person sees, the outermost one."""
    run_id = UUID(runtime.flow_run.root_flow_run_id)
    with get_client(sync_client=True) as client:
        client.update_flow_run(run_id, tags={*client.read_flow_run(run_id).tags, *tags})
