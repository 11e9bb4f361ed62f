"""An `align` command of the checkout as a visible task: output in the log, its last line as the result."""

from __future__ import annotations

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.log import one_line_errors
from flows.process import run_supervised
from flows.stages import Work, child_environment, tracking_uri


def run_command(verb: str, *arguments: str) -> str:
    """Runs `align VERB` in the working directory, shows what it says as an artifact, and returns its last line.

    Raises:
        CommandError: it failed; the message is the line in which it says why.
    """
    one_line_errors()
    said = command(verb, arguments)
    create_markdown_artifact("\n".join(said), key=verb, description=f"align {verb}")
    return said[-1]


@task(task_run_name="{verb}", cache_policy=NO_CACHE)
def command(verb: str, arguments: tuple[str, ...]) -> list[str]:
    """The command itself, in a supervised child."""
    root = Path.cwd()
    work = Work(root=root, stale=frozenset(), mlflow_tracking_uri=tracking_uri(root))
    return run_supervised(
        ["align", verb, *arguments], cwd=root, env=child_environment(work), log=get_run_logger().info
    )  # fmt: skip
