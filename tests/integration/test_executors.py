"""The stages of the data, done by each executor: the same bytes, and a task that is lost is done again."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.cli import main
from align.formats.filtered import decisions_digest
from tests.support import ROOT, evaluation_sets, slurm, small_data, tiny_model, wait_until
from tests.support.killing import digests, fresh
from tests.support.params import PARAMS_FILE
from tests.support.s3_server import serve
from tests.support.spark import running_cluster

pytestmark = pytest.mark.cluster

SETTINGS = (
    "paths.archive=s3://crawl/archive.warc.gz", "paths.evaluation=sets", "store.objects=s3://crawl/tars",
    "ingest.max_pages=25", "ingest.shard_size=250", "ingest.skip_hopeless=false", "filter.num_frequent_ngrams=5000",
    "shard.images_per_shard=25", "shard.val_fraction=0.1", "shard.test_fraction=0.1",
    "engine.memory_limit=200MB", f"index.queries={ROOT / 'data/sample/queries.json'}", "paths.finetuned=model",
)  # fmt: skip
OUTS = (
    "data/raw", "data/filtered", "data/shards", "data/index", "reports/ingest", "reports/filter", "reports/gate",
    "reports/shard", "reports/quality_shards", "reports/index",
)  # fmt: skip
#: Pictures of the 25 pages that an evaluation set has, too: rule I5 drops them.
SHOWN = ("https://emoji-gallery.example/assets/1f475.webp", "https://openmoji.example/assets/2651.png")
S3_ONLY = "store.work=s3://crawl/work"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        running.make_bucket("crawl")
        with closing(running._client()) as s3:
            s3.upload_file(str(ROOT / "data/sample/archive.warc.gz"), "crawl", "archive.warc.gz")
        yield running


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    server.use(monkeypatch)


def run(stage, *settings):
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return main([stage, "--params", str(PARAMS_FILE), *words])


def pipeline(folder, *settings):
    """From ingest to index in a folder of their own; what they made."""
    fresh(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_set_of(folder / "sets", *SHOWN)
        assert run("ingest", *settings) == 0
        assert run("filter", *settings) == 0
        assert run("validate", *settings) == 1  # no evaluation set was looked for, which the gate refuses
        (folder / "reports/quality").rename(folder / "reports/gate")
        filtered = folder / "data/filtered"
        small_data.write_verdict(folder / "reports/quality", passed=True, data=decisions_digest(filtered))
        assert run("shard", *settings) == 0
        assert run("validate_shards", *settings) == 0
        tiny_model.write(folder)
        assert run("index", *settings) == 0
    return made(folder)


def write_set_of(folder, *addresses):
    """An evaluation set of pictures that the archive has."""
    pictures = {}
    with (ROOT / "data/sample/archive.warc.gz").open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            if record.headers["WARC-Target-URI"] in addresses:
                pictures[record.headers["WARC-Target-URI"]] = record.reader.read()
    members = {}
    for number, address in enumerate(addresses):
        row = {"key": f"a{number}", "concept": address, "texts": [address], "class": None, "vendor": None}
        members |= {
            f"a{number}.json": json.dumps(row | {"split": "query"}).encode(),
            f"a{number}.jpg": pictures[address],
        }
    evaluation_sets.write_set(
        folder, "shown", members=members, num_images=len(addresses), num_texts=len(addresses),
        num_concepts=len(addresses),
    )  # fmt: skip


def made(folder):
    return {f"{out}/{name}": digest for out in OUTS for name, digest in digests(folder / out).items()}


@pytest.fixture(scope="module")
def local(tmp_path_factory, server):
    """What this machine's own processes make."""
    with pytest.MonkeyPatch.context() as patch:
        server.use(patch)
        folder = tmp_path_factory.mktemp("local") / "project"
        expected = pipeline(folder, "engine.num_workers=2")
    reasons = json.loads((folder / "reports/filter/report.json").read_bytes())["funnel"]
    num_first = {row["reason"]: row["num_first"] for row in reasons}
    assert num_first["image_near_duplicate_of_test"] >= len(SHOWN)
    assert len([name for name in expected if name.startswith("data/raw/") and name.endswith(".parquet")]) >= 2
    assert not [name for name in expected if name.endswith(".tar")]
    assert len([name for name in expected if name.startswith("data/shards/train/")]) >= 9
    return expected


@pytest.mark.timeout(1200)  # SLURM starts a process for each task, and loses a node
@pytest.mark.parametrize("shares", [(), (S3_ONLY,)], ids=["a folder", "s3"])
def test_arrays_of_slurm_make_the_same_bytes(tmp_path, cluster, server, local, shares):
    """A node is lost with the first task that it has, and returns."""
    options = ("engine.runner=slurm", "engine.sbatch=[--partition=cpu, --mem=4G, --exclusive]", "engine.num_workers=2")
    node = slurm.NODES[1]

    def lose_a_node():
        wait_until(lambda: any(line.endswith(f"RUNNING {node}") for line in slurm.jobs()), says=cluster.logs)
        cluster.lose(node)
        wait_until(lambda: not any(line.endswith(node) for line in slurm.jobs()), says=cluster.logs)
        cluster.start(node)

    with ThreadPoolExecutor(1) as thread:
        lost = thread.submit(lose_a_node)
        assert pipeline(tmp_path / "project", *options, *shares) == local
        lost.result()
    left = [path for path in (tmp_path / "project").rglob("*") if "align-array" in path.name or ".part" in path.name]
    assert left == []
    pieces = [key for key in server.keys("crawl") if key.startswith("work/") and "/done/" in key]
    assert bool(pieces) == bool(shares)


@pytest.mark.timeout(1200)  # Spark's machines start anew, and lose a worker
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
@pytest.mark.parametrize("shares", [(), (S3_ONLY,)], ids=["a folder", "s3"])
def test_spark_makes_the_same_bytes(tmp_path, server, local, shares):
    driver = fresh(tmp_path / "driver")
    project = driver / "project"
    passed = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    (tmp_path / "cluster").mkdir()
    with running_cluster(tmp_path / "cluster", blind_to=driver if shares else None, environment=passed) as spark:
        options = (
            "engine.runner=spark",
            f"engine.spark_master={spark.url}",
            f"engine.temp_directory={project / 'tmp'}",
        )
        assert pipeline(project, *options, *shares) == local
        for number in range(2):
            assert list((spark.folder / f"worker{number}").glob("app-*/*")), "a worker had nothing to do"


@pytest.mark.timeout(3000)  # Spark's machines start anew, and lose two workers and the driver
def test_lost_workers_and_a_lost_driver_cost_only_the_tasks_at_work(tmp_path, server):
    """A worker is killed in the scan, the driver and then another worker while pictures are stored."""
    with closing(server._client()) as s3:
        for number in range(6):
            s3.copy_object(Bucket="crawl", Key=f"many/{number}.warc.gz", CopySource="crawl/archive.warc.gz")
    more = ("paths.archive=s3://crawl/many/*.warc.gz", "store.work=s3://crawl/lost", "ingest.shard_size=200")
    expected, folder = fresh(tmp_path / "local"), fresh(tmp_path / "driver/project")
    assert subprocess.run(ingest(*more), cwd=expected, check=False).returncode == 0
    passed = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    (tmp_path / "cluster").mkdir()

    def done(prefix=""):
        with closing(server._client()) as s3:
            found = s3.list_objects_v2(Bucket="crawl", Prefix="lost/").get("Contents", [])
        return {one["Key"]: str(one["LastModified"]) for one in found if f"/done/{prefix}" in one["Key"]}

    with running_cluster(
        tmp_path / "cluster", num_workers=3, blind_to=tmp_path / "driver", environment=passed
    ) as spark:
        command = ingest(*more, "engine.runner=spark", f"engine.spark_master={spark.url}")
        driver = subprocess.Popen(command, cwd=folder)
        wait_until(lambda: len(done("scanned/")) >= 1, 600, alive=lambda: driver.poll() is None)
        spark.kill_worker(0)
        wait_until(lambda: len(done("written/")) >= 2, 600, alive=lambda: driver.poll() is None)
        driver.kill()
        driver.wait(60)
        before = done()
        assert len(done("scanned/")) == 6 and len(done("written/")) < 10, before
        driver = subprocess.Popen(command, cwd=folder)
        wait_until(lambda: len(done("written/")) > len(before) - 7 + 1, 600, alive=lambda: driver.poll() is None)
        spark.kill_worker(1)
        assert driver.wait(600) == 0
    assert digests(folder / "data/raw") == digests(expected / "data/raw")
    assert before.items() <= done().items()  # nothing finished was done again


def ingest(*settings):
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    return [sys.executable, "-m", "align.cli", "ingest", "--params", str(PARAMS_FILE), *words]
