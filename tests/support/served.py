"""A search service over one-coloured pictures, without a server or a model: what it should find is plain to see."""

import asyncio
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from align.config.infrastructure import StoreConfig
from align.config.serve import ServeConfig
from align.errors import AlignError, DataError
from align.formats.image_index import ImageIndex
from align.search.service.answers import PairShown, RuleShown
from align.search.service.app import POLICY, make_app
from align.search.service.champion import Champion
from align.search.service.limits import Limits
from align.search.service.served import Folders, Pictures, Release, Served
from align.search.service.service import SearchService
from align.search.service.take_downs import TakeDowns
from align.services.vector_index import VectorIndex
from align.web.guard import Guard
from align.web.server import serve_until
from tests.support import ROOT, wait_until
from tests.support.colours import ColourEncoder
from tests.support.mlflow_server import free_port
from tests.support.params import load_params


class ColourEmbedder(ColourEncoder):
    """Also takes pixels, and counts what it embeds."""

    config = SimpleNamespace(resize_px=48, image_px=48)

    def __init__(self):
        self.batches = []

    def embed_texts(self, texts):
        texts = list(texts)
        self.batches.append(len(texts))
        return super().embed_texts(texts)

    def embed_pixels(self, crops):
        rows = np.array([[*crop.mean(axis=(0, 1)) / 255, 0.01] for crop in crops], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def served(root, digest="1" * 64, version=1, **tags):
    """A pair over what `colour_index.build` wrote."""
    release = Release(digest, "align", version, "run-1", tags)
    return Served(release, ColourEmbedder(), ImageIndex.load(root / "index", VectorIndex.load))  # type: ignore[arg-type]


@dataclass
class Releases:
    """A source whose releases a test sets; what is no release is raised."""

    now: Release | AlignError

    def wanted(self):
        if isinstance(self.now, AlignError):
            raise self.now
        return self.now

    def folders(self, release):
        return Folders(Path("model"), Path("index"))


def pair_of(item, header):
    """What a checkout knows."""
    rule = RuleShown(
        rule="text_too_short", what="fewer than 3", drops_where="num_words < 3", verdict="passes", values="num_words 3"
    )
    return PairShown(text=item.texts[0], kept=True, rules=[rule], notes=[])


def limits(**values):
    """Section `serve`, with other values."""
    return ServeConfig.model_validate(load_params().values["serve"] | values)


def take_downs(policy=ROOT / "data/policy"):
    """What is taken down: nothing, as long as the policy says so."""
    return TakeDowns(policy)


@contextmanager
def service(root, first, policy=ROOT / "data/policy", **values):
    """A service that serves one pair, or none."""
    source = Releases(first.release if first else DataError("promote something"))
    poll_s = values.get("poll_s", 3600.0)
    champion = Champion(source, poll_s, take_downs(policy), lambda release, folders: first)  # type: ignore[arg-type,return-value]
    champion.look()
    store = StoreConfig.model_validate(load_params().values["store"])
    made = SearchService(
        limits(**values), text_weight=2.0, champion=champion, pictures=Pictures(root / "shards", store), pair_of=pair_of
    )
    made.decoders._timeout_s = 200.0  # a busy machine takes its time
    try:
        yield made
    finally:
        made.close()


@contextmanager
def listening(made):
    """A server on a free port of loopback; its address."""
    claim, port = free_port()
    with serving(guarded(made, port), port, max_connections=made.config.max_connections):
        yield f"http://127.0.0.1:{port}"
    claim.close()


def guarded(made, port):
    """A service as `align serve` puts it together, once."""
    if not hasattr(made, "guarded"):
        made.guarded = Guard(Limits(make_app(made), made.config, made.registry), port, policy=POLICY)
    return made.guarded


@contextmanager
def serving(app, port, **options):
    """A server of an application in a thread."""
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    options = {"max_connections": 100} | options
    thread = threading.Thread(
        target=loop.run_until_complete, args=(serve_until(ended, app, "127.0.0.1", port, **options),), daemon=True
    )
    thread.start()
    wait_until(lambda: accepts(port), 60, alive=thread.is_alive)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def accepts(port):
    """Whether something takes connections."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
