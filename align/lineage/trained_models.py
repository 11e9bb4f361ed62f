"""Finds out which registered model versions saw given pairs, by the digests of their data.

Each version is tagged with the digests of the data that trained it, first to last, and of the data of its run. Data can
be read if the checkout has it, or if git and DVC have a version of data/shards with that digest. If its bytes are gone,
or the model was imported, the answer is "unknown", never that the model saw nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.errors import DataError, ServiceError
from align.formats.shards import read_manifest
from align.lineage.data_versions import DataVersions
from align.services.mlflow_address import has_store
from align.services.registry import Version
from align.services.tracking import Tracker

#: A folder like data/shards -> split -> how many of the pairs are in it.
CountPairs = Callable[[Path], Mapping[str, int]]


#: In the tag `align.trained_on`: data of which nobody knows, or that the tag has no room for.
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class TrainedModel:
    """What one model version saw of the pairs.

    Attributes:
        version: the version.
        aliases: its aliases, such as `champion`.
        seen: split -> number of the pairs, at least; only `train` changed the weights. None if that is unknown.
        why: where the data was read, or why it could not be.
    """

    version: Version
    aliases: tuple[str, ...]
    seen: Mapping[str, int] | None
    why: str


def find_trained_models(
    model: str, shards: Path, versions: DataVersions, count: CountPairs
) -> tuple[list[TrainedModel], str | None]:
    """The registered versions of a model with what each saw; or none, and one line that says why.

    Args:
        model: name of the registered model.
        shards: data/shards of the checkout, as dvc.lock names it; may be absent.
        versions: where other data is looked up.
        count: counts the pairs in a folder like data/shards.
    """
    if not has_store():
        return [], "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db"
    try:
        models = _trained_models(Tracker(), model, shards, versions, count)
    except ServiceError as error:
        return [], str(error)
    return models, None if models else f"'{model}' has no registered version"


def _trained_models(
    tracker: Tracker, model: str, shards: Path, versions: DataVersions, count: CountPairs
) -> list[TrainedModel]:
    """Raises ServiceError if MLflow is unavailable or refuses."""
    registered = tracker.registry.versions(model)
    aliases = tracker.registry.aliases(model)
    digests = {digest for version in registered for digest in (*_trained_on(version.tags), _data(version.tags))}
    folders = _folders(shards, versions, digests)
    known = {digest: _counted(digest, folders, count) for digest in sorted(digests)}
    models = []
    for version in registered:
        names = tuple(sorted(alias for alias, number in aliases.items() if number == version.number))
        models.append(TrainedModel(version, names, *_seen(version.tags, known)))
    return models


def _data(tags: Mapping[str, str]) -> str:
    """Digest of the data of the version's run, which it was at least measured on; empty if there is no tag."""
    return tags.get("align.data_digest", "")


def _trained_on(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Digests of the data that changed the weights, as far as they are known."""
    value = tags.get("align.trained_on", _data(tags))  # earlier versions had one tag, and no other data
    return tuple(digest for digest in value.split(", ") if digest not in ("nothing", _UNKNOWN))


def _seen(
    tags: Mapping[str, str], known: Mapping[str, tuple[Mapping[str, int] | None, str]]
) -> tuple[Mapping[str, int] | None, str]:
    """What a version saw, from the counts of each data: None unless all that trained it is known, or some of it did."""
    trained_on, seen, complete = _trained_on(tags), dict[str, int](), True
    why = []
    for digest in dict.fromkeys((*trained_on, _data(tags))):
        counts, where = known[digest]
        why.append(where)
        complete = complete and counts is not None
        for split, number in (counts or {}).items():
            if digest in trained_on or split != "train":
                seen[split] = max(seen.get(split, 0), number)  # more than one data may hold the same pairs
    if tags.get("align.trained_on") == _UNKNOWN:
        why.append("the model that it began with does not say which data trained it")
        complete = False
    elif tags.get("align.trained_on", "").endswith(f", {_UNKNOWN}"):
        why.append("more data trained it than its tag has room for")
        complete = False
    if source := tags.get("align.imported_from"):
        weights = tags.get("align.imported_weights", "")[:12]
        why.append(f"imported from {source}, weights {weights}: which data trained that is unknown")
        complete = False
    return seen if complete or seen.get("train") else None, "; ".join(why)


def _counted(
    digest: str, folders: Mapping[str, tuple[Callable[[], Path | None], str]], count: CountPairs
) -> tuple[Mapping[str, int] | None, str]:
    if not digest:
        return None, "the version has no tag align.data_digest"
    if digest not in folders:
        return None, f"data {digest[:12]} is neither checked out nor in any dvc.lock that git has"
    make, where = folders[digest]
    try:
        folder = make()
        seen = count(folder) if folder is not None else None
    except DataError as error:
        return None, f"data {digest[:12]} ({where}): {error}"
    return seen, where if seen is not None else f"data {digest[:12]} ({where}) is gone from DVC's cache and remotes"


def _folders(
    shards: Path, versions: DataVersions, digests: set[str]
) -> dict[str, tuple[Callable[[], Path | None], str]]:
    """Digest -> (a function that makes a folder of that data, where it is from)."""
    folders: dict[str, tuple[Callable[[], Path | None], str]] = {}
    if here := _digest(shards):
        folders[here] = partial(Path, shards), "the checkout's data"
    if digests <= folders.keys():
        return folders
    for run in versions.runs():
        md5 = run.outs.get(shards.as_posix())
        if md5 is None:
            continue
        manifest = versions.lay_out(md5, "manifest.json")
        digest = _digest(manifest) if manifest is not None else None
        if digest and digest not in folders:
            folders[digest] = partial(versions.lay_out, md5, "manifest.json", "*.tar"), f"as of {run.where}"
    return folders


def _digest(shards: Path) -> str | None:
    """`digest` of its manifest; None if there is none, or another layout."""
    try:
        return read_manifest(shards).digest
    except DataError:
        return None
