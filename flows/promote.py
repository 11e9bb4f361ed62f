"""Promotion as a flow: compares candidate and champion, and moves the alias or says why not."""

from __future__ import annotations

from prefect import flow

from flows.command_task import run_command


@flow(flow_run_name="promote")
def promote() -> str:
    """Makes the candidate the champion if its metrics suffice; returns the decision in a sentence.

    Raises:
        CommandError: they do not; the message names the metric and the value that it needs.
    """
    return run_command("promote")
