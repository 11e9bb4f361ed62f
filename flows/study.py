"""A study as a flow: each arm with each seed is a run of the pipeline up to `evaluate`, a sub-flow of this one.

A finished run is found in MLflow by its tags, so a study that is started again makes only what is missing. Its runs
work one after another: training takes all cores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from pydantic import Field

from align.config import load_params
from align.config.params import DEMO, PARAMS_FILE, profile_names
from align.config.paths import PathsConfig
from align.config.study import Cell, Study, read_study
from align.display.visible import markdown_table, plain_markdown
from align.errors import AlignError, DataError
from align.lineage.runs.study import COLUMNS, notes, read_runs, rows, run_of, write
from align.services.git import git, resolve
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import Tracker
from flows.checkout.run_branch import check_name
from flows.checkout.worktree import commit_of
from flows.dag import EVALUATE
from flows.pages.progress import put_markdown
from flows.pipeline import exit_code, pipeline
from flows.request import NO_LOGIN, NO_LOGINS, Request, inside, settled
from flows.run.record import conclude, end_record, in_progress

STUDIES = Path("infra/studies")


@flow(on_completion=[end_record], on_failure=[end_record])
def study(
    study: Annotated[str, Field(max_length=1000, json_schema_extra=NO_LOGIN)] = "paper",
    profile: Annotated[str, Field(json_schema_extra={"enum": [DEMO, *profile_names()]})] = DEMO,
    overrides: Annotated[dict[str, Any], Field(json_schema_extra=NO_LOGINS)] = {},  # noqa: B006  # nobody changes it, and the form shows it
) -> str:
    """Runs the arms of a study with each seed, and compares them with its first arm.

    Args:
        study: a name of infra/studies, or a YAML file of the checkout.
        profile: values for a kind of data or run (infra/profiles); demo: params.yaml as it is.
        overrides: parameters of all runs, such as {"pretrain.num_steps": 100}; what the study sets counts more.

    Returns:
        The table, and where the page is.

    Raises:
        AlignError: it is not a study, an arm's values are wrong, or runs failed; those that ended are on the page.
    """
    root, log = Path.cwd(), get_run_logger().info
    with in_progress():
        asked = named_study(root, study)
        commit, _ = commit_of(root, Request(ref="HEAD"))  # of all runs, whatever is committed meanwhile
        tree, requests = resolve(root, commit, "tree"), dict[Cell, Request]()
        for arm, seed in asked.cells():
            name, values = f"{asked.name}-{arm.name}-s{seed}", overrides | asked.values_of(arm, seed, profile)
            made_from = hashlib.sha256(json.dumps([tree, profile, values], sort_keys=True).encode()).hexdigest()
            tags = {
                "align.study": asked.name, "align.arm": arm.name, "align.seed": str(seed), "align.made_from": made_from
            }  # fmt: skip
            check_name(root, name)
            request = Request(name=name, profile=profile, ref=commit, to_stage=EVALUATE, overrides=values, tags=tags)
            try:
                requests[arm.name, seed] = settled(root, request)  # all of them before the first begins
            except AlignError as error:
                raise type(error)(f"arm {arm.name}: {error}") from None
        folder, tracker = load_params(root / PARAMS_FILE).section(PathsConfig).reports / "study" / asked.name, Tracker()
        runs: dict[Cell, TrackedRun] = {}
        missing = dict.fromkeys(requests, "it has not run yet")
        for number, (cell, request) in enumerate(requests.items(), 1):
            name = str(request.name)
            log("run %s of %s: %s", number, len(requests), name)
            try:
                runs[cell] = _run(root, tracker, request)
                del missing[cell]
            except AlignError as error:
                missing[cell] = str(error)
                log("%s failed; the study goes on: %s", name, error)
            found = read_runs(asked, runs, missing, tracker)
            write(asked, found, root / folder)
        table, sentences = list(rows(asked, found)), [*notes(asked, found), f"page: {folder / 'report.html'}"]
        shown = [markdown_table(COLUMNS, table), *map(plain_markdown, sentences)]
        put_markdown("study", f"study {asked.name}", "\n\n".join(shown))
        text = "\n".join([*(" | ".join(row) for row in [COLUMNS, *table]), *sentences])
        conclude(f"Completed: study {asked.name}: " + "; ".join(" ".join(row[:3:2] + row[5:6]) for row in table))
        if missing:
            raise DataError(f"{text}\n{len(missing)} of {len(requests)} runs failed; the same command tries them again")
        return text


def named_study(root: Path, named: str) -> Study:
    """A study by its name in infra/studies, or by its file. Raises AlignError: it is not one of the checkout."""
    file = named.strip()
    return read_study(inside(root, file if file.endswith((".yaml", ".yml")) else f"{STUDIES}/{file}.yaml"))


def _run(root: Path, tracker: Tracker, request: Request) -> TrackedRun:
    """The run of a cell, which is made unless MLflow has it: where git lacks what it reads, DVC says what is cached."""
    asked = load_params(root / PARAMS_FILE, [f"{key}={json.dumps(value)}" for key, value in request.overrides.items()])
    read = [str(asked.values["paths"][key]) for key in ("archive", "evaluation")]
    tags = request.tags or {}
    made = run_of(tracker, tags)
    if made is None or not all(git(root, "ls-files", "--", f":(literal){path}") for path in read):
        pipeline.with_options(flow_run_name=str(request.name))(request)
        made = run_of(tracker, tags)
    if made is None:
        raise DataError(f"MLflow has no finished run '{request.name}', though it ended well")
    return made


def main(argv: Sequence[str]) -> int:
    """The program that `align study` becomes; takes the flow's arguments as JSON. Returns its `exit_code`."""
    values = json.loads(argv[0])
    return exit_code(lambda: study.with_options(flow_run_name=f"study {values['study']}")(**values))
