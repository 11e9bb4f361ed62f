"""`align runs`: shows every run side by side, or all of one, and ends those that were killed.

    align runs                  state, parameters that differ, main metrics with intervals, cost, folders, links
    align runs show NAME        all that is known of one
    align runs --repair         ends what a killed run left unfinished in Prefect and MLflow

Needs no server. The repair is another program, so that nothing here imports Prefect.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from align.arguments.commands import NUM_SHOWN
from align.config import Params
from align.config.infrastructure import EngineConfig, HealthConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.display.console import say, show, show_json
from align.durable.files import to_json
from align.errors import ConfigError, DataError
from align.lineage.runs.costs import Costs
from align.lineage.runs.run_list import RunList, a_row_each, as_json, list_lines, one_lines
from align.lineage.versions.data_versions import DataVersions
from align.local_stack import running_services
from align.pipeline.run import become


def main(params: Params, args: argparse.Namespace) -> None:
    """`align runs`.

    Raises:
        ConfigError: the words do not go together.
        DataError: there is no such run.
    """
    if args.repair:
        if args.what or args.json:
            raise ConfigError("align runs --repair: repairs all that is dead; it takes no other words")
        become("flows", "ended")
    if args.what == "show" and len(args.names) != 1:
        raise ConfigError("align runs show: name one run, as align runs lists it")
    if args.last < 1:
        raise ConfigError(f"--last {args.last}: expected 1 or more")
    _list(params, args)


def _list(params: Params, args: argparse.Namespace) -> None:
    root, paths = Path.cwd(), params.section(PathsConfig)
    costs = Costs(params.section(RegisterConfig).experiment, params.section(HealthConfig))
    with tempfile.TemporaryDirectory(prefix="align-", dir=params.section(EngineConfig).temp_directory) as folder:
        runs = RunList(root, paths, DataVersions(root, Path(folder)), costs)
        places = runs.places()
        if args.what == "show":
            name = args.names[0].removeprefix("run/")
            chosen = [place for place in places if name in (place.name, place.flow_run)]
            if not chosen:
                known = ", ".join(place.name for place in places[:NUM_SHOWN]) or "none"
                raise DataError(f"'{name}' is not a run; the newest are: {known}")
        else:
            places = a_row_each(places)
            chosen = places[: args.last]
        listed = runs.read(chosen, _pages(root))
    notes = [*runs.problems, *(note for run in listed for note in run.numbers.notes)]
    for note in [*notes, costs.problem] if costs.problem and any(run.place.branch for run in listed) else notes:
        say(f"runs: {note}")
    if args.json:
        show_json(to_json(as_json(listed)))
    elif args.what == "show":
        for run in listed:
            show(*one_lines(run))
    elif listed:
        show(*list_lines(listed))
        if len(places) > len(listed):
            show("", f"{len(places) - len(listed)} older ones are not shown; --last {len(places)} shows all")
    else:
        say("runs: there are none yet; `align run --name first` makes one")


def _pages(root: Path) -> dict[str, str]:
    """The addresses of the UIs, of servers that run here or that the environment names; without logins."""
    from align.errors import without_logins

    pages = {name: service["url"] for name, service in running_services(root).items() if "url" in service}
    for name, variable in (("prefect", "PREFECT_API_URL"), ("mlflow", "MLFLOW_TRACKING_URI")):
        if (url := os.environ.get(variable, "")).startswith("http"):
            pages[name] = without_logins(url).rstrip("/").removesuffix("/api")
    return pages
