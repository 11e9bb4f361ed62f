"""The S3 recipe of docs/scale.md, its own lines, between two checkouts and a real S3 server; and a dataset both ways:
DVC's remote holds its tars, or DVC versions its manifests and the store has the tars.
"""

import shutil
import subprocess
import time
from contextlib import closing

import pytest

from align.services.git import git
from flows.checkout.run_branch import record
from tests.support import ROOT
from tests.support.dvc_projects import (
    ENV_EXAMPLE,
    RECIPE,
    add_remote,
    attempt,
    aws_variables,
    clone,
    environment,
    file_bytes,
    make_repository,
    num_runs,
    shell,
)
from tests.support.params import PARAMS_FILE
from tests.support.s3_server import KEY, SECRET, serve

DVC_YAML = """\
stages:
  make: {cmd: python make.py, deps: [make.py], outs: [data]}
"""

#: The stage writes a line outside of every checkout each time it runs.
MAKE = """\
import os
from pathlib import Path
with open(os.environ["TEST_RUNS"], "a") as runs:
    print("ran", file=runs)
for number in range({count}):
    file = Path("data", str(number % 3), str(number))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(number.to_bytes(2, "big") * 20_000)
"""


def make_project(root, count):
    """A repository with one stage, which has run."""
    make_repository(root, {"dvc.yaml": DVC_YAML, "make.py": MAKE.format(count=count)}, ignored="/data/\n")
    shell(root, "dvc repro", {})
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a project with five files, and of the record of its runs."""
    return make_project(tmp_path_factory.mktemp("made") / "project", 5).parent


@pytest.fixture
def project(made, tmp_path):
    """A copy of its own."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "project"


def remote(bucket, server):
    """The settings that the recipe's lines make."""
    lines = (
        "[core]", "    remote = s3", "['remote \"s3\"']", f"    url = s3://{bucket}/dvc",
        f"    endpointurl = {server.url}",
    )  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


def use_remote(root, bucket, server):
    """As the recipe's lines, which `test_a_clone_pulls_the_bytes_that_were_pushed` types."""
    (root / ".dvc/config.local").write_text(remote(bucket, server))


def assert_no_secrets(root):
    """No secret is in a file of the checkout or in its history, and git has no settings of S3."""
    leaks = [name for name, data in file_bytes(root).items() if KEY.encode() in data or SECRET.encode() in data]
    assert not leaks
    history = git(root, "log", "--all", "--patch")
    assert "make.py" in history
    assert KEY not in history
    assert SECRET not in history
    assert "s3://" in (root / ".dvc/config.local").read_text()
    assert "s3://" not in history
    assert git(root, "status", "--porcelain") in ("", "?? dvc.lock")


def test_a_clone_pulls_the_bytes_that_were_pushed(server, project):
    aws = aws_variables(server)
    bucket = server.make_bucket("bytes")
    add_remote(ENV_EXAMPLE, project, bucket, aws, server.url)
    shell(project, "dvc push", aws)
    cache = file_bytes(project / ".dvc/cache/files")
    assert len(cache) == 6  # five files and their list
    assert server.objects(bucket) == {f"dvc/files/{name}": data for name, data in cache.items()}

    record(project, "demo", "a run")
    cloned = clone(project, "clone", "run/demo")
    del aws["AWS_ENDPOINT_URL"]  # `endpointurl` alone has to lead to the server
    add_remote(RECIPE, cloned, bucket, aws, server.url)
    assert (cloned / ".dvc/config.local").read_text() == remote(bucket, server)
    shell(cloned, "dvc pull", aws)
    assert file_bytes(cloned / "data") == file_bytes(project / "data")
    assert num_runs(project) == 1
    assert_no_secrets(project)
    assert_no_secrets(cloned)


def test_a_stage_that_ran_elsewhere_does_not_run_again(server, project):
    aws = aws_variables(server)
    bucket = server.make_bucket("runs")
    use_remote(project, bucket, server)
    shell(project, "dvc push --run-cache", aws)
    assert any(key.startswith("dvc/runs/") for key in server.keys(bucket))
    record(project, "demo", "a run")

    # With the run's lock the bytes are fetched; without it, on main, only the run cache says that they fit.
    cloned = clone(project, "clone", "run/demo")
    use_remote(cloned, bucket, server)
    shell(cloned, "dvc fetch --run-cache", aws)
    git(cloned, "switch", "--quiet", "main")
    assert not (cloned / "dvc.lock").exists()
    assert "Stage 'make' is cached" in shell(cloned, "dvc repro", aws)

    on_main = clone(project, "main", "main")
    use_remote(on_main, bucket, server)
    assert "Stage 'make' is cached" in shell(on_main, "dvc repro --pull", aws)
    for root in (cloned, on_main):
        assert file_bytes(root / "data") == file_bytes(project / "data")
    assert num_runs(project) == 1


def test_wrong_credentials_push_nothing(server, project):
    aws = aws_variables(server)
    bucket = server.make_bucket("refused")
    use_remote(project, bucket, server)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        refused = attempt(project, "dvc push", aws | {name: "wrong"})
        assert refused.returncode != 0
        assert "403" in refused.stderr
        assert server.keys(bucket) == []
    shell(project, "dvc push", aws)  # only the credentials were wrong
    assert len(server.keys(bucket)) == 6


def test_a_push_outlives_the_server(tmp_path):
    with serve(tmp_path / "server") as server:
        aws = aws_variables(server)
        bucket = server.make_bucket("lost")
        project = make_project(tmp_path / "project", 400)
        use_remote(project, bucket, server)
        cache = file_bytes(project / ".dvc/cache/files")
        assert len(cache) == 401

        # One file after another, so that the server is killed in between; and one attempt per file, not five with up
        # to 15 seconds between them.
        env = environment(project, aws | {"AWS_MAX_ATTEMPTS": "1"})
        with (tmp_path / "push.log").open("wb") as log:
            push = subprocess.Popen(
                ["dvc", "push", "--jobs", "1"], cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            with closing(server._client()) as client:  # one for all requests: each new one takes as long as a push
                while push.poll() is None and "Contents" not in client.list_objects_v2(Bucket=bucket, MaxKeys=1):
                    time.sleep(0.02)
            server.kill()
            assert push.wait(timeout=200) != 0, (tmp_path / "push.log").read_text()
        finally:
            push.kill()
            push.wait()
        assert "failed to push" in (tmp_path / "push.log").read_text()
        assert attempt(project, "dvc push", aws).returncode != 0  # as in the RECIPE, within the timeout of `attempt`
        assert file_bytes(project / ".dvc/cache/files") == cache

        server.start()
        expected = {f"dvc/files/{name}": data for name, data in cache.items()}
        arrived = server.objects(bucket)
        assert arrived.items() < expected.items()
        assert arrived
        assert not any(key.endswith(".dir") for key in arrived)  # a list never precedes its files
        shell(project, "dvc push", aws)
        assert server.objects(bucket) == expected


DATASET_YAML = """\
stages:
  raw: {cmd: python -m make, deps: [make.py], outs: [data/raw, data/filtered, reports/quality]}
  shard:
    cmd: 'align shard && echo ran >> $TEST_RUNS'
    deps: [data/raw, data/filtered]
    params: [shard]
    outs: [data/shards, reports/shard]
  read: {cmd: 'python -m read && echo ran >> $TEST_RUNS', deps: [data/shards], outs: [texts]}
"""

#: Does the work of ingest, filter and validate.
MAKE_DATASET = """\
import hashlib
from functools import partial
from pathlib import Path

from align.config import load_params
from align.config.infrastructure import StoreConfig
from align.formats.filtered import decisions_digest
from align.ingest.writer import RawShardWriter, write_raw_manifest
from align.services.s3.store import keep_tar
from tests.support import small_data

raw, filtered = Path("data/raw"), Path("data/filtered")
raw.mkdir(parents=True)
filtered.mkdir()
decisions, images = [], []
keep = partial(keep_tar, config=load_params().section(StoreConfig))
for number in range(3):
    with RawShardWriter(raw, f"{number:05d}", 4, keep) as writer:
        for index in range(number * 40, number * 40 + 40):
            data, key = small_data.jpeg(index), writer.next_key
            image_id = hashlib.sha256(data).hexdigest()
            row = {"key": key, "url": f"http://x/{index}", "caption": f"picture {index}", "status": "success"}
            row |= {"sha256": image_id, "image_key": key, "error_message": None}
            writer.add(row, data)
            decisions.append(row | {"keep": True, "image_id": image_id, "text": row["caption"]})
            images.append({"image_id": image_id, "image_key": key, "phash": small_data.far_apart(index)})
write_raw_manifest(raw, ["00000", "00001", "00002"])
small_data.write_decisions(filtered, decisions)
small_data.write_images(filtered, images)
small_data.write_verdict(Path("reports/quality"), passed=True, data=decisions_digest(filtered))
"""

#: Reads the shards as the stages do that train, index and evaluate.
READ = """\
from pathlib import Path

from align.config import load_params
from align.config.paths import PathsConfig
from align.config.infrastructure import StoreConfig
from align.formats.shards import SPLITS, iter_samples
from align.services.s3.store import fetcher

params = load_params()
shards, fetch = params.section(PathsConfig).shards, fetcher(params.section(StoreConfig))
texts = [text for split in SPLITS for sample in iter_samples(shards, split, fetch) for text in sample.texts]
Path("texts").write_text("\\n".join(texts))
"""


def make_dataset(root, objects, aws):
    """A repository with a dataset of two folders, which its stages have made."""
    values = PARAMS_FILE.read_text()
    for old, new in {
        "  objects: null": f"  objects: {objects}", "  num_workers: null": "  num_workers: 1",
        "  images_per_shard: 1000": "  images_per_shard: 20", "  num_retries: 5": "  num_retries: 0",
        "val_fraction: 0.03": "val_fraction: 0.2", "test_fraction: 0.03": "test_fraction: 0.1",
    }.items():  # fmt: skip
        assert values.count(old) == 1, old
        values = values.replace(old, new)
    files = {"params.yaml": values, "dvc.yaml": DATASET_YAML, "make.py": MAKE_DATASET, "read.py": READ}
    make_repository(root, files, ignored="/data/\n/reports/\n/texts\n")
    shell(root, "dvc repro", aws)
    return root


def dataset(root):
    """Path -> bytes of everything that DVC versions."""
    return {
        f"{name}/{path}": data
        for name in ("data/raw", "data/filtered", "data/shards", "reports/shard")
        for path, data in file_bytes(root / name).items()
    }


def tars(folder):
    """Paths below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))


@pytest.mark.journeys
def test_both_ways_a_clone_has_the_dataset_and_runs_nothing(server, tmp_path):
    aws = aws_variables(server) | {"PYTHONPATH": str(ROOT)}
    projects = {}
    for way in ("whole", "manifest"):
        bucket = server.make_bucket(way)
        root = tmp_path / way / "project"
        root.parent.mkdir()
        objects = f"s3://{bucket}/objects" if way == "manifest" else "null"
        project = projects[way] = make_dataset(root, objects, aws)
        add_remote(RECIPE, project, bucket, aws, server.url)
        shell(project, "dvc push --run-cache", aws)
        record(project, "demo", "a run")
        cloned = clone(project, "clone", "run/demo")
        add_remote(RECIPE, cloned, bucket, aws, server.url)
        shell(cloned, "dvc pull", aws)
        assert dataset(cloned) == dataset(project)
        assert "Data and pipelines are up to date" in shell(cloned, "dvc repro", aws)
        assert num_runs(project) == 2

        # The stages that need the tars run there too, and make the same bytes from them.
        shell(cloned, "dvc repro --force --single-item read shard", aws)
        assert num_runs(project) == 4
        assert dataset(cloned) == dataset(project)
        assert (cloned / "texts").read_text() == (project / "texts").read_text()
        assert (cloned / "dvc.lock").read_bytes() == (project / "dvc.lock").read_bytes()

    whole, manifest = projects["whole"], projects["manifest"]
    assert len(tars(whole / "data")) > 3 + 3
    assert tars(manifest / "data") == []
    kept = {key.rpartition("/")[2] for key in server.keys("manifest") if key.startswith("objects/")}
    assert len(kept) == len(tars(whole / "data"))
    for name in ("data/raw/manifest.json", "data/shards/manifest.json", "texts"):  # nothing in them says where
        assert (whole / name).read_bytes() == (manifest / name).read_bytes()
    in_remote = sum(len(data) for key, data in server.objects("manifest").items() if key.startswith("dvc/files/"))
    assert in_remote < sum(path.stat().st_size for path in (whole / "data").rglob("*.tar")) / 2


def test_an_unavailable_store_is_one_clear_error_and_nothing_is_lost(tmp_path):
    with serve(tmp_path / "server") as server:
        aws = aws_variables(server) | {"PYTHONPATH": str(ROOT)}
        bucket = server.make_bucket("away")
        project = make_dataset(tmp_path / "project", f"s3://{bucket}/objects", aws)
        before = dataset(project)
        shutil.rmtree(project / ".align/store", ignore_errors=True)
        server.kill()
        done = attempt_read(project, aws)
        assert done[0] == 1
        assert done[1].startswith("align.errors.ServiceError: s3://away/objects/")
        assert f"no answer from {server.url}" in done[1]
        assert dataset(project) == before
        server.start()
        # A restarted server needs some seconds until it has its volumes, more on a busy machine.
        deadline = time.monotonic() + 120
        while (done := attempt_read(project, aws))[0] != 0 and time.monotonic() < deadline:
            time.sleep(1)
        assert done[0] == 0, done[1]
        server.kill()
        assert attempt_read(project, aws)[0] == 0  # from the checked copies


def attempt_read(project, aws):
    """Return code, and the last line on stderr."""
    (project / "texts").unlink(missing_ok=True)  # what DVC links from its cache cannot be written to
    done = attempt(project, "python -m read", aws)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]
