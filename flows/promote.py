"""Promotion as a flow: candidate and champion compared on their figures, and the alias moved, or the reason why not."""

from __future__ import annotations

from prefect import flow

from flows.commands import run_command


@flow(flow_run_name="promote")
def promote() -> str:
    """Makes the candidate the champion if the figures say so; returns the decision in a sentence.

    Raises:
        CommandError: they do not; the message says which figure, and what it would have to be.
    """
    return run_command("promote")
