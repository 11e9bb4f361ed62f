"""What of DVC's cache goes: what only removed runs have, and nothing that DVC did not get from a stage.

`dvc gc` is not used. It removes whatever it does not find in use: what a clone has pushed to the remote, what somebody
has added and not committed yet. It takes one `--rev`, but registered versions may need many. It leaves the entries of
the run cache without their outs. Here the other way round: candidates are the outs of removed branches and of old
entries of the run cache, and of these everything stays that a kept revision, a worktree or a young entry names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import FormatError, ServiceError
from align.files import to_json, write_text
from align.formats.shards import MANIFEST
from align.formats.stored_tars import parse_stored_tars
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.stage_runs import parse_runs
from flows.retention.history import md5s_in
from flows.retention.run_cache import Entry, made

_LIST = ".dir"


@dataclass(frozen=True)
class Objects:
    """Objects of DVC's cache and of the store of tars.

    Attributes:
        md5s: of files, and of lists of files.
        tars: sha256 -> bytes.
        entries: of the run cache.
    """

    md5s: frozenset[str] = frozenset()
    tars: Mapping[str, int] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()


def unneeded(
    versions: DataVersions,
    *,
    kept: Iterable[bytes],
    gone: Iterable[bytes],
    all_entries: list[Entry],
    kept_entries: Iterable[Entry],
    journal: Objects,
    with_tars: bool,
) -> Objects:
    """What goes.

    Args:
        versions: DVC's cache and remotes.
        kept: DVC's records of everything that stays.
        gone: the dvc.lock of each branch that goes.
        all_entries: the run cache.
        kept_entries: those that stay for a reason of their own, with what they were made from.
        journal: what an earlier removal had chosen and perhaps not reached.
        with_tars: whether to look for tars in manifests, too.

    Raises:
        ServiceError: a list of files of something that stays is on a server that does not answer.
    """
    stays = {md5 for record in kept for md5 in md5s_in(record)}
    chosen = {entry.path: entry for entry in made(all_entries, list(kept_entries))}
    chosen |= {entry.path: entry for entry in all_entries if stays.issuperset(entry.run.outs.values())}
    for entry in chosen.values():
        stays |= {*entry.run.outs.values(), *entry.run.deps.values()}
    old = [entry for entry in all_entries if entry.path not in chosen]
    goes = set(journal.md5s) | {md5 for entry in old for md5 in entry.run.outs.values()}
    for record in gone:
        for run in parse_runs(record.decode("utf-8", "replace"), "a removed branch"):
            goes |= set(run.outs.values())
    versions.fetch(md5 for md5 in sorted(stays | goes) if md5.endswith(_LIST))
    stays_whole, kept_tars = _expand(versions, stays, with_tars)
    if versions.unreachable and any(md5.endswith(_LIST) and not versions.has(md5) for md5 in stays):
        name, why = next(iter(versions.unreachable.items()))
        raise ServiceError(f"DVC remote '{name}' has lists of files that are needed to know what stays: {why}")
    goes_whole, tars = _expand(versions, goes, with_tars)
    return Objects(
        frozenset(goes_whole - stays_whole),
        {sha: size for sha, size in (dict(journal.tars) | tars).items() if sha not in kept_tars},
        tuple(old),
    )


def _expand(versions: DataVersions, md5s: Iterable[str], with_tars: bool) -> tuple[set[str], dict[str, int]]:
    """The objects with the members of those that are lists; and the tars that manifests among them name."""
    whole, manifests = set(md5s), set()
    for md5 in sorted(whole):
        if md5.endswith(_LIST):
            files = versions.files(md5) or {}
            whole |= set(files.values())
            manifests |= {files[MANIFEST]} if MANIFEST in files else set()
    if not with_tars:
        return whole, {}
    versions.fetch(sorted(manifests))
    return whole, {sha: size for manifest in sorted(manifests) for sha, size in _tars(versions, manifest).items()}


def _tars(versions: DataVersions, manifest: str) -> dict[str, int]:
    file = versions.object(manifest)
    if file is None:
        return {}
    try:
        return dict(parse_stored_tars(file.read_bytes(), file).values())
    except FormatError:  # another format's manifest.json
        return {}


def read_journal(file: Path) -> Objects:
    """What an interrupted removal had chosen; nothing if none was interrupted."""
    try:
        stored: dict[str, Any] = json.loads(file.read_bytes())
        return Objects(frozenset(stored["md5s"]), dict(stored["tars"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Objects()


def write_journal(file: Path, objects: Objects) -> None:
    """Keeps the choice until everything is gone: without its entries and branches, nothing else names it."""
    write_text(file, to_json({"md5s": sorted(objects.md5s), "tars": dict(objects.tars)}))
