"""The registry in memory, with which quick tests promote, answers as MLflow's does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.errors import RefusedError
from align.services.tracking.registry import Version
from align.services.tracking.tracker import Tracker
from tests.support.memory_mlflow import MemoryTracker

MODEL = "align"


def story(tracker: Tracker) -> list[object]:
    """What the registry says while versions come and go, aliases move, and what is gone is asked for."""
    registry, client, said = tracker.registry, tracker._client, list[object]()

    def look() -> None:
        tags = dict(client.get_registered_model(MODEL).tags)
        said.append([registry.aliases(MODEL), tags, registry.champion_state(MODEL)])
        said.append([(each.number, each.run_id == run, each.tags) for each in registry.versions(MODEL)])
        at = (registry.version_at(MODEL, alias) for alias in ("champion", "candidate", "other", "none"))
        said.append([version and version.number for version in at])

    def refused(call: Callable[..., Any], *values: object) -> None:
        with pytest.raises(RefusedError):
            call(*values)

    def create(**tags: str) -> Version:
        return registry.create_version(MODEL, run, "model", tags)

    run = tracker.start_run("align", "x")
    said.append([registry.versions(MODEL), registry.aliases(MODEL), registry.version_at(MODEL, "champion")])
    said.append(registry.champion_state(MODEL))
    first, second, third = create(), create(one="1"), create(one="1", two="2")
    for version, alias in ((first, "champion"), (second, "champion"), (third, "other"), (first, "candidate")):
        registry.set_alias(version, alias)
    for value in ("before", "after"):
        registry.set_model_tag(MODEL, "key", value)
        registry.set_version_tags(first, {"value": value})
    look()
    for _ in range(2):
        registry.delete_model_tag(MODEL, "key")
        registry.delete_version_tags(third, ["one", "none"])
    client.delete_model_version(MODEL, "3")
    look()
    refused(registry.set_alias, third, "champion")
    refused(registry.set_version_tags, third, {"one": "1"})
    refused(registry.delete_version_tags, third, ["two"])
    with pytest.raises(RefusedError), registry._asking():
        client.delete_model_version(MODEL, "3")
    create()
    look()
    return said


def test_it_answers_as_mlflow_does(tmp_path: Path, empty_mlflow: Callable[[Path], str]) -> None:
    memory, mlflow = MemoryTracker(tmp_path / "memory"), Tracker(empty_mlflow(tmp_path))
    assert story(memory) == story(mlflow)
