"""Every run that this checkout knows: branches run/*, runs in progress, killed and failed ones, and MLflow's.

What a run is called, and where it is kept:

    finished    a branch; or a run in MLflow that no branch holds, such as one of `align register`
    running     a record in .align/runs whose lock is held (`align.durable.run_records`)
    cancelled   a run in MLflow that somebody ended, by Ctrl-C or in Prefect's UI; the same run resumes it
    killed      a record whose lock is free, or a run in MLflow that was one
    failed      a run in MLflow
    unknown     MLflow says that it runs, and this checkout does not know it: another's
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from align.config.paths import PathsConfig
from align.display.console import duration
from align.display.progress import read_said
from align.durable import run_records
from align.errors import AlignError, FormatError, ServiceError
from align.lineage.runs.costs import Costs
from align.lineage.runs.run import ComparedRun, read_folder, read_run
from align.lineage.runs.tables import WIDTH, costs_table, cut, letters, metrics_table, params_table, table_lines
from align.lineage.versions.data_versions import DataVersions
from align.services.git import git_if_any
from align.services.tracking.address import has_store
from align.services.tracking.tracked_run import TrackedRun, run_address
from align.services.tracking.tracker import ENDED, FLOW_RUN, Tracker

State = Literal["finished", "running", "cancelled", "killed", "failed", "unknown"]
_IN_PROGRESS: Mapping[str, State] = {"live": "running", "dead": "killed", "elsewhere": "unknown"}
_IN_MLFLOW: Mapping[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


@dataclass(frozen=True)
class Place:
    """A run, before its numbers are read.

    Attributes:
        name: as `align runs show` and, for a branch, `align compare` take it.
        state: see the module.
        time: when it ended, or began if it has not; seconds since 1970.
        read: reads its parameters and numbers.
        branch: without `run/`; empty: none.
        commit: of the branch, or the one from which a failed run was made.
        path: the folder where it works, or where its reports are kept.
        why: it failed.
        doing: how far it is, if it is running and says so.
        flow_run: its id in Prefect.
        tracked: the run in MLflow, if it is known.
    """

    name: str
    state: State
    time: float
    read: Callable[[], ComparedRun]
    branch: str = ""
    commit: str = ""
    path: str = ""
    why: str = ""
    doing: str = ""
    flow_run: str = ""
    tracked: TrackedRun | None = None


@dataclass(frozen=True)
class ListedRun:
    """A run with its numbers, and addresses of its pages."""

    place: Place
    numbers: ComparedRun
    links: Mapping[str, str] = field(default_factory=dict)


class RunList:
    """The runs of a checkout.

    Attributes:
        problems: one line for each source that could not be read.
    """

    def __init__(self, root: Path, paths: PathsConfig, versions: DataVersions, costs: Costs) -> None:
        self._root, self._paths, self._versions, self._costs = root, paths, versions, costs
        self.problems: list[str] = []

    def places(self) -> list[Place]:
        """All of them, the newest first."""
        tracked = self._tracked()
        found = [*self._branches(tracked), *self._in_progress(tracked)]
        shown = {place.tracked.run_id for place in found if place.tracked}
        found += [_only_tracked(run) for run in tracked if run.run_id not in shown]
        return sorted(found, key=lambda place: (-place.time, place.name))

    def read(self, places: Sequence[Place], pages: Mapping[str, str]) -> list[ListedRun]:
        """Reads the numbers of some runs.

        Args:
            places: of `places`.
            pages: `prefect` and `mlflow` -> the address of their UI, where one is known.
        """
        self._fetch(places)
        return [ListedRun(place, self._numbers(place), _links(place, pages)) for place in places]

    def _numbers(self, place: Place) -> ComparedRun:
        try:
            numbers = place.read()
        except AlignError as error:
            return ComparedRun(place.name, place.commit, "", None, {}, notes=[f"{place.name}: {error}"])
        known = self._costs.of_model(numbers.digests["model"]) if place.branch and "model" in numbers.digests else {}
        if not known and place.tracked:
            known = self._costs.of_run(place.tracked.run_id)
        numbers.costs = {key: cost for key, cost in known.items() if key.partition("/")[0] not in numbers.others}
        return numbers

    def _fetch(self, places: Sequence[Place]) -> None:
        """Asks the remotes once for what the cache lacks of all branches' reports."""
        reports = f"{self._paths.reports.as_posix()}/"
        folders = set()
        for place in places:
            if place.branch:
                try:
                    outs = self._versions.lock(f"run/{place.branch}")
                except AlignError:  # said when it is read
                    continue
                folders |= {md5 for path, md5 in outs.items() if path.startswith(reports)}
        self._versions.fetch(folders)
        self._versions.fetch(
            md5
            for folder in folders
            for path, md5 in (self._versions.files(folder) or {}).items()
            if path.endswith(".json")
        )

    def _tracked(self) -> list[TrackedRun]:
        if not has_store():
            return []
        try:
            return Tracker().runs()
        except ServiceError as error:
            self.problems.append(str(error))
            return []

    def _branches(self, tracked: Sequence[TrackedRun]) -> Iterator[Place]:
        by_commit = {run.tags.get("align.git_revision", ""): run for run in reversed(tracked)}
        form = "--format=%(objectname) %(committerdate:unix) %(refname:lstrip=3)"
        for line in (git_if_any(self._root, "for-each-ref", form, "refs/heads/run") or "").splitlines():
            commit, time, name = line.split(" ", 2)
            run = by_commit.get(commit)
            read = partial(read_run, f"run/{name}", self._root, self._paths, self._versions)
            flow_run = run.tags.get(FLOW_RUN, "") if run else ""
            yield Place(name, "finished", float(time), read, name, commit, flow_run=flow_run, tracked=run)

    def _in_progress(self, tracked: Sequence[TrackedRun]) -> Iterator[Place]:
        by_id = {run.run_id: run for run in tracked}
        for file in run_records.files(self._root):
            try:
                found = run_records.look(file)
            except FormatError as error:
                self.problems.append(str(error))
                continue
            if found is None:
                continue
            liveness, record = found
            if record.flow != run_records.PIPELINE:
                continue
            worktree = Path(record.worktree) if record.worktree else self._root
            tracked_run = by_id.get(record.mlflow_run)
            if liveness == "dead" and tracked_run and tracked_run.status != "RUNNING":
                continue  # MLflow says how it ended
            read = partial(read_folder, record.name, worktree, self._paths if record.worktree else None)
            yield Place(
                record.name, _IN_PROGRESS[liveness], record.started_at, read, path=_shown(worktree, self._root),
                why={"dead": "`align runs --repair` ends it", "elsewhere": f"it is {record.host}'s"}.get(liveness, ""),
                doing=_doing(worktree) if liveness == "live" else "", flow_run=record.flow_run,
                tracked=tracked_run,
            )  # fmt: skip


def a_row_each(places: Sequence[Place]) -> list[Place]:
    """The newest place of each flow run: one that failed and was retried is one run."""
    newest: dict[str, Place] = {}
    for place in places:
        newest.setdefault(place.flow_run or f"{place.name} {len(newest)}", place)
    return list(newest.values())


def _doing(folder: Path) -> str:
    said = read_said(folder / run_records.PROGRESS)
    left = "" if said.work.left_s is None else f"{duration(said.work.left_s)} left; "
    return left + (said.work.line or "".join(said.lines[-1:]))


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _only_tracked(run: TrackedRun) -> Place:
    state = _IN_MLFLOW.get(run.status, "unknown")
    if state == "killed" and run.tags.get(ENDED) == "cancelled":
        state = "cancelled"
    return Place(
        run.name, state, run.ended_at or run.started_at, partial(ComparedRun, run.name, "", "", None, {}),
        why="" if run.status in _IN_MLFLOW else "MLflow has it as running", flow_run=run.tags.get(FLOW_RUN, ""),
        tracked=run,
    )  # fmt: skip


def _links(place: Place, pages: Mapping[str, str]) -> dict[str, str]:
    links = {}
    if place.flow_run and "prefect" in pages:
        links["prefect"] = f"{pages['prefect']}/runs/flow-run/{place.flow_run}"
    if place.tracked and "mlflow" in pages:
        run = place.tracked
        links["mlflow"] = run_address(pages["mlflow"], run.experiment_id, run.run_id)
    return links


_MAX_NAME = 40


def list_lines(runs: Sequence[ListedRun]) -> Iterator[str]:
    """Each run in a line, then what differs in parameters, main metrics, cost; then why runs failed, and links."""
    shown = [run.numbers for run in runs]
    width = min(_MAX_NAME, max(len(run.place.name) for run in runs))
    for letter, run in zip(letters(shown), runs, strict=True):
        name = f"{cut(run.place.name, width):<{width}}"
        yield f"{letter:<2} {name}  {run.place.state:<9}  {_time(run)}  {_where(run)}"
        if run.place.doing:
            yield f"   {cut(run.place.doing, WIDTH - 3)}"
    tables = [params_table(shown), metrics_table(shown), costs_table(shown)]
    yield from table_lines([table for table in tables if table.rows])
    for title, texts in (
        ("Why they did not finish", [run.place.why for run in runs]),
        ("Links", ["  ".join(run.links.values()) for run in runs]),
    ):
        lines = [f"  {letter}  {text}" for letter, text in zip(letters(shown), texts, strict=True) if text]
        yield from ("", title, *lines) if lines else ()


def one_lines(run: ListedRun) -> Iterator[str]:
    """All that is known of one run."""
    place = run.place
    rows = {
        "run": place.name,
        "state": place.state,
        "now": place.doing,
        "why": place.why,
        "time": _time(run),
        "branch": place.branch and f"run/{place.branch}",
        "commit": place.commit,
        "made from": run.numbers.made_from or "",
        "folder": place.path,
        "Prefect": run.links.get("prefect") or place.flow_run,
        "MLflow": run.links.get("mlflow") or (place.tracked.run_id if place.tracked else ""),
        "data": run.numbers.digests.get("data", ""),
        "model": run.numbers.digests.get("model", ""),
    }
    for label, value in rows.items():
        if value:
            yield f"{label:<10} {value}"
    yield from table_lines([metrics_table([run.numbers]), costs_table([run.numbers])])
    if place.branch:
        yield from ("", f"its data, model and reports: rm -f dvc.lock && git switch run/{place.branch} && dvc checkout")


def as_json(runs: Sequence[ListedRun]) -> dict[str, Any]:
    """For programs: the same keys for every run, with null if nothing is known."""
    return {
        "schema_version": 1,
        "params_that_differ": [name for name, _ in params_table([run.numbers for run in runs]).rows],
        "runs": [_as_json(run) for run in runs],
    }


def _as_json(run: ListedRun) -> dict[str, Any]:
    place, numbers = run.place, run.numbers
    return {
        "name": place.name,
        "state": place.state,
        "time": _time(run),
        "branch": (place.branch and f"run/{place.branch}") or None,
        "commit": place.commit or None,
        "made_from": numbers.made_from,
        "folder": place.path or None,
        "doing": place.doing or None,
        "why": place.why or None,
        "flow_run": place.flow_run or None,
        "mlflow_run": place.tracked.run_id if place.tracked else None,
        "links": dict(run.links),
        "params": dict(numbers.params),
        "metrics": {name: dataclasses.asdict(value) for name, value in numbers.measured().items()},
        "costs": dict(numbers.costs),
        "digests": dict(numbers.digests),
        "notes": list(numbers.notes),
    }


def _where(run: ListedRun) -> str:
    return f"run/{run.place.branch}" if run.place.branch else run.place.path or "MLflow only"


def _time(run: ListedRun) -> str:
    return datetime.fromtimestamp(run.place.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
