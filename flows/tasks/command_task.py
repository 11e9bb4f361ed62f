"""An `align` command of the checkout as a Prefect task: its output in the log, its last line as the result."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from align.display.console import PROGRESS_VARIABLE
from align.display.visible import fenced_markdown
from flows.tasks.child_process import last_line, run_supervised
from flows.tasks.run_context import RunContext, child_environment
from flows.tasks.this_run import in_progress


def run_command(verb: str, *arguments: str) -> str:
    """Runs `align VERB` in the working directory, shows its output as an artifact, and returns its last line.

    Raises:
        CommandError: the command failed; the message is the line with its reason.
    """
    with in_progress():
        lines = command(verb, arguments)
        create_markdown_artifact(fenced_markdown(lines), key=verb, description=f"align {verb}")
        return last_line(lines)


@task(task_run_name="{verb}", cache_policy=NO_CACHE)
def command(verb: str, arguments: tuple[str, ...], progress: Path | None = None) -> list[str]:
    """Runs the command in a supervised child, which writes to `progress`; returns its lines of output."""
    root = Path.cwd()
    env = child_environment(RunContext(root=root, checkout=root))
    env |= {"ALIGN_FLOW_RUN_ID": str(runtime.flow_run.root_flow_run_id)}
    env |= {PROGRESS_VARIABLE: str(progress)} if progress else {}
    return run_supervised(["align", verb, *arguments], cwd=root, env=env, log=get_run_logger().info)
