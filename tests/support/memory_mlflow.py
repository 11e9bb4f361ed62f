"""MLflow in memory, as far as promotion uses it: `Registry`'s client, and a tracker whose runs are folders.

tests/integration/test_champion.py asks this and MLflow the same questions.
"""

import itertools
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from align.errors import RefusedError
from align.services.tracking.registry import Registry
from align.services.tracking.tracker import Tracker


@dataclass
class _Model:
    name: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    versions: list[SimpleNamespace | None] = field(default_factory=list)  # None: deleted


class _Page(list[Any]):
    token = None


def _name_in(condition):
    """The one condition that is understood here."""
    found = re.fullmatch(r"name = '([^']*)'", condition)
    assert found is not None, condition
    return found[1]


class MemoryClient:
    """The methods of MLflow's client that `Registry` calls; numbers are texts, as there. Each run has a folder of
    artifacts in `root`.
    """

    def __init__(self, root):
        self._root = root
        self._models = {}

    def create_registered_model(self, name):
        self._models[name] = _Model(name)

    def create_model_version(self, name, source, run_id=None, tags=None, description=None):
        versions = self._models[name].versions
        number = str(len(versions) + 1)
        versions.append(
            SimpleNamespace(
                name=name, version=number, source=source, run_id=run_id, tags={**(tags or {})}, description=description
            )
        )
        return self.get_model_version(name, number)

    def delete_model_version(self, name, version):
        self._version(name, version)
        model = self._models[name]
        model.versions[int(version) - 1] = None
        model.aliases = {alias: number for alias, number in model.aliases.items() if number != version}

    def get_registered_model(self, name):
        model = self._models[name]
        return SimpleNamespace(name=name, tags=dict(model.tags), aliases=dict(model.aliases))

    def search_registered_models(self, condition):
        name = _name_in(condition)
        return [self.get_registered_model(name)] if name in self._models else []

    def get_model_version(self, name, version):
        found = self._version(name, version)
        return SimpleNamespace(**{**vars(found), "tags": dict(found.tags)})

    def search_model_versions(self, condition, max_results, page_token):
        name = _name_in(condition)
        versions = self._models[name].versions if name in self._models else []
        return _Page(self.get_model_version(name, each.version) for each in versions if each)

    def get_run(self, run_id):
        return SimpleNamespace(info=SimpleNamespace(artifact_uri=f"memory:/{run_id}"))

    def download_artifacts(self, run_id, path, folder):
        source = self._root / run_id / path
        if not source.is_dir():
            raise RefusedError(f"No such artifact: '{path}'")
        return str(shutil.copytree(source, Path(folder) / path))

    def set_registered_model_tag(self, name, key, value):
        self._models[name].tags[key] = value

    def set_registered_model_alias(self, name, alias, version):
        self._version(name, version)
        self._models[name].aliases[alias] = version

    def set_model_version_tag(self, name, version, key, value):
        self._version(name, version).tags[key] = value

    def delete_model_version_tag(self, name, version, key):
        self._version(name, version).tags.pop(key, None)

    def _version(self, name, version):
        versions = self._models[name].versions
        if not 0 < int(version) <= len(versions) or (found := versions[int(version) - 1]) is None:
            raise RefusedError(f"Model Version (name={name}, version={version}) not found")
        return found


class MemoryTracker(Tracker):
    """A tracker over `MemoryClient`; a run's artifacts are a folder of `root` with the run's id."""

    def __init__(self, root):
        self.uri, self.root, self._client = "memory", root, MemoryClient(root)
        self.registry = Registry(self._client)
        self._numbers = itertools.count()
        self._tags = {}
        self._metrics = {}

    def start_run(self, experiment, name, attempt=None, tags=None):
        run_id = f"{next(self._numbers):032x}"
        self._tags[run_id], self._metrics[run_id] = {**(tags or {})}, {}
        return run_id

    def end_run(self, run_id, *, status="FINISHED"):
        assert run_id in self._tags

    def run(self, run_id):
        return SimpleNamespace(tags=dict(self._tags[run_id]), metrics=dict(self._metrics[run_id]))

    def log_metrics(self, run_id, metrics):
        self._metrics[run_id] |= metrics

    def log_folder(self, run_id, folder, name):
        shutil.copytree(folder, self.root / run_id / name, dirs_exist_ok=True)

    def log_text(self, run_id, text, path):
        (self.root / run_id / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / run_id / path).write_text(text)

    def artifact(self, run_id, path, folder):
        file = self.root / run_id / path
        return Path(shutil.copy(file, folder)) if file.is_file() else None

    def model_files(self, version, folder):
        return self.registry.download(version, "model", folder)
