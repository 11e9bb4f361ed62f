"""The page that leads to all pages of a run.

A stage's page is the same bytes in every run that has its result, so it cannot say which run it is of. This page does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from align.display import html
from align.display.report import reported
from align.durable.files import write_text
from flows.checkout.run_branch import Recorded
from flows.pages.report import main_figures, verdict
from flows.run.context import RunContext


def index_file(run: RunContext) -> Path:
    """Beside the reports; nothing depends on it."""
    return run.root / Path(run.chosen.stages[0].report).parent / "index.html"


def write_index(run: RunContext, recorded: Recorded, said: str) -> None:
    """Writes the page of a run that is complete: which run, commit, date and verdict, and each page's figures."""
    blocks = []
    for stage in run.chosen.stages:
        folder = run.root / stage.report
        if (folder / "report.html").is_file():
            link = html.link(stage.name, f"{folder.name}/report.html")
            blocks.append(f"<p>{link}: {html.escape(stage.description)}. <b>{verdict(folder)}.</b></p>")
            shown = main_figures(stage.figures, reported(folder, "metrics.json"))
            figures = (
                f"{name.removeprefix(f'{folder.name}/')} {value}{f' (by chance {chance})' if chance else ''}"
                for name, value, chance in shown
            )
            blocks.append(html.note("; ".join(figures)))
    lead = f"Run {run.name}, commit {recorded.commit[:12]}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {said}"
    blocks += [f"<p>{html.link('This run in MLflow', run.mlflow_page)}</p>"] if run.mlflow_page else []
    write_text(index_file(run), html.page(f"Run {run.name}", lead, blocks))
