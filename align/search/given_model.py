"""The model of `--model`: a folder, or a version of the registry, which is kept in `.align/models`."""

from __future__ import annotations

import shutil
from pathlib import Path

from align.config import Params
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.durable.files import replace_directory
from align.formats.model_folder import model_digest, unpacked
from align.services.tracking.model_files import model_files

_FETCHED = Path(".align/models")


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
    if named.isidentifier() and not Path(named).is_dir():
        named = f"models:/{params.section(RegisterConfig).model_name}@{named}"
    with model_files(named) as files:
        folder = unpacked(files)
        if not named.startswith("models:"):
            return folder
        kept = _FETCHED / model_digest(folder)[:16]
        if not kept.is_dir():
            with replace_directory(kept, "given_model") as part:
                shutil.copytree(folder, part, dirs_exist_ok=True)
        return kept
