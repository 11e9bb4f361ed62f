"""What MLflow knows of a model: its versions, their aliases, and the runs of its experiment.

A version has the tags `align.git_revision`, at which its data, reports and model can be read, and `align.data_digest`,
by which data that trained it earlier is found. Without MLflow there is one line that says why nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from align.errors import ServiceError
from align.release.registration.shown import all_metrics
from align.services.tracking.address import has_store
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST, Version, aliases_of
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import REVISION, Tracker

#: A tag of runs and versions: the data that trained the model.
TRAINED_ON = "align.trained_on"
DIRTY = "-dirty"


class Registered:
    """The versions of one model.

    Args:
        name: of the registered model.
        experiment: of its runs.

    Attributes:
        name: as above.
        versions: the oldest first.
        aliases: alias -> number of its version.
        problem: one line that says why MLflow cannot be asked; empty: it can.
    """

    def __init__(self, name: str, experiment: str) -> None:
        self.name, self._experiment = name, experiment
        self.versions: list[Version] = []
        self.aliases: dict[str, int] = {}
        self.problem = ""
        self._tracker: Tracker | None = None
        if not has_store():
            self.problem = "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db"
            return
        try:
            self._tracker = Tracker()
            self.versions = self._tracker.registry.versions(name)
            self.aliases = self._tracker.registry.aliases(name)
        except ServiceError as error:
            self.problem = str(error)

    @cached_property
    def runs(self) -> list[TrackedRun]:
        """The runs of all experiments, at most a thousand, the newest first; none if MLflow does not answer."""
        return self._asked()

    @cached_property
    def unregistered(self) -> list[TrackedRun]:
        """The runs of the experiment that trained a model which is no version: it was deleted, or they ended before."""
        found = self._asked(f"tags.`{TRAINED_ON}` != ''", self._experiment)
        known = {one.run_id for one in self.versions} | {one.tags.get(MODEL_DIGEST) for one in self.versions}
        return [run for run in found if not known & {run.run_id, run.tags.get(MODEL_DIGEST, run.run_id)}]

    def revisions(self, digest: str) -> Iterator[str]:
        """Where git may have the data of this digest: the revisions of versions, then of runs, that were made of it."""
        for version in reversed(self.versions):
            if version.tags.get(DATA_DIGEST) == digest:
                yield from revisions_of(version)
        for run in self._asked(f"tags.`{DATA_DIGEST}` = '{digest}'") if digest.isalnum() else ():
            if revision := _revision(run.tags):
                yield revision

    def _asked(self, condition: str = "", experiment: str | None = None) -> list[TrackedRun]:
        """Some runs; none if MLflow does not answer."""
        try:
            return self._tracker.runs(condition, experiment) if self._tracker and not self.problem else []
        except ServiceError as error:
            self.problem = str(error)
            return []

    def title(self, version: Version) -> str:
        """What people call a version, with its aliases."""
        aliases = aliases_of(self.aliases, version)
        return f"{version.name} version {version.number}" + (f" ({', '.join(aliases)})" if aliases else "")

    def run(self, run_id: str) -> TrackedRun | None:
        """A run; None if MLflow has none of this id, or does not answer."""
        try:
            return self._tracker.run(run_id) if self._tracker and run_id else None
        except ServiceError:
            return None

    def metrics(self, run_id: str) -> dict[str, float]:
        """A run's latest metrics, under MLflow's names."""
        try:
            return all_metrics(self._tracker, run_id) if self._tracker and run_id else {}
        except ServiceError:
            return {}


def revisions_of(version: Version) -> Iterator[str]:
    """Where git may have what a version was made from: the commit of its run, and the tag that keeps it."""
    if revision := _revision(version.tags):
        yield revision
    yield f"refs/tags/{version.git_tag}"


def _revision(tags: Mapping[str, str]) -> str:
    return tags.get(REVISION, "").removesuffix(DIRTY)
