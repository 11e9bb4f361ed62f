"""Which registered model versions saw given pairs: by the digest of the data that each of them is tagged with.

A digest leads to the data where the checkout has it, or where git and DVC know a version of data/shards with it. Where
its bytes are gone, the answer is that nobody can know, never that the version saw nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.errors import DataError
from align.lineage.data_versions import DataVersions
from align.services.tracking import Tracker, Version

#: Split -> how many of the pairs are in it, of a folder like data/shards.
Count = Callable[[Path], Mapping[str, int]]


@dataclass(frozen=True)
class Training:
    """What one version saw.

    Attributes:
        version: the version.
        aliases: its aliases, such as `champion`.
        seen: split -> number of the pairs; only `train` changed the weights. None: its data is not to be had any more.
        why: where the data was found, or why not.
    """

    version: Version
    aliases: tuple[str, ...]
    seen: Mapping[str, int] | None
    why: str


def trainings(
    tracker: Tracker, model: str, *, shards: Path, out: str, versions: DataVersions, count: Count
) -> list[Training]:
    """Asks for every version of a model.

    Args:
        tracker: MLflow.
        model: name of the registered model.
        shards: data/shards of the checkout; may be absent.
        out: its path as dvc.lock has it.
        versions: where other data is looked for.
        count: counts the pairs in a folder like data/shards.

    Raises:
        ServiceError: MLflow is away or refuses.
    """
    found = tracker.versions(model)
    aliases = tracker.aliases(model)
    known: dict[str, tuple[Mapping[str, int] | None, str]] = {}
    folders = _folders(shards, out, versions, {one.tags.get("align.data_digest", "") for one in found})
    trained = []
    for version in found:
        digest = version.tags.get("align.data_digest", "")
        if digest not in known:
            known[digest] = _counted(digest, folders, count)
        names = tuple(sorted(alias for alias, number in aliases.items() if number == version.number))
        trained.append(Training(version, names, *known[digest]))
    return trained


def _counted(
    digest: str, folders: Mapping[str, tuple[Callable[[], Path | None], str]], count: Count
) -> tuple[Mapping[str, int] | None, str]:
    if not digest:
        return None, "the version has no tag align.data_digest"
    if digest not in folders:
        return None, f"data {digest[:12]} is neither checked out nor in any dvc.lock that git knows"
    make, where = folders[digest]
    try:
        folder = make()
        seen = count(folder) if folder is not None else None
    except DataError as error:
        return None, f"data {digest[:12]} ({where}): {error}"
    return seen, where if seen is not None else f"data {digest[:12]} ({where}) is gone from DVC's cache and remotes"


def _folders(
    shards: Path, out: str, versions: DataVersions, digests: set[str]
) -> dict[str, tuple[Callable[[], Path | None], str]]:
    """Digest -> (what makes a folder of it, where it is from)."""
    folders: dict[str, tuple[Callable[[], Path | None], str]] = {}
    if here := _digest(shards):
        folders[here] = partial(Path, shards), "the checkout's data"
    if digests <= folders.keys():
        return folders
    for run in versions.runs():
        md5 = run.outs.get(out)
        if md5 is None:
            continue
        manifest = versions.lay_out(md5, "manifest.json")
        digest = _digest(manifest) if manifest is not None else None
        if digest and digest not in folders:
            folders[digest] = partial(versions.lay_out, md5, "manifest.json", "*.tar"), f"as of {run.where}"
    return folders


def _digest(shards: Path) -> str | None:
    try:
        digest: str = json.loads((shards / "manifest.json").read_bytes())["digest"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return digest
