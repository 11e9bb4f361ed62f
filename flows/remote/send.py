"""The head of a run has a stage run on another machine, and takes its result. See `flows.remote` for the whole.

`problems` finds what is wrong or missing before anything is sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPoolStatus
from prefect.deployments import run_deployment
from prefect.exceptions import Abort, ObjectNotFound, Pause, PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Crashed

from align.config.infrastructure import ClusterConfig
from align.durable.files import write_text
from align.errors import AlignError, one_line
from align.services.git import git, network_git
from flows.checkout.run_branch import snapshot
from flows.dag import Stage
from flows.remote.exchange import exchange, pushed
from flows.remote.order import FLOW, GIVEN_UP, HEARD, MAX_LABEL_BYTES, ORIGIN, REFS, RUNTIME, SAID, Order
from flows.run.context import RunContext, progress_file
from flows.run.stop import Stopped, end_without_waiting
from flows.run.supervised import CommandError

#: Seconds between two looks at the worker's flow run; after a longer pause the head was asleep, not the worker.
LOOK_EVERY_S, WAS_AWAY_S = 2.0, 20.0
#: Seconds without a worker that takes the stage, after which a line says so.
SAY_AFTER_S = 20.0
#: Seconds in which a worker ends a cancelled stage, with its checkpoint.
ENDS_WITHIN_S = 60.0


def problems(run: RunContext, stages: Sequence[Stage]) -> tuple[list[str], list[str]]:
    """Why these stages of `run.pools` cannot run elsewhere, and what may go wrong. No data is sent."""
    refused: list[str] = [*_git(run), *_data(run, stages)]
    warnings: list[str] = []
    if not PREFECT_API_URL.value():
        refused.append("cluster.pools: another machine is told by Prefect's server: `make up`, or set PREFECT_API_URL")
    else:
        try:
            with get_client(sync_client=True) as client:
                for pool in dict.fromkeys(run.pools[stage.name] for stage in stages):
                    refused += _missing(client, pool)
                    warnings += _idle(client, pool)
        except Exception as error:  # noqa: BLE001 (of any library below; the server is asked again when it is needed)
            warnings.append(f"the work pools could not be looked at: {type(error).__name__}")
    return refused, warnings


def _missing(client: SyncPrefectClient, pool: str) -> Iterator[str]:
    try:
        client.read_deployment_by_name(f"{FLOW}/{pool}")
    except ObjectNotFound:
        yield f"cluster.pools: no worker was ever started for pool '{pool}': on its machine, make worker POOL={pool}"


def _idle(client: SyncPrefectClient, pool: str) -> Iterator[str]:
    try:
        status = client.read_work_pool(pool).status
    except ObjectNotFound:
        return
    if status == WorkPoolStatus.PAUSED:
        yield f"work pool '{pool}' is paused: the run waits until it is not"
    elif status != WorkPoolStatus.READY:
        yield f"work pool '{pool}' has no worker now: the run waits for one; on its machine, make worker POOL={pool}"


def _git(run: RunContext) -> Iterator[str]:
    """Checks that a ref can be pushed and removed: a dry run does not ask the server's hooks."""
    ref = f"{REFS}/check-{uuid4().hex}"
    try:
        network_git(run.root, "push", "--quiet", ORIGIN, f"HEAD:{ref}")
        network_git(run.root, "push", "--quiet", ORIGIN, f":{ref}")
    except AlignError as error:
        yield f"cluster.pools: other machines get the code from git's remote '{ORIGIN}': {one_line(error)}"


def _data(run: RunContext, sent: Sequence[Stage]) -> Iterator[str]:
    """What is wrong with DVC's remote, and deps that only this machine has: neither DVC nor git keeps them."""
    try:
        found = exchange("check", run, lambda line: None, *(stage.name for stage in sent))
    except AlignError as error:
        yield f"cluster.pools: {error}"
        return
    yield from found["refused"]
    commit = snapshot(run.root, "what git has")
    for stage in sent:
        for dep in stage.deps:
            if dep not in found["kept"] and "://" not in dep and not git(run.root, "ls-tree", commit, "--", dep):
                yield (
                    f"{stage.name} reads {dep}, which only this machine has: `dvc add` it, name a bucket, or run the "
                    f"stage here (cluster.pools: {stage.name}: null)"
                )


def run_elsewhere(stage: Stage, run: RunContext, log: Callable[[str], None]) -> bool | None:
    """Has the stage run by a worker of its pool, and brings the result into DVC's cache.

    Returns:
        Whether its command ran there; None: the result was in DVC's cache or remote.

    Raises:
        CommandError: the stage failed; the message has its reason and the machine. Or the result did not arrive.
    """
    offered = exchange("offer", run, log, stage.name)
    if offered["found"]:
        return None
    pool = run.pools[stage.name]
    log(f"{stage.name}: runs in work pool '{pool}'")
    try:
        order = Order(
            stage=stage.name, run=run.name, commit=snapshot(run.root, f"{stage.name} of run {run.name}"),
            remote=offered["remote"], reads=offered["reads"], mlflow_run_id=run.mlflow_run_id,
        )  # fmt: skip
        with pushed(run.root, run.checkout, order, log), get_client(sync_client=True) as client:
            ended = _Sent(client, run, order, log).to_its_end()
    except CommandError:
        raise
    except (AlignError, PrefectException, httpx.HTTPError) as error:
        raise CommandError(f"{stage.name}, in work pool '{pool}': {one_line(error)}") from None
    taken = exchange("take", run, log, stage.name)
    if taken["key"] != offered["key"]:
        raise CommandError(
            f"{stage.name}: what it reads has changed here while work pool '{pool}' ran it; run it again"
        )
    if not taken["found"]:
        raise CommandError(f"{stage.name}: its result is not in DVC's remote {order.remote}, where '{pool}' put it")
    _write_runtime(run, stage, ended)
    return ended.state is not None and ended.state.name == "Completed"


class _Sent:
    """The flow runs of one stage in a work pool: a new one after each lost machine."""

    def __init__(self, client: SyncPrefectClient, run: RunContext, order: Order, log: Callable[[str], None]) -> None:
        self._client, self._run, self._order, self._log = client, run, order, log
        self._pool = run.pools[order.stage]
        self._runs: list[UUID] = []  # all that were started
        self._cluster = run.params.section(ClusterConfig)

    def to_its_end(self) -> FlowRun:
        """The flow run that completed the stage."""
        for lives_left in reversed(range(1 + self._cluster.max_restarts)):
            sent = run_deployment(
                f"{FLOW}/{self._pool}", parameters={"order": self._order.model_dump(exclude_none=True)}, timeout=0,
                flow_run_name=f"{self._order.stage} of {self._order.run}",
            )  # fmt: skip
            assert isinstance(sent, FlowRun)
            self._runs.append(sent.id)
            with self._ended_with_us():
                ended = self._wait(sent.id)
            state = ended.state
            assert state is not None
            if state.is_completed():
                return ended
            if not state.is_crashed():
                how = "was cancelled" if state.is_cancelled() else "failed"
                raise CommandError(f"{state.message or how}; see flow run {ended.name} ({ended.id})")
            self._log(f"{self._order.stage}: {state.message}{'; another worker takes over' if lives_left else ''}")
        raise CommandError(
            f"{self._order.stage}: {1 + self._cluster.max_restarts} machines of pool '{self._pool}' were lost while "
            "they ran it (cluster.max_restarts)"
        )

    def _wait(self, run_id: UUID) -> FlowRun:
        """Waits for the end, and shows what the worker says meanwhile. Gives up a worker that is lost."""
        signs, told = _Signs(), ""
        while True:
            found = self._client.read_flow_run(run_id)
            assert found.state is not None
            if found.state.is_final():
                return found
            signs.see(found)
            self._show(found.labels.get(SAID))
            waits_for = ""
            if found.state.type == StateType.PAUSED:
                waits_for = f"flow run '{found.name}' was paused; this run waits until somebody resumes it"
            elif found.state.type == StateType.SCHEDULED:
                if signs.silent_s > SAY_AFTER_S:
                    waits_for = f"no worker of pool '{self._pool}' has taken it yet: make worker POOL={self._pool}"
            elif signs.silent_s > self._cluster.patience_s:
                lost = f"its worker was not heard of for {self._cluster.patience_s} s (cluster.patience_s)"
                self._client.update_flow_run_labels(run_id, {GIVEN_UP: True})
                self._client.set_flow_run_state(run_id, Crashed(message=lost), force=True)
                return self._client.read_flow_run(run_id)
            if waits_for and waits_for != told:
                told = waits_for
                self._log(f"{self._order.stage}: {told}")
            time.sleep(LOOK_EVERY_S)

    def _show(self, said: object) -> None:
        if isinstance(said, str) and len(said) <= MAX_LABEL_BYTES:
            with suppress(OSError):  # a full disk: the page shows less
                write_text(progress_file(self._run.root), said)

    @contextmanager
    def _ended_with_us(self) -> Iterator[None]:
        """If the run here has to end, ends those of workers, too."""
        try:
            yield
        except Stopped:  # by a signal: it waits for nothing
            self._end()
            raise
        except (Exception, Pause, Abort):  # the last two are what people ask for in Prefect's UI
            self._end()
            deadline = time.monotonic() + ENDS_WITHIN_S
            while time.monotonic() < deadline and not self._have_ended():
                time.sleep(LOOK_EVERY_S)
            self._end(Cancelled(message="its worker did not answer"))
            raise
        except BaseException:  # a signal to a deployed run
            end_without_waiting()
            self._end()
            raise

    def _end(self, state: State[Any] | None = None) -> None:
        """Asks all that have not ended to end; with a state, says that they have ended."""
        for run_id in self._runs:
            with suppress(Exception):  # its server does not answer
                if not _is_final(self._client.read_flow_run(run_id)):
                    asked = state or Cancelling(message=f"run {self._order.run} ends")
                    self._client.set_flow_run_state(run_id, asked, force=state is not None)

    def _have_ended(self) -> bool:
        try:
            return all(_is_final(self._client.read_flow_run(run_id)) for run_id in self._runs)
        except (PrefectException, httpx.HTTPError):
            return False


class _Signs:
    """Signs of life of a worker's flow run: a change of its state, and its heartbeat, by the clock of this machine."""

    def __init__(self) -> None:
        self._last: Any = None
        self._since = self._looked = time.monotonic()

    def see(self, found: FlowRun) -> None:
        """A look at the flow run."""
        now, sign = time.monotonic(), (found.state and found.state.id, found.labels.get(HEARD))
        if sign != self._last or now - self._looked > WAS_AWAY_S:  # Prefect's server was unavailable for both
            self._last, self._since = sign, now
        self._looked = now

    @property
    def silent_s(self) -> float:
        """Seconds since the last sign."""
        return self._looked - self._since


def _write_runtime(run: RunContext, stage: Stage, ended: FlowRun) -> None:
    """What the stage measured of itself; without it, the run is the same."""
    text = ended.labels.get(RUNTIME)
    try:
        measured = json.loads(text) if isinstance(text, str) and len(text) <= MAX_LABEL_BYTES else None
    except ValueError:
        measured = None
    if isinstance(measured, dict):
        run.runtime.mkdir(parents=True, exist_ok=True)
        write_text(run.runtime / f"{stage.name}.json", json.dumps(measured, indent=2) + "\n")


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
