"""The files behind one version of the training data: raw pairs, decisions, verdicts and shards, with their reports.

A version is named by the digest of its shards. It lies in the checkout, or git and DVC have recorded which stage made
it and from what: hashes in dvc.lock or in the run cache lead from the shards back to data/raw. Only reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from align.config.paths import PathsConfig
from align.formats.verdict import SHARDS, TABLES, VERDICT
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.stage_runs import StageRun
from align.lineage.versions.who_saw import RecordedData


class Out(Protocol):
    """What a stage wrote, in one version.

    Attributes:
        path: as dvc.yaml names it.
    """

    path: str

    @property
    def why_missing(self) -> str:
        """Why a file of it cannot be read, and how to get it; one line."""

    def file(self, name: str) -> Path | None:
        """A file of it; None if it is not available. A remote may be asked."""

    def here(self, *patterns: str) -> Path | None:
        """A folder with those of its files that match, if all of them are on this machine."""


class CheckoutOut:
    """An `Out` as it lies in the checkout."""

    def __init__(self, path: Path) -> None:
        self._folder, self.path = path, path.as_posix()

    @property
    def why_missing(self) -> str:
        """See `Out`."""
        return f"{self.path} is not in this checkout, or not whole; `dvc checkout {self.path}` or `dvc repro` makes it"

    def file(self, name: str) -> Path | None:
        """See `Out`."""
        path = self._folder / name
        return path if path.is_file() else None

    def here(self, *patterns: str) -> Path | None:
        """See `Out`."""
        return self._folder if self._folder.is_dir() else None


class RecordedOut:
    """An `Out` as DVC's cache or a remote has it; `md5` None: nobody recorded which it was."""

    def __init__(self, path: str, md5: str | None, versions: DataVersions) -> None:
        self.path, self._md5, self._versions = path, md5, versions

    @property
    def why_missing(self) -> str:
        """See `Out`."""
        if self._md5 is None:
            return f"no dvc.lock that git has here says which {self.path} it was; `git fetch --all` may bring it"
        return self._versions.how_to_get(self.path)

    def file(self, name: str) -> Path | None:
        """See `Out`."""
        md5 = (self._versions.files(self._md5) or {}).get(name) if self._md5 else None
        return self._versions.object(md5) if md5 else None

    def here(self, *patterns: str) -> Path | None:
        """See `Out`."""
        return self._versions.lay_out(self._md5, *patterns, ask_remotes=False) if self._md5 else None


@dataclass(frozen=True)
class DataChain:
    """One version of the training data, and all that it was made of.

    Attributes:
        digest: names it: that of the shards' manifest.
        where: who has it, for people.
        raw, filtered, shards: the data.
        ingest, filter, quality, shard, quality_shards: the reports of the stages on them.
    """

    digest: str
    where: str
    raw: Out
    filtered: Out
    shards: Out
    ingest: Out
    filter: Out
    quality: Out
    shard: Out
    quality_shards: Out


def chain_of(digest: str, data: RecordedData, versions: DataVersions, paths: PathsConfig) -> DataChain:
    """The files behind data that `who_saw.recorded_data` found."""
    if data.run is None:
        return checkout_chain(digest, paths)
    return _recorded(digest, data.where, data.run, versions, paths)


def checkout_chain(digest: str, paths: PathsConfig) -> DataChain:
    """The checkout's files, as they lie there."""
    reports = (paths.reports / name for name in ("ingest", "filter", TABLES, "shard", SHARDS))
    folders = (paths.raw, paths.filtered, paths.shards, *reports)
    return DataChain(digest, "the checkout's data", *map(CheckoutOut, folders))


def read_json(out: Out, name: str) -> dict[str, Any] | None:
    """A JSON object of an out; None if it is not available, or not one."""
    path = out.file(name)
    try:
        values = json.loads(path.read_bytes()) if path else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _recorded(digest: str, where: str, shard: StageRun, versions: DataVersions, paths: PathsConfig) -> DataChain:
    runs = versions.runs()
    raw, filtered, shards = (path.as_posix() for path in (paths.raw, paths.filtered, paths.shards))
    reports = {name: (paths.reports / name).as_posix() for name in ("ingest", "filter", TABLES, "shard", SHARDS)}
    md5s = {raw: shard.deps.get(raw), filtered: shard.deps.get(filtered), shards: shard.outs[shards]}
    md5s[reports["shard"]] = shard.outs.get(reports["shard"])
    for path, report in ((raw, "ingest"), (filtered, "filter")):
        made_by = (run for run in runs if md5s[path] and run.outs.get(path) == md5s[path])
        md5s[reports[report]] = next((run.outs.get(reports[report]) for run in made_by), None)
    verdict = shard.deps.get(f"{reports[TABLES]}/{VERDICT}")
    md5s[reports[TABLES]] = _verdict(runs, reports[TABLES], (filtered, md5s[filtered]), versions, verdict)
    md5s[reports[SHARDS]] = _verdict(runs, reports[SHARDS], (shards, md5s[shards]), versions, None)
    order = (raw, filtered, shards, *reports.values())
    return DataChain(digest, where, *(RecordedOut(path, md5s[path], versions) for path in order))


def _verdict(
    runs: Sequence[StageRun], report: str, on: tuple[str, str | None], versions: DataVersions, verdict: str | None
) -> str | None:
    """The md5 of a gate's report on data (path, md5); `verdict`: the md5 of the verdict that the shards depend on."""
    found = [run.outs[report] for run in runs if report in run.outs and on[1] and run.deps.get(on[0]) == on[1]]
    exact = (md5 for md5 in found if verdict and (versions.files(md5) or {}).get(VERDICT) == verdict)
    return next(exact, None) or (found[0] if found else None)
