"""Tasks that ask the web divide by host: the bounds of a host hold for all of them together."""

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest

from align.cli import main
from align.durable.pieces import Pieces
from align.durable.processes import in_threads
from align.durable.sections import open_sections, sizes_of, write_sections
from align.errors import DataError
from align.ingest import groups
from align.ingest.groups import Stretch, divided
from align.services.executors.executors import LocalExecutor
from tests.support.killing import digests
from tests.support.reading import URL_TABLE, ingest_words, raw_rows, url_table
from tests.support.warc_records import picture
from tests.support.web_server import WebServer, redirect
from tests.support.web_server import response as answer

HOSTS = [f"127.0.0.{number}" for number in range(1, 8)]
LARGE, SMALL, *MOVES = HOSTS[:5]
PER_HOST = 4


@dataclass
class Threads:
    """See `Executor`: all tasks at once, in this process."""

    num_at_once = 8
    is_cluster = False

    def map(self, step, items):
        with step.resource() as kept:
            yield from in_threads(lambda item: step.function(kept, item), items, self.num_at_once)


class Watch:
    """What a server sees of its hosts; those of MOVES redirect to SMALL.

    Attributes:
        most: requests to a host at a time, at most.
        times: when its requests came.
        paths: how often each was asked for.
    """

    def __init__(self, server):
        self.active = Counter()
        self.most = Counter()
        self.times = defaultdict(list)
        self.paths = Counter()
        server.fallback = self

    async def __call__(self, request):
        host = request.headers["host"].partition(":")[0]
        self.active[host] += 1
        self.most[host] = max(self.most[host], self.active[host])
        self.times[host].append(time.monotonic())
        self.paths[host, request.path] += 1
        await asyncio.sleep(0.02)
        self.active[host] -= 1
        if request.path == "/robots.txt":
            request.write(answer(b"", 404))
        elif host in MOVES:
            request.write(redirect(request.server.url(f"/{host}{request.path}", SMALL)))
        else:
            request.write(answer(picture(300 + len(request.path), 250)))


@pytest.fixture
def server():
    with WebServer(HOSTS) as running:
        yield running


def command(server, folder, num_of):
    """The words of `align ingest` for a table of so many pictures of each host, mixed."""
    urls = [server.url(f"/{n}.png", host) for n in range(max(num_of.values())) for host in num_of if n < num_of[host]]
    table = url_table(folder.parent, [(url, f"a text {number}") for number, url in enumerate(urls)])
    own = ("ingest.shard_size=40", f"download.max_connections_per_host={PER_HOST}")
    return ingest_words(folder, table, *URL_TABLE, *own)


def use(executor, monkeypatch):
    """Has its tasks done by this executor, and makes groups small."""
    monkeypatch.setattr("align.ingest.ingest.open_executor", lambda *_: nullcontext(executor))
    monkeypatch.setattr(groups, "_GROUP_BYTES", 900)


@pytest.mark.parametrize("rate", [None, 50.0])
@pytest.mark.parametrize("executor", [Threads(), pytest.param(LocalExecutor(8), marks=pytest.mark.cluster)])
def test_eight_workers_keep_the_bounds_of_one_host(tmp_path, monkeypatch, server, executor, rate):
    """A large host, some that redirect to another, and small ones."""
    num_of = {LARGE: 60, SMALL: 5, **dict.fromkeys(MOVES, 12), **dict.fromkeys(HOSTS[5:], 5)}
    bound = ("--set", f"download.max_requests_per_host_per_s={rate or 'null'}")
    Watch(server)
    assert main([*command(server, tmp_path / "one", num_of), *bound]) == 0
    watch = Watch(server)
    use(executor, monkeypatch)
    assert main([*command(server, tmp_path / "eight", num_of), *bound]) == 0
    assert sorted(watch.times) == HOSTS
    assert max(watch.most.values()) == PER_HOST or rate is not None
    assert max(watch.most.values()) <= PER_HOST
    for host, times in watch.times.items():
        assert rate is None or len(times) <= rate * (max(times) - min(times)) + PER_HOST + 1, host
        most = {LARGE: PER_HOST, SMALL: 1 + PER_HOST}.get(host, 1)  # once in each round, and in each part
        assert 1 <= watch.paths[host, "/robots.txt"] <= most, host
    assert all(count == 1 for (_, path), count in watch.paths.items() if path != "/robots.txt")
    assert digests(tmp_path / "eight/raw") == digests(tmp_path / "one/raw")
    assert not [path for path in (tmp_path / "eight/raw").rglob("*") if path.is_dir()]


def test_what_was_fetched_is_not_asked_for_again_after_a_kill(tmp_path, monkeypatch, server):
    """Killed in the second group, then while a shard is written, and when all shards are complete."""
    words = command(server, tmp_path / "made", dict.fromkeys(HOSTS, 10))
    use(LocalExecutor(1), monkeypatch)
    watch = Watch(server)
    get, calls = groups._get, itertools.count()
    with monkeypatch.context() as killed:
        killed.setattr(groups, "_get", lambda *args: interrupt() if next(calls) == 2 else get(*args))
        assert main(words) == 130
    before = watch.paths.total()
    assert before > 0
    with monkeypatch.context() as killed:
        killed.setattr("align.ingest.fetching._raw_row", lambda *args: interrupt())
        assert main(words) == 130
    with monkeypatch.context() as killed:
        killed.setattr(groups.Web, "remove", lambda *_: interrupt())
        assert main(words) == 130
    asked = watch.paths.total()
    assert all(count == 1 for (_, path), count in watch.paths.items() if path != "/robots.txt")
    assert main(words) == 0
    assert before < asked == watch.paths.total()
    assert not [path for path in (tmp_path / "made/raw").rglob("*") if path.is_dir()]
    assert [row["status"] for row in raw_rows(tmp_path / "made/raw")] == ["success"] * 70


def interrupt():
    raise KeyboardInterrupt


def test_groups_have_about_equal_sizes_and_large_hosts_have_parts():
    full = groups._GROUP_BYTES
    sizes = np.array([0, full // 2, full // 4, 0, 9 * full, full // 2, full // 2 + 1, 0], np.int64)
    found = divided(sizes, 1, most_parts=4)
    assert {(one.first, one.end, one.num_parts, one.num_slices) for one in found} == {
        (0, 4, 1, 1), (4, 5, 4, 3), (5, 6, 1, 1), (6, 8, 1, 1),
    }  # fmt: skip
    assert [one.part for one in found[:4]] == [0, 1, 2, 3] and found[0].num_slices == 3 and len(found) == 7
    assert divided(sizes * 0, 0, 4) == []


def test_a_host_has_one_slot_whatever_its_scheme_and_port():
    stretch = Stretch("a", 0, ("00000",))
    assert len({groups.slot_of(stretch, host) for host in ("a.example", "a.example:8080", "a.example:1")}) == 1
    assert (
        len({groups.slot_of(stretch, f"{number}.example") for number in range(500)}) == groups.num_slots(stretch) == 64
    )
    assert groups.slot_of(stretch, "[::1]:80") == groups.slot_of(stretch, "[::1]")


def test_sections_are_read_by_range(tmp_path):
    texts = [b"one", b"", b"three" * 100_000, b""]
    write_sections(tmp_path / "file", 4, ([text[:2], text[2:]] for text in texts))
    pieces = Pieces(tmp_path)
    assert sizes_of(pieces, "", "file", 4).tolist() == list(map(len, texts))
    for first in range(4):
        for end in range(first + 1, 5):
            [stream] = open_sections(pieces, [("", "file")], 4, first, end)
            assert stream.read() == b"".join(texts[first:end])
    with pytest.raises(DataError, match="missing; run the stage again"):
        list(open_sections(pieces, [("", "gone")], 4, 0, 1))
