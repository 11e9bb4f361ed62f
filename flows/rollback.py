"""Rollback as a flow: makes the previous champion the champion again."""

from __future__ import annotations

from prefect import flow

from flows.command_task import run_command


@flow(flow_run_name="rollback")
def rollback(reason: str) -> str:
    """Makes the previous champion the champion again.

    Args:
        reason: why; kept as a tag of the version that is replaced.

    Raises:
        CommandError: there is no champion, or no previous one.
    """
    return run_command("rollback", "--reason", reason)
