"""Promotion as a flow: compares candidate and champion, and moves the alias, or asks a person, or says why not."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from align.config import load_params
from align.config.params import PARAMS_FILE
from align.config.release import PromoteConfig
from flows.approve import ask, decision_page
from flows.command import command
from flows.pages.progress import put_markdown
from flows.run.record import end_record, in_progress
from flows.run.supervised import last_line


@flow(on_completion=[end_record], on_failure=[end_record])
def promote(version: Annotated[int, Field(ge=0)] = 0) -> str:
    """Makes a version the champion if its metrics suffice; returns the decision in a sentence.

    With `promote.approval`, the flow `approve` asks a person first.

    Args:
        version: the number of the version in MLflow; 0: the candidate, which was registered last.

    Raises:
        CommandError: there is no such version, or its metrics do not suffice; the message names the metric and the
            value that it needs.
    """
    root = Path.cwd()
    with in_progress(), tempfile.TemporaryDirectory(prefix="align-") as folder:
        file = Path(folder) / "decision.json"
        chosen = (f"--version={version}",) if version else ()
        try:
            lines = command("promote", (*chosen, f"--json={file}"))
        finally:  # a refusal has a page, too
            decision: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
            if decision:
                put_markdown("promote", "what was decided, and why", decision_page(decision))
        if decision.get("outcome") != "unapproved":
            return last_line(lines)
        config = load_params(root / PARAMS_FILE).section(PromoteConfig)
        return ask(decision, config.approval_timeout_h)
