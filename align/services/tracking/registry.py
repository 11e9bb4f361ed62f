"""MLflow's registry: the versions of a model, their tags and aliases. A `Tracker` has one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import ServiceError
from align.formats.champion_moves import ChampionState, history_of

CANDIDATE, CHAMPION = "candidate", "champion"
#: Tags of a version: when and why it became the champion; when and why it was rolled back. The history of the model
#: has more (`align.formats.champion_moves`).
PROMOTED, PROMOTED_BECAUSE = "align.promoted_at", "align.promoted_because"
ROLLED_BACK, ROLLED_BACK_BECAUSE = "align.rolled_back_at", "align.rolled_back_because"
#: The artifacts of a version's run, and the tags that name their bytes. An index lies in `index/` under its digest's
#: first 16 digits, since one model may get another index; the tag says which is the version's.
MODEL_ARTIFACT, INDEX_ARTIFACT = "model", "index"
MODEL_DIGEST, INDEX_DIGEST = "align.model_digest", "align.index_digest"
#: A tag of runs and versions: the digest of their data.
DATA_DIGEST = "align.data_digest"


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    run_id: str
    tags: Mapping[str, str]

    @property
    def git_tag(self) -> str:
        """The tag in git that keeps what it was made from."""
        name = re.sub(r"[^\w-]+", "-", self.name)
        return f"align/{name}/v{self.number}"


class Registry:
    """The registered models of an MLflow. Methods raise as those of `Tracker` do."""

    def __init__(self, client: Any) -> None:
        """Uses a tracker's client, which raises our errors."""
        self._client = client

    def find_version(self, model: str, key: str, value: str) -> Version | None:
        """The newest version with this tag, or None."""
        answer = self._client.search_model_versions(f"name = '{model}' and tags.`{key}` = '{value}'")
        versions = [_version(item) for item in answer]
        return max(versions, key=lambda version: version.number, default=None)

    def create_version(
        self, model: str, run_id: str, artifact: str, tags: Mapping[str, str], description: str | None = None
    ) -> Version:
        """Registers a run's artifact as a new version. The model is created with its first version.

        `description`, in Markdown, is what the page of the version says about it; at most 5,000 characters.
        """
        if not self._client.search_registered_models(f"name = '{model}'"):
            self._client.create_registered_model(model)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{artifact}"
        return _version(self._client.create_model_version(model, source, run_id, dict(tags), description=description))

    def describe(self, version: Version, description: str) -> None:
        """Replaces the description of a version."""
        self._client.update_model_version(version.name, str(version.number), description)

    def version_at(self, model: str, alias: str) -> Version | None:
        """The version that an alias names, or None."""
        number = self.aliases(model).get(alias)
        return None if number is None else _version(self._client.get_model_version(model, str(number)))

    def versions(self, model: str) -> list[Version]:
        """All versions, oldest first; none if there is no such model."""
        items: list[Any] = []
        page: str | None = None
        while page is None or page:
            answer = self._client.search_model_versions(f"name = '{model}'", max_results=200, page_token=page)
            items += answer
            page = answer.token or ""
        return sorted((_version(item) for item in items), key=lambda version: version.number)

    def aliases(self, model: str) -> dict[str, int]:
        """Alias -> number of its version."""
        models = self._client.search_registered_models(f"name = '{model}'")
        return {alias: _number(number) for item in models for alias, number in item.aliases.items()}

    def champion_state(self, model: str) -> ChampionState:
        """The champion and its history; changes nothing. Empty if there is no such model. Raises FormatError if a tag
        of the history was changed.
        """
        aliases: dict[str, int] = {}
        tags: dict[str, str] = {}
        for item in self._client.search_registered_models(f"name = '{model}'"):
            tags |= item.tags
            aliases |= {alias: _number(number) for alias, number in item.aliases.items()}
        return ChampionState(model, aliases.get(CHAMPION), history_of(model, tags))

    def set_model_tag(self, model: str, key: str, value: str) -> None:
        """Sets a tag of the model itself."""
        self._client.set_registered_model_tag(model, key, value)

    def set_alias(self, version: Version, alias: str) -> None:
        """Moves an alias to a version."""
        self._client.set_registered_model_alias(version.name, alias, str(version.number))

    def download(self, version: Version, artifact: str, folder: Path) -> Path:
        """Fetches an artifact of the version's run into a folder; returns its path there."""
        return Path(self._client.download_artifacts(version.run_id, artifact, str(folder)))

    def set_version_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Sets tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(version.name, str(version.number), key, value)


def aliases_of(aliases: Mapping[str, int], version: Version) -> tuple[str, ...]:
    """The aliases that name this version, in order; `aliases` as `Registry.aliases` has them."""
    return tuple(sorted(alias for alias, number in aliases.items() if number == version.number))


def _version(item: Any) -> Version:
    return Version(name=item.name, number=_number(item.version), run_id=item.run_id, tags=dict(item.tags))


def _number(text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise ServiceError(
            f"MLflow: {str(text)[:40]!r} is no number of a version; is it MLflow that answers?"
        ) from None
