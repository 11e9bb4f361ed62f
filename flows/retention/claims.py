"""What claims data for good: registered model versions, and the files of data/policy."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.formats.acceptances import read_acceptances
from align.formats.drift_reference import read_reference
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.stage_runs import parse_runs
from align.services.tracking.registry import Version
from flows.retention.history import History, RunBranch, with_digest
from flows.retention.mlflow_runs import REVISION
from flows.retention.run_cache import Entry, judged, packaged

_LOCK, _MODEL = "align.dvc_lock", "align.model_digest"


@dataclass(frozen=True)
class Claims:
    """What must stay usable.

    Attributes:
        versions: registered in MLflow.
        data: digests of the data that a person's decision is about: an accepted failure, the reference for drift.
    """

    versions: Sequence[Version]
    data: frozenset[str]

    def commits(self, history: History) -> set[str]:
        """The commits that the versions were registered from, as far as git has them."""
        revisions = {version.tags.get(REVISION, "").removesuffix("-dirty") for version in self.versions}
        hashes = [revision for revision in sorted(revisions) if re.fullmatch(r"[0-9a-f]{7,64}", revision)]
        return {commit for one in hashes if (commit := history.commit(one)) is not None}

    def unclaimed(self, old: Sequence[RunBranch], history: History, versions: DataVersions) -> list[RunBranch]:
        """Those of the branches without which every claim can still be met."""
        digests = {version.tags.get(_LOCK, "") for version in self.versions} - {""}
        commits = self.commits(history) - history.reachable(history.kept(old, ()))
        found = []
        for branch in old:
            records = history.records([branch.commit], history=False)
            runs = [run for record in records for run in parse_runs(record.decode("utf-8", "replace"), branch.name)]
            outs = [md5 for run in runs for md5 in run.outs.values()]
            if (
                commits.isdisjoint(history.reachable([branch.commit]) if commits else ())
                and not with_digest(records, digests)
                and not judged(versions, outs, self.data)
            ):
                found.append(branch)
        return found

    def entries(self, all_entries: Iterable[Entry], records: Iterable[bytes], versions: DataVersions) -> list[Entry]:
        """Entries of the run cache that meet a claim which no dvc.lock meets: a model registered by hand, say."""
        models = {version.tags.get(_MODEL, "") for version in self.unrecorded(records)} - {""}
        return [
            entry
            for entry in all_entries
            if judged(versions, entry.run.outs.values(), self.data)
            or packaged(versions, entry.run.outs.values(), models)
        ]

    def unrecorded(self, records: Iterable[bytes]) -> list[Version]:
        """The versions whose dvc.lock is none of the records."""
        recorded = with_digest(records, {version.tags.get(_LOCK, "") for version in self.versions})
        return [version for version in self.versions if version.tags.get(_LOCK, "") not in recorded]

    def unknown(
        self, all_entries: Collection[Entry], records: Iterable[bytes], versions: DataVersions
    ) -> list[Version]:
        """The versions of which neither a dvc.lock nor the run cache says what they were made from."""
        return [
            version
            for version in self.unrecorded(records)
            if not any(packaged(versions, one.run.outs.values(), {version.tags.get(_MODEL, "")}) for one in all_entries)
        ]


def decided_data(policy: Path) -> frozenset[str]:
    """Digests of the data that the files of data/policy are about."""
    reference = read_reference(policy)
    return frozenset({one.data for one in read_acceptances(policy)} | ({reference.data} if reference else set()))
