"""Which registered model versions, and which runs without a version, saw given pairs: by the digests of their data.

Each version is tagged with the digests of the data that trained it, first to last, and of the data of its run. Data can
be read if the checkout has it, or a version or run that was made of it names its git revision. If its bytes are gone,
or the model was imported, the answer is "unknown", never that the model saw nothing.

Nothing else answers this question: `align opt_out` and `align trace` ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from align.errors import DataError
from align.lineage.versions.at_revision import Revisions
from align.lineage.versions.registered import TRAINED_ON, Registered
from align.lineage.versions.shard_samples import SHARD_FILES
from align.services.tracking.registry import DATA_DIGEST, Version
from align.services.tracking.tracked_run import TrackedRun

#: A folder like data/shards -> split -> how many of the pairs are in it.
CountPairs = Callable[[Path], Mapping[str, int]]
#: The last value in the tag `align.trained_on`: data for which the tag has no room.
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class TrainingData:
    """What a version's tags say of its data.

    Attributes:
        trained_on: digests of the data that changed the weights, first to last, as far as they are known.
        measured_on: digest of the data of its run, usually the last of these; empty if there is no tag.
        not_gated: those of `trained_on` that are tars of others, which no gate has judged.
        gaps: why more data than these may have trained it; empty: none did.
    """

    trained_on: tuple[str, ...]
    measured_on: str
    gaps: tuple[str, ...]
    not_gated: tuple[str, ...] = ()

    @property
    def digests(self) -> tuple[str, ...]:
        """All of them, once."""
        return tuple(dict.fromkeys((*self.trained_on, self.measured_on)))


@dataclass(frozen=True)
class SeenBy:
    """What one model version, or one run without a version, saw of the pairs.

    Attributes:
        version: the version; None of a run.
        run: the run; None of a version, which names its own.
        title: what people call it, with its aliases.
        seen: split -> number of the pairs, at least; only `train` changed the weights. None if that is unknown.
        why: where the data was read, or why it could not be.
        counts: digest of each of its data -> the same counts in that data alone.
    """

    version: Version | None
    run: TrackedRun | None
    title: str
    seen: Mapping[str, int] | None
    why: str
    counts: Mapping[str, Mapping[str, int] | None] = field(default_factory=dict)

    @property
    def trained(self) -> bool | None:
        """Whether a pair was in the data that trained it; None if that is unknown."""
        return None if self.seen is None else self.seen.get("train", 0) > 0

    @property
    def run_id(self) -> str:
        """Of the run in MLflow."""
        return self.version.run_id if self.version else self.run.run_id if self.run else ""


def who_saw(registered: Registered, shards: Path, revisions: Revisions, count: CountPairs) -> list[SeenBy]:
    """The registered versions of a model with what each saw, the oldest first; then the runs that have none.

    Args:
        registered: what MLflow knows.
        shards: data/shards of the checkout, as dvc.lock names it; may be absent.
        revisions: where other data is looked up.
        count: counts the pairs in a folder like data/shards.
    """
    every: list[tuple[Version | None, TrackedRun | None, str, TrainingData]] = [
        (one, None, registered.title(one), training_data(one.tags)) for one in registered.versions
    ]
    for run in registered.unregistered:
        every.append((None, run, f"run {run.name}, which registered no version", training_data(run.tags)))
    known = {
        digest: _counted(digest, registered, shards, revisions, count)  # each data is read once
        for digest in sorted({digest for *_, data in every for digest in data.digests})
    }
    return [
        SeenBy(version, run, title, *_seen(data, known), {digest: known[digest][0] for digest in data.digests})
        for version, run, title, data in every
    ]


def training_data(tags: Mapping[str, str]) -> TrainingData:
    """Reads the tags of a version or a run."""
    measured_on = tags.get(DATA_DIGEST, "")
    value = tags.get(TRAINED_ON, "")
    gaps = [] if value else [f"there is no tag {TRAINED_ON}"]
    if value.endswith(f", {_UNKNOWN}"):
        gaps.append("more data trained it than its tag has room for")
    if source := tags.get("align.imported_from"):
        weights = tags.get("align.imported_weights", "")[:12]
        gaps.append(f"imported from {source}, weights {weights}: which data trained that is unknown")
    digests = tuple(digest for digest in value.split(", ") if digest not in ("", "nothing", _UNKNOWN))
    not_gated = tuple(filter(digests.__contains__, tags.get("align.not_gated", "").split(", ")))
    return TrainingData(digests, measured_on, tuple(gaps), not_gated)


def _seen(
    data: TrainingData, known: Mapping[str, tuple[Mapping[str, int] | None, str]]
) -> tuple[Mapping[str, int] | None, str]:
    """What a version saw, by its data's counts: None if some data is unknown and no known data had the pairs."""
    seen, why, complete = dict[str, int](), [], not data.gaps
    for digest in data.digests:
        counts, where = known[digest]
        why.append(where)
        complete = complete and counts is not None
        for split, number in (counts or {}).items():
            if digest in data.trained_on or split != "train":
                seen[split] = max(seen.get(split, 0), number)  # more than one data may hold the same pairs
    return seen if complete or seen.get("train") else None, "; ".join((*why, *data.gaps))


def _counted(
    digest: str, registered: Registered, shards: Path, revisions: Revisions, count: CountPairs
) -> tuple[Mapping[str, int] | None, str]:
    if not digest:
        return None, f"the version has no tag {DATA_DIGEST}"
    data = revisions.find(digest, shards, registered.revisions(digest))
    if data is None:
        return None, not_here(digest)
    try:
        return count(data.folder(shards, *SHARD_FILES, fetch=True)), data.where
    except DataError as error:
        return None, f"data {digest[:12]} ({data.where}): {error}"


def not_here(digest: str) -> str:
    """Why data with this digest cannot be read, and what brings it."""
    return (
        f"data {digest[:12]} is not in this checkout, and no revision that a version or run names has it here: "
        "`git fetch --all --tags`, then `dvc fetch` of that revision; what a purge has ended is gone"
    )
