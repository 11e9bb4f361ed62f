"""Lanes divide by host: the bounds of a host hold for all tasks together, and redirects to other hosts are rounds."""

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass

import pytest

from align.cli import main
from align.config.ingest import DownloadConfig
from align.durable.processes import in_threads
from align.ingest import lanes
from align.ingest.lanes import lanes_of
from align.ingest.plan import Plan, Planner
from align.services.executors.executors import LocalExecutor
from tests.support.killing import digests
from tests.support.params import load_params
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

    def map(self, task, items):
        def do(item):
            with task.resource(None) as kept:
                return task.function(kept, item)

        yield from in_threads(do, items, self.num_at_once)


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
    own = ("ingest.shard_size=12", f"download.max_connections_per_host={PER_HOST}")
    return ingest_words(folder, table, *URL_TABLE, *own)


def use(executor, monkeypatch):
    """Has its tasks done by this executor."""
    monkeypatch.setattr("align.ingest.ingest.open_executor", lambda *_: nullcontext(executor))


@pytest.mark.parametrize("rate", [None, 50.0])
@pytest.mark.parametrize("executor", [Threads(), pytest.param(LocalExecutor(8), marks=pytest.mark.cluster)])
def test_eight_workers_keep_the_bounds_of_one_host(tmp_path, monkeypatch, server, executor, rate):
    """A large host, some that redirect to another, which a second round asks, and small ones."""
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
    rows = raw_rows(tmp_path / "eight/raw")
    assert len({row["url"] for row in rows}) == len(rows) == sum(num_of.values())
    assert {row["status"] for row in rows} == {"success"}


def test_a_kill_costs_only_the_shard_under_way(tmp_path, monkeypatch, server):
    """Killed before the third shard, then while a shard is written, and when all shards are complete."""
    words = command(server, tmp_path / "made", dict.fromkeys(HOSTS, 10))
    use(LocalExecutor(1), monkeypatch)
    watch = Watch(server)
    write, calls = lanes.write_fetched, itertools.count()
    with monkeypatch.context() as killed:
        killed.setattr(lanes, "write_fetched", lambda *args: interrupt() if next(calls) == 2 else write(*args))
        assert main(words) == 130
    before = watch.paths.total()
    assert before > 0
    with monkeypatch.context() as killed:
        killed.setattr("align.ingest.writing._raw_row", lambda *args: interrupt())
        assert main(words) == 130
    lost = watch.paths.total() - before
    with monkeypatch.context() as killed:
        killed.setattr("align.ingest.ingest.publish", lambda *_: interrupt())
        assert main(words) == 130
    asked = watch.paths.total()
    pictures = {path: count for path, count in watch.paths.items() if path[1] != "/robots.txt"}
    assert max(pictures.values()) == 2 and 0 < sum(count - 1 for count in pictures.values()) <= lost < 24
    assert main(words) == 0
    assert before < asked == watch.paths.total()
    assert not [path for path in (tmp_path / "made/raw").rglob("*") if path.is_dir()]
    assert [row["status"] for row in raw_rows(tmp_path / "made/raw")] == ["success"] * 70


def interrupt():
    raise KeyboardInterrupt


def circle(server, folder, *settings):
    """The words of `align ingest` for pictures that two hosts redirect to each other, and one that each has."""

    def there_and_back(request):
        host = request.headers["host"].partition(":")[0]
        other = LARGE if host == SMALL else SMALL
        request.write(answer(picture(300, 250)) if "own" in request.path else redirect(server.url(request.path, other)))

    server.fallback = there_and_back
    urls = [server.url(f"/{name}.png", host) for host in (LARGE, SMALL) for name in ("own", "a", "b")]
    table = url_table(folder, [(url, "a good text") for url in urls])
    return ingest_words(folder, table, *URL_TABLE, "ingest.shard_size=3", "download.obey_robots=false", *settings)


def test_a_circle_of_redirects_over_rounds_ends_with_a_reason(tmp_path, server):
    assert main(circle(server, tmp_path)) == 0
    rows = raw_rows(tmp_path / "raw")
    assert Counter((row["url"][-5:-4], row["error_message"]) for row in rows) == {
        ("n", None): 2, ("a", "too many redirects"): 2, ("b", "too many redirects"): 2,
    }  # fmt: skip
    asked = Counter(request.rpartition("/")[2] for request in server.requests)
    assert asked == {"own.png": 2, "a.png": 12, "b.png": 12}  # each address itself, and five redirects


def test_a_host_that_was_taken_down_is_not_asked_in_a_later_round(tmp_path, server):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/opted_out.csv").write_text(f"kind,value,reason,added\nhost,{SMALL},,2026-01-01\n")
    assert main(circle(server, tmp_path)) == 0
    assert {request.partition(":")[0] for request in server.requests} == {LARGE}
    assert Counter(row["error_message"] for row in raw_rows(tmp_path / "raw")) == {"opted out": 5, None: 1}


def test_a_pair_that_no_shard_has_ends_the_run(tmp_path, server, monkeypatch, capsys):
    words = circle(server, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Planner, "next", lambda *_: None)
        assert main(words) == 1
    assert "the shards have 2 pairs, and the source 6" in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()


def test_a_divided_host_has_as_many_lanes_as_connections_and_shares_its_bounds():
    plan = Plan("plan-0", 0, 3, [(2, -1), (1, 7), (1, 7), (2, 7), (1, 7), (1, 7), (4, -1)], 5, 4, has_rights=False)
    assert plan.names == [f"{number:05d}" for number in range(3, 15)]
    download = load_params().section(DownloadConfig).model_copy(update={"max_connections_per_host": 3})
    assert sorted(lanes_of(plan, download, 8)) == [
        ([3, 4], 1), ([5, 9], 3), ([6, 10], 3), ([7, 8], 3), ([11, 12, 13, 14], 1),
    ]  # fmt: skip
    assert ([5, 6, 7, 8, 9, 10], 1) in lanes_of(plan, download, 1)
    assert len(lanes_of(plan, download, 8)[0][0]) == 4  # the longest first
