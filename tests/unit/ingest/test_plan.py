"""Ingest's plan: hosts are laid into lanes, and a pair is in the shard of its address, in the order of the source."""

from collections import Counter, defaultdict
from functools import partial

import pytest

from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import IngestConfig
from align.durable.steps import Work
from align.formats.policy import OptedOut
from align.ingest.plan import PAIRS, PlannedPairs, Planner
from align.ingest.scan import Scan, host_hash
from align.ingest.sources.raw_before import Before
from align.services.engine import open_engine
from align.services.executors.executors import LocalExecutor
from tests.support.params import load_params
from tests.support.reading import source_at

PARAMS = load_params()


def planned(folder, urls, shard_size):
    """A plan of these addresses, each with its number as text, and the pairs of each shard."""
    (folder / "a.tsv").write_text("url\tcaption\n" + "".join(f"{url}\t{n}\n" for n, url in enumerate(urls)))
    work = Work(folder)
    source = source_at(folder / "a.tsv", "source=url_table")
    Scan(source, OptedOut([]), judges_texts=False).run(work, LocalExecutor(1), 0, folder / "kept")
    config = PARAMS.section(IngestConfig).model_copy(update={"shard_size": shard_size})
    before = Before(work, PARAMS.section(StoreConfig))
    sql = partial(open_engine, PARAMS.section(EngineConfig))
    plan = Planner(work, sql, config, "web", obeys=True, text_cuts=None, before=before).first()
    with work.open(plan.result, PAIRS) as stream, PlannedPairs(stream) as pairs:
        found = {shard: list(pairs.rows(shard)) for shard in range(plan.end)}
        for shard, rows in found.items():
            assert {row.shard for row in rows} <= {shard}
            assert [url for url, _, _ in pairs.asks(shard)] == list(dict.fromkeys(row.url for row in rows))
    return plan, found


def test_each_shard_has_its_pairs_in_order_though_one_address_has_most(tmp_path):
    """At least twenty shards of one host, where one address has 20,000 pairs: its lane has short ones beside it."""
    urls = [f"http://x/{number}.png" for number in range(20_000)]
    urls[10:10] = ["http://x/often.png"] * 20_000
    plan, found = planned(tmp_path, urls, 1000)
    assert 40 <= len(plan.names) == len(found) < 70
    assert plan.position_digits == 5  # of the longest
    assert sorted(int(row.text) for rows in found.values() for row in rows) == list(range(40_000))
    shards_of = defaultdict(set)
    for shard, rows in found.items():
        numbers = [int(row.text) for row in rows]
        assert numbers == sorted(numbers)
        for row in rows:
            shards_of[row.url].add(shard)
    assert all(len(shards) == 1 for shards in shards_of.values())
    sizes = sorted(map(len, found.values()))
    assert sizes[-1] > 20_000 and sizes[-2] < 1500


def test_a_small_host_is_in_one_lane_and_a_large_one_is_divided_into_lanes_of_its_own(tmp_path):
    of_host = {f"h{number}.example": 1 + number % 60 for number in range(300)} | {"large.example": 2500}
    urls = [f"http://{host}/{number}" for host, count in of_host.items() for number in range(count)]
    plan, found = planned(tmp_path, urls, 100)
    assert plan.num_pairs == len(urls) == sum(map(len, found.values()))
    lanes_of, first = defaultdict(set), plan.first
    sizes = Counter()
    for lane, (num_shards, host) in enumerate(plan.lanes):
        for shard in range(first, first + num_shards):
            for row in found[shard]:
                lanes_of[row.url.split("/")[2]].add(lane)
                assert ("large" in row.url) == (host >= 0)
            sizes[len(found[shard]) // 50] += 1
        first += num_shards
    assert first == plan.end
    assert len(lanes_of.pop("large.example")) == 25 and all(len(lanes) == 1 for lanes in lanes_of.values())
    assert sizes.total() == len(found) and sizes[1] + sizes[2] > 0.8 * len(found)  # of 50 to 150 pairs


@pytest.mark.parametrize("same", [("http://a.example/x", "https://A.example:81/y?z", "http://me:pw@a.example#f")])
def test_a_host_has_one_hash_whatever_its_scheme_and_port(same):
    assert len(set(map(host_hash, same))) == 1
    assert len({host_hash(f"http://{number}.example/") for number in range(500)}) == 500
    assert host_hash("http://[::1]:80/x") == host_hash("https://[::1]") != host_hash("a file/of a folder.png")
