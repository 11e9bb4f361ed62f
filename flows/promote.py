"""Promotion as a flow: compares candidate and champion, and moves the alias or says why not."""

from __future__ import annotations

from prefect import flow

from flows.command_task import run_command
from flows.this_run import end_record


@flow(flow_run_name="promote", on_completion=[end_record], on_failure=[end_record])
def promote(version: int | None = None) -> str:
    """Makes a version the champion if its metrics suffice; returns the decision in a sentence.

    Args:
        version: its number in the registry; empty: the candidate, which was registered last.

    Raises:
        CommandError: there is no such version, or its metrics do not suffice; the message names the metric and the
            value that it needs.
    """
    return run_command("promote", *([] if version is None else ["--version", str(version)]))
