"""Finds what is wrong or missing before a run sends a stage to another machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkPoolStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from align.errors import AlignError, one_line
from align.services.git import git, network_git
from flows.checkout.run_branch import snapshot
from flows.dag import Stage
from flows.remote.exchange import exchange
from flows.remote.order import FLOW, ORIGIN, REFS
from flows.tasks.run_context import RunContext


def problems(run: RunContext, stages: Sequence[Stage]) -> tuple[list[str], list[str]]:
    """Why the stages cannot run elsewhere, and what may go wrong. No data is sent.

    Args:
        run: its `pools` say which stages run elsewhere.
        stages: those that have to run.
    """
    sent = [stage for stage in stages if stage.name in run.pools]
    if not sent:
        return [], []
    refused: list[str] = [*_git(run), *_data(run, sent)]
    warnings: list[str] = []
    if not PREFECT_API_URL.value():
        refused.append("cluster.pools: another machine is told by Prefect's server: `make up`, or set PREFECT_API_URL")
    else:
        try:
            with get_client(sync_client=True) as client:
                for pool in dict.fromkeys(run.pools[stage.name] for stage in sent):
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
