"""A study as a flow: each arm with each seed is a run of the pipeline up to `evaluate`, a sub-flow of this one.

What is finished is in git and in DVC's cache, so the same study, started again, goes on where it was. Runs work one
after another: training takes all cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import BaseModel, Field

from align.config import load_params
from align.config.params import DEMO, PARAMS_FILE, profile_names
from align.config.paths import PathsConfig
from align.config.study import read_study
from align.display.visible import plain_markdown
from align.errors import AlignError, DataError
from align.lineage.runs.study import Found, columns, notes, read_runs, rows, write
from align.release.promotion.measured import inside
from align.services.git import git
from flows.checkout.run_branch import branch_of, check_name
from flows.checkout.workspace import commit_of
from flows.dag import EVALUATE
from flows.pages.progress import put_markdown
from flows.pipeline import exit_code, pipeline
from flows.request import NO_LOGIN, Request, settled
from flows.tasks.this_run import end_record, in_progress

STUDIES = Path("infra/studies")
#: Tags in MLflow, by which runs of a study are found and grouped.
STUDY, ARM, SEED = "align.study", "align.arm", "align.seed"
_Words = Annotated[str, Field(max_length=1000, json_schema_extra=NO_LOGIN)]


@flow(flow_run_name="study", on_completion=[end_record], on_failure=[end_record])
def study(
    study: _Words = "paper",
    profile: Annotated[str, Field(json_schema_extra={"enum": [DEMO, *profile_names()]})] = DEMO,
    overrides: dict[str, Any] = {},  # noqa: B006 - the form shows it
) -> str:
    """Runs the arms of a study with each seed, and compares them with its first arm.

    Args:
        study: a name of infra/studies, or a YAML file of the checkout.
        profile: values for a kind of data or run (infra/profiles); demo: params.yaml as it is.
        overrides: parameters of all runs, such as {"pretrain.num_steps": 100}; arms may set them otherwise.

    Returns:
        The table, and where the page is.

    Raises:
        AlignError: it is not a study, an arm's values are wrong, or runs failed; those that ended are on the page.
    """
    root, log = Path.cwd(), get_run_logger().info
    with in_progress():
        asked = read_study(_file(root, study))
        commit, _ = commit_of(root, Request(ref="HEAD"))  # of all runs, whatever is committed meanwhile
        requests: dict[tuple[str, int], Request] = {}
        for arm, seed in asked.cells():
            name = asked.run_name(arm, seed)
            check_name(root, name)
            tags = {STUDY: asked.name, ARM: arm.name, SEED: str(seed)}
            request = Request(
                name=name, profile=profile, ref=commit, to_stage=EVALUATE, tags=tags,
                overrides=overrides | asked.values_of(arm, seed, profile),
            )  # fmt: skip
            try:
                requests[arm.name, seed] = settled(root, request)  # all of them before the first begins
            except AlignError as error:
                raise type(error)(f"arm {arm.name}: {error}") from None
        paths = load_params(root / PARAMS_FILE).section(PathsConfig)
        folder = root / paths.reports / "study" / asked.name
        names: dict[tuple[str, int], str] = {}
        missing = dict.fromkeys(requests, "it has not run yet")

        def show() -> Found:
            with tempfile.TemporaryDirectory(prefix="align-") as scratch:
                found = read_runs(asked, names, missing, root, paths, Path(scratch))
            write(asked, found, folder)
            return found

        for number, (cell, request) in enumerate(requests.items(), 1):
            name = str(request.name)
            log("run %s of %s: %s", number, len(requests), name)
            made = branch_of(root, name, commit, request.overrides)
            try:
                if made is None or not _git_has_all(root, request):
                    pipeline.with_options(flow_run_name=name)(request)
                    made = branch_of(root, name, commit, request.overrides)
                names[cell] = str(made)
                del missing[cell]
            except AlignError as error:
                missing[cell] = str(error)
                log("%s failed; the study goes on: %s", name, error)
            show()
        found = show()
        lines = [" | ".join(row) for row in (columns(asked), *rows(asked, found))]
        text = "\n".join([*lines, *notes(asked, found), f"page: {(folder / 'report.html').relative_to(root)}"])
        table = [f"| {' | '.join(map(plain_markdown, row))} |" for row in (columns(asked), *rows(asked, found))]
        table.insert(1, "|---" * len(columns(asked)) + "|")
        markdown = "\n\n".join(["\n".join(table), *map(plain_markdown, notes(asked, found))])
        put_markdown("study", f"study {asked.name}", markdown)
        if missing:
            raise DataError(f"{text}\n{len(missing)} of {len(requests)} runs failed; the same command tries them again")
        return text


def _file(root: Path, asked: str) -> Path:
    """The file of a study that a form or a command names."""
    asked = asked.strip()
    return inside(root, asked) if asked.endswith((".yaml", ".yml")) else root / STUDIES / f"{asked}.yaml"


def _git_has_all(root: Path, request: Request) -> bool:
    """Whether git has all that the run reads; else only DVC can tell whether it has changed."""
    paths = load_params(root / PARAMS_FILE).values["paths"] | {
        key.removeprefix("paths."): value for key, value in request.overrides.items()
    }
    return all(git(root, "ls-files", "--", f":(literal){paths[name]}") for name in ("archive", "evaluation"))


class _Asked(BaseModel):
    study: str
    profile: str
    overrides: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The program that `align study` becomes. Returns its `exit_code`."""
    parser = argparse.ArgumentParser(prog="align study")
    parser.add_argument("asked", type=_Asked.model_validate_json, help="as JSON")
    asked: _Asked = parser.parse_args(argv).asked
    return exit_code(lambda: study(asked.study, asked.profile or DEMO, asked.overrides))
