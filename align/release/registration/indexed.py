"""The index that belongs to a packaged model, and its place in MLflow: what `align serve` fetches with the champion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from align.display.console import say
from align.durable.files import sha256_file, sha256_folder
from align.errors import CorruptError, FormatError
from align.formats.model_folder import WEIGHTS, model_digest
from align.services.tracking.registry import INDEX_ARTIFACT, INDEX_DIGEST, Version
from align.services.tracking.tracker import Tracker

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


def is_logged(version: Version, index: Path) -> bool:
    """Whether the version has this index, or there is none."""
    return not (index / _HEADER).is_file() or version.tags.get(INDEX_DIGEST) == sha256_folder(index)


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
