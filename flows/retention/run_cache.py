"""DVC's run cache: which stage made what from what, and what that was made from, back to the source.

An entry whose outs are gone does no harm, since DVC then runs the stage. It is removed with its outs nevertheless, or
`dvc push --run-cache` would complain.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.formats.verdict import VERDICT
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.stage_runs import StageRun, parse_runs

#: A report with the digest of the packaged model.
_REPORT = "report.json"


@dataclass(frozen=True)
class Entry:
    """A file of the run cache.

    Attributes:
        path: below the cache's folder, such as `runs/ab/abc.../def...`.
        time: when it was written, seconds since 1970.
        run: what it says.
    """

    path: str
    time: float
    run: StageRun


def entries(cache: Path) -> list[Entry]:
    """All entries; one that cannot be read, as a killed DVC may leave, is passed over."""
    found = []
    for file in sorted((cache / "runs").glob("*/*/*")):
        try:
            text, time = file.read_text("utf-8"), file.stat().st_mtime
        except (OSError, UnicodeDecodeError):
            continue
        found += [Entry(file.relative_to(cache).as_posix(), time, run) for run in parse_runs(text, "run cache")]
    return found


def made(all_entries: Sequence[Entry], wanted: Collection[Entry]) -> list[Entry]:
    """The wanted entries, and those that made what they were made from, back to the first stage."""
    chosen = {entry.path: entry for entry in wanted}
    needed = {md5 for entry in wanted for md5 in entry.run.deps.values()}
    grows = True
    while grows:
        others = [entry for entry in all_entries if entry.path not in chosen]
        new = [entry for entry in others if not needed.isdisjoint(entry.run.outs.values())]
        chosen |= {entry.path: entry for entry in new}
        needed |= {md5 for entry in new for md5 in entry.run.deps.values()}
        grows = bool(new)
    return list(chosen.values())


def judged(versions: DataVersions, outs: Iterable[str], data: Collection[str]) -> bool:
    """Whether one of these outs is the verdict of a gate on one of these data (digests)."""
    return any(_value(versions, md5, VERDICT, "data") in data for md5 in outs) if data else False


def packaged(versions: DataVersions, outs: Iterable[str], models: Collection[str]) -> bool:
    """Whether one of these outs is the report on the packaging of one of these models (digests)."""
    return any(_value(versions, md5, _REPORT, "digest") in models for md5 in outs) if models else False


def _value(versions: DataVersions, md5: str, name: str, key: str) -> str | None:
    """A text in a JSON file of an out that is a folder; no remote is asked."""
    if not (md5.endswith(".dir") and versions.has(md5)):
        return None
    member = (versions.files(md5) or {}).get(name)
    if member is None or not versions.has(member):
        return None
    file = versions.object(member)
    try:
        found = json.loads(file.read_bytes()) if file is not None else None
    except ValueError:
        return None
    value = found.get(key) if isinstance(found, Mapping) else None
    return value if isinstance(value, str) else None
