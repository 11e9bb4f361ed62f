"""The model of `--model`: a folder, or a version of the registry, which is kept in `.align/models`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from align.config import Params
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.durable.files import replace_directory
from align.errors import DataError
from align.formats.model_folder import model_digest, unpacked
from align.services.tracking.registry import Version

if TYPE_CHECKING:
    from align.services.tracking.tracker import Tracker

_FETCHED = Path(".align/models")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_VERSION = re.compile(r"models:/(?P<model>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[1-9][0-9]*))")


def given_model(named: str | None, params: Params) -> Path:
    """The folder of a model.

    Args:
        named: a folder, `models:/align@champion`, or an alias of `register.model_name`; None: `paths.finetuned`.
        params: of the command.

    Raises:
        DataError: there is no such folder or version.
        ServiceError, RefusedError: MLflow cannot be reached, or refuses.
    """
    if named is None:
        return params.section(PathsConfig).finetuned
    source = _address(named, params)
    with model_files(source) as files:
        folder = unpacked(files)
        if not source.startswith("models:"):
            return folder
        kept = _FETCHED / model_digest(folder)[:16]
        if not kept.is_dir():
            with replace_directory(kept, "given_model") as part:
                shutil.copytree(folder, part, dirs_exist_ok=True)
        return kept


def given_version(named: str, params: Params) -> Version | None:
    """The version that `--model` names; None if it names a folder. Raises as `given_model`."""
    source = _address(named, params)
    return _registered(source)[1] if source.startswith("models:") else None


def _address(named: str, params: Params) -> str:
    if named.isidentifier() and not os.path.isdir(named):  # noqa: PTH112 - False if the name is too long
        return f"models:/{params.section(RegisterConfig).model_name}@{named}"
    return named


@contextmanager
def model_files(source: str) -> Iterator[Path]:
    """The folder of a model; that of a version is removed at the end.

    Args:
        source: a folder, or `models:/align@champion`, `models:/align/3` of MLFLOW_TRACKING_URI.

    Raises:
        DataError: there is no such folder or version.
        ServiceError, RefusedError: MLflow cannot be reached, or refuses.
    """
    if not source.startswith("models:"):
        folder = Path(source)
        if not os.path.isdir(source):  # noqa: PTH112 - as above
            hub = (
                f"; if the Hugging Face hub has it: `hf download {source} --local-dir {folder.name}` where there is a "
                f"network, then --model {folder.name}"
            )
            raise DataError(
                f"{source}: no such folder; give a model folder, or a version such as models:/align@champion"
                + (hub if _HUB_NAME.fullmatch(source) else "")
            )
        yield folder
        return
    tracker, version = _registered(source)
    with TemporaryDirectory(prefix="align-") as scratch:
        yield tracker.model_files(version, Path(scratch))


def _registered(source: str) -> tuple[Tracker, Version]:
    found = _VERSION.fullmatch(source)
    if found is None:
        raise DataError(f"{source}: not a version of the registry; write models:/align@champion or models:/align/3")
    from align.services.tracking.address import require_store

    try:
        require_store()
    except DataError as error:
        named = found["alias"] or source
        raise DataError(f"{named}: no folder of this name, and {error}") from None
    from align.services.tracking.tracker import Tracker  # imports MLflow, which a folder does not need

    tracker = Tracker()
    if found["alias"]:
        version = tracker.registry.version_at(found["model"], found["alias"])
    else:
        versions = tracker.registry.versions(found["model"])
        version = next((each for each in versions if each.number == int(found["number"])), None)
    if version is None:
        raise DataError(f"{source}: no such version in MLflow at {tracker.uri}; `align champion` lists them")
    return tracker, version
