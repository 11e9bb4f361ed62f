"""`align serve` over a real MLflow: it follows the champion, under load and when a version is broken."""

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.config.search import IndexConfig
from align.formats.model_folder import model_digest
from align.model.embedder import Embedder
from align.release.registration.register import Registration, register
from align.release.registration.results import PipelineOutputs
from align.search.index import IndexedData, index
from align.search.service.champion import Champion
from align.search.service.fetched import RegisteredChampion
from align.search.service.served import Pictures, load
from align.search.service.service import SearchService
from align.services.tracking.registry import CHAMPION, INDEX_DIGEST, Version
from tests.support import colour_index, registered
from tests.support.params import load_params
from tests.support.registered import ORIGIN, VALUES, Project
from tests.support.served import limits, listening, pair_of, take_downs


class Served:
    """A project, and what follows its champion."""

    def __init__(self, root: Path, mlflow: str) -> None:
        self.project: Project = registered.write(root, mlflow)
        self.root = root
        values = load_params().values["paths"]
        own = {"finetuned": root / "models/finetuned", "index": root / "index", "shards": root / "shards"}
        self.paths = PathsConfig.model_validate(values | {name: str(path) for name, path in own.items()})
        self.data = IndexedData(self.paths.shards, root / "raw", root / "rules")
        colour_index.write_report(self.data.filter_report)
        self.source = RegisteredChampion(
            self.project.config.model_name, self.project.tracker, self.paths, root / "served"
        )
        self.champion = Champion(self.source, 0.1, take_downs())

    def index(self) -> None:
        """What `align index` does."""
        model = self.paths.finetuned
        index(
            IndexConfig.model_validate(load_params().values["index"] | {"queries": None}), text_weight=2.0,
            encoder=Embedder.load(model), model_digest=model_digest(model), data=self.data,
            out=self.paths.index, reports=self.root / "reports/index",
        )  # fmt: skip

    def register(self, recall: float) -> Registration:
        """Another version, with its index."""
        self.project.evaluate(recall)
        root = self.root
        outputs = PipelineOutputs(
            root / "packaged", root / "shards", root / "reports", (), self.paths.index, self.paths.finetuned
        )
        return register(self.project.config, outputs, VALUES, origin=ORIGIN, tracker=self.project.tracker, run_id=None)

    def crown(self, version: Version) -> None:
        """Moves the alias, as a promotion does."""
        self.project.tracker.registry.set_version_tags(version, {"align.promoted_at": "today"})
        self.project.tracker.registry.set_alias(version, CHAMPION)

    @property
    def number(self) -> int | None:
        return self.champion.served.release.version if self.champion.served else None


@pytest.fixture
def world(tmp_path: Path, mlflow_server: str) -> Served:
    made = Served(tmp_path, mlflow_server)
    made.index()
    return made


@contextmanager
def serving(world: Served) -> Iterator[str]:
    """A server on a free port; its address."""
    store = StoreConfig.model_validate(load_params().values["store"])
    service = SearchService(
        limits(max_requests_per_s=None, cached_texts=0), text_weight=2.0, champion=world.champion,
        pictures=Pictures(world.paths.shards, store), pair_of=pair_of,
    )  # fmt: skip
    try:
        with listening(service) as url:
            yield url
    finally:
        service.close()


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait(condition: Any, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_index_is_registered_with_its_model_and_no_other(world: Served, capsys: pytest.CaptureFixture[str]) -> None:
    first = world.register(0.5)
    version = world.project.tracker.registry.versions(world.project.config.model_name)[0]
    digest = version.tags[INDEX_DIGEST]
    assert world.register(0.5).version.number == first.version.number  # again: the same version, nothing new
    shutil.rmtree(world.paths.index)
    (world.paths.index).mkdir()
    (world.paths.index / "index.json").write_text(json.dumps({"model_digest": "other"}))
    assert INDEX_DIGEST not in world.register(0.6).version.tags
    assert "is of another model, so version" in capsys.readouterr().err
    fetched = world.project.tracker.registry.download(version, f"index/{digest[:16]}", world.root)
    assert (fetched / "items.parquet").is_file()


@pytest.mark.costs(7, "queries without a pause, while three models are loaded")
def test_it_follows_promotion_and_rollback_under_load_without_an_error(world: Served) -> None:
    one, two = world.register(0.5).version, world.register(0.6).version
    world.crown(one)
    seen: set[int] = set()
    with serving(world) as url, ThreadPoolExecutor(8) as users:
        assert get(f"{url}/health")[1]["ready"] is False
        assert get(f"{url}/search?text=fox")[0] == 503
        world.champion.start()
        wait(lambda: world.number == one.number)
        stop, answered = threading.Event(), list[int]()

        def ask(user: int) -> list[int]:
            statuses = []
            while not stop.is_set():
                status, body = get(f"{url}/search?text=fox+{user}+{len(statuses)}&limit=3")
                statuses.append(status)
                answered.append(status)
                seen.add(body["served"]["version"])
                assert len(body["hits"]) == 3
            return statuses

        asked = [users.submit(ask, user) for user in range(8)]
        for version in (two, one, two):
            world.crown(version)
            wait(lambda number=version.number: world.number == number)
            before = len(answered)
            wait(lambda before=before: len(answered) >= before + 20)  # those under way may still be of the other one
        stop.set()
        statuses = [status for user in asked for status in user.result()]
        assert set(statuses) == {200} and len(statuses) > 50
        assert seen == {one.number, two.number} and world.champion.num_swaps == 3
        health = get(f"{url}/health")[1]
        assert health["warnings"] == [] and health["served"]["version"] == two.number


def test_what_the_registry_has_is_checked_and_a_broken_version_is_not_served(world: Served) -> None:
    one, two = world.register(0.5).version, world.register(0.6).version
    world.crown(one)
    world.champion.look()
    world.project.tracker.registry.set_version_tags(two, {INDEX_DIGEST: "0" * 64})
    world.crown(two)
    world.champion.look()
    assert world.number == one.number
    assert f"version {two.number} cannot be served" in (world.champion.problem or "")
    assert "is still served" in (world.champion.problem or "")
    assert not [path for path in (world.root / "served").iterdir() if ".part" in path.name]


@pytest.mark.costs(5, "four models are registered, fetched and loaded")
def test_a_damaged_copy_is_fetched_again_and_old_copies_go(world: Served) -> None:
    versions = [world.register(recall).version for recall in (0.5, 0.6, 0.7)]
    for version in versions:
        world.crown(version)
        world.champion.look()
        assert world.number == version.number
    copies = [path for path in (world.root / "served").iterdir() if path.is_dir()]
    assert len(copies) == 2
    release = world.source.wanted()
    assert release is not None
    folders = world.source.folders(release)
    weights = folders.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    again = world.source.folders(release)
    assert load(release, again).embedder.width == 24


def test_a_version_without_an_index_is_served_with_this_checkouts_if_it_is_of_that_model(world: Served) -> None:
    kept = world.root / "kept"
    world.paths.index.rename(kept)
    version = world.register(0.5).version
    world.crown(version)
    world.champion.look()
    assert world.number is None and "has no index" in (world.champion.problem or "")
    kept.rename(world.paths.index)
    world.champion.look()
    assert world.number == version.number
    assert "has no index of its own" in world.champion.warnings()[0]
    header = json.loads((world.paths.index / "index.json").read_text())
    (world.paths.index / "index.json").write_text(json.dumps(header | {"model_digest": "other"}))
    world.champion.look()
    assert world.number == version.number and "made with another model" in (world.champion.problem or "")


def test_an_alias_moved_by_hand_is_served_and_said(world: Served) -> None:
    version = world.register(0.5).version
    world.project.tracker.registry.set_alias(version, CHAMPION)
    world.champion.look()
    assert world.number == version.number
    assert "made the champion by hand" in world.champion.warnings()[0]
    client = mlflow.MlflowClient(world.project.tracker.uri)
    client.delete_registered_model_alias(world.project.config.model_name, CHAMPION)
    world.champion.look()
    assert world.number == version.number and "no version is the champion any more" in world.champion.warnings()[0]
