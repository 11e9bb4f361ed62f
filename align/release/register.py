"""register: completes the MLflow run from what the stages left, and registers the packaged model as `candidate`.

No stage: its tags (git revision, dvc.lock, flow run) are known only after the run, and a cached stage would leave
MLflow empty. Everything is read from outs and reports, so an empty MLflow is filled again whatever DVC has cached.
Idempotent by digest: the same model is the same version, the same results are the same run, and only what is missing
is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.paths import PathsConfig
from align.config.register import RegisterConfig
from align.console import say
from align.errors import CorruptError, DataError
from align.files import sha256_file, sha256_folder, to_json
from align.formats.shards import read_manifest
from align.formats.verdict import SHARDS, TABLES, require_passed
from align.services.tracking import CANDIDATE, Tracker, Version, current_flow_run_id, current_run_id

#: Sections that change where and how fast, never what: not worth comparing between runs.
_NOT_LOGGED = {"paths", "engine", "store"}
_STEPS = "metrics.jsonl"
_ARTIFACT = "model"
#: MLflow refuses longer tags.
_MAX_TAG = 5000


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from. An empty string is "not known"."""

    git_revision: str
    dvc_lock: str
    flow_run: str
    cached_stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registration:
    """What `register` did. `created` is False where the model was registered already."""

    version: Version
    created: bool
    run_id: str


def register(
    config: RegisterConfig,
    *,
    values: Mapping[str, Any],
    packaged: Path,
    shards: Path,
    reports: Path,
    lineage: Lineage,
    tracker: Tracker,
    run_id: str | None,
) -> Registration:
    """Completes a run and registers the model.

    Args:
        config: section `register`.
        values: params.yaml, section -> key -> value.
        packaged: models/packaged.
        shards: data/shards, for the digest of the data.
        reports: the folder of all stages' reports.
        lineage: tags of the run and of a new version.
        tracker: MLflow.
        run_id: a run that the caller ends; None takes the run that has these results already, or begins and ends one.

    Raises:
        DataError: something to register is missing.
        CorruptError: the packaged model is not the one its report speaks of.
        ServiceError: MLflow is away or refuses.
    """
    model_digest = _report(reports / "package")["digest"]
    if not packaged.is_dir():
        raise DataError(f"{packaged}: no such folder; run `align package` first")
    if sha256_folder(packaged) != model_digest:
        raise CorruptError(f"{packaged}: not the model that {reports / 'package'} reports; run `align package` again")
    data_digest = read_manifest(shards).digest
    require_passed(reports / TABLES)
    require_passed(reports / SHARDS, data_digest)
    accepted = [row["accepted"] for gate in (TABLES, SHARDS) for row in _report(reports / gate)["expectations"]]
    accepted = [f"{one['expectation']}, by {one['by']}: {one['reason']}" for one in accepted if one]
    metrics = read_metrics(reports)
    params = flatten({name: value for name, value in values.items() if name not in _NOT_LOGGED})
    run_digest = hashlib.sha256(to_json([model_digest, data_digest, params, metrics]).encode()).hexdigest()
    tags = {
        "align.model_digest": model_digest,
        "align.data_digest": data_digest,
        "align.quality": "passed",
        "align.quality_accepted": "; ".join(accepted)[:_MAX_TAG],
        "align.git_revision": lineage.git_revision,
        "align.dvc_lock": lineage.dvc_lock,
        "align.flow_run": lineage.flow_run,
    }
    tags = {key: value for key, value in tags.items() if value}

    ours = run_id is None
    earlier = tracker.find_run(config.experiment, "align.run_digest", run_digest)
    known = earlier if ours else None
    run = run_id or known or tracker.start_run(config.experiment, f"align {model_digest[:8]}")
    try:
        tracker.set_tags(run, tags)
        if lineage.cached_stages:
            cached = {"cached_stages": ", ".join(lineage.cached_stages), "cached_from": earlier or "DVC's cache"}
            tracker.set_tags(run, cached)
        tracker.log_params(run, params)
        tracker.log_metrics(run, metrics)
        for path in sorted(reports.glob(f"*/{_STEPS}")):
            tracker.log_series(run, read_steps(path), prefix=f"{path.parent.name}/")
        if known is None:
            tracker.log_folder(run, reports, "reports")
            tracker.log_dataset(run, "shards", data_digest, shards.as_posix())
        version = tracker.find_version(config.model_name, "align.model_digest", model_digest)
        created = version is None
        if version is None:
            tracker.log_folder(run, packaged, _ARTIFACT)
            version = tracker.create_version(config.model_name, run, _ARTIFACT, tags)
        tracker.set_alias(version, CANDIDATE)
        tracker.set_tags(run, {"align.run_digest": run_digest, "align.model_version": str(version.number)})
    except BaseException:
        if ours and known is None:
            tracker.end_run(run, status="FAILED")
        raise
    if ours and known is None:
        tracker.end_run(run)
    return Registration(version=version, created=created, run_id=run)


def read_metrics(reports: Path) -> dict[str, float]:
    """The figures of every stage, from reports/*/metrics.json."""
    metrics: dict[str, float] = {}
    for path in sorted(reports.glob("*/metrics.json")):
        metrics |= json.loads(path.read_bytes())
    return metrics


def read_steps(path: Path) -> Iterable[Mapping[str, float]]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run the whole pipeline first (`dvc repro` or `align run`)") from None
    return report


def read_lineage(revision: str | None, cached_stages: Sequence[str]) -> Lineage:
    """The git revision (the checkout's unless given; `-dirty` where files differ from it) and dvc.lock's digest."""
    if revision is None:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            revision = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:  # no git, no revision
            revision = ""
    lock = Path("dvc.lock")
    digest = sha256_file(lock) if lock.is_file() else ""
    return Lineage(revision, digest, current_flow_run_id() or "", tuple(cached_stages))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--revision", default=None, help="git revision of this run; default: the checkout's")
    parser.add_argument("--cached-stage", action="append", default=[], metavar="STAGE", help="came from DVC's cache")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align register`."""
    config, paths = params.section(RegisterConfig), params.section(PathsConfig)
    tracker = Tracker()
    done = register(
        config, values=params.values, packaged=paths.packaged, shards=paths.shards, reports=paths.reports,
        lineage=read_lineage(args.revision, args.cached_stage), tracker=tracker, run_id=current_run_id(),
    )  # fmt: skip
    version = done.version
    say(f"register: run {done.run_id} in MLflow at {tracker.uri}")
    how = "registered" if done.created else "the same model, registered already"
    digest = version.tags["align.model_digest"]
    print(f"{version.name} version {version.number} ({how}), alias {CANDIDATE}, digest {digest[:12]}")
