"""MLflow in memory, as far as promotion uses it: `Registry`'s client, and a tracker whose runs are folders.

tests/integration/test_champion.py asks this and MLflow the same questions.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from align.errors import RefusedError
from align.services.tracking.registry import Registry, Version
from align.services.tracking.tracker import Tracker


@dataclass
class _Model:
    name: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    versions: list[SimpleNamespace | None] = field(default_factory=list)  # None: deleted


class _Page(list[Any]):
    token = None


def _name_in(condition: str) -> str:
    """The one condition that is understood here."""
    found = re.fullmatch(r"name = '([^']*)'", condition)
    assert found is not None, condition
    return found[1]


class MemoryClient:
    """The methods of MLflow's client that `Registry` calls; numbers are texts, as there. Each run has a folder of
    artifacts in `root`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._models: dict[str, _Model] = {}

    def create_registered_model(self, name: str) -> None:
        self._models[name] = _Model(name)

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
    ) -> Any:
        versions = self._models[name].versions
        number = str(len(versions) + 1)
        versions.append(
            SimpleNamespace(
                name=name, version=number, source=source, run_id=run_id, tags={**(tags or {})}, description=description
            )
        )
        return self.get_model_version(name, number)

    def delete_model_version(self, name: str, version: str) -> None:
        self._version(name, version)
        model = self._models[name]
        model.versions[int(version) - 1] = None
        model.aliases = {alias: number for alias, number in model.aliases.items() if number != version}

    def get_registered_model(self, name: str) -> Any:
        model = self._models[name]
        return SimpleNamespace(name=name, tags=dict(model.tags), aliases=dict(model.aliases))

    def search_registered_models(self, condition: str) -> list[Any]:
        name = _name_in(condition)
        return [self.get_registered_model(name)] if name in self._models else []

    def get_model_version(self, name: str, version: str) -> Any:
        found = self._version(name, version)
        return SimpleNamespace(**{**vars(found), "tags": dict(found.tags)})

    def search_model_versions(self, condition: str, max_results: int, page_token: str | None) -> _Page:
        name = _name_in(condition)
        versions = self._models[name].versions if name in self._models else []
        return _Page(self.get_model_version(name, each.version) for each in versions if each)

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(artifact_uri=f"memory:/{run_id}"))

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        source = self._root / run_id / path
        if not source.is_dir():
            raise RefusedError(f"No such artifact: '{path}'")
        return str(shutil.copytree(source, Path(folder) / path))

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        self._models[name].tags[key] = value

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self._version(name, version)
        self._models[name].aliases[alias] = version

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._version(name, version).tags[key] = value

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        self._version(name, version).tags.pop(key, None)

    def _version(self, name: str, version: str) -> SimpleNamespace:
        versions = self._models[name].versions
        if not 0 < int(version) <= len(versions) or (found := versions[int(version) - 1]) is None:
            raise RefusedError(f"Model Version (name={name}, version={version}) not found")
        return found


class MemoryTracker(Tracker):
    """A tracker over `MemoryClient`; a run's artifacts are a folder of `root` with the run's id."""

    def __init__(self, root: Path) -> None:
        self.uri, self.root, self._client = "memory", root, MemoryClient(root)
        self.registry = Registry(self._client, nullcontext)
        self._numbers = itertools.count()
        self._tags: dict[str, dict[str, str]] = {}
        self._metrics: dict[str, dict[str, float]] = {}

    def start_run(
        self, experiment: str, name: str, attempt: str | None = None, tags: Mapping[str, str] | None = None
    ) -> str:
        run_id = f"{next(self._numbers):032x}"
        self._tags[run_id], self._metrics[run_id] = {**(tags or {})}, {}
        return run_id

    def end_run(self, run_id: str, *, status: str = "FINISHED") -> None:
        assert run_id in self._tags

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self._tags[run_id])

    def metrics(self, run_id: str) -> dict[str, float]:
        return dict(self._metrics[run_id])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        self._metrics[run_id] |= metrics

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        shutil.copytree(folder, self.root / run_id / name, dirs_exist_ok=True)

    def log_text(self, run_id: str, text: str, path: str) -> None:
        (self.root / run_id / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / run_id / path).write_text(text)

    def artifact(self, run_id: str, path: str, folder: Path) -> Path | None:
        file = self.root / run_id / path
        return Path(shutil.copy(file, folder)) if file.is_file() else None

    def model_files(self, version: Version, folder: Path) -> Path:
        return self.registry.download(version, "model", folder)
