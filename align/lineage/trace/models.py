"""The model half of a trace: from data to the runs, versions and aliases that came of it, and to the search index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from align.config.paths import PathsConfig
from align.errors import RefusedError, ServiceError
from align.formats.image_index import IndexHeader
from align.lineage.trace.graph import Graph, Node, State, Table, known
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.stage_runs import CHECKOUT, StageRun, parse_runs
from align.lineage.versions.who_saw import training_data
from align.release.registration.shown import all_metrics, measured
from align.services.git import LOCK_FILE, git_if_any
from align.services.tracking.address import has_store
from align.services.tracking.registry import CHAMPION, LINEAGE_PAGE, Version, aliases_of
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import FLOW_RUN, Tracker

#: Tags of versions and runs (`align.release.registration.results`, `align.release.registration.register`).
MODEL, REVISION, DVC_LOCK = "align.model_digest", "align.git_revision", "align.dvc_lock"
_DIRTY = "-dirty"
#: Sections of params.yaml that are the recipe of a model.
_RECIPE = ("model.", "pretrain.", "finetune.", "seed")
#: What is most asked of it.
_BRIEF = ("pretrain.num_steps", "pretrain.batch_size", "finetune.num_steps", "finetune.from")
#: Other metrics are not shown: a run has hundreds.
_MAX_METRICS = 40


class Models:
    """The registered versions of a model, their aliases and runs.

    Attributes:
        name: of the registered model.
        versions: the oldest first.
        aliases: alias -> number of its version.
        problem: one line that says why MLflow cannot be asked; empty: it can.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: list[Version] = []
        self.aliases: dict[str, int] = {}
        self.problem = ""
        self._tracker: Tracker | None = None
        if not has_store():
            self.problem = "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db"
            return
        try:
            self._tracker = Tracker()
            self.versions = self._tracker.registry.versions(name)
            self.aliases = self._tracker.registry.aliases(name)
        except ServiceError as error:
            self.problem = str(error)

    @property
    def champion(self) -> Version | None:
        """The version that alias `champion` names."""
        number = self.aliases.get(CHAMPION)
        return next((one for one in self.versions if one.number == number), None)

    def run(self, run_id: str) -> TrackedRun | None:
        """A run; None if MLflow has none of this id, or does not answer."""
        try:
            return self._tracker.run(run_id) if self._tracker and run_id else None
        except ServiceError:
            return None

    def metrics(self, run_id: str) -> dict[str, float]:
        """A run's latest metrics, under MLflow's names."""
        try:
            return all_metrics(self._tracker, run_id) if self._tracker and run_id else {}
        except ServiceError:
            return {}

    def log_page(self, run_id: str, folder: Path, name: str) -> None:
        """Uploads a folder as artifacts of a run. Raises ServiceError."""
        if self._tracker is None:
            raise RefusedError(self.problem)
        self._tracker.log_folder(run_id, folder, name)

    def page_shows(self, version: Version, *, num_missing: int) -> None:
        """Records what a version's page shows: its aliases, and how many links it lacks. Raises ServiceError."""
        if self._tracker is None:
            raise RefusedError(self.problem)
        shown = {"aliases": aliases_of(self.aliases, version), "missing": num_missing}
        self._tracker.registry.set_version_tags(version, {LINEAGE_PAGE: json.dumps(shown)})


def add_version(graph: Graph, models: Models, version: Version, root: Path, *before: str) -> str:
    """A version with its run before it and its aliases after it; returns its id.

    Args:
        graph: is added to.
        models: what MLflow knows.
        version: the version.
        root: the checkout, whose git is asked for the commit.
        before: ids of the data that it saw.
    """
    run = add_run(graph, models, version.run_id, version.tags, root, *before)
    data, tags = training_data(version.tags), version.tags
    state: State = "warn" if data.gaps or tags.get("align.rolled_back_at") else ""
    facts = known((
        ("model digest", tags.get(MODEL)), ("data", ", ".join(one[:12] for one in data.trained_on)),
        ("measured beside", data.measured_on[:12] if data.measured_on not in data.trained_on else ""),
        ("gate", tags.get("align.quality")), ("accepted", tags.get("align.quality_accepted")),
        ("promoted", tags.get("align.promoted_at")), ("rolled back", tags.get("align.rolled_back_at")),
        ("because", tags.get("align.rolled_back_because")), *(("gap", gap) for gap in data.gaps),
    ))  # fmt: skip
    title = f"{version.name} version {version.number}"
    names = aliases_of(models.aliases, version)
    brief = ", ".join(names) or "no alias"
    node = Node(f"version {version.name}/{version.number}", "version", title, brief, facts, state)
    graph.add(node, run)
    for alias in names:
        facts = known((("names", title),))
        graph.add(Node(f"alias {version.name}@{alias}", "alias", alias, facts=facts, state="good"), node.id)
    return node.id


def add_run(
    graph: Graph, models: Models, run_id: str, tags: Mapping[str, str], root: Path, *before: str, branch: str = ""
) -> str:
    """A training run: where it is recorded, of which code, with which values, and what was measured."""
    run = models.run(run_id)
    tags = {**tags, **(run.tags if run else {})}
    gone = []
    if run_id and run is None:
        why = models.problem or "it was deleted there, or MLFLOW_TRACKING_URI names another server"
        gone.append(f"run {run_id} is not in MLflow: {why}")
    revision = tags.get(REVISION, "")
    commit = revision.removesuffix(_DIRTY)
    shown = _commit(root, commit)
    if commit and shown is None:
        gone.append(f"commit {commit[:10]} is not in this repository; `git fetch --all` brings it if a remote has it")
    branch = branch or (_branch(root, commit) if shown else "")
    params, metrics = dict(run.params) if run else {}, models.metrics(run_id)
    figures = [(f"{of}/{metric}", value, low, high) for of, metric, value, low, high, _ in measured(metrics)]
    recipe = tuple(sorted((key, value) for key, value in params.items() if key.startswith(_RECIPE)))
    brief = ", ".join(f"{key.partition('.')[2]} {params[key]}" for key in _BRIEF[:2] if key in params)
    facts = known((
        ("branch", branch), ("commit", f"{revision[:10]}{_DIRTY if revision.endswith(_DIRTY) else ''} {shown or ''}"),
        ("dvc.lock", _lock(root, commit if shown else "", tags.get(DVC_LOCK, ""))),
        ("MLflow run", run_id), ("state", run.status.lower() if run else ""),
        ("started", _time(run.started_at) if run else ""), ("Prefect flow run", tags.get(FLOW_RUN)),
        ("from the cache", tags.get("cached_stages")),
        ("recipe", ", ".join(f"{key}={params[key]}" for key in _BRIEF if key in params)),
        *((name, f"{value:.4f} ({low:.4f} to {high:.4f})") for name, value, low, high in figures[:4]),
    ))  # fmt: skip
    rows = tuple(figures[:_MAX_METRICS])
    tables = tuple(table for table in (
        Table("Measured, with 95 % intervals", ("metric", "value", "low", "high"), rows),
        Table("Recipe", ("parameter", "value"), recipe),
    ) if table.rows)  # fmt: skip
    title = branch or (run.name if run else "") or run_id[:12] or "run not recorded"
    node = Node(
        f"run {run_id or branch or commit or title}", "run", title, brief, facts, "gone" if gone else "", tuple(gone),
        tables,
    )  # fmt: skip
    return graph.add(node, *before)


def add_index(graph: Graph, models: Models, versions: DataVersions, paths: PathsConfig, root: Path) -> str | None:
    """The search index of the checkout, after the version whose model made it; None if there is none.

    `graph.nodes` has the version already, or the index has no edge: an index of another version is not part of this
    trace; it says whose it is.
    """
    header = read_header(paths.index)
    if header is None:
        return None
    made_by, why = _maker(versions, paths, root)
    maker = next((one for one in models.versions if made_by and one.tags.get(MODEL) == made_by), None)
    champion = models.champion
    if maker is None:
        state, by = "warn", f"an unknown model: {why}" if why else "a model that is no version here"
    else:
        is_champion = champion is not None and champion.number == maker.number
        state = "good" if is_champion else "warn"
        by = f"{maker.name} version {maker.number}, {'the champion' if is_champion else 'not the champion'}"
    facts = known((
        ("pictures", f"{header.num_items:,}"), ("made by", by), ("data", header.shards_digest[:12]),
        ("model", header.model_digest[:12]),
    ))  # fmt: skip
    node = Node(
        "index", "index", f"{header.num_items:,} pictures", f"made by {by}" if maker else "", facts,
        "good" if state == "good" else "warn",
    )  # fmt: skip
    return graph.add(node, *([f"version {maker.name}/{maker.number}"] if maker else []))


def read_header(index: Path) -> IndexHeader | None:
    """The header of an index; None if there is none, or of another layout."""
    try:
        return IndexHeader.model_validate_json((index / "index.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _maker(versions: DataVersions, paths: PathsConfig, root: Path) -> tuple[str | None, str]:
    """The digest of the packaged model with which the checkout's index was made, or why that is not known.

    Index and packaged model have the same model folder as dependency; the package's report names the packaged model.
    """
    lock = root / LOCK_FILE
    if not versions.tracked or not lock.is_file():
        return None, "DVC did not make it"
    index, report = paths.index.as_posix(), (paths.reports / "package").as_posix()
    here = list(parse_runs(lock.read_text("utf-8"), CHECKOUT))
    made = next((run for run in here if index in run.outs), None)
    recorded = versions.files_in_checkout(index).get("index.json")
    if made is None or recorded is None:
        return None, f"{LOCK_FILE} and DVC's cache do not say what {index} was made of"
    if recorded != hashlib.md5((paths.index / "index.json").read_bytes(), usedforsecurity=False).hexdigest():
        return None, f"{index} is not what {LOCK_FILE} records; `dvc status` says more"
    model = made.deps.get(paths.finetuned.as_posix())
    packages = _packages(here, report, paths, model) or _packages(versions.runs(), report, paths, model)
    for run in packages:
        found = (versions.files(run.outs[report]) or {}).get("report.json")
        file = versions.object(found) if found else None
        if file is not None:
            return str(json.loads(file.read_bytes()).get("digest")), ""
    return None, "no recorded `align package` had the same model"


def _packages(runs: list[StageRun], report: str, paths: PathsConfig, model: str | None) -> list[StageRun]:
    return [run for run in runs if report in run.outs and model and run.deps.get(paths.finetuned.as_posix()) == model]


def _commit(root: Path, revision: str) -> str | None:
    """The commit's day and subject; None if it is not here."""
    if not revision:
        return None
    text = git_if_any(root, "show", "-s", "--format=%cs %s", "--end-of-options", f"{revision}^{{commit}}")
    return text.strip() if text is not None else None


def _branch(root: Path, commit: str) -> str:
    names = (
        git_if_any(root, "for-each-ref", "--format=%(refname:lstrip=2)", f"--points-at={commit}", "refs/heads/run")
        or ""
    )
    return next(iter(names.splitlines()), "")


def _lock(root: Path, commit: str, digest: str) -> str:
    """What the tag says of dvc.lock, compared with the commit's."""
    if not digest:
        return ""
    text = git_if_any(root, "show", f"{commit}:{LOCK_FILE}") if commit else None
    if text is None:
        return f"{digest[:12]}, which no commit here has"
    same = hashlib.sha256(text.encode("utf-8")).hexdigest() == digest
    return f"{digest[:12]}, {'as the commit has it' if same else 'which differs from that of the commit'}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
