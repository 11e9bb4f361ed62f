"""Ingest's plan: every pair is in the shard of its address, in the order of the source, in a file of few shards."""

import hashlib
from functools import partial

import pyarrow.parquet as pq

from align.config.infrastructure import EngineConfig
from align.config.ingest import IngestConfig
from align.durable.pieces import Pieces
from align.formats.policy import OptedOut
from align.ingest import partition
from align.ingest.partition import make_plan, planned_shard
from align.services.engine import open_engine
from align.services.executors.executors import LocalExecutor
from tests.support.params import load_params
from tests.support.reading import source_at

PARAMS = load_params()


def shard_of(url, num_shards):
    return int.from_bytes(hashlib.md5(url.encode()).digest()[:8], "little") % num_shards


def test_each_shard_has_its_pairs_in_order_though_some_have_none_and_one_has_most(tmp_path):
    """40 shards of about two pairs, but one address has 20,000: some shards are empty, and one has three row groups."""
    rows = [f"http://x/{number}.png" for number in range(50)]
    rows[10:10] = ["http://x/often.png"] * 20_000
    (tmp_path / "a.tsv").write_text("url\tcaption\n" + "".join(f"{url}\t{n}\n" for n, url in enumerate(rows)))
    source, pieces = source_at(tmp_path / "a.tsv", "source=url_table"), Pieces(tmp_path)
    config = PARAMS.section(IngestConfig).model_copy(update={"shard_size": len(rows) // 40 + 1})
    sql = partial(open_engine, PARAMS.section(EngineConfig))
    plan = make_plan(source, pieces, LocalExecutor(1), sql, OptedOut([]), config, tmp_path / "kept")
    assert len(plan.names) == 40
    found = {}
    for name in plan.names:
        shard = planned_shard(plan.position_digits, plan.has_rights, source, pieces, name)
        found[int(name)] = [(row["url"], row["text"]) for row in shard.rows()]
        assert list(shard.rows()) == list(shard.rows())
    assert found == {
        number: [(url, str(n)) for n, url in enumerate(rows) if shard_of(url, 40) == number] for number in range(40)
    }
    assert min(map(len, found.values())) == 0
    assert plan.position_digits == 5  # of the longest
    files = sorted((tmp_path / partition.FOLDER / "pairs").iterdir())
    assert len(files) == 4
    for path in files:
        groups = [pq.ParquetFile(path).read_row_group(n)["shard"] for n in range(pq.ParquetFile(path).num_row_groups)]
        assert all(len(group.unique()) == 1 and len(group) <= 8192 for group in groups)
    assert not (tmp_path / partition.FOLDER / "sorted.parquet").exists()
