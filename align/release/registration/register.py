"""register: completes the MLflow run from the stages' outputs, and registers the packaged model as `candidate`.

This is not a stage: its tags (git revision, dvc.lock, flow run) are known only after the run, and a cached stage would
leave MLflow empty. Everything is read from outs and reports, so an empty MLflow is filled again even if DVC takes all
stages from its cache.

`register` is idempotent by digest: an equal model is the same version, equal results are the same run, and only what is
missing is written. Sections of params.yaml that change no bytes (a price, the number of machines) belong to no digest
and are not logged: MLflow allows one value per param and run.

A tag in git keeps what a registered version was made from: `align/MODEL/vN`. Its commit has the code, the parameters
and dvc.lock. Branches of runs may then go, and `dvc gc --all-tags` leaves the data, the model and the reports of the
version in DVC's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.paths import MAKE_PRETRAINED, PathsConfig
from align.config.recipe import FinetuneConfig
from align.config.release import RegisterConfig
from align.display.console import say, show
from align.durable.files import sha256_file, sha256_folder
from align.durable.locks import locked
from align.errors import CorruptError, DataError, FormatError
from align.formats.model_folder import WEIGHTS, model_digest
from align.formats.policy import OPTED_OUT
from align.formats.shards import read_manifest
from align.release.registration.dataset_card import CROISSANT, SOURCES, croissant, sources
from align.release.registration.model_card import CARD, Champion, ModelCard
from align.release.registration.results import PipelineOutputs, Results, own, read_results
from align.release.registration.shown import VERDICT, all_metrics, headline, log_report, tables
from align.services.git import LOCK_FILE, commit_files, git, git_if_any
from align.services.signing import sign
from align.services.tracking.address import current_flow_run_id, current_run_id
from align.services.tracking.registry import (
    CANDIDATE,
    CHAMPION,
    INDEX_ARTIFACT,
    INDEX_DIGEST,
    MODEL_ARTIFACT,
    MODEL_DIGEST,
    Version,
)
from align.services.tracking.tracker import CACHED_STAGES, FLOW_RUN, REVISION, Tracker


def keep_in_git(root: Path, version: Version, revision: str, lock: str) -> str | None:
    """Tags the commit of a version, unless that was done before; returns the name of the tag.

    Where that commit has no dvc.lock, as after `dvc repro` by hand, one on top of it gets the files of the checkout. No
    tag is ever moved: a version of the same number in another registry gets `align/MODEL/vN-2`.

    Args:
        root: what the version was made in.
        version: of the registry.
        revision: of the code; it may end in `-dirty`.
        lock: the digest of dvc.lock, as the tags of a version have it.

    Returns:
        None if there is no repository, or no commit to tag.

    Raises:
        DataError: git refuses.
    """
    if (commit := _id(root, f"{revision.removesuffix('-dirty') or 'HEAD'}^{{commit}}")) is None:
        return None
    made = None if revision.endswith("-dirty") else _id(root, f"{commit}:./{LOCK_FILE}")
    is_uncommitted = made is None and (root / LOCK_FILE).is_file()
    if is_uncommitted:
        made = git(root, "hash-object", LOCK_FILE)
    for number in itertools.count(1):
        name = version.git_tag + (f"-{number}" if number > 1 else "")
        tagged = _id(root, f"refs/tags/{name}^{{commit}}")
        if tagged is None:
            break
        if _id(root, f"{tagged}:./{LOCK_FILE}") == made or version.tags.get("align.dvc_lock", "") != lock:
            return name
    if is_uncommitted:
        commit = commit_files(root, [LOCK_FILE], f"what {version.name} version {version.number} was made from")
    git(root, "update-ref", f"refs/tags/{name}", commit, "")
    return name


def _id(root: Path, name: str) -> str | None:
    """The hash of a git object; None if there is none of this name, or no repository."""
    found = git_if_any(root, "rev-parse", "--verify", "--quiet", name)
    return found.strip() if found else None


@dataclass(frozen=True)
class Origin:
    """Tags of a run and of its model. An empty string means "not known"."""

    git_revision: str
    dvc_lock: str
    flow_run: str
    cached_stages: tuple[str, ...] = ()
    policy_digest: str = ""

    def tags(self) -> dict[str, str]:
        """What is known, as tags of the run and of a new version."""
        tags = {
            REVISION: self.git_revision,
            "align.dvc_lock": self.dvc_lock,
            FLOW_RUN: self.flow_run,
            "align.policy_digest": self.policy_digest,
        }
        return {key: value for key, value in tags.items() if value}


def read_origin(revision: str | None, cached_stages: Sequence[str], policy: Path) -> Origin:
    """The origin of what was made in the working directory.

    Args:
        revision: git revision; None takes the checkout's, with `-dirty` where files differ from it.
        cached_stages: the stages that DVC took from its cache.
        policy: the folder of what people decided about the data; no digest if take-downs came after the filter.
    """
    if revision is None:
        revision = git_if_any(Path(), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or ""
    lock = Path("dvc.lock")
    digest = sha256_file(lock) if lock.is_file() else ""
    decided = sha256_folder(policy) if policy.is_dir() and _was_obeyed(policy / OPTED_OUT, lock) else ""
    return Origin(revision.strip(), digest, current_flow_run_id() or "", tuple(cached_stages), decided)


def _was_obeyed(take_downs: Path, lock: Path) -> bool:
    """Whether the data was filtered with this list: dvc.lock has the MD5 of what the filter read."""
    if not lock.is_file() or not take_downs.is_file():
        return not take_downs.is_file()
    return hashlib.md5(take_downs.read_bytes(), usedforsecurity=False).hexdigest() in lock.read_text("utf-8")


_HEADER = "index.json"


def log_index(tracker: Tracker, version: Version, index: Path, model: Path, packaged: Path) -> Mapping[str, str]:
    """Logs an index to the run of a version, and tags the version with its digest, once the files are there.

    The index of another model is left out, with a line; so is a missing one.

    Args:
        tracker: MLflow.
        version: of the packaged model.
        index: data/index.
        model: models/finetuned, which index and package were made from.
        packaged: models/packaged.

    Returns:
        The tags that were set; none if the version has this index already, or gets none.

    Raises:
        FormatError: index.json has another layout.
        ServiceError: MLflow is unavailable or refuses.
    """
    if not (index / _HEADER).is_file():
        return {}
    if not _belongs(index, model, packaged):
        say(f"register: {index} is of another model, so version {version.number} gets no index; run `align index`")
        return {}
    digest = sha256_folder(index)
    if version.tags.get(INDEX_DIGEST) == digest:
        return {}
    tracker.log_folder(version.run_id, index, f"{INDEX_ARTIFACT}/{digest[:16]}")
    if sha256_folder(index) != digest:
        raise CorruptError(f"{index}: changed while it was sent to MLflow; run `align register` again")
    tags = {INDEX_DIGEST: digest}
    tracker.registry.set_version_tags(version, tags)
    return tags


def _belongs(index: Path, model: Path, packaged: Path) -> bool:
    """Whether the index was made with the model in `model`, and that is the one that was packaged."""
    copies = [path for path in packaged.glob(f"artifacts/*/{WEIGHTS}") if path.is_file()]
    if not (model / WEIGHTS).is_file() or [sha256_file(copy) for copy in copies] != [sha256_file(model / WEIGHTS)]:
        return False
    try:
        named = json.loads((index / _HEADER).read_bytes())["model_digest"]
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"{index / _HEADER}: names no model; run `align index` again") from None
    return bool(named == model_digest(model))


LOCK = Path(".align/locks/register")
_RUN_DIGEST = "align.run_digest"
#: The same, for a run that began here: the next call completes it if it was killed or failed.
_REGISTERS = "align.registers"


@dataclass(frozen=True)
class Registration:
    """What `register` did. `created` is False if the model was registered before; `mlflow` is MLflow's address.

    `verdict` is what a promotion would say of the version now.
    """

    version: Version
    created: bool
    run_id: str
    mlflow: str
    verdict: str


def register(
    config: RegisterConfig,
    outputs: PipelineOutputs,
    values: Mapping[str, Any],
    *,
    origin: Origin,
    tracker: Tracker | None,
    run_id: str | None,
    outlook: Callable[[Tracker, Version], str],
) -> Registration:
    """Completes a run and registers the model.

    Args:
        config: section `register`.
        outputs: the folders to read.
        values: params.yaml, section -> key -> value.
        origin: tags of the run and of a new version.
        tracker: MLflow; None takes the one of the environment, once everything is read: a folder in which nothing has
            run gets no mlflow.db.
        run_id: a run that the caller ends; None takes the finished run with these results, or starts and ends one.
        outlook: says of a version what a promotion would say of it, in a sentence.

    Raises:
        DataError: something to register is missing, or the verdict is on other data.
        GateError: the quality gate refused the data.
        CorruptError: the packaged model is not the one that its report names.
        ConfigError: the environment names a key that cannot sign.
        ServiceError: MLflow is unavailable or refuses.
    """
    outputs = own(outputs)
    results = read_results(outputs, values)
    tracker = tracker or Tracker()
    earlier = _run_with(
        tracker, config, f"tags.`{_RUN_DIGEST}` = '{results.digest}' and attributes.status = 'FINISHED'"
    )
    reused = earlier if run_id is None else None
    run = (
        run_id
        or reused
        or _run_with(tracker, config, f"tags.`{_REGISTERS}` = '{results.digest}' and attributes.status != 'FINISHED'")
        or tracker.start_run(config.experiment, f"align {results.model_digest[:8]}", tags={_REGISTERS: results.digest})
    )
    ends_here = run_id is None and reused is None
    try:
        if reused is None:  # the tags of an earlier run still say what made it
            tracker.set_tags(run, _tags(results, origin, earlier))
            tracker.log_params(run, results.params)
            for folder in outputs.report_folders():
                log_report(tracker, run, folder, headline(values), outputs.shards)
            tracker.log_tables(run, tables(outputs.report_folders()))
        version, card = _version(tracker, run, config.model_name, outputs, results, origin)
        if outputs.index is not None and outputs.finetuned is not None:
            log_index(tracker, version, outputs.index, outputs.finetuned, outputs.packaged)
        sign(tracker, version, outputs.packaged)
        tracker.registry.set_alias(version, CANDIDATE)
        verdict = outlook(tracker, version)
        if card is not None:  # MLflow has chosen its number
            card = replace(card, number=version.number, verdict=verdict)
            tracker.registry.describe(version, card.description())
            tracker.log_text(run, card.markdown(), CARD)
        tracker.set_tags(run, {_RUN_DIGEST: results.digest, "align.model_version": str(version.number)})
    except BaseException:
        if ends_here:
            tracker.end_run(run, status="FAILED")
        raise
    if ends_here:
        tracker.end_run(run)
    return Registration(version, card is not None, run, tracker.uri, verdict)


def _tags(results: Results, origin: Origin, earlier: str | None) -> dict[str, str]:
    """What a run is, and where it comes from.

    Args:
        results: of the run.
        origin: of the run.
        earlier: another run with these results, if there is one.
    """
    tags = results.tags() | origin.tags()
    if origin.git_revision:
        tags |= {"mlflow.source.git.commit": origin.git_revision}
    if origin.cached_stages:
        tags |= {CACHED_STAGES: ", ".join(origin.cached_stages), "cached_from": earlier or "DVC's cache"}
    return tags


def _run_with(tracker: Tracker, config: RegisterConfig, condition: str) -> str | None:
    """The newest run that meets a condition."""
    return next((run.run_id for run in tracker.runs(condition, config.experiment)), None)


def _version(
    tracker: Tracker, run: str, model: str, outputs: PipelineOutputs, results: Results, origin: Origin
) -> tuple[Version, ModelCard | None]:
    """The version with this model digest, and the card of a new one.

    A new one has everything that it needs from the start, but for its number and the verdict in the card.
    """
    tags = results.tags() | origin.tags()
    version = tracker.registry.find_version(model, MODEL_DIGEST, tags[MODEL_DIGEST])
    if version is not None:
        return version, None
    tracker.log_folder(run, outputs.packaged, MODEL_ARTIFACT)
    champion = tracker.registry.version_at(model, CHAMPION)
    compared = Champion(champion.number, all_metrics(tracker, champion.run_id)) if champion else None
    card = ModelCard(model, results, outputs, origin.tags(), tracker.page(run, None) or run, compared)
    tracker.log_text(run, card.markdown(), CARD)
    manifest = read_manifest(outputs.shards)
    tracker.log_text(run, croissant(model, manifest, outputs), CROISSANT)
    tracker.log_text(run, sources(model, manifest, outputs), SOURCES)
    version = tracker.registry.create_version(model, run, MODEL_ARTIFACT, tags, card.description())
    return version, card


def main(params: Params, args: argparse.Namespace) -> None:
    """`align register`."""
    paths = params.section(PathsConfig)
    others = MAKE_PRETRAINED if paths.is_made_elsewhere(params.section(FinetuneConfig).start) else ()
    origin = read_origin(args.revision, args.cached_stage, paths.policy)
    with locked(LOCK, "align register", say):  # two at once would find no version of their model, and make two
        done = register(
            params.section(RegisterConfig),
            PipelineOutputs(paths.packaged, paths.shards, paths.reports, others, paths.index, paths.finetuned),
            params.values,
            origin=origin,
            tracker=None,
            run_id=current_run_id(),
            outlook=lambda tracker, version: args.outlook(params, tracker, version),
        )
    version = done.version
    try:
        keep_in_git(Path.cwd(), version, origin.git_revision, origin.dvc_lock)
    except DataError as error:
        say(f"note: no tag in git keeps what version {version.number} was made from: {error}")
    if done.created:
        try:
            args.log_page(params, version)
        except Exception as error:  # noqa: BLE001 - whatever fails, the version is registered
            say(f"note: no lineage page: {error}; `align trace {version.name}/{version.number} --html FILE` draws it")
    say(f"register: run {done.run_id} in MLflow at {done.mlflow}")
    show(f"{VERDICT}{done.verdict}")
    how = "registered" if done.created else "registered before: the model is the same"
    digest = version.tags[MODEL_DIGEST]
    show(f"{version.name} version {version.number} ({how}), alias {CANDIDATE}, digest {digest[:12]}")
