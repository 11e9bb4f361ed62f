"""Evaluation as a flow: `align evaluate --log` by a form, in a child process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

from prefect import flow, runtime
from pydantic import Field

from align.display.visible import fenced_markdown, visible
from align.errors import without_logins
from flows.command import command
from flows.pages.progress import Progress, put_markdown
from flows.request import NO_LOGIN, inside
from flows.run.record import end_record, in_progress
from flows.run.supervised import last_line

_Words = Field(min_length=1, max_length=1000, json_schema_extra={"pattern": r"\S", **NO_LOGIN})


@flow(on_completion=[end_record], on_failure=[end_record])
def evaluate(
    suite: Annotated[str, _Words] = "infra/suites/demo.yaml",
    model: Annotated[str, _Words] = "champion",
) -> str:
    """Measures a model on the sets of a suite; the result is a run in MLflow of the same name, below the run that
    made the version.

    Args:
        suite: the sets and what is measured on them: a YAML file of the checkout.
        model: an alias, or models:/NAME/NUMBER, of MLflow; or a folder of the checkout, such as models/finetuned.

    Returns:
        How much was measured, and where it is.

    Raises:
        DataError: the form names a file or a folder outside of the checkout.
        CommandError: there is no such model or suite, MLflow is unavailable, or `align evaluate` failed.
    """
    suite, model = visible(suite.strip()), visible(model.strip())
    name = visible(without_logins(str(runtime.flow_run.name)))
    with in_progress(), tempfile.TemporaryDirectory(prefix="align-") as folder:
        for asked in (suite, model):
            if not asked.startswith("models:/"):
                inside(Path.cwd(), asked)
        file = Path(folder) / "progress.json"
        with Progress(file):
            sets = f"--set=paths.evaluation={json.dumps(suite)}"
            lines = command("evaluate", (f"--model={model}", sets, f"--log={name}"), file)
        put_markdown("summary", "what was measured", fenced_markdown(lines))
        return last_line(lines)
