"""Every run of this checkout, as MLflow has it: `align run` and deployed runs open theirs in their first second.

The state of a run:

    finished, failed    as MLflow says
    cancelled           somebody ended it, by Ctrl-C or in Prefect's UI; the same run resumes it
    refused             a value or the checkout was wrong, so that it did not begin
    running             its process works on this machine: it holds a lock (`align.durable.run_records`)
    killed              its process ended without a word
    unknown             MLflow says that it runs, and nothing here does: it is another machine's, or another checkout's
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.arguments.commands import NUM_SHOWN
from align.config.infrastructure import HealthConfig
from align.display.console import duration
from align.display.progress import read_said
from align.display.visible import cut
from align.durable import run_records
from align.errors import DataError, FormatError
from align.lineage.runs.run import Run, measured_run, tracked_as_run
from align.lineage.runs.tables import WIDTH, costs_table, letters, metrics_table, params_table, table_lines
from align.services.tracking.address import has_store
from align.services.tracking.tracked_run import TrackedRun, run_address
from align.services.tracking.tracker import ENDED, EVALUATION, SOURCE, WHY, Tracker, is_called

_STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}


class Runs:
    """The runs of a checkout.

    Attributes:
        problems: one line for each record of a run that could not be read, or whose end nobody has recorded.
    """

    def __init__(self, root: Path, health: HealthConfig) -> None:
        self._root, self._health = root, health
        self._tracker: Tracker | None = None
        self.problems: list[str] = []

    @property
    def tracker(self) -> Tracker:
        """MLflow. Raises ServiceError if it is unavailable."""
        self._tracker = self._tracker or Tracker()
        return self._tracker

    def listed(self) -> list[Run]:
        """All of them without their metrics, the newest first; none where MLflow was not used before.

        Raises:
            ServiceError: MLflow is unavailable.
        """
        if not has_store():
            return []
        tracked, working = self.tracker.runs(), self._working()
        runs = [
            self._run(one, working.get(one.run_id))
            for one in tracked
            if one.tags.get(SOURCE) != EVALUATION  # it has parameters of its own, and is no run of the pipeline
        ]
        return sorted(runs, key=lambda run: (-run.time, run.name))

    def measured(self, runs: Sequence[Run]) -> list[Run]:
        """The same with their metrics."""
        return [measured_run(run, self.tracker) for run in runs]

    def named(self, words: str) -> list[Run]:
        """The runs of a name, of a branch, or of an id in Prefect or MLflow; finished ones first, then by their time.

        Raises:
            DataError: there is none.
        """
        listed, name = self.listed(), words.removeprefix("run/")
        found = [run for run in listed if run.tracked and is_called(run.tracked, name)]
        if not found:
            if Path(words).is_dir():
                raise DataError(f"'{words}' is a folder: models are compared by `align evaluate --compare A B`")
            known = ", ".join(dict.fromkeys(run.name for run in listed[:NUM_SHOWN])) or "none"
            raise DataError(f"'{words}' is not a run; the newest are: {known}")
        return sorted(found, key=lambda run: run.state != "finished")

    def _working(self) -> dict[str, tuple[run_records.Liveness, Path]]:
        """The run in MLflow -> whether its process is there, and the folder that it works in."""
        found = {}
        for file in run_records.files(self._root):
            try:
                seen = run_records.look(file)
            except FormatError as error:
                self.problems.append(str(error))
                continue
            if seen is not None and seen[0] == "dead":
                self.problems.append(f"{seen[1].title} was killed; `align runs --repair` ends it in Prefect and MLflow")
            if seen is not None and seen[1].mlflow_run:
                found[seen[1].mlflow_run] = seen[0], Path(seen[1].worktree or self._root)
        return found

    def _run(self, tracked: TrackedRun, working: tuple[run_records.Liveness, Path] | None) -> Run:
        state = _STATES.get(tracked.status, "unknown")
        state = state if state == "unknown" else tracked.tags.get(ENDED) or state
        run = tracked_as_run(tracked, state, self._health)
        if state != "unknown":
            return replace(run, why=tracked.tags.get(WHY, ""))
        if working is None or working[0] not in ("live", "dead"):
            return replace(run, why="MLflow has it as running")
        liveness, folder = working
        place = str(folder.relative_to(self._root) if folder.is_relative_to(self._root) else folder)
        if liveness == "dead":
            return replace(run, state="killed", why="its process ended without a word", folder=place)
        return replace(run, state="running", folder=place, doing=_doing(folder))


def _doing(folder: Path) -> str:
    said = read_said(folder / run_records.PROGRESS)
    left = "" if said.work.left_s is None else f"{duration(said.work.left_s)} left; "
    return left + (said.work.line or "".join(said.lines[-1:]))


#: The addresses of the UIs, `prefect` and `mlflow`, where they are known.
Pages = Mapping[str, str]
_MAX_NAME = 40


def _links(run: Run, pages: Pages) -> dict[str, str]:
    links = {}
    if run.flow_run and "prefect" in pages:
        links["prefect"] = f"{pages['prefect']}/runs/flow-run/{run.flow_run}"
    if run.tracked and "mlflow" in pages:
        links["mlflow"] = run_address(pages["mlflow"], run.tracked.experiment_id, run.run_id)
    return links


def list_lines(runs: Sequence[Run], pages: Pages) -> Iterator[str]:
    """Each run in a line, then what differs in parameters, main metrics, cost; then why runs failed, and links."""
    width = min(_MAX_NAME, max(len(run.name) for run in runs))
    for letter, run in zip(letters(runs), runs, strict=True):
        name = f"{cut(run.name, width):<{width}}"
        yield f"{letter:<2} {name}  {run.state:<9}  {run.when}  {run.branch or run.folder}".rstrip()
        if run.doing:
            yield f"   {cut(run.doing, WIDTH - 3)}"
    tables = [params_table(runs), metrics_table(runs), costs_table(runs)]
    yield from table_lines([table for table in tables if table.rows])
    for title, texts in (
        ("Why they did not finish", [run.why for run in runs]),
        ("Links", ["  ".join(_links(run, pages).values()) for run in runs]),
    ):
        lines = [f"  {letter}  {text}" for letter, text in zip(letters(runs), texts, strict=True) if text]
        yield from ("", title, *lines) if lines else ()


def one_lines(run: Run, pages: Pages) -> Iterator[str]:
    """All that is known of one run."""
    links = _links(run, pages)
    rows = {
        "run": run.name, "state": run.state, "now": run.doing, "why": run.why, "time": run.when, "branch": run.branch,
        "commit": run.commit, "folder": run.folder, "Prefect": links.get("prefect") or run.flow_run,
        "MLflow": links.get("mlflow") or run.run_id, **run.digests,
    }  # fmt: skip
    for label, value in rows.items():
        if value:
            yield f"{label:<10} {value}"
    yield from table_lines([metrics_table([run]), costs_table([run])])
    if run.branch:
        yield from ("", f"its data, model and reports: rm -f dvc.lock && git switch {run.branch} && dvc checkout")


def as_json(run: Run, pages: Pages) -> dict[str, Any]:
    """For programs: the same keys for every run, with null if nothing is known."""
    names = ("state", "branch", "commit", "folder", "doing", "why", "flow_run")
    return {
        "name": run.name,
        "time": run.when,
        **{name: getattr(run, name) or None for name in names},
        "mlflow_run": run.run_id or None,
        "links": _links(run, pages),
        "params": dict(run.params),
        "metrics": {name: value._asdict() for name, value in run.measured().items()},
        "costs": dict(run.costs),
        "digests": dict(run.digests),
    }
