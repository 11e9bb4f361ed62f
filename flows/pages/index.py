"""The page that leads to all pages of a run.

A stage's page is the same bytes in every run that has its result, so it cannot say which run it is of. This page does.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from align.display import html
from align.durable.files import write_text
from flows.checkout.run_branch import Recorded
from flows.pages.report import verdict
from flows.run.context import RunContext

INDEX = "index.html"
_TITLE = re.compile("<h1>(.*?)</h1><p class=lead>(.*?)</p>", re.DOTALL)


def index_file(run: RunContext) -> Path:
    """Beside the reports; nothing depends on it."""
    return run.root / Path(run.chosen.stages[0].report).parent / INDEX


def write_index(run: RunContext, recorded: Recorded, said: str) -> None:
    """Writes the page of a run that is complete: which run, commit, date and verdict, and what each page says first."""
    rows = []
    for stage in run.chosen.stages:
        folder = run.root / stage.report
        if (file := folder / "report.html").is_file() and (found := _TITLE.search(file.read_text("utf-8"))):
            name, lead = found.groups()
            link = f'<a href="{html.escape(folder.name)}/report.html">{name}</a><br>{lead}'
            rows.append([verdict(folder), stage.name, link])
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    lead = f"Run {run.name}, commit {recorded.commit[:12]}, {date}: {said}"
    table = html.table(("verdict", "stage", "page"), rows, drawn=2)
    write_text(index_file(run), html.page(f"Run {run.name}", lead, [table]))
