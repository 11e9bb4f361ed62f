"""`align runs`: shows every run side by side, or all of one, and ends those that were killed.

    align runs                  state, parameters that differ, main metrics with intervals, cost, folders, links
    align runs show NAME        all that is known of one
    align runs --repair         ends what a killed run left unfinished in Prefect and MLflow

Needs no server: MLflow's file has the runs. The repair is another program, so that nothing here imports Prefect.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from align.config import Params
from align.config.infrastructure import HealthConfig
from align.display.console import say, show, show_json
from align.durable.files import to_json
from align.errors import ConfigError, without_logins
from align.lineage.runs.listing import Runs, as_json, list_lines, one_lines
from align.lineage.runs.tables import params_table
from align.local_stack import running_services
from align.pipeline.run import become


def main(params: Params, args: argparse.Namespace) -> None:
    """`align runs`.

    Raises:
        ConfigError: the words do not go together.
        DataError: there is no such run.
        ServiceError: MLflow is unavailable.
    """
    if args.repair:
        if args.what or args.json:
            raise ConfigError("align runs --repair: repairs all that is dead; it takes no other words")
        become("ended")
    if args.what == "show" and len(args.names) != 1:
        raise ConfigError("align runs show: name one run, as align runs lists it")
    if args.last < 1:
        raise ConfigError(f"--last {args.last}: expected 1 or more")
    root = Path.cwd()
    runs, pages = Runs(root, params.section(HealthConfig)), _pages(root)
    found = runs.named(args.names[0]) if args.what == "show" else runs.listed()
    listed = runs.measured(found if args.what == "show" else found[: args.last])
    for problem in runs.problems:
        say(f"runs: {problem}")
    if args.json:
        differ = [name for name, _ in params_table(listed).rows]
        found_runs = [as_json(run, pages) for run in listed]
        show_json(to_json({"schema_version": 1, "params_that_differ": differ, "runs": found_runs}))
    elif args.what == "show":
        for run in listed:
            show(*one_lines(run, pages))
    elif listed:
        show(*list_lines(listed, pages))
        if len(found) > len(listed):
            show("", f"{len(found) - len(listed)} older ones are not shown; --last {len(found)} shows all")
    else:
        say("runs: there are none yet; `align run --name first` makes one")


def _pages(root: Path) -> dict[str, str]:
    """The addresses of the UIs, of servers that run here or that the environment names; without logins."""
    pages = {name: service["url"] for name, service in running_services(root).items() if "url" in service}
    for name, variable in (("prefect", "PREFECT_API_URL"), ("mlflow", "MLFLOW_TRACKING_URI")):
        if (url := os.environ.get(variable, "")).startswith("http"):
            pages[name] = without_logins(url).rstrip("/").removesuffix("/api")
    return pages
