"""An `align` command of the checkout as a Prefect task: its output in the log, its last line as the result."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client

from align.display.console import PROGRESS_VARIABLE
from align.display.visible import visible
from align.services.tracking.address import WHO
from flows.run.context import RunContext, child_environment
from flows.run.supervised import run_supervised


@task(task_run_name="{verb}", cache_policy=NO_CACHE)
def command(verb: str, arguments: tuple[str, ...], progress: Path | None = None) -> list[str]:
    """Runs the command in a supervised child, which writes to `progress`; returns its lines of output."""
    root = Path.cwd()
    env = child_environment(RunContext(root=root, checkout=root))
    run = UUID(runtime.flow_run.root_flow_run_id)
    with get_client(sync_client=True) as client:
        who = visible(str(client.read_flow_run(run).labels.get(WHO, "")))
    env |= {"ALIGN_FLOW_RUN_ID": str(run), "ALIGN_WHO": who}
    env |= {PROGRESS_VARIABLE: str(progress)} if progress else {}
    return run_supervised(["align", verb, *arguments], cwd=root, env=env, log=get_run_logger().info)
