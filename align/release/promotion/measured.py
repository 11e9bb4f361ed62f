"""A model that is measured apart from the pipeline: finds the one that a person names, and logs its evaluation.

The run of such an evaluation is a child of the run that made the model, where that is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.durable.files import sha256_file, sha256_folder
from align.errors import DataError, RefusedError
from align.formats.model_folder import WEIGHTS, require_model, unpacked
from align.release.promotion.evidence import model_folder
from align.release.promotion.judge import version_asked
from align.release.registration.shown import log_report, tables
from align.services.tracking.registry import MODEL_DIGEST, Version
from align.services.tracking.tracker import Tracker

#: Written out, so that a long text of a form does not fill the log.
_SHOWN = 100


@dataclass(frozen=True)
class AskedModel:
    """The model that a person names.

    Attributes:
        folder: the model folder.
        name: for people: `align version 7`, or the folder as it was given.
        parent: the MLflow run that made it; None if that is not known.
    """

    folder: Path
    name: str
    parent: str | None


def asked_model(
    asked: str, root: Path, tracker: Tracker, *, registered: str, packaged: Path, scratch: Path
) -> AskedModel:
    """Finds the model, and fetches it if it is a version.

    Args:
        asked: a version's number or alias; or a folder of the checkout, with a slash in it.
        root: the checkout.
        tracker: MLflow.
        registered: the name of the model that versions are of.
        packaged: models/packaged, which tells whether a folder's model is registered.
        scratch: an empty folder for a version's files.

    Raises:
        DataError, FormatError: there is no such model, or it is damaged; the message is one line.
        ServiceError: MLflow is unavailable or refuses.
    """
    asked = asked.strip()
    shown = asked if len(asked) <= _SHOWN else f"{asked[:_SHOWN]}…"
    if "/" in asked:
        folder = inside(root, asked)
        if not folder.is_dir():
            raise DataError(f"model {shown}: no such folder in the checkout; give one, or a version's number or alias")
        folder = unpacked(folder)
        require_model(folder)
        made = _version_of(folder, packaged, tracker, registered)
        return AskedModel(folder, asked, None if made is None else _run_of(made, tracker))
    if asked.isascii() and asked.isdecimal():
        version: Version | None = version_asked(registered, tracker, int(asked[:18]))
    else:
        version = tracker.registry.version_at(registered, asked)
    if version is None:
        known = ", ".join(sorted(tracker.registry.aliases(registered))) or "no aliases"
        raise DataError(
            f"model {shown}: '{registered}' has {known}, and no such one; give an alias, a number, or a folder with a "
            "slash in it, such as models/finetuned"
        )
    folder = model_folder(tracker.model_files(version, scratch), version)
    require_model(folder)
    return AskedModel(folder, f"{version.name} version {version.number}", _run_of(version, tracker))


def inside(root: Path, path: str) -> Path:
    """A path that a form names, below the checkout.

    Raises:
        DataError: it leads elsewhere.
    """
    try:
        found = (root / path).resolve()
        found.exists()  # raises where a name is too long
        if found.is_relative_to(root.resolve()):
            return found
    except (OSError, ValueError, RuntimeError):  # a null byte, a name that is too long, links in a circle
        pass
    raise DataError(f"{path[:_SHOWN]}: not in the checkout; give a path relative to it, without `..`")


def log_evaluation(
    tracker: Tracker, run_id: str, reports: Path, params: Mapping[str, Any], shown: Sequence[str]
) -> dict[str, float]:
    """Logs an evaluation as `align register` logs that of a pipeline: metrics, tables, pictures, the report's files.

    Args:
        tracker: MLflow.
        run_id: of the evaluation's run.
        reports: the folder with the folder `evaluation`.
        params: what was measured; the digests of the sets are added.
        shown: see `log_report`.

    Returns:
        The metrics.
    """
    folder = reports / "evaluation"
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_bytes())
    report = json.loads((folder / "report.json").read_bytes())
    digests = {f"set.{name}": of["digest"] for name, of in report["sets"].items()}
    tracker.log_params(run_id, {**params, **digests, "sets": report["evaluation_digest"]})
    log_report(tracker, run_id, folder, shown)
    tracker.log_tables(run_id, tables([folder]))
    return metrics


def _version_of(folder: Path, packaged: Path, tracker: Tracker, registered: str) -> Version | None:
    """The registered version of the model in `packaged`, if that is this folder's model."""
    copies = [path for path in packaged.glob(f"artifacts/*/{WEIGHTS}") if path.is_file()]
    if not (folder / WEIGHTS).is_file() or [sha256_file(copy) for copy in copies] != [sha256_file(folder / WEIGHTS)]:
        return None
    return tracker.registry.find_version(registered, MODEL_DIGEST, sha256_folder(packaged))


def _run_of(version: Version, tracker: Tracker) -> str | None:
    """The version's run, if MLflow still has it."""
    try:
        return tracker.run(version.run_id).run_id if version.run_id else None
    except RefusedError:
        return None
