"""Rollback as a flow: makes the last champion that passed its gates the champion again."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from align.display.visible import fenced_markdown, visible
from flows.command import command
from flows.pages.progress import put_markdown
from flows.request import NO_LOGIN
from flows.run.record import end_record, in_progress
from flows.run.supervised import last_line


@flow(on_completion=[end_record], on_failure=[end_record])
def rollback(why: Annotated[str, Field(json_schema_extra=NO_LOGIN)]) -> str:
    """Makes the last champion that passed its gates the champion again.

    Args:
        why: your reason, such as: finds no animals. The history of champions keeps it.

    Raises:
        CommandError: there is no champion, or no previous one.
    """
    with in_progress():
        lines = command("rollback", (f"--why={visible(why)}",))  # it may begin with a dash
        put_markdown("rollback", "align rollback", fenced_markdown(lines))
        return last_line(lines)
