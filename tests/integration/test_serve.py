"""`align serve` over a real MLflow: it follows the champion, under load and when a version is broken."""

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.search import IndexConfig
from align.formats.model_folder import model_digest
from align.model.embedder import Embedder
from align.release.aliases.champion import make_champion
from align.release.registration.register import register
from align.release.registration.results import PipelineOutputs
from align.search.index import IndexedData, IndexModel, index
from align.search.service.champion import Champion
from align.search.service.fetched import RegisteredChampion
from align.search.service.served import Pictures
from align.search.service.service import SearchService
from align.services.tracking.registry import CHAMPION
from tests.support import colour_index, registered, wait_until
from tests.support.params import load_params
from tests.support.registered import ORIGIN, VALUES
from tests.support.served import limits, listening, pair_of, take_downs


class Served:
    """A project, and what follows its champion."""

    def __init__(self, root, mlflow):
        self.project = registered.write(root, mlflow)
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

    def index(self):
        """What `align index` does."""
        model = self.paths.finetuned
        index(
            IndexConfig.model_validate(load_params().values["index"] | {"queries": None}), text_weight=2.0,
            model=IndexModel(model, Embedder.load(model), model_digest(model)), data=self.data,
            engine=load_params().section(EngineConfig), out=self.paths.index, reports=self.root / "reports/index",
        )  # fmt: skip

    def register(self, recall):
        """Another version, with its index."""
        self.project.evaluate(recall)
        root = self.root
        outputs = PipelineOutputs(
            root / "packaged", root / "shards", root / "reports", (), self.paths.index, self.paths.finetuned
        )
        return register(
            self.project.config,
            outputs,
            VALUES,
            origin=ORIGIN,
            tracker=self.project.tracker,
            run_id=None,
            outlook=registered.outlook,
        )

    def crown(self, version):
        """Moves the alias, as a promotion does."""
        before = self.project.tracker.registry.aliases(version.name).get(CHAMPION)
        make_champion(self.project.tracker, version, replaces=before, why="better", figures={})

    @property
    def number(self):
        return self.champion.served.release.version if self.champion.served else None


@pytest.fixture
def world(tmp_path, mlflow_server):
    made = Served(tmp_path, mlflow_server)
    made.index()
    return made


@contextmanager
def serving(world):
    """A server on a free port; its address."""
    store = StoreConfig.model_validate(load_params().values["store"])
    service = SearchService(
        limits(), text_weight=2.0, champion=world.champion,
        pictures=Pictures(world.paths.shards, store), pair_of=pair_of,
    )  # fmt: skip
    try:
        with listening(service) as url:
            yield url
    finally:
        service.close()


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_follows_promotion_and_rollback_under_load_without_an_error(world):
    one, two = world.register(0.5).version, world.register(0.6).version
    world.crown(one)
    seen = set()
    with serving(world) as url, ThreadPoolExecutor(8) as users:
        assert get(f"{url}/health")[1]["ready"] is False
        assert get(f"{url}/search?text=fox")[0] == 503
        world.champion.start()
        wait_until(lambda: world.number == one.number)
        stop, answered = threading.Event(), list[int]()

        def ask(user):
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
            wait_until(lambda number=version.number: world.number == number)
            before = len(answered)
            wait_until(lambda before=before: len(answered) >= before + 20)  # those under way may be of the other one
        stop.set()
        statuses = [status for user in asked for status in user.result()]
        assert set(statuses) == {200} and len(statuses) > 50
        assert seen == {one.number, two.number} and world.champion.num_swaps == 3
        health = get(f"{url}/health")[1]
        assert health["warnings"] == [] and health["served"]["version"] == two.number
