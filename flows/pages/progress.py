"""What people see on the page of a run: the progress of the running stage, its last lines, the stages, and links.

A thread updates two artifacts of the parent flow run in place, so that a slow or unreachable server neither slows nor
fails a run. A stage writes its progress into a file (`align.display.console`); the server already has the states and
reports of the stages. The artifacts of a run that is retried are updated, too: the newer of Prefect's two UIs lists
them in no order, so a person could not tell new from old.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.sorting import ArtifactSort, TaskRunSort

from align.display.progress import Said, Work, describe, read_said
from align.display.visible import fenced_markdown, plain_markdown
from flows.dag import Stage

#: Seconds between two looks at a stage, and between two questions to the server.
INTERVAL_S, ASK_INTERVAL_S = 2.0, 4.0
#: How long the end of a run waits for the last update.
CLOSE_S = 10.0
#: Addresses that become links.
_ADDRESS = re.compile(r"https?://[^\s()<>\[\]]+")
#: Characters of the bar on a run's page: the newer UI shows an artifact of type progress as a number alone.
BAR = 20
_LOGGED_STATES = {"Completed": "ran", "Cached": "cached", "Pending": "waits", "Running": "**runs**"}


def put_artifact(
    client: SyncPrefectClient, flow_run_id: UUID, key: str, kind: str, description: str, data: Any
) -> UUID:
    """Shows an artifact of a flow run; updates one of the same key from an earlier attempt."""
    found = client.read_artifacts(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])),
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
        limit=1,
    )
    if found:
        client.update_artifact(found[0].id, ArtifactUpdate(description=description, data=data))
        return found[0].id
    made = client.create_artifact(
        ArtifactCreate(key=key, type=kind, description=description, data=data, flow_run_id=flow_run_id)
    )
    return made.id


def put_markdown(key: str, description: str, text: str) -> None:
    """Shows a text on the page of this flow run, once, as `put_artifact` does."""
    with get_client(sync_client=True) as client:
        put_artifact(client, UUID(runtime.flow_run.id), key, "markdown", description, text)


class RunPage:
    """The artifacts of one run. `links` and `stages` may be added to while it runs.

    Attributes:
        links: words -> address or text, shown in this order.
        finished: the run has come to its end; otherwise its page keeps its progress and its last lines.
    """

    def __init__(self, name: str) -> None:
        self.links: dict[str, str] = {}
        self.finished = False
        self._id = UUID(runtime.flow_run.id)
        self._name = name
        self._stages: Sequence[Stage] = ()
        self._file: Path | None = None
        self._artifacts: dict[str, UUID] = {}
        self._shown: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        self._reports: dict[str, UUID] = {}
        self._running: str | None = None  # the stage that runs, or ran last
        self._ask_at = 0.0
        self._client: SyncPrefectClient | None = None
        self._connection = ExitStack()
        self._given_up = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="run page")

    def watch(self, file: Path, stages: Sequence[Stage]) -> None:
        """Begins to show these stages, or another command, which write their progress into `file`."""
        self._stages, self._file = stages, file
        self._file.unlink(missing_ok=True)  # of an earlier run in this checkout
        self._thread.start()

    def close(self) -> None:
        """Shows the end, and waits for it for a few seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        self._given_up = True  # a run without a server of its own would start one again

    def _work(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._update()
        self._update(ended=True)
        self._connection.close()

    def _update(self, *, ended: bool = False) -> None:
        """Shows what has changed. A failing server never disturbs the run."""
        assert self._file is not None
        if self._given_up:
            return
        said = Said() if self.finished else read_said(self._file)
        try:
            if self._client is None:
                self._client = self._connection.enter_context(get_client(sync_client=True))
            if ended or time.monotonic() > self._ask_at:
                self._ask(self._client)
                self._ask_at = time.monotonic() + ASK_INTERVAL_S
            work = said.work
            if self.finished:
                work = Work(line="the run is complete", done=1, total=1)
            elif self._running:
                work = at_stage(work, self._running, self._stages)
            about = f"run {self._name}: {'stages, reports, ' if self._stages else ''}last lines"
            text = page_markdown(self._stages, self._states, self._reports, said.lines, self.links, bar(work))
            self._show(self._client, "run", "markdown", about, text)
            if work.line:
                words = f"ended at {work.line}" if ended and not self.finished else describe(work)
                self._show(self._client, "progress", "progress", plain_markdown(words), round(work.percent or 0.0, 1))
        except Exception:  # noqa: BLE001 - see above
            self._client = None
            with suppress(Exception):
                self._connection.close()

    def _ask(self, client: SyncPrefectClient) -> None:
        """Reads states and reports of the stages from the sub-flows of this run; of several attempts, the newest."""
        below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[self._id]))
        oldest_first = TaskRunSort.EXPECTED_START_TIME_ASC
        for run in client.read_task_runs(flow_run_filter=below, sort=oldest_first):
            self._states[run.name] = (run.state.name if run.state else None) or "Pending"
        running = (stage.name for stage in self._stages if self._states.get(stage.name) == "Running")
        self._running = next(running, self._running)
        kind = ArtifactFilter(type=ArtifactFilterType(any_=["markdown"]))
        newest_first = client.read_artifacts(
            flow_run_filter=below, artifact_filter=kind, sort=ArtifactSort.CREATED_DESC
        )
        for artifact in reversed(newest_first):
            if artifact.key and artifact.key.endswith("-report"):
                self._reports[artifact.key.removesuffix("-report").replace("-", "_")] = artifact.id

    def _show(self, client: SyncPrefectClient, key: str, kind: str, description: str, data: Any) -> None:
        if self._shown.get(key) == (description, data):
            return
        if key in self._artifacts:
            client.update_artifact(self._artifacts[key], ArtifactUpdate(description=description, data=data))
        else:
            self._artifacts[key] = put_artifact(client, self._id, key, kind, description, data)
        self._shown[key] = (description, data)


@contextmanager
def run_page(name: str) -> Iterator[RunPage]:
    """The page of this flow run; its last update is at the end of the block, also after a failure."""
    page = RunPage(name)
    try:
        yield page
        page.finished = True
    finally:
        page.close()


def at_stage(work: Work, running: str, stages: Sequence[Stage]) -> Work:
    """The progress of the running stage of a run; what an earlier stage has left says nothing about it."""
    names = [stage.name for stage in stages]
    if not work.line or (work.stage in names and work.stage != running):
        work = Work(line=running)
    return work.model_copy(update={"line": f"stage {names.index(running) + 1} of {len(names)}, {work.line}"})


def bar(work: Work) -> str:
    """The progress in words and as a bar of characters; empty if nothing is known."""
    if work.percent is None:
        return work.line
    full = int(BAR * work.percent / 100)
    return f"{'█' * full}{'░' * (BAR - full)} {work.percent:.0f} % {describe(work)}"


def page_markdown(
    stages: Sequence[Stage],
    states: Mapping[str, str],
    reports: Mapping[str, UUID],
    lines: Sequence[str],
    links: Mapping[str, str],
    progress: str = "",
) -> str:
    """The page of a run as markdown.

    Args:
        stages: of the run, in their order.
        states: stage -> name of its task's state in Prefect.
        reports: stage -> artifact with its report.
        lines: what the running stage printed last.
        links: words -> address or text.
        progress: of the running stage, see `bar`.
    """
    # An address that is written out is wider than its column. The address of a report is relative, since each of
    # Prefect's two UIs has addresses of its own.
    parts = [f"* {plain_markdown(progress)}"] if progress else []
    for words, where in links.items():
        parts.append(f"* [{words}]({where})" if _ADDRESS.fullmatch(where) else f"* {words}: {plain_markdown(where)}")
    rows = ["| stage | | report | |", "|---|---|---|---|"]
    for stage in stages:
        state = states.get(stage.name)
        shown = _LOGGED_STATES.get(state, state) if state else ""
        report = f"[report](../artifact/{reports[stage.name]})" if stage.name in reports else ""
        rows.append(f"| {stage.name} | {shown} | {report} | {stage.description} |")
    text = "\n".join(parts) + ("\n\n" + "\n".join(rows) if stages else "")
    return text + (f"\n\n{fenced_markdown(lines)}" if lines else "")
