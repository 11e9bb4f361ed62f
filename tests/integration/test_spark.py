"""Filter and shard on a real Spark cluster, a master and two workers on loopback: as with DuckDB, row for row."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.errors import DataError
from align.filter.filter import FilterFolders, filter_pairs, work_key
from align.filter.pair_tables import image_hashes
from align.filter.tables import CLOSE, SCORED
from align.filter.work_folder import write_table
from align.formats.evaluation_sets.named import named_sets
from align.formats.filtered import decisions_digest
from align.formats.policy import OptedOut
from align.formats.raw import SCHEMA, raw_shards, read_table
from align.interfaces.executor import Task
from align.services.engine import open_engine
from align.services.executors.executors import open_executor
from align.shard import shard as stage
from tests.support import clusters, small_data, small_shards
from tests.support.killing import digests
from tests.support.params import load_params
from tests.support.reading import ingested
from tests.support.small_data import Pair, far_apart
from tests.support.small_filter import evaluation_set, noise
from tests.support.spark import needs_spark, running_cluster
from tests.support.tars import tar

pytestmark = pytest.mark.cluster

NUM_PAGES = 150
CONFIG = (
    load_params()
    .section(FilterConfig)
    .model_copy(
        update={
            "num_frequent_ngrams": 5_000, "languages": ("en", "de"), "drop_personal_data": True, "drop_repeats": "pair",
        }
    )
)  # fmt: skip
#: What engines fold, sort, compare, trim or store in ways of their own.
TRAPS = [
    "İstanbul by night İ", "istanbul by night i", "ISTANBUL BY NIGHT I", "ıstanbul by night ı",
    "i̇stanbul by night i̇", "große straße hier", "GROSSE STRASSE HIER", "grosse strasse hier", "GROẞE STRAẞE HIER",
    "café in der nacht", "cafe\u0301 in der nacht", "ﬁsh and ﬀ ligatures", "fish and ff ligatures",
    "Å Å A\u030a sign", "𝒳 is a letter", "😀 😀 three faces 😀", "👨‍👩‍👧 a family here", "a\x00b has a nul",
    "a b has a nul", "tab\tand\nline", "שלום עולם טוב", "\u202eright to left", "right to left", "a\u200bzero width",
    "a zero width", "ǆ ǅ Ǆ three", "ὈΔΥΣΣΕΎΣ ὀδυσσεύς σ", "ὀδυσσεύσ σ ς", "1\u0660\u0661 digits of two",
    "한국어 단어 둘", "\u1112\u1161\u11ab국어 단어 둘", "it's \"quoted\" 'twice' here", "back\\slash and %percent_",
    "NULL", "null", "", " ", "\u00a0", "---", "'; DROP TABLE x", "trailing space here ", " leading space here",
    "a,b\tc;d", "\ufeffbyte order mark", "K is kelvin K", "ſ is long s",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(URL of the master, folder in which each worker has a folder)."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as spark:
        yield spark.url, spark.folder


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
def test_an_item_that_kills_its_process_is_put_aside(cluster, tmp_path):
    config = load_params().section(EngineConfig).model_copy(update={"runner": "spark", "spark_master": cluster[0]})

    def squared(_, number):  # nested: the workers cannot import the tests
        return os._exit(9) if number == 13 else number * number

    task = Task(nullcontext, squared, "number {}".format)
    with open_executor(config, tmp_path) as executor:
        assert list(executor.map(replace(task, instead=abs), [3, 13, 5, 1])) == [9, 13, 25, 1]
        with pytest.raises(DataError, match="number 13: its process was lost on each try, the last ones with nothing"):
            list(executor.map(task, [3, 13]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample):
    """data/raw of some pages of the sample, and a shard of traps; scores are made up, so no task needs the network."""
    folder = tmp_path_factory.mktemp("pairs")
    ingested(folder, sample / "archive.warc.gz", f"ingest.max_pages={NUM_PAGES}", "ingest.shard_size=1500")
    (folder / "raw/manifest.json").unlink(missing_ok=True)
    traps(folder)
    evaluation_set(folder / "sets", trap_picture(6))
    seen = set()
    for shard in raw_shards(folder / "raw"):
        ids = [one for one in dict.fromkeys(read_table(shard)["sha256"].to_pylist()) if one and one not in seen]
        seen.update(ids)
        scores = [int(one[:8], 16) / 2**32 for one in ids]
        out = folder / "scored" / shard.name
        out.mkdir(parents=True)
        write_table(pa.table([image_hashes(ids), scores], schema=SCORED), out / "scored.parquet")
        write_table(CLOSE.empty_table(), out / "close.parquet")
    return folder


def trap_picture(number):
    """One of 97 that no other is like; one is cut off."""
    data = noise(number, 150 + 7 * number, 300)
    return data[: len(data) // 2] if number == 5 else data


def traps(folder):
    """Each trap with twelve pictures, so that the text is shared by too many if texts like it count as equal."""
    rows, pictures = [], [trap_picture(number) for number in range(97)]
    for row, caption in enumerate(caption for caption in TRAPS for _ in range(6)):
        rows.append({
            "key": f"99999{row:04d}", "url": f"http://x/{row}", "caption": caption, "status": "success",
            "sha256": hashlib.sha256(pictures[row % 97]).hexdigest(), "image_key": f"99999{row % 97:04d}",
        })  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), folder / "raw/99999.parquet")
    tar(folder / "raw/99999.tar", {f"99999{number:04d}.jpg": data for number, data in enumerate(pictures)})


def run(folder, engine):
    out = folder / engine.runner
    work = out / ".filtered.part"
    work.mkdir(parents=True)
    shutil.copytree(folder / "scored", work / "scored")
    key = work_key(CONFIG, "cpu", folder / "raw", OptedOut(), named_sets(folder / "sets", None))
    (work / ".work.json").write_text(json.dumps({"key": key}))
    reports = out / "report"
    folders = FilterFolders(folder / "raw", folder / "sets", folder / "none", out / "filtered", reports)
    filter_pairs(CONFIG, engine, folders)
    return out


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
def test_duckdb_and_spark_decide_alike(folder, cluster):
    url, workers = cluster
    engine = load_params().section(EngineConfig).model_copy(update={"num_workers": 1})
    duckdb = run(folder, engine)
    spark = run(folder, engine.model_copy(update={"runner": "spark", "spark_master": url}))
    for number in range(2):
        assert list((workers / f"worker{number}").glob("app-*/*")), "a worker had nothing to do"
    rows = [pq.read_table(out / "filtered/decisions").to_pylist() for out in (duckdb, spark)]
    assert len(rows[0]) > 2_000 + 6 * len(TRAPS)
    assert rows[0] == rows[1]
    reasons = {reason for row in rows[0] for reason in row["reasons"]}
    assert {
        "image_undecodable", "image_nsfw", "image_too_small", "image_near_duplicate_of_test",
        "text_shared_by_many_images", "text_rare_ngram", "text_too_short", "text_other_language",
    } <= reasons  # fmt: skip
    assert any(row["keep"] for row in rows[0])
    assert digests(duckdb / "filtered") == digests(spark / "filtered")
    assert (duckdb / "report/report.json").read_bytes() == (spark / "report/report.json").read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
def test_duckdb_and_spark_plan_shards_alike(cluster, tmp_path):
    pairs = [
        *(Pair(f"picture number {number % 40}", number) for number in range(60)),
        *(Pair("dropped", number, reason="text_too_short") for number in range(60, 70)),
        *(Pair(f"twin {number}", number, phash=far_apart(number // 2) ^ number % 2) for number in range(100, 160)),
        *(Pair(f"once more {number}", number) for number in range(0, 60, 3)),
    ]
    small_data.write(tmp_path, pairs, pairs_per_shard=37)
    small_data.write_verdict(tmp_path / "quality", passed=True, data=decisions_digest(tmp_path / "filtered"))
    engine = load_params().section(EngineConfig).model_copy(update={"num_workers": 1})
    made = {}
    for runner in ("local", "spark"):
        options = engine.model_copy(update={"runner": runner, "spark_master": cluster[0]})
        stage.shard(small_shards.CONFIG, small_shards.STORE, small_shards.folders(tmp_path, runner), options)
        made[runner] = digests(tmp_path / runner), digests(tmp_path / "report")
    assert made["spark"] == made["local"]
    assert sum(name.endswith(".tar") for name in made["local"][0]) > 4


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
def test_clusters_of_spark_equal_those_of_comparing_all_with_all(cluster, tmp_path, monkeypatch):
    """With groups that numpy divides."""
    monkeypatch.setattr("align.pairs.near_hashes.COMPARED_AT_ONCE", 8)
    pairs, phashes = clusters.alike(1, num_images=300, num_texts=200)
    config = load_params().section(EngineConfig).model_copy(update={"runner": "spark", "spark_master": cluster[0]})
    with open_engine(config, tmp_path) as engine:
        assert clusters.labels(engine, tmp_path, pairs, phashes, 2) == clusters.naive(pairs, phashes, 2)


LOCAL = """
import sys
from pathlib import Path
from tests.support.params import load_params
from tests.support.spark import running_cluster
from align.config.infrastructure import EngineConfig
from align.services.engine import open_engine

limit, folder = sys.argv[1:]
overrides = ["engine.runner=spark", "engine.spark_master=local[1]", f"engine.memory_limit={limit}"]
with open_engine(load_params(overrides=overrides).section(EngineConfig), Path(folder)) as spark:
    print(spark.rows("SELECT 1 + 1"))
"""


@pytest.mark.parametrize("limit", ["400MB", "1.5GB"])
def test_spark_on_this_machine_starts_with_any_memory_limit_of_duckdb(limit, tmp_path):
    """In a process of its own: the memory of a Java machine is that of its first session."""
    needs_spark()
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, limit, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "[(2,)]\n", done.stderr[-2000:]
