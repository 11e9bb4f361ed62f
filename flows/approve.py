"""Approval as a flow: a person approves or rejects a promotion whose gates have passed, in a form of Prefect's UI.

`flows.promote` starts it where `promote.approval` is on. It is a flow of its own since a suspended run is executed from
its top again when it is resumed. While it waits it is not a process but a row in Prefect's database, so it outlives
restarts of server and worker, and `flows.ended` has nothing to end.

After its time-out Prefect would end it with "was paused and never resumed". So this flow has a time-out of its own:
with the form it schedules a second run of the same deployment, which ends the first one and says what happened. If the
second run comes late because no worker works, a late answer is still refused.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from prefect import flow, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Failed, Scheduled
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.display.visible import fenced_markdown, plain_markdown, visible
from align.errors import AlignError, ServiceError, without_logins
from align.formats.champion_moves import MAX_WHO, MAX_WHY
from flows.command import command
from flows.pages.progress import put_markdown
from flows.request import NO_LOGIN
from flows.run.record import end_record, in_progress
from flows.run.supervised import last_line

#: Of prefect.yaml.
DEPLOYMENT = "approve/wait-for-approval"
_WAITING: list[StateType] = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
#: From the page of a run to that of an artifact, in both of Prefect's UIs and behind any address.
_FROM_RUN = "../../artifacts/artifact/"
#: The state that a click on "Resume" sets; a worker may begin later.
_RESUMED = "Resuming"
_WORDS = {"pattern": r"\S", **NO_LOGIN}


class NotApprovedError(AlignError):
    """Nobody approved in time, or the answer cannot be used; nothing was moved."""


class Judged(BaseModel):
    """The promotion that a person decides on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int = Field(ge=1, title="Version", description="That becomes the champion.")
    champion: int = Field(ge=0, title="Champion", description="That it was compared with; 0: there was none.")
    hours: float = Field(gt=0, le=8760, title="Hours", description="To wait for an answer.")
    why: str = Field(default="", title="Why", description="The sentence of the decision.")
    page: str = Field(default="", title="Page", description="What the gates found, as markdown.")


class Answer(RunInput):
    """The form: short, for the window is. Prefect's server checks it; a wrong answer leaves the run as it is."""

    decision: Literal["approve", "reject"] = Field(title="Decision")
    who: str = Field(title="Your name", max_length=MAX_WHO, json_schema_extra=_WORDS)
    why: str = Field(title="Why", max_length=MAX_WHY, json_schema_extra=_WORDS)


@flow(on_completion=[end_record], on_failure=[end_record])
def approve(judged: Judged, ends: UUID | None = None) -> str:
    """Waits for a person's answer, and makes the version the champion if it is yes and nothing has changed.

    Args:
        judged: the promotion.
        ends: for the flow's own use: the run of this flow that has to end, since its time is over. Leave it empty.

    Returns:
        What was done, in a sentence.

    Raises:
        NotApprovedError: nobody answered in time.
        CommandError: the champion has changed since the version was judged, or the gates no longer pass.
    """
    with in_progress():
        if ends is not None:
            return _end(ends, judged)
        run_id = UUID(runtime.flow_run.id)
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run_id)
            until = (run.created or datetime.now(UTC)) + timedelta(hours=judged.hours)
            resumed = [state.timestamp for state in client.read_flow_run_states(run_id) if state.name == _RESUMED]
            if max(resumed, default=datetime.now(UTC)) > until:
                raise NotApprovedError(_too_late(judged))
            end = _schedule_end(client, run, judged, until)
        about = f"Until {until:%Y-%m-%d %H:%M} UTC; then this run ends, and nothing is moved."
        page = put_markdown("approval", "what is to be approved", f"{about}\n\n{judged.page}")
        form = Answer.with_initial_data(description=f"{question(judged)} [All figures]({_FROM_RUN}{page})")
        try:
            answer = suspend_flow_run(wait_for_input=form, key="approval")
        except ValidationError:
            raise NotApprovedError("resumed without an answer: nothing was moved; run promote again") from None
        with suppress(ObjectNotFound), get_client(sync_client=True) as client:
            client.delete_flow_run(end)
        lines = command("promote", _arguments(judged, answer))
        done = last_line(lines)
        put_markdown("approval-answer", "what was decided", fenced_markdown([done]))
        return done


def ask(decision: dict[str, Any], hours: float) -> str:
    """Starts the flow for a promotion whose gates have passed, unless one already waits; returns a sentence.

    Raises:
        ServiceError: Prefect does not know the deployment.
    """
    judged = Judged(
        version=decision["candidate"], champion=decision["champion"] or 0, hours=hours, why=decision["reason"],
        page=decision_page(decision),
    )  # fmt: skip
    with get_client(sync_client=True) as client:
        deployment = _deployment(client)
        waiting = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[deployment]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_WAITING)),
            )
        )
        for run in waiting:
            theirs = run.parameters.get("judged", {})
            same = all(theirs.get(name) == getattr(judged, name) for name in ("version", "champion"))
            if same and not run.parameters.get("ends"):
                return f"version {judged.version} waits for approval already: flow run {run.name}"
        run = client.create_flow_run_from_deployment(
            deployment,
            name=f"approve version {judged.version}",
            parameters={"judged": judged.model_dump()},
        )
    return f"version {judged.version} waits for approval: flow run {run.name}, for {hours:g} h"


def question(judged: Judged) -> str:
    """What a person decides, and why they may, as Markdown."""
    why = plain_markdown(judged.why[:1].upper() + judged.why[1:])
    return f"Make version {judged.version} the champion? {why}."


def decision_page(decision: dict[str, Any]) -> str:
    """A decision of `align promote` as markdown: the page that it wrote, or else its sentence."""
    if (page := decision.get("page")) and (text := Path(page).with_suffix(".md")).is_file():
        return text.read_text("utf-8")
    return f"**{decision['outcome']}**: {plain_markdown(decision['reason'])}"


def _arguments(judged: Judged, answer: Answer) -> tuple[str, ...]:
    """Arguments of `align promote`.

    With `=`, since an answer may begin with a dash, and without characters that no argument may hold.
    """
    who, why = visible(without_logins(answer.who))[:MAX_WHO], visible(without_logins(answer.why))[:MAX_WHY]
    if answer.decision == "reject":
        return (f"--version={judged.version}", f"--rejected-by={who}", f"--because={why}")
    same = (f"--version={judged.version}", f"--expect-champion={judged.champion}")
    return (*same, f"--approved-by={who}", f"--because={why}")


def _schedule_end(client: SyncPrefectClient, run: FlowRun, judged: Judged, until: datetime) -> UUID:
    """The run that ends this one when its time is over; it is the same one each time that this one is executed."""
    return client.create_flow_run_from_deployment(
        _deployment(client),
        name=f"end of the time to approve version {judged.version}",
        parameters={"judged": judged.model_dump(exclude={"page", "why"}), "ends": str(run.id)},
        state=Scheduled(scheduled_time=until),
        idempotency_key=f"end-of-{run.id}",
    ).id


def _end(run_id: UUID, judged: Judged) -> str:
    """Ends a run that nobody answered; returns what was done."""
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(run_id)
        except ObjectNotFound:
            return "the run was deleted"
        if run.state_type != StateType.PAUSED:
            return "answered, or ended, in time"
        client.set_flow_run_state(run_id, Failed(message=_too_late(judged)), force=True)
    return _too_late(judged)


def _too_late(judged: Judged) -> str:
    return f"version {judged.version} was not approved within {judged.hours:g} h; nothing was moved"


def _deployment(client: SyncPrefectClient) -> UUID:
    try:
        return client.read_deployment_by_name(DEPLOYMENT).id
    except ObjectNotFound:
        raise ServiceError(f"Prefect has no deployment {DEPLOYMENT}: `make down` and `make up` make it") from None
