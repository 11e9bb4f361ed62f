"""The half of a trace that is models: runs, versions with their aliases, and the search index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from align.display.shares import percent
from align.durable.files import sha256_folder
from align.formats.image_index import IndexHeader
from align.lineage.trace.sections import Facts, Section, State, known
from align.lineage.versions.at_revision import branch_at
from align.lineage.versions.registered import DIRTY, Registered
from align.lineage.versions.who_saw import training_data
from align.release.registration.shown import measured
from align.services.git import git_if_any
from align.services.tracking.registry import CHAMPION, INDEX_DIGEST, MODEL_DIGEST, Version, aliases_of
from align.services.tracking.tracker import CACHED_STAGES, FLOW_RUN, REVISION

#: The parameters that are most asked of a recipe; MLflow has all.
_RECIPE = ("pretrain.num_steps", "pretrain.batch_size", "finetune.num_steps", "finetune.from")


def version_sections(
    registered: Registered, version: Version, root: Path, facts: Facts = (), *, asked: bool = False
) -> Iterator[Section]:
    """A version with its run before it and its aliases after it.

    Args:
        registered: what MLflow knows.
        version: the version.
        root: the checkout, whose git is asked for the commit.
        facts: what comes first of the version, such as whether it saw a pair.
        asked: whether it is what was asked for.
    """
    yield run_section(registered, version.run_id, version.tags, root)
    data, tags = training_data(version.tags), version.tags
    state: State = "warn" if data.gaps or tags.get("align.rolled_back_at") else ""
    every = known(
        *facts, ("model digest", tags.get(MODEL_DIGEST)), ("data", ", ".join(one[:12] for one in data.trained_on)),
        ("measured beside", data.measured_on[:12] if data.measured_on not in data.trained_on else ""),
        ("gate", tags.get("align.quality")), ("accepted", tags.get("align.quality_accepted")),
        ("promoted", tags.get("align.promoted_at")), ("rolled back", tags.get("align.rolled_back_at")),
        ("because", tags.get("align.rolled_back_because")), *(("gap", gap) for gap in data.gaps),
    )  # fmt: skip
    yield Section("version", registered.title(version), every, state, asked=asked)
    for alias in aliases_of(registered.aliases, version):
        yield Section("alias", alias, known(("names", f"{version.name} version {version.number}")), "good")


def run_section(
    registered: Registered, run_id: str, tags: Mapping[str, str], root: Path, branch: str = "", *, asked: bool = False
) -> Section:
    """A training run: where it is recorded, of which code, with which values, and what was measured."""
    run = registered.run(run_id)
    tags = {**tags, **(run.tags if run else {})}
    gone = []
    if run_id and run is None:
        why = registered.problem or "it was deleted there, or MLFLOW_TRACKING_URI names another server"
        gone.append(f"run {run_id} is not in MLflow: {why}")
    revision = tags.get(REVISION, "")
    commit = revision.removesuffix(DIRTY)
    shown = _commit(root, commit)
    if commit and shown is None:
        gone.append(f"commit {commit[:10]} is not in this repository; `git fetch --all` brings it if a remote has it")
    branch = branch or (branch_at(root, commit) if shown else "")
    params, metrics = dict(run.params) if run else {}, registered.metrics(run_id)
    figures = [(f"{of}/{metric}", value, low, high) for of, metric, value, low, high, _ in measured(metrics)]
    facts = known(
        ("branch", branch), ("commit", f"{revision[:10]}{DIRTY if revision.endswith(DIRTY) else ''} {shown or ''}"),
        ("dvc.lock", tags.get("align.dvc_lock", "")[:12]),
        ("MLflow run", run_id), ("state", run.status.lower() if run else ""),
        ("started", _time(run.started_at) if run else ""), ("Prefect flow run", tags.get(FLOW_RUN)),
        ("from the cache", tags.get(CACHED_STAGES)),
        ("recipe", ", ".join(f"{key}={params[key]}" for key in _RECIPE if key in params)),
        *((name, f"{percent(value)} ({percent(low)} to {percent(high)})") for name, value, low, high in figures[:4]),
    )  # fmt: skip
    title = branch or (run.name if run else "") or run_id[:12] or "run not recorded"
    return Section("run", title, facts, missing=tuple(gone), asked=asked)


def index_section(registered: Registered, index: Path, facts: Facts = ()) -> tuple[Section, Version | None] | None:
    """The search index of the checkout, and the version that it was registered with; None if there is no index.

    Args:
        registered: what MLflow knows.
        index: data/index.
        facts: what comes first of it, such as how many of the pictures it holds.
    """
    try:
        header = IndexHeader.model_validate_json((index / "index.json").read_bytes())
    except (OSError, ValidationError):
        return None
    digest = sha256_folder(index)
    maker = next((one for one in registered.versions if one.tags.get(INDEX_DIGEST) == digest), None)
    is_champion = maker is not None and registered.aliases.get(CHAMPION) == maker.number
    if maker is None:
        by = "a model that is registered with no such index"
    else:
        by = f"{maker.name} version {maker.number}, {'the champion' if is_champion else 'not the champion'}"
    every = known(
        *facts, ("pictures", f"{header.num_items:,}"), ("made by", by), ("data", header.shards_digest[:12]),
        ("model", header.model_digest[:12]),
    )  # fmt: skip
    title = f"{header.num_items:,} pictures, made by {by}"
    return Section("index", title, every, "good" if is_champion else "warn"), maker


def _commit(root: Path, revision: str) -> str | None:
    """The commit's day and subject; None if it is not here."""
    if not revision:
        return None
    text = git_if_any(root, "show", "-s", "--format=%cs %s", "--end-of-options", f"{revision}^{{commit}}")
    return text.strip() if text is not None else None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
