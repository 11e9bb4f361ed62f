"""Where served releases come from: the registry's champion, kept in `.align/served`; this checkout; a ready search.

A version names its model and its index by digest (tags that `align register` sets). Both are fetched into one folder
that is named after the digests, appears whole or not at all, and is checked whenever it is loaded. The model is read
from its safetensors and JSON: the Python that MLflow keeps with it is not run.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from align.config.paths import PathsConfig
from align.display.console import say
from align.durable.files import clear_leftovers, replace_directory, sha256_file, sha256_folder
from align.durable.locks import locked
from align.errors import CorruptError, DataError
from align.formats.ready import INDEX, MANIFEST, MODEL, require_whole
from align.search.service.served import Folders, Release
from align.services.signing import require_signed
from align.services.tracking.registry import (
    CHAMPION,
    INDEX_ARTIFACT,
    INDEX_DIGEST,
    MODEL_ARTIFACT,
    MODEL_DIGEST,
    Version,
)
from align.services.tracking.tracker import Tracker

SERVED = Path(".align/served")
_LOCK = Path(".align/locks/served")
#: The release that is served and the one before it, which a rollback brings back at once.
_KEPT = 2
_HEX = 16


class RegisteredChampion:
    """The version that the alias `champion` names. See `champion.Source`."""

    def __init__(self, model: str, tracker: Tracker, own: PathsConfig, root: Path = SERVED) -> None:
        """Follows a model's alias.

        Args:
            model: name of the registered model.
            tracker: MLflow.
            own: this checkout's folders: its index stands in for one that was not registered.
            root: where releases are kept.
        """
        self._model, self._tracker, self._own, self._root = model, tracker, own, root

    def wanted(self) -> Release:
        """The champion; with an index that was not registered, this checkout's index is part of the digest."""
        version = self._tracker.registry.version_at(self._model, CHAMPION)
        if version is None:
            raise DataError(
                f"no version of model '{self._model}' is the champion: run `align promote` once a run is registered, "
                "or serve this checkout's own model with `align serve --local`"
            )
        named = f"{version.name} version {version.number}"
        model, index = version.tags.get(MODEL_DIGEST), version.tags.get(INDEX_DIGEST)
        if model is None:
            raise DataError(f"{named} has no tag {MODEL_DIGEST}: it is not of `align register`")
        warnings = []
        if self._tracker.registry.champion_state(self._model).made_by_hand:
            warnings.append(f"{named} was made the champion by hand, without passing the gates")
        if index is None:
            warnings.append(f"{named} has no index of its own; {self._own.index} of this checkout is used")
        digest = hashlib.sha256(f"{model} {index or f'own {_stamp(self._own.index)}'}".encode()).hexdigest()
        return Release(digest, version.name, version.number, version.run_id, version.tags, warnings)

    def folders(self, release: Release) -> Folders:
        """Model and index, fetched and checked.

        Raises:
            DataError: the version has no index, and that of this checkout is missing.
            CorruptError: what the registry has is not what the version's tags name, or not signed as it has to be.
            ServiceError: MLflow is unavailable or refuses.
        """
        has_index = INDEX_DIGEST in release.tags
        if not has_index and not (self._own.index / "index.json").is_file():
            raise DataError(
                f"it has no index, and {self._own.index} has none: run `align index` and `align register` where it ran"
            )
        folder = self._root / release.digest[:_HEX]
        with locked(_LOCK if self._root == SERVED else self._root / "lock", "align serve", say):
            whole = ((folder / name, digest) for name, _, digest in _parts(release))
            if not all(part.is_dir() and sha256_folder(part) == digest for part, digest in whole):
                self._fetch(folder, release)
            self._tidy(folder)
        require_signed(self._tracker.registry, _version_of(release), folder / "model")
        [model] = [path for path in (folder / "model/artifacts").iterdir() if path.is_dir()]
        return Folders(model, folder / "index" if has_index else self._own.index, vouched=has_index)

    def _fetch(self, folder: Path, release: Release) -> None:
        say(f"serve: fetching {release.describe()}")
        version = _version_of(release)
        with replace_directory(folder, "serve") as part:
            scratch = part / "fetching"
            scratch.mkdir()
            for name, artifact, digest in _parts(release):
                fetched = self._tracker.registry.download(version, artifact, scratch)
                if sha256_folder(fetched) != digest:
                    raise CorruptError(
                        f"the {name} in MLflow ({artifact} of run {version.run_id}) is not the one that was registered"
                    )
                fetched.rename(part / name)
            shutil.rmtree(scratch)

    def _tidy(self, keep: Path) -> None:
        """Removes releases that were served long ago."""
        keep.touch()
        clear_leftovers(keep)
        folders = [path for path in self._root.iterdir() if path.is_dir() and len(path.name) == _HEX]
        for old in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)


def _version_of(release: Release) -> Version:
    return Version(release.name, release.version or 0, release.run_id or "", release.tags)


def _parts(release: Release) -> list[tuple[str, str, str]]:
    """What is fetched: (name of its folder, its artifact in MLflow, its digest)."""
    parts = [("model", MODEL_ARTIFACT, release.tags[MODEL_DIGEST])]
    if digest := release.tags.get(INDEX_DIGEST):
        parts.append(("index", f"{INDEX_ARTIFACT}/{digest[:_HEX]}", digest))
    return parts


class OwnModel:
    """The model and the index of this checkout, as the stages left them. See `champion.Source`."""

    def __init__(self, paths: PathsConfig) -> None:
        self._paths = paths

    def wanted(self) -> Release:
        """What lies there now; another file is another release."""
        if not (self._paths.index / "index.json").is_file():
            made = "align index" if self._paths.finetuned.is_dir() else "dvc repro"  # which makes the model first
            raise DataError(f"there is no index in {self._paths.index}: run `{made}`")
        stamps = f"{_stamp(self._paths.index)} {_stamp(self._paths.finetuned)}"
        return Release(hashlib.sha256(stamps.encode()).hexdigest(), self._paths.finetuned.resolve().name)

    def folders(self, release: Release) -> Folders:
        """The folders themselves."""
        return Folders(self._paths.finetuned, self._paths.index)


class ReadySearch:
    """A folder of `align ready`. See `champion.Source`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wanted(self) -> Release:
        """What lies there now, named by its manifest."""
        path = self._folder / MANIFEST
        if not path.is_file():
            raise DataError(f"there is no ready search in {self._folder}: run `align ready`")
        return Release(sha256_file(path), self._folder.resolve().name)

    def folders(self, release: Release) -> Folders:
        """The folders themselves, every byte compared with the manifest."""
        require_whole(self._folder)
        return Folders(self._folder / MODEL, self._folder / INDEX)


def _stamp(folder: Path) -> str:
    """Names the contents of a folder without reading all of it: its JSON, and when each file changed."""
    if not folder.is_dir():
        return "absent"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    small = [sha256_file(path) for path in files if path.suffix == ".json"]
    return " ".join([*small, *(f"{path.name} {path.stat().st_mtime_ns} {path.stat().st_size}" for path in files)])
