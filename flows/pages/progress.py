"""What people see of a run while it works: one artifact with how far it is, in per cent and words, and its links.

A thread updates it in place, so that a slow or unreachable server neither slows nor fails a run. A stage writes its
progress into a file (`align.display.console`). The artifacts of a run that is retried are updated, too: the newer of
Prefect's two UIs lists them in no order, so a person could not tell new from old.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from prefect import runtime
from prefect.artifacts import update_progress_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from align.display.console import duration
from align.display.progress import Work, describe, read_said
from align.display.visible import plain_markdown
from flows.dag import Stage

#: Seconds between two looks at a stage.
INTERVAL_S = 2.0
#: How long the end of a run waits for the last update.
CLOSE_S = 10.0
#: Addresses that become links.
_ADDRESS = re.compile(r"https?://[^\s()<>\[\]]+")


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


def put_markdown(key: str, description: str, text: str) -> UUID:
    """Shows a text on the page of this flow run, once, as `put_artifact` does."""
    with get_client(sync_client=True) as client:
        return put_artifact(client, UUID(runtime.flow_run.id), key, "markdown", description, text)


class Progress:
    """The artifact `progress` of this flow run: how far these stages are, or another command, as `file` says.

    In a `with` block, whose end is shown, too; after a failure the artifact keeps how far it was.

    Attributes:
        links: words -> address or text, shown in this order; may be added to in the block.
    """

    def __init__(self, file: Path, stages: Sequence[Stage] = (), expected_s: Mapping[str, float | None] = {}) -> None:
        self.links: dict[str, str] = {}
        self._finished = False
        self._file, self._stages, self._expected_s = file, stages, expected_s
        file.unlink(missing_ok=True)  # of an earlier run in this checkout
        with get_client(sync_client=True) as client:
            self._artifact = put_artifact(client, UUID(runtime.flow_run.id), "progress", "progress", "it begins", 0.0)
        self._shown = ("", 0.0)
        self._stop = threading.Event()
        # with the client of this flow run
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), daemon=True, name="progress")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _error: object, _where: object) -> None:
        self._finished = kind is None
        self._stop.set()
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            ended = False
            while not ended:
                ended = self._stop.wait(INTERVAL_S)
                with suppress(Exception):  # a failing server never disturbs the run, and is asked again
                    self._update(ended)

    def _update(self, ended: bool) -> None:
        work = read_said(self._file).work
        work, left = of_run(work, self._stages, self._expected_s)
        if self._finished:
            work = Work(line="the run is complete", done=1, total=1)
        if not work.line:
            return
        words = f"ended at {work.line}" if ended and not self._finished else describe(work)
        words += "" if ended else left
        shown = "\n".join([plain_markdown(words), *_links(self.links)]), round(work.percent or 0.0, 1)
        if shown != self._shown:
            update_progress_artifact(self._artifact, progress=shown[1], description=shown[0])
            self._shown = shown


def of_run(work: Work, stages: Sequence[Stage], expected_s: Mapping[str, float | None]) -> tuple[Work, str]:
    """The progress of a run, whose stage says how far it is, and the time that is left of the whole.

    That is what the stage says, or took when it ran last, and what those after it took.
    """
    names = [stage.name for stage in stages]
    if work.stage not in names:
        return work, ""
    number = names.index(work.stage) + 1
    times = [expected_s.get(work.stage) if work.left_s is None else work.left_s]
    times += [expected_s[name] for name in names[number:] if name in expected_s]
    known = [seconds for seconds in times if seconds is not None]
    how = "about" if len(known) == len(times) else "more than"
    left = f"; the whole run: {how} {duration(sum(known))} left" if known else ""
    return work.model_copy(update={"line": f"stage {number} of {len(names)}, {work.line}"}), left


def _links(links: dict[str, str]) -> list[str]:
    # an address that is written out is wider than its column
    return [
        f"* [{words}]({where})" if _ADDRESS.fullmatch(where) else f"* {words}: {plain_markdown(where)}"
        for words, where in links.items()
    ]
