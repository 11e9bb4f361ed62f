"""Which registered model versions, and which runs without a version, saw given pairs: by the digests of their data.

Each version is tagged with the digests of the data that trained it, first to last, and of the data of its run. Data can
be read if the checkout has it, or if git and DVC have a version of data/shards with that digest. If its bytes are gone,
or the model was imported, the answer is "unknown", never that the model saw nothing.

Nothing else answers this question: `align opt_out` and `align trace` ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from align.config.release import RegisterConfig
from align.errors import DataError, ServiceError
from align.formats.shards import MANIFEST, read_manifest
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.shard_samples import SHARD_FILES
from align.lineage.versions.stage_runs import StageRun
from align.services.tracking.address import has_store
from align.services.tracking.registry import Version, aliases_of
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import Tracker

#: A folder like data/shards -> split -> how many of the pairs are in it.
CountPairs = Callable[[Path], Mapping[str, int]]
#: Tags of runs and versions: the data of the run, and what trained the model (`registration.results`).
DATA, TRAINED_ON = "align.data_digest", "align.trained_on"
_MODEL = "align.model_digest"
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
class RecordedData:
    """A version of data/shards that can be found by its digest.

    Attributes:
        where: who has it, for people.
        run: the run of stage `shard` that made it; None: it lies in the checkout.
        folder: makes a folder with its manifest and tars; None if some of its bytes are gone.
    """

    where: str
    run: StageRun | None
    folder: Callable[[], Path | None]


@dataclass(frozen=True)
class SeenBy:
    """What one model version, or one run without a version, saw of the pairs.

    Attributes:
        version: the version; None of a run.
        run: the run; None of a version, which names its own.
        aliases: of the version, such as `champion`.
        seen: split -> number of the pairs, at least; only `train` changed the weights. None if that is unknown.
        why: where the data was read, or why it could not be.
        counts: digest of each of its data -> the same counts in that data alone.
    """

    version: Version | None
    run: TrackedRun | None
    aliases: tuple[str, ...]
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

    @property
    def title(self) -> str:
        """What people call it, with its aliases."""
        if self.version is None:
            return f"run {self.run.name if self.run else ''}, which registered no version"
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.version.name} version {self.version.number}{aliases}"


@dataclass(frozen=True)
class WhoSaw:
    """The answer.

    Attributes:
        models: the registered versions, the oldest first.
        runs: runs that recorded their data and registered no version.
        problem: one line that says why there is none; None if there is.
    """

    models: tuple[SeenBy, ...]
    runs: tuple[SeenBy, ...] = ()
    problem: str | None = None


def who_saw(register: RegisterConfig, shards: Path, versions: DataVersions, count: CountPairs) -> WhoSaw:
    """The registered versions of a model with what each saw, and the runs of its experiment that have none.

    Args:
        register: the model's name, and that of its experiment.
        shards: data/shards of the checkout, as dvc.lock names it; may be absent.
        versions: where other data is looked up.
        count: counts the pairs in a folder like data/shards.
    """
    if not has_store():
        return WhoSaw((), (), "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db")
    try:
        tracker = Tracker()
        registered = tracker.registry.versions(register.model_name)
        aliases = tracker.registry.aliases(register.model_name)
        runs = _unregistered(tracker.runs(f"tags.`{TRAINED_ON}` != ''", register.experiment), registered)
    except ServiceError as error:
        return WhoSaw((), (), str(error))
    of_models, of_runs = [training_data(one.tags) for one in registered], [training_data(run.tags) for run in runs]
    every = {digest for one in (*of_models, *of_runs) for digest in one.digests}
    recorded = recorded_data(shards, versions, every)
    known = {digest: _counted(digest, recorded, count) for digest in sorted(every)}  # each data is read once

    def seen_by(one: TrainingData, version: Version | None = None, run: TrackedRun | None = None) -> SeenBy:
        names = aliases_of(aliases, version) if version else ()
        return SeenBy(version, run, names, *_seen(one, known), {digest: known[digest][0] for digest in one.digests})

    models = tuple(seen_by(data, version=one) for data, one in zip(of_models, registered, strict=True))
    others = tuple(seen_by(data, run=run) for data, run in zip(of_runs, runs, strict=True))
    return WhoSaw(models, others, None if models or others else f"'{register.model_name}' has no registered version")


def _unregistered(runs: list[TrackedRun], registered: list[Version]) -> list[TrackedRun]:
    """The runs whose model is not a version: it was deleted, or they ended before."""
    known, models = {one.run_id for one in registered}, {one.tags.get(_MODEL) for one in registered}
    return [run for run in runs if run.run_id not in known and run.tags.get(_MODEL) not in models]


def training_data(tags: Mapping[str, str]) -> TrainingData:
    """Reads the tags of a version or a run."""
    measured_on = tags.get(DATA, "")
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


def recorded_data(shards: Path, versions: DataVersions, digests: set[str]) -> dict[str, RecordedData]:
    """Digest -> where that version of data/shards is, for those that can be found.

    Args:
        shards: data/shards of the checkout, as dvc.lock names it; may be absent.
        versions: where other data is looked up.
        digests: the search ends when all of these are found.
    """
    found: dict[str, RecordedData] = {}
    if here := digest_of(shards):
        found[here] = RecordedData("the checkout's data", None, partial(Path, shards))
    for run in versions.runs() if not digests <= found.keys() else ():
        md5 = run.outs.get(shards.as_posix())
        manifest = versions.lay_out(md5, MANIFEST) if md5 else None
        digest = digest_of(manifest) if manifest is not None else None
        if md5 and digest and digest not in found:
            folder = partial(versions.lay_out, md5, *SHARD_FILES)
            found[digest] = RecordedData(f"as of {run.where}", run, folder)
            if digests <= found.keys():
                break
    return found


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
    digest: str, recorded: Mapping[str, RecordedData], count: CountPairs
) -> tuple[Mapping[str, int] | None, str]:
    if not digest:
        return None, f"the version has no tag {DATA}"
    if digest not in recorded:
        return None, f"data {digest[:12]} is neither checked out nor in any dvc.lock that git has"
    data = recorded[digest]
    try:
        folder = data.folder()
        seen = count(folder) if folder is not None else None
    except DataError as error:
        return None, f"data {digest[:12]} ({data.where}): {error}"
    if seen is None:
        return None, f"data {digest[:12]} ({data.where}) is gone from DVC's cache and remotes"
    return seen, data.where


def digest_of(shards: Path) -> str | None:
    """`digest` of the manifest of data/shards; None if there is none, or another layout."""
    try:
        return read_manifest(shards).digest
    except DataError:
        return None
