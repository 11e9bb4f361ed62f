"""Rollback as a flow: the champion before this one is the champion again."""

from __future__ import annotations

from prefect import flow

from flows.commands import run_command


@flow(flow_run_name="rollback")
def rollback(reason: str) -> str:
    """Takes the champion back.

    Args:
        reason: why; kept as a tag of the version that is taken back.

    Raises:
        CommandError: there is no champion, or none before it.
    """
    return run_command("rollback", "--reason", reason)
